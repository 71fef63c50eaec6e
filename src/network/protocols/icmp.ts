/**
 * ICMP (RFC 792) and ICMPv6 (RFC 4443): echo requests and replies, and "port unreachable". What travels in
 * ICMPv6 besides, neighbour discovery, is in ndp.ts.
 */

import { writeAnswer } from "./answer.ts";
import { copyBytes, readU16, writeU16, writeU32 } from "./byte_order.ts";
import { addBytes, checksumOf, foldSum } from "./checksum.ts";
import { ETHERNET_FRAME_MAX, ETHERNET_HEADER_SIZE } from "./ethernet.ts";
import { IPV4, IPV4_PAYLOAD, type Ipv4Packet, writeIpv4Header } from "./ipv4.ts";
import { IPV6_HEADER_SIZE } from "./ipv6.ts";
import {
  type InternetVersion,
  type Packet,
  Protocol,
  type Station,
  type Verdict,
} from "./packet.ts";

const HEADER_SIZE = 8;
/** What an error quotes after the offender's IPv4 header: "the first 64 bits of the original data". */
const QUOTED_PAYLOAD_SIZE = 8;
/** Over IPv6 an error is at most as long as the smallest MTU (RFC 4443 2.4 c), header included. */
const QUOTED6_SIZE_MAX = 1280 - IPV6_HEADER_SIZE - HEADER_SIZE;

/** Checks length and checksum of a message; "done" means that its type and code are there to be read. */
export function checkIcmp(packet: Packet): Verdict {
  const length = packet.end - packet.start;
  if (length < HEADER_SIZE) return "malformed";
  let sum = 0;
  // Over IPv6 there is a pseudo header, whose sum alone may be in the field.
  if (packet.version !== IPV4) {
    if (packet.trusted) return "done";
    sum = packet.addressSum + packet.version.control + length;
  }
  const whole = addBytes(sum, packet.frame, packet.start, packet.end);
  return foldSum(whole) === 0xffff ? "done" : "checksum";
}

export function readIcmpKind({ frame, start }: Packet): number {
  return readU16(frame, start);
}

/**
 * Writes the frame that answers an echo request: identifier, sequence number and data come back, IP
 * options do not. Returns its length, 0 if that is more than one frame can have: we do not fragment.
 */
export function writeEchoReply(by: Station, packet: Packet): number {
  const { frame, version, start, end } = packet;
  const length = end - start;
  if (version.payload + length > ETHERNET_FRAME_MAX) return 0;
  copyBytes(by.slot, version.payload + 4, frame, start + 4, length - 4);
  writeAnswer(by, packet, version.control, length);
  return finishIcmp(by.slot, version, version.echoReply, length);
}

/** Writes the frame that tells the sender of a UDP datagram that nobody listens. Returns its length. */
export function writePortUnreachable(by: Station, packet: Packet): number {
  const { frame, version, start, end } = packet;
  const quoted = version === IPV4
    ? start - ETHERNET_HEADER_SIZE + QUOTED_PAYLOAD_SIZE
    : Math.min(end - ETHERNET_HEADER_SIZE, QUOTED6_SIZE_MAX);
  const length = HEADER_SIZE + quoted;
  writeU32(by.slot, version.payload + 4, 0);
  copyBytes(by.slot, version.payload + HEADER_SIZE, frame, ETHERNET_HEADER_SIZE, quoted);
  writeAnswer(by, packet, version.control, length);
  return finishIcmp(by.slot, version, version.portUnreachable, length);
}

/**
 * Writes type, code and checksum of a message of `length` bytes whose headers and body are in place.
 * Returns the frame's length.
 */
export function finishIcmp(
  frame: Uint8Array,
  version: InternetVersion,
  kind: number,
  length: number,
): number {
  const { payload, addresses, control } = version;
  const end = payload + length;
  writeU16(frame, payload, kind);
  writeU16(frame, payload + 2, 0);
  // The addresses of IPv6's pseudo header lie right before the message: one sum over both.
  const sum = version === IPV4
    ? addBytes(0, frame, payload, end)
    : addBytes(control + length, frame, addresses, end);
  writeU16(frame, payload + 2, checksumOf(sum));
  return end;
}

/** Writes an IPv4 echo request of `size` data bytes, but for the Ethernet header. Returns the frame's length. */
export function writeEchoRequest(
  { slot, address }: Station,
  to: number,
  size: number,
  identifier: number,
  sequence: number,
): number {
  writeU16(slot, IPV4_PAYLOAD + 4, identifier);
  writeU16(slot, IPV4_PAYLOAD + 6, sequence);
  for (let i = 0; i < size; i++) slot[IPV4_PAYLOAD + HEADER_SIZE + i] = i & 0xff;
  writeIpv4Header(slot, HEADER_SIZE + size, Protocol.ICMP, address, to);
  return finishIcmp(slot, IPV4, IPV4.echoRequest, HEADER_SIZE + size);
}

/** The sequence number of an IPv4 echo reply with our identifier, or -1. */
export function readEchoReply(packet: Ipv4Packet, identifier: number): number {
  const { frame, start } = packet;
  const isOurs = checkIcmp(packet) === "done" && readIcmpKind(packet) === IPV4.echoReply &&
    readU16(frame, start + 4) === identifier;
  return isOurs ? readU16(frame, start + 6) : -1;
}
