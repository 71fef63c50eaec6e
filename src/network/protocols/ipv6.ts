/**
 * IPv6 (RFC 8200): one header, no fragments, addresses as 16 bytes in the frame.
 *
 * Incoming: a hop-by-hop header is stepped over, as multicast listener reports carry one; an option in it
 * whose type says that a node that does not know it must drop the packet has it dropped. All other
 * extension headers, fragments among them, are protocols that we do not speak. The header lies at a fixed
 * offset, so addresses are compared and copied where they are. Outgoing: no extension headers, no flow.
 */

import { addBytes } from "./checksum.ts";
import { ETHERNET_HEADER_SIZE, EtherType, isAddress } from "./ethernet.ts";
import { copyBytes, readU16, writeU16, writeU32 } from "./byte_order.ts";
import { type InternetVersion, Packet, Protocol, type Verdict } from "./packet.ts";

const IPV6_HEADER: number = ETHERNET_HEADER_SIZE;
export const IPV6_HEADER_SIZE = 40;
export const IPV6_PAYLOAD: number = IPV6_HEADER + IPV6_HEADER_SIZE;
export const IPV6_SOURCE: number = IPV6_HEADER + 8;
export const IPV6_DESTINATION: number = IPV6_HEADER + 24;
export const IPV6_ADDRESS_SIZE = 16;
/** See {@link InternetVersion}; control messages of RFC 4443. */
export const IPV6: InternetVersion = {
  ethertype: EtherType.IPV6,
  addresses: IPV6_SOURCE,
  payload: IPV6_PAYLOAD,
  control: Protocol.ICMPV6,
  echoRequest: 0x8000,
  echoReply: 0x8100,
  portUnreachable: 0x0104,
};
/** What everything but neighbour discovery is sent with. */
export const HOP_LIMIT = 64;
export const ALL_NODES: Uint8Array = parseIpv6Address("ff02::1");
export const ALL_ROUTERS: Uint8Array = parseIpv6Address("ff02::2");

const UNSPECIFIED = parseIpv6Address("::");
const LOOPBACK = parseIpv6Address("::1");

const PAYLOAD_LENGTH = IPV6_HEADER + 4;
const NEXT_HEADER = IPV6_HEADER + 6;
const HOP_LIMIT_FIELD = IPV6_HEADER + 7;

const VERSION_6 = 6;
const HOP_BY_HOP = 0;
/** Options that fill up: of one byte, and of more. */
const [OPTION_PAD_1, OPTION_PAD_N] = [0, 1];
/** The two bits of an option's type that say what to do with an unknown one; 0 is "skip". */
const OPTION_ACTION_MASK = 0xc0;

/** A received packet, whose addresses stay in the frame. */
export class Ipv6Packet extends Packet {
  /** Hops that were left. */
  hopLimit = 0;
  /** Its sender has no address yet (::). */
  fromNobody = false;
  /** It is for a group of hosts. */
  toGroup = false;

  constructor() {
    super(IPV6);
  }
}

/** Checks the header of an IPv6 frame and fills the record in; "done" means that it is whole. */
export function parseIpv6(packet: Ipv6Packet, frame: Uint8Array, length: number): Verdict {
  if (length < IPV6_PAYLOAD || frame[IPV6_HEADER] >>> 4 !== VERSION_6) return "malformed";
  const payloadLength = readU16(frame, PAYLOAD_LENGTH);
  if (payloadLength > length - IPV6_PAYLOAD) return "malformed";
  const end = IPV6_PAYLOAD + payloadLength;
  let start = IPV6_PAYLOAD;
  let protocol = frame[NEXT_HEADER];
  if (protocol === HOP_BY_HOP) {
    if (payloadLength < 8) return "malformed";
    const optionsEnd = start + 8 + frame[start + 1] * 8;
    if (optionsEnd > end) return "malformed";
    protocol = frame[start];
    const verdict = checkOptions(frame, start + 2, optionsEnd);
    if (verdict !== "done") return verdict;
    start = optionsEnd;
  }
  // Of a group nothing comes, and ::1 may be on no link (RFC 4291 2.7, 2.5.3).
  if (isMulticast6(frame, IPV6_SOURCE)) return "malformed";
  if (isAddress(frame, IPV6_SOURCE, LOOPBACK)) return "malformed";
  packet.fromNobody = isAddress(frame, IPV6_SOURCE, UNSPECIFIED);
  packet.toGroup = isMulticast6(frame, IPV6_DESTINATION);
  packet.frame = frame;
  packet.protocol = protocol;
  packet.start = start;
  packet.end = end;
  packet.hopLimit = frame[HOP_LIMIT_FIELD];
  packet.addressSum = addBytes(0, frame, IPV6_SOURCE, IPV6_PAYLOAD);
  return "done";
}

