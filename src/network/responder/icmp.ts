/**
 * ICMP (RFC 792): answers echo requests, and says "port unreachable".
 *
 * An echo request comes back with its identifier, sequence number and data, if that fits into one frame of
 * 1514 bytes; larger ones are dropped, since we do not fragment. IP options of the request are not
 * reflected. All other messages are ignored, errors among them, which also rules out errors about errors.
 */

import { addBytes, checksumOf, foldSum } from "./checksum.ts";
import {
  ETHERNET_DESTINATION,
  ETHERNET_FRAME_MAX,
  ETHERNET_SOURCE,
  ETHERTYPE_IPV4,
  isGroupMac,
  writeEthernetHeader,
} from "./ethernet.ts";
import type { Host, Verdict } from "./host.ts";
import {
  IPV4_HEADER,
  IPV4_PAYLOAD,
  type Ipv4Packet,
  PROTOCOL_ICMP,
  writeIpv4Header,
} from "./ipv4.ts";
import { copyBytes, readU16, writeU16, writeU32 } from "./network_order.ts";
import type { TokenBucket } from "./token_bucket.ts";

const HEADER_SIZE = 8;
/** Type and code, as one number. */
const ECHO_REQUEST = 0x0800;
const ECHO_REPLY = 0x0000;
const PORT_UNREACHABLE = 0x0303;
/** What an error quotes after the offender's IP header: "the first 64 bits of the original data". */
const QUOTED_PAYLOAD_SIZE = 8;

/** Answers an echo request. */
export function receiveIcmp(host: Host, frame: Uint8Array, packet: Ipv4Packet): Verdict {
  const length = packet.end - packet.start;
  if (length < HEADER_SIZE) return "malformed";
  if (foldSum(addBytes(0, frame, packet.start, packet.end)) !== 0xffff) return "checksum";
  if (readU16(frame, packet.start) !== ECHO_REQUEST) return "ignored";
  if (IPV4_PAYLOAD + length > ETHERNET_FRAME_MAX) return "dropped";

  const reply = host.ring.reserve();
  if (reply === undefined) return "dropped";
  copyBytes(reply, IPV4_PAYLOAD + 4, frame, packet.start + 4, length - 4);
  finish(host, reply, frame, packet, ECHO_REPLY, length);
  host.counters.echoReplies++;
  return "done";
}

/**
 * Tells the sender of a UDP datagram that nobody listens (RFC 1122 4.1.3.1), at most as often as `limit`
 * allows. A datagram in a broadcast frame is never answered with an error (RFC 1122 3.2.2).
 */
export function sendPortUnreachable(
  host: Host,
  frame: Uint8Array,
  packet: Ipv4Packet,
  limit: TokenBucket,
): Verdict {
  if (isGroupMac(frame, ETHERNET_DESTINATION)) return "ignored";
  if (!limit.take()) return "dropped";
  const reply = host.ring.reserve();
  if (reply === undefined) return "dropped";
  const quoted = packet.start - IPV4_HEADER + QUOTED_PAYLOAD_SIZE;
  writeU32(reply, IPV4_PAYLOAD + 4, 0);
  copyBytes(reply, IPV4_PAYLOAD + HEADER_SIZE, frame, IPV4_HEADER, quoted);
  finish(host, reply, frame, packet, PORT_UNREACHABLE, HEADER_SIZE + quoted);
  host.counters.portUnreachables++;
  return "done";
}

/** Adds the headers to a message whose body is written, and queues it for the sender of `frame`. */
function finish(
  host: Host,
  reply: Uint8Array,
  frame: Uint8Array,
  packet: Ipv4Packet,
  typeAndCode: number,
  length: number,
): void {
  const end = IPV4_PAYLOAD + length;
  writeEthernetHeader(reply, frame, ETHERNET_SOURCE, host.mac, ETHERTYPE_IPV4);
  writeIpv4Header(reply, length, PROTOCOL_ICMP, host.address, packet.source);
  writeU16(reply, IPV4_PAYLOAD, typeAndCode);
  writeU16(reply, IPV4_PAYLOAD + 2, 0);
  writeU16(reply, IPV4_PAYLOAD + 2, checksumOf(addBytes(0, reply, IPV4_PAYLOAD, end)));
  host.ring.commit(end);
}

/** The client's half: an echo request of `size` data bytes. Returns the frame's length. */
export function writeEchoRequest(
  frame: Uint8Array,
  size: number,
  source: number,
  destination: number,
  identifier: number,
  sequence: number,
): number {
  const end = IPV4_PAYLOAD + HEADER_SIZE + size;
  writeIpv4Header(frame, HEADER_SIZE + size, PROTOCOL_ICMP, source, destination);
  writeU16(frame, IPV4_PAYLOAD, ECHO_REQUEST);
  writeU16(frame, IPV4_PAYLOAD + 2, 0);
  writeU16(frame, IPV4_PAYLOAD + 4, identifier);
  writeU16(frame, IPV4_PAYLOAD + 6, sequence);
  for (let i = 0; i < size; i++) frame[IPV4_PAYLOAD + HEADER_SIZE + i] = i & 0xff;
  writeU16(frame, IPV4_PAYLOAD + 2, checksumOf(addBytes(0, frame, IPV4_PAYLOAD, end)));
  return end;
}

/** The client's half: the sequence number of an echo reply with our identifier, or -1. */
export function readEchoReply(
  frame: Uint8Array,
  packet: Ipv4Packet,
  identifier: number,
): number {
  if (packet.end - packet.start < HEADER_SIZE) return -1;
  if (foldSum(addBytes(0, frame, packet.start, packet.end)) !== 0xffff) return -1;
  if (readU16(frame, packet.start) !== ECHO_REPLY) return -1;
  if (readU16(frame, packet.start + 4) !== identifier) return -1;
  return readU16(frame, packet.start + 6);
}
