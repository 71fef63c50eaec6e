/**
 * DHCP messages (RFC 2131, options of RFC 2132): those of clients in, those of a server out.
 *
 * Where answers go (RFC 2131 4.1): to `ciaddr` if the client has an address, else to all if it set the
 * broadcast flag, else to its new address and MAC; a NAK always goes to all.
 */

import { copyBytes, readU16, readU32, writeU16, writeU32 } from "./byte_order.ts";
import { EtherType, isGroupMac, MAC_BROADCAST, MAC_SIZE, writeEthernetHeader } from "./ethernet.ts";
import { IPV4_LIMITED_BROADCAST } from "./ipv4.ts";
import type { Station, Verdict } from "./packet.ts";
import { UDP_PAYLOAD, type UdpDatagram, writeUdpHeaders } from "./udp.ts";

export const DHCP_SERVER_PORT = 67;
const CLIENT_PORT = 68;

/** Message types (RFC 2132 9.6): a client's DISCOVER and REQUEST; OFFER, ACK (yes) and NAK (no) of a server. */
export const DhcpType = { DISCOVER: 1, OFFER: 2, REQUEST: 3, ACK: 5, NAK: 6 } as const;

/** Offsets of the fixed fields (RFC 2131, figure 1). */
const OP = 0;
const HTYPE_HLEN = 1;
const XID = 4;
const FLAGS = 10;
const CIADDR = 12;
const YIADDR = 16;
const GIADDR = 24;
const CHADDR = 28;
const COOKIE = 236;
const OPTIONS = 240;

/** A client may rely on BOOTP's size (RFC 1542 2.1), so short answers are padded to it. */
const MESSAGE_SIZE_MIN = 300;
/** The fixed part, our options and the longest client identifier; below the 548 every client takes. */
const MESSAGE_SIZE_MAX = 540;

const [BOOTREQUEST, BOOTREPLY] = [1, 2];
const ETHERNET_6 = 0x0106;
const FLAG_BROADCAST = 0x8000;
const MAGIC_COOKIE = 0x63825363;

const Option = {
  PAD: 0,
  SUBNET_MASK: 1,
  ROUTER: 3,
  REQUESTED_ADDRESS: 50,
  LEASE_TIME: 51,
  MESSAGE_TYPE: 53,
  SERVER_IDENTIFIER: 54,
  CLIENT_IDENTIFIER: 61,
  END: 255,
} as const;

/** A client's message, for Ethernet. One record serves all, one after the other; 0 for what is absent. */
export class DhcpMessage {
  /** What it lies in, and where it begins there. */
  frame: Uint8Array = new Uint8Array();
  start = 0;
  type = 0;
  clientAddress = 0;
  requested = 0;
  server = 0;
  clientIdentifierAt = 0;
  clientIdentifierLength = 0;

  /** Where in the frame its MAC address is (`chaddr`). */
  get macAt(): number {
    return this.start + CHADDR;
  }
}

/** Checks a message and fills the record in. Messages through a relay are ignored. */
export function parseDhcp(message: DhcpMessage, { frame, start: at, end }: UdpDatagram): Verdict {
  if (end - at < OPTIONS) return "malformed";
  if (frame[at + OP] !== BOOTREQUEST) return "ignored";
  if (readU16(frame, at + HTYPE_HLEN) !== ETHERNET_6) return "malformed";
  if (isGroupMac(frame, at + CHADDR)) return "malformed";
  if (readU32(frame, at + GIADDR) !== 0) return "ignored";
  if (readU32(frame, at + COOKIE) !== MAGIC_COOKIE) return "ignored";
  message.frame = frame;
  message.start = at;
  message.clientAddress = readU32(frame, at + CIADDR);
  return parseOptions(message, at + OPTIONS, end);
}

