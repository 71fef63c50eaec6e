/**
 * UDP (RFC 768): ports, length, and a checksum over a pseudo header.
 *
 * A checksum field of 0 means that the sender computed none and is accepted; a computed 0 travels as
 * 0xffff. IPv6 forbids the 0 (RFC 8200 8.1). A datagram whose checksum the sender left to a device is
 * trusted instead.
 */

import { addBytes, addU32, checksumOf, foldSum } from "./checksum.ts";
import { IPV4, IPV4_PAYLOAD, writeIpv4Header } from "./ipv4.ts";
import { readU16, writeU16 } from "./byte_order.ts";
import { type InternetVersion, type Packet, Protocol, type Verdict } from "./packet.ts";

export const UDP_HEADER_SIZE = 8;
export const UDP_PAYLOAD: number = IPV4_PAYLOAD + UDP_HEADER_SIZE;

const CHECKSUM = 6;

export type Endpoint = readonly [address: number, port: number];

/** The fields of a received header. One record serves all frames, one after the other. */
export class UdpDatagram {
  /** What it lies in. */
  frame: Uint8Array = new Uint8Array();
  /** Where an answer goes; 0 if none is wanted. */
  sourcePort = 0;
  destinationPort = 0;
  start = 0;
  end = 0;
}

/** Checks the header and the checksum and fills the record in; "done" means that it is whole. */
export function parseUdp(datagram: UdpDatagram, packet: Packet): Verdict {
  const { frame, start: header } = packet;
  if (packet.end - header < UDP_HEADER_SIZE) return "malformed";
  const length = readU16(frame, header + 4);
  if (length < UDP_HEADER_SIZE || length > packet.end - header) return "malformed";
  const none = readU16(frame, header + CHECKSUM) === 0;
  if (!packet.trusted && !(none && packet.version === IPV4)) {
    if (none) return "checksum";
    const sum = packet.addressSum + Protocol.UDP + length;
    if (foldSum(addBytes(sum, frame, header, header + length)) !== 0xffff) return "checksum";
  }
  datagram.frame = frame;
  datagram.sourcePort = readU16(frame, header);
  datagram.destinationPort = readU16(frame, header + 2);
  datagram.start = header + UDP_HEADER_SIZE;
  datagram.end = header + length;
  return "done";
}

/** Writes the IPv4 and UDP headers around `size` bytes that are in place, checksums included. */
export function writeUdpHeaders(frame: Uint8Array, size: number, from: Endpoint, to: Endpoint) {
  const length = UDP_HEADER_SIZE + size;
  writeIpv4Header(frame, length, Protocol.UDP, from[0], to[0]);
  writeUdpHeader(frame, IPV4, length, from[1], to[1]);
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
  const sum = addBytes(Protocol.UDP + length, frame, addresses, payload + length);
  writeChecksum(frame, payload, sum);
}

/** Mends the checksum of the header at `at` after 32 bits of its payload, which were 0, became `value`. */
export function addToUdpChecksum(frame: Uint8Array, at: number, value: number): void {
  writeChecksum(frame, at, addU32(readU16(frame, at + CHECKSUM) ^ 0xffff, value));
}

function writeChecksum(frame: Uint8Array, at: number, sum: number): void {
  writeU16(frame, at + CHECKSUM, checksumOf(sum) || 0xffff);
}
