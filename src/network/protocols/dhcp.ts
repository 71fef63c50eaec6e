/**
 * DHCP messages (RFC 2131, options of RFC 2132): those of clients in, those of a server out.
 *
 * Where answers go (RFC 2131 4.1): to `ciaddr` if the client has an address, else to all if it set the
 * broadcast flag, else to its new address and MAC; a NAK always goes to all.
 */

import { copyBytes, readU16, readU32, writeU16, writeU32 } from "./byte_order.ts";
import {
  ETHERTYPE_IPV4,
  isGroupMac,
  MAC_BROADCAST,
  MAC_SIZE,
  writeEthernetHeader,
} from "./ethernet.ts";
import { IPV4_LIMITED_BROADCAST } from "./ipv4.ts";
import type { Verdict } from "./packet.ts";
import { UDP_PAYLOAD, type UdpDatagram, writeUdpHeaders } from "./udp.ts";

/** The server's port. */
export const DHCP_SERVER_PORT = 67;
/** The client's port. */
export const DHCP_CLIENT_PORT = 68;

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

const BOOTREQUEST = 1;
const BOOTREPLY = 2;
const ETHERNET_6 = 0x0106;
const FLAG_BROADCAST = 0x8000;
const MAGIC_COOKIE = 0x63825363;

const OPTION_PAD = 0;
const OPTION_SUBNET_MASK = 1;
const OPTION_ROUTER = 3;
const OPTION_DNS = 6;
const OPTION_REQUESTED_ADDRESS = 50;
const OPTION_LEASE_TIME = 51;
const OPTION_MESSAGE_TYPE = 53;
const OPTION_SERVER_IDENTIFIER = 54;
const OPTION_CLIENT_IDENTIFIER = 61;
const OPTION_END = 255;

/** Message types (RFC 2132 9.6). */
export const DHCP_DISCOVER = 1;
/** From a server, to DISCOVER. */
export const DHCP_OFFER = 2;
/** From a client. */
export const DHCP_REQUEST = 3;
/** From a server, to REQUEST: yes. */
export const DHCP_ACK = 5;
/** From a server, to REQUEST: no. */
export const DHCP_NAK = 6;

/** A client's message, for Ethernet. One record serves all, one after the other; 0 for what is absent. */
export class DhcpMessage {
  /** Where the message begins in its frame. */
  start = 0;
  type = 0;
  /** The address the client has (`ciaddr`). */
  clientAddress = 0;
  /** The address it asks for. */
  requested = 0;
  /** The server it means. */
  server = 0;
  /** Where in the frame its MAC address is (`chaddr`). */
  macAt = 0;
  clientIdentifierAt = 0;
  clientIdentifierLength = 0;
}

/** What a server tells a client. */
export interface DhcpAnswer {
  readonly type: typeof DHCP_OFFER | typeof DHCP_ACK | typeof DHCP_NAK;
  /** The client's address. */
  readonly address: number;
  /** The server, which is also the router. */
  readonly server: number;
  readonly serverMac: Uint8Array;
  readonly leaseSeconds: number;
  /** Subnet mask. */
  readonly mask: number;
  /** The name server, 0 for none. */
  readonly dns: number;
}

/** Checks a message and fills the record in. Messages through a relay are ignored. */
export function parseDhcp(
  message: DhcpMessage,
  frame: Uint8Array,
  datagram: UdpDatagram,
): Verdict {
  const at = datagram.start;
  if (datagram.end - at < OPTIONS) return "malformed";
  if (frame[at + OP] !== BOOTREQUEST) return "ignored";
  if (readU16(frame, at + HTYPE_HLEN) !== ETHERNET_6) return "malformed";
  if (isGroupMac(frame, at + CHADDR)) return "malformed";
  if (readU32(frame, at + GIADDR) !== 0) return "ignored";
  if (readU32(frame, at + COOKIE) !== MAGIC_COOKIE) return "ignored";
  message.start = at;
  message.clientAddress = readU32(frame, at + CIADDR);
  message.macAt = at + CHADDR;
  return parseOptions(message, frame, at + OPTIONS, datagram.end);
}

