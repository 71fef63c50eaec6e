/**
 * UDP (RFC 768): ports, length, and a checksum over a pseudo header.
 *
 * A checksum field of 0 means that the sender computed none and is accepted; a computed 0 travels as
 * 0xffff. IPv6 forbids the 0 (RFC 8200 8.1). A datagram whose checksum the sender left to a device is
 * trusted instead.
 */

import { addBytes, addU32, checksumOf, foldSum } from "./checksum.ts";
import { IPV4, IPV4_PAYLOAD, PROTOCOL_UDP, writeIpv4Header } from "./ipv4.ts";
import { readU16, writeU16 } from "./byte_order.ts";
import type { InternetVersion, Packet, Verdict } from "./packet.ts";

/** Bytes of the header. */
export const UDP_HEADER_SIZE = 8;
/** Where the UDP payload of an IPv4 frame that we write starts. */
export const UDP_PAYLOAD: number = IPV4_PAYLOAD + UDP_HEADER_SIZE;

const CHECKSUM = 6;

/** The fields of a received header. One record serves all frames, one after the other. */
export class UdpDatagram {
  /** Where an answer goes; 0 if none is wanted. */
  sourcePort = 0;
  /** What it is for. */
  destinationPort = 0;
  /** Offset of the payload in the frame. */
  start = 0;
  /** Offset of the first byte after the payload. */
  end = 0;
}

/** Checks the header and the checksum and fills the record in; "done" means that it is whole. */
export function parseUdp(datagram: UdpDatagram, frame: Uint8Array, packet: Packet): Verdict {
  const header = packet.start;
  if (packet.end - header < UDP_HEADER_SIZE) return "malformed";
  const length = readU16(frame, header + 4);
  if (length < UDP_HEADER_SIZE || length > packet.end - header) return "malformed";
  const none = readU16(frame, header + CHECKSUM) === 0;
  if (!packet.trusted && !(none && packet.version === IPV4)) {
    if (none) return "checksum";
    const sum = packet.addressSum + PROTOCOL_UDP + length;
    if (foldSum(addBytes(sum, frame, header, header + length)) !== 0xffff) return "checksum";
  }
  datagram.sourcePort = readU16(frame, header);
  datagram.destinationPort = readU16(frame, header + 2);
  datagram.start = header + UDP_HEADER_SIZE;
  datagram.end = header + length;
  return "done";
}

/** Writes the IPv4 and UDP headers around a payload that is in place, checksums included. */
export function writeUdpHeaders(
  frame: Uint8Array,
  payloadLength: number,
  source: number,
  sourcePort: number,
  destination: number,
  destinationPort: number,
): void {
  const length = UDP_HEADER_SIZE + payloadLength;
  writeIpv4Header(frame, length, PROTOCOL_UDP, source, destination);
  writeUdpHeader(frame, IPV4, length, sourcePort, destinationPort);
}

/** Writes the header of a datagram of `length` bytes, checksum included; all else is in place. */
export function writeUdpHeader(
  frame: Uint8Array,
  { addresses, payload }: InternetVersion,
  length: number,
  sourcePort: number,
  destinationPort: number,
): void {
  writeU16(frame, payload, sourcePort);
  writeU16(frame, payload + 2, destinationPort);
  writeU16(frame, payload + 4, length);
  writeU16(frame, payload + CHECKSUM, 0);
  // The addresses of the pseudo header lie right before the datagram: one sum over both.
  const sum = addBytes(PROTOCOL_UDP + length, frame, addresses, payload + length);
  writeChecksum(frame, payload, sum);
}

/** Mends the checksum of the header at `at` after 32 bits of its payload, which were 0, became `value`. */
export function addToUdpChecksum(frame: Uint8Array, at: number, value: number): void {
  writeChecksum(frame, at, addU32(readU16(frame, at + CHECKSUM) ^ 0xffff, value));
}

function writeChecksum(frame: Uint8Array, at: number, sum: number): void {
  writeU16(frame, at + CHECKSUM, checksumOf(sum) || 0xffff);
}