/** Walks over the hop-by-hop options; "done" if none of them forbids to ignore it. */
function checkOptions(frame: Uint8Array, start: number, end: number): Verdict {
  let at = start;
  while (at < end) {
    const type = frame[at];
    if (type === OPTION_PAD_1) {
      at++;
      continue;
    }
    if (at + 2 > end) return "malformed";
    const next = at + 2 + frame[at + 1];
    if (next > end) return "malformed";
    if (type !== OPTION_PAD_N && (type & OPTION_ACTION_MASK) !== 0) return "dropped";
    at = next;
  }
  return "done";
}

/** Writes a header; the addresses are `source` and the 16 bytes of `destination` at `destinationAt`. */
export function writeIpv6Header(
  frame: Uint8Array,
  payloadLength: number,
  protocol: number,
  hopLimit: number,
  source: Uint8Array,
  sourceAt: number,
  destination: Uint8Array,
  destinationAt: number,
): void {
  writeU32(frame, IPV6_HEADER, VERSION_6 << 28);
  writeU16(frame, PAYLOAD_LENGTH, payloadLength);
  frame[NEXT_HEADER] = protocol;
  frame[HOP_LIMIT_FIELD] = hopLimit;
  copyBytes(frame, IPV6_SOURCE, source, sourceAt, IPV6_ADDRESS_SIZE);
  copyBytes(frame, IPV6_DESTINATION, destination, destinationAt, IPV6_ADDRESS_SIZE);
}

export function isMulticast6(bytes: Uint8Array, at: number): boolean {
  return bytes[at] === 0xff;
}

/** The group that asks for `address` go to (RFC 4291 2.7.1). */
export function solicitedNodeOf(address: Uint8Array): Uint8Array {
  const group = parseIpv6Address("ff02::1:ff00:0");
  group.set(address.subarray(13), 13);
  return group;
}

/** The link-local address with the interface identifier of a MAC address (RFC 4291, appendix A). */
export function linkLocalOf(mac: Uint8Array): Uint8Array {
  const address = parseIpv6Address("fe80::ff:fe00:0");
  address.set(mac.subarray(0, 3), 8);
  address.set(mac.subarray(3), 13);
  address[8] ^= 2;
  return address;
}

/** "fd00::2" as 16 bytes (RFC 4291 2.2, no dotted part); throws a TypeError for anything else. */
export function parseIpv6Address(text: string): Uint8Array {
  const halves = text.split("::");
  const groups = halves.map((half) => half === "" ? [] : half.split(":"));
  const given = groups.flat();
  const valid = given.every((group) => /^[0-9a-f]{1,4}$/i.test(group)) &&
    (halves.length === 1 ? given.length === 8 : halves.length === 2 && given.length < 8);
  if (!valid) throw new TypeError(`"${text}" is not an IPv6 address, as in fd00::2`);
  const zeros = Array<string>(8 - given.length).fill("0");
  const bytes = new Uint8Array(IPV6_ADDRESS_SIZE);
  [...groups[0], ...zeros, ...(groups[1] ?? [])].forEach((group, index) =>
    writeU16(bytes, index * 2, parseInt(group, 16))
  );
  return bytes;
}