/** Reads the options that matter; malformed if one of them is cut off or has the wrong length. */
function parseOptions(message: DhcpMessage, at: number, end: number): Verdict {
  const { frame } = message;
  message.type = message.requested = message.server = 0;
  message.clientIdentifierLength = 0;
  while (at < end) {
    const option = frame[at++];
    if (option === Option.PAD) continue;
    if (option === Option.END) return "done";
    if (at >= end) return "malformed";
    const length = frame[at++];
    if (length > end - at) return "malformed";
    switch (option) {
      case Option.MESSAGE_TYPE:
        if (length !== 1) return "malformed";
        message.type = frame[at];
        break;
      case Option.REQUESTED_ADDRESS:
        if (length !== 4) return "malformed";
        message.requested = readU32(frame, at);
        break;
      case Option.SERVER_IDENTIFIER:
        if (length !== 4) return "malformed";
        message.server = readU32(frame, at);
        break;
      case Option.CLIENT_IDENTIFIER:
        message.clientIdentifierAt = at;
        message.clientIdentifierLength = length;
        break;
    }
    at += length;
  }
  // Without an end option: RFC 2131 4.1 wants one, but nothing is lost without.
  return "done";
}

/**
 * Writes the frame that answers a message. Returns its length.
 *
 * @param by who answers, which is also the router
 * @param address the client's
 */
export function writeDhcpReply(
  by: Station & { readonly mask: number },
  type: number,
  address: number,
  leaseSeconds: number,
  message: DhcpMessage,
): number {
  const { slot: reply, address: server } = by;
  const { frame, start, clientAddress, macAt, clientIdentifierAt, clientIdentifierLength } =
    message;
  const flags = readU16(frame, start + FLAGS);
  const isNak = type === DhcpType.NAK;

  const to = UDP_PAYLOAD;
  reply.fill(0, to, to + MESSAGE_SIZE_MAX);
  reply[to + OP] = BOOTREPLY;
  writeU16(reply, to + HTYPE_HLEN, ETHERNET_6);
  writeU32(reply, to + XID, readU32(frame, start + XID));
  writeU16(reply, to + FLAGS, flags);
  if (type === DhcpType.ACK) writeU32(reply, to + CIADDR, clientAddress);
  if (!isNak) writeU32(reply, to + YIADDR, address);
  copyBytes(reply, to + CHADDR, frame, macAt, MAC_SIZE);
  writeU32(reply, to + COOKIE, MAGIC_COOKIE);

  // The options of RFC 2131, table 3.
  let at = writeOption(reply, to + OPTIONS, Option.MESSAGE_TYPE, 1);
  reply[at - 1] = type;
  at = writeU32Option(reply, at, Option.SERVER_IDENTIFIER, server);
  if (!isNak) {
    at = writeU32Option(reply, at, Option.LEASE_TIME, leaseSeconds);
    at = writeU32Option(reply, at, Option.SUBNET_MASK, by.mask);
    at = writeU32Option(reply, at, Option.ROUTER, server);
  }
  // RFC 6842: a client identifier comes back as it was sent.
  if (clientIdentifierLength > 0) {
    at = writeOption(reply, at, Option.CLIENT_IDENTIFIER, clientIdentifierLength);
    const value = at - clientIdentifierLength;
    copyBytes(reply, value, frame, clientIdentifierAt, clientIdentifierLength);
  }
  reply[at++] = Option.END;
  const size = Math.max(at - to, MESSAGE_SIZE_MIN);

  const hasAddress = clientAddress !== 0;
  const toAll = isNak || (!hasAddress && (flags & FLAG_BROADCAST) !== 0);
  const mac = toAll ? MAC_BROADCAST : frame;
  writeEthernetHeader(reply, mac, toAll ? 0 : macAt, by.mac, EtherType.IPV4);
  const destination = toAll ? IPV4_LIMITED_BROADCAST : hasAddress ? clientAddress : address;
  writeUdpHeaders(reply, size, [server, DHCP_SERVER_PORT], [destination, CLIENT_PORT]);
  return UDP_PAYLOAD + size;
}

/** Begins an option; returns the offset after its value of `length` bytes, which is the caller's to write. */
function writeOption(reply: Uint8Array, at: number, option: number, length: number): number {
  reply[at] = option;
  reply[at + 1] = length;
  return at + 2 + length;
}

function writeU32Option(reply: Uint8Array, at: number, option: number, value: number): number {
  writeU32(reply, at + 2, value);
  return writeOption(reply, at, option, 4);
}
