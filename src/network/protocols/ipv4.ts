/**
 * IPv4 (RFC 791, as RFC 1122 3.2.1 amends it for hosts): one header, no fragments.
 *
 * Incoming: options are skipped over and never obeyed (RFC 1122 3.2.1.8); bytes after the total length
 * are Ethernet padding; fragments are dropped, for reassembly would hold memory on a stranger's behalf. A
 * time to live of 0 is accepted, as a host that does not forward must. Outgoing: no options, never
 * fragmented, and with "don't fragment" set, so the identification may be constant (RFC 6864 4.1).
 */

import { addBytes, addU32, checksumOf, foldSum } from "./checksum.ts";
import { ETHERNET_HEADER_SIZE, EtherType } from "./ethernet.ts";
import { readU16, readU32, writeU16, writeU32 } from "./byte_order.ts";
import { type InternetVersion, Packet, Protocol, type Verdict } from "./packet.ts";

const IPV4_HEADER: number = ETHERNET_HEADER_SIZE;
export const IPV4_SOURCE: number = IPV4_HEADER + 12;
/** Bytes of a header without options, the only kind that we write. */
const IPV4_HEADER_SIZE = 20;
export const IPV4_PAYLOAD: number = IPV4_HEADER + IPV4_HEADER_SIZE;
/** See {@link InternetVersion}; control messages of RFC 792. */
export const IPV4: InternetVersion = {
  ethertype: EtherType.IPV4,
  addresses: IPV4_SOURCE,
  payload: IPV4_PAYLOAD,
  control: Protocol.ICMP,
  echoRequest: 0x0800,
  echoReply: 0x0000,
  portUnreachable: 0x0303,
};
export const IPV4_LIMITED_BROADCAST = 0xffffffff;

const TOTAL_LENGTH = IPV4_HEADER + 2;
const IDENTIFICATION = IPV4_HEADER + 4;
const FRAGMENT = IPV4_HEADER + 6;
const TIME_TO_LIVE = IPV4_HEADER + 8;
const CHECKSUM = IPV4_HEADER + 10;

const VERSION_4 = 4;
const NO_OPTIONS = 5;
const DONT_FRAGMENT = 0x4000;
/** "More fragments" and the offset; any of them set means a fragment. */
const FRAGMENT_MASK = 0x3fff;
const TTL = 64;

export class Ipv4Packet extends Packet {
  source = 0;
  destination = 0;

  constructor() {
    super(IPV4);
  }
}

/** Checks the header of an IPv4 frame and fills the record in; "done" means that it is whole. */
export function parseIpv4(packet: Ipv4Packet, frame: Uint8Array, length: number): Verdict {
  if (length < IPV4_PAYLOAD) return "malformed";
  if (frame[IPV4_HEADER] >>> 4 !== VERSION_4) return "malformed";
  const headerSize = (frame[IPV4_HEADER] & 15) * 4;
  const totalLength = readU16(frame, TOTAL_LENGTH);
  if (headerSize < IPV4_HEADER_SIZE || totalLength < headerSize) return "malformed";
  if (totalLength > length - IPV4_HEADER) return "malformed";
  if (foldSum(addBytes(0, frame, IPV4_HEADER, IPV4_HEADER + headerSize)) !== 0xffff) {
    return "checksum";
  }
  if ((readU16(frame, FRAGMENT) & FRAGMENT_MASK) !== 0) return "dropped";
  packet.frame = frame;
  packet.source = readU32(frame, IPV4_SOURCE);
  packet.destination = readU32(frame, IPV4_SOURCE + 4);
  packet.addressSum = addU32(addU32(0, packet.source), packet.destination);
  packet.protocol = frame[IPV4_HEADER + 9];
  packet.start = IPV4_HEADER + headerSize;
  packet.end = IPV4_HEADER + totalLength;
  return "done";
}

export function writeIpv4Header(
  frame: Uint8Array,
  payloadLength: number,
  protocol: number,
  source: number,
  destination: number,
): void {
  writeU16(frame, IPV4_HEADER, VERSION_4 << 12 | NO_OPTIONS << 8);
  writeU16(frame, TOTAL_LENGTH, IPV4_HEADER_SIZE + payloadLength);
  writeU16(frame, IDENTIFICATION, 0);
  writeU16(frame, FRAGMENT, DONT_FRAGMENT);
  writeU16(frame, TIME_TO_LIVE, TTL << 8 | protocol);
  writeU16(frame, CHECKSUM, 0);
  writeU32(frame, IPV4_SOURCE, source);
  writeU32(frame, IPV4_SOURCE + 4, destination);
  writeU16(frame, CHECKSUM, checksumOf(addBytes(0, frame, IPV4_HEADER, IPV4_PAYLOAD)));
}

/** Whether an address cannot be one host's (RFC 1122 3.2.1.3): loopback, multicast, class E, broadcast. */
export function isMartian(address: number): boolean {
  return address >= 0xe0000000 || address >>> 24 === 127;
}

/** "10.0.2.2" as a number; throws a TypeError for anything else. */
export function parseIpv4Address(text: string): number {
  const parts = text.split(".");
  let address = 0;
  for (const part of parts) address = address * 256 + Number(part);
  if (parts.length !== 4 || !parts.every((part) => /^\d{1,3}$/.test(part) && Number(part) < 256)) {
    throw new TypeError(`"${text}" is not an IPv4 address, as in 10.0.2.2`);
  }
  return address;
}

export function formatIpv4Address(address: number): string {
  return [address >>> 24, address >>> 16 & 255, address >>> 8 & 255, address & 255].join(".");
}
