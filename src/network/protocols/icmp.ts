/**
 * ICMP (RFC 792): echo requests and replies, and "port unreachable". The Ethernet header is the caller's to
 * write.
 */

import { addBytes, checksumOf, foldSum } from "./checksum.ts";
import { ETHERNET_FRAME_MAX } from "./ethernet.ts";
import {
  IPV4_HEADER,
  IPV4_PAYLOAD,
  type Ipv4Packet,
  PROTOCOL_ICMP,
  writeIpv4Header,
} from "./ipv4.ts";
import { copyBytes, readU16, writeU16, writeU32 } from "./byte_order.ts";
import type { Verdict } from "./packet.ts";

const HEADER_SIZE = 8;
/** Type and code of an echo request, as one number; the others likewise. */
export const ECHO_REQUEST = 0x0800;
const ECHO_REPLY = 0x0000;
const PORT_UNREACHABLE = 0x0303;
/** What an error quotes after the offender's IP header: "the first 64 bits of the original data". */
const QUOTED_PAYLOAD_SIZE = 8;

/** Checks length and checksum of a message; "done" means that its type and code are there to be read. */
export function checkIcmp(frame: Uint8Array, packet: Ipv4Packet): Verdict {
  if (packet.end - packet.start < HEADER_SIZE) return "malformed";
  return foldSum(addBytes(0, frame, packet.start, packet.end)) === 0xffff ? "done" : "checksum";
}

/** Type and code, as one number. */
export function readIcmpKind(frame: Uint8Array, packet: Ipv4Packet): number {
  return readU16(frame, packet.start);
}

/**
 * Writes the packet that answers an echo request: identifier, sequence number and data come back, IP
 * options do not. Returns the frame's length, 0 if that is more than one frame can have: we do not
 * fragment.
 */
export function writeEchoReply(
  reply: Uint8Array,
  source: number,
  frame: Uint8Array,
  packet: Ipv4Packet,
): number {
  const length = packet.end - packet.start;
  if (IPV4_PAYLOAD + length > ETHERNET_FRAME_MAX) return 0;
  copyBytes(reply, IPV4_PAYLOAD + 4, frame, packet.start + 4, length - 4);
  return writeIcmpHeaders(reply, ECHO_REPLY, length, source, packet.source);
}

/**
 * Writes the packet that tells the sender of a UDP datagram that nobody listens. Returns the frame's
 * length.
 */
export function writePortUnreachable(
  reply: Uint8Array,
  source: number,
  frame: Uint8Array,
  packet: Ipv4Packet,
): number {
  const quoted = packet.start - IPV4_HEADER + QUOTED_PAYLOAD_SIZE;
  writeU32(reply, IPV4_PAYLOAD + 4, 0);
  copyBytes(reply, IPV4_PAYLOAD + HEADER_SIZE, frame, IPV4_HEADER, quoted);
  return writeIcmpHeaders(reply, PORT_UNREACHABLE, HEADER_SIZE + quoted, source, packet.source);
}

/** Adds both headers to a message of `length` bytes whose body is written; returns the frame's length. */
function writeIcmpHeaders(
  frame: Uint8Array,
  kind: number,
  length: number,
  source: number,
  destination: number,
): number {
  const end = IPV4_PAYLOAD + length;
  writeIpv4Header(frame, length, PROTOCOL_ICMP, source, destination);
  writeU16(frame, IPV4_PAYLOAD, kind);
  writeU16(frame, IPV4_PAYLOAD + 2, 0);
  writeU16(frame, IPV4_PAYLOAD + 2, checksumOf(addBytes(0, frame, IPV4_PAYLOAD, end)));
  return end;
}

/** Writes an echo request of `size` data bytes. Returns the frame's length. */
export function writeEchoRequest(
  frame: Uint8Array,
  size: number,
  source: number,
  destination: number,
  identifier: number,
  sequence: number,
): number {
  writeU16(frame, IPV4_PAYLOAD + 4, identifier);
  writeU16(frame, IPV4_PAYLOAD + 6, sequence);
  for (let i = 0; i < size; i++) frame[IPV4_PAYLOAD + HEADER_SIZE + i] = i & 0xff;
  return writeIcmpHeaders(frame, ECHO_REQUEST, HEADER_SIZE + size, source, destination);
}

/** The sequence number of an echo reply with our identifier, or -1. */
export function readEchoReply(
  frame: Uint8Array,
  packet: Ipv4Packet,
  identifier: number,
): number {
  if (checkIcmp(frame, packet) !== "done") return -1;
  if (readIcmpKind(frame, packet) !== ECHO_REPLY) return -1;
  if (readU16(frame, packet.start + 4) !== identifier) return -1;
  return readU16(frame, packet.start + 6);
}