/** Reads the options that matter; malformed if one of them is cut off or has the wrong length. */
function parseOptions(
  message: DhcpMessage,
  frame: Uint8Array,
  start: number,
  end: number,
): Verdict {
  message.type =
    message.requested =
    message.server =
    message.clientIdentifierLength =
      0;
  let at = start;
  while (at < end) {
    const option = frame[at++];
    if (option === OPTION_PAD) continue;
    if (option === OPTION_END) return "done";
    if (at >= end) return "malformed";
    const length = frame[at++];
    if (length > end - at) return "malformed";
    switch (option) {
      case OPTION_MESSAGE_TYPE:
        if (length !== 1) return "malformed";
        message.type = frame[at];
        break;
      case OPTION_REQUESTED_ADDRESS:
        if (length !== 4) return "malformed";
        message.requested = readU32(frame, at);
        break;
      case OPTION_SERVER_IDENTIFIER:
        if (length !== 4) return "malformed";
        message.server = readU32(frame, at);
        break;
      case OPTION_CLIENT_IDENTIFIER:
        message.clientIdentifierAt = at;
        message.clientIdentifierLength = length;
        break;
    }
    at += length;
  }
  // Without an end option: RFC 2131 4.1 wants one, but nothing is lost without.
  return "done";
}

/** Writes the frame that answers a message. Returns its length. */
export function writeDhcpReply(
  reply: Uint8Array,
  answer: DhcpAnswer,
  frame: Uint8Array,
  message: DhcpMessage,
): number {
  const { type, address, server, serverMac } = answer;
  const { start, clientAddress, macAt } = message;
  const flags = readU16(frame, start + FLAGS);

  const to = UDP_PAYLOAD;
  reply.fill(0, to, to + MESSAGE_SIZE_MAX);
  reply[to + OP] = BOOTREPLY;
  writeU16(reply, to + HTYPE_HLEN, ETHERNET_6);
  writeU32(reply, to + XID, readU32(frame, start + XID));
  writeU16(reply, to + FLAGS, flags);
  if (type === DHCP_ACK) writeU32(reply, to + CIADDR, clientAddress);
  if (type !== DHCP_NAK) writeU32(reply, to + YIADDR, address);
  copyBytes(reply, to + CHADDR, frame, macAt, MAC_SIZE);
  writeU32(reply, to + COOKIE, MAGIC_COOKIE);
  const end = writeOptions(reply, to + OPTIONS, answer, frame, message);
  const size = Math.max(end - to, MESSAGE_SIZE_MIN);

  let destination = address;
  let toAll = false;
  if (type === DHCP_NAK) toAll = true;
  else if (clientAddress !== 0) destination = clientAddress;
  else toAll = (flags & FLAG_BROADCAST) !== 0;
  if (toAll) {
    destination = IPV4_LIMITED_BROADCAST;
    writeEthernetHeader(reply, MAC_BROADCAST, 0, serverMac, ETHERTYPE_IPV4);
  } else {
    writeEthernetHeader(reply, frame, macAt, serverMac, ETHERTYPE_IPV4);
  }
  writeUdpHeaders(reply, size, server, DHCP_SERVER_PORT, destination, DHCP_CLIENT_PORT);
  return UDP_PAYLOAD + size;
}

/** Writes the options of an answer (RFC 2131, table 3) and returns the offset after them. */
function writeOptions(
  reply: Uint8Array,
  start: number,
  { type, server, leaseSeconds, mask, dns }: DhcpAnswer,
  frame: Uint8Array,
  message: DhcpMessage,
): number {
  let at = start;
  reply[at++] = OPTION_MESSAGE_TYPE;
  reply[at++] = 1;
  reply[at++] = type;
  at = writeU32Option(reply, at, OPTION_SERVER_IDENTIFIER, server);
  if (type !== DHCP_NAK) {
    at = writeU32Option(reply, at, OPTION_LEASE_TIME, leaseSeconds);
    at = writeU32Option(reply, at, OPTION_SUBNET_MASK, mask);
    at = writeU32Option(reply, at, OPTION_ROUTER, server);
    if (dns !== 0) at = writeU32Option(reply, at, OPTION_DNS, dns);
  }
  // RFC 6842: a client identifier comes back as it was sent.
  if (message.clientIdentifierLength > 0) {
    reply[at++] = OPTION_CLIENT_IDENTIFIER;
    reply[at++] = message.clientIdentifierLength;
    copyBytes(reply, at, frame, message.clientIdentifierAt, message.clientIdentifierLength);
    at += message.clientIdentifierLength;
  }
  reply[at++] = OPTION_END;
  return at;
}

function writeU32Option(reply: Uint8Array, at: number, option: number, value: number): number {
  reply[at] = option;
  reply[at + 1] = 4;
  writeU32(reply, at + 2, value);
  return at + 6;
}
