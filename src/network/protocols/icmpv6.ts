/**
 * ICMPv6 (RFC 4443): echo requests and replies, and "port unreachable"; what travels in it besides,
 * neighbour discovery, is in ndp.ts. The Ethernet header is the caller's to write.
 */

import { addBytes, checksumOf, foldSum } from "./checksum.ts";
import { ETHERNET_FRAME_MAX } from "./ethernet.ts";
import {
  HOP_LIMIT,
  IPV6_DESTINATION,
  IPV6_HEADER,
  IPV6_HEADER_SIZE,
  IPV6_PAYLOAD,
  IPV6_SOURCE,
  type Ipv6Packet,
  PROTOCOL_ICMPV6,
  writeIpv6Header,
} from "./ipv6.ts";
import { copyBytes, readU16, writeU16, writeU32 } from "./byte_order.ts";
import type { Verdict } from "./packet.ts";

/** Type and code of an echo request, as one number. */
export const ECHO6_REQUEST = 0x8000;
const ECHO6_REPLY = 0x8100;
const PORT6_UNREACHABLE = 0x0104;
const HEADER_SIZE = 8;
/** An error is at most as long as the smallest MTU (RFC 4443 2.4 c), header included. */
const QUOTED_SIZE_MAX = 1280 - IPV6_HEADER_SIZE - HEADER_SIZE;

/** Checks length and checksum of a message; "done" means that type and code are there to be read. */
export function checkIcmpv6(frame: Uint8Array, packet: Ipv6Packet): Verdict {
  const length = packet.end - packet.start;
  if (length < HEADER_SIZE) return "malformed";
  if (packet.trusted) return "done";
  const sum = packet.addressSum + PROTOCOL_ICMPV6 + length;
  return foldSum(addBytes(sum, frame, packet.start, packet.end)) === 0xffff ? "done" : "checksum";
}

/** Type and code, as one number. */
export function readIcmpv6Kind(frame: Uint8Array, packet: Ipv6Packet): number {
  return readU16(frame, packet.start);
}

/**
 * Writes the packet that answers an echo request, from the address that was asked. Returns the frame's
 * length, 0 if that is more than one frame can have: we do not fragment.
 */
export function writeEchoReply6(
  reply: Uint8Array,
  frame: Uint8Array,
  packet: Ipv6Packet,
): number {
  const length = packet.end - packet.start;
  if (IPV6_PAYLOAD + length > ETHERNET_FRAME_MAX) return 0;
  copyBytes(reply, IPV6_PAYLOAD + 4, frame, packet.start + 4, length - 4);
  writeAnswerHeader(reply, frame, length);
  return finishIcmpv6(reply, ECHO6_REPLY, length);
}

/**
 * Writes the packet that tells the sender of a UDP datagram that nobody listens. Returns the frame's
 * length.
 */
export function writePort6Unreachable(
  reply: Uint8Array,
  frame: Uint8Array,
  packet: Ipv6Packet,
): number {
  const quoted = Math.min(packet.end - IPV6_HEADER, QUOTED_SIZE_MAX);
  writeU32(reply, IPV6_PAYLOAD + 4, 0);
  copyBytes(reply, IPV6_PAYLOAD + HEADER_SIZE, frame, IPV6_HEADER, quoted);
  writeAnswerHeader(reply, frame, HEADER_SIZE + quoted);
  return finishIcmpv6(reply, PORT6_UNREACHABLE, HEADER_SIZE + quoted);
}

/** Writes the header of an answer from the address that was asked to the one that asked. */
function writeAnswerHeader(reply: Uint8Array, frame: Uint8Array, length: number): void {
  writeIpv6Header(
    reply,
    length,
    PROTOCOL_ICMPV6,
    HOP_LIMIT,
    frame,
    IPV6_DESTINATION,
    frame,
    IPV6_SOURCE,
  );
}

/**
 * Writes type, code and checksum of a message of `length` bytes whose headers and body are in place.
 * Returns the frame's length.
 */
export function finishIcmpv6(reply: Uint8Array, kind: number, length: number): number {
  const end = IPV6_PAYLOAD + length;
  writeU16(reply, IPV6_PAYLOAD, kind);
  writeU16(reply, IPV6_PAYLOAD + 2, 0);
  // The addresses lie right before the message: one sum over both.
  const sum = addBytes(PROTOCOL_ICMPV6 + length, reply, IPV6_SOURCE, end);
  writeU16(reply, IPV6_PAYLOAD + 2, checksumOf(sum));
  return end;
}
