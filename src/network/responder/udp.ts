/**
 * UDP (RFC 768): ports, length, and a checksum over a pseudo header.
 *
 * A checksum field of 0 means that the sender computed none and is accepted; a computed 0 travels as
 * 0xffff. The checksum is verified because the network device does not offer checksum offload yet; once
 * it does, a partial checksum is the device's to complete before the frame comes here.
 */

import { addBytes, checksumOf, foldSum, pseudoHeaderSum } from "./checksum.ts";
import type { Verdict } from "./host.ts";
import { IPV4_PAYLOAD, type Ipv4Packet, PROTOCOL_UDP, writeIpv4Header } from "./ipv4.ts";
import { readU16, writeU16 } from "./network_order.ts";

/** Bytes of the header. */
export const UDP_HEADER_SIZE = 8;
/** Where the UDP payload of a frame that we write starts. */
export const UDP_PAYLOAD: number = IPV4_PAYLOAD + UDP_HEADER_SIZE;

const CHECKSUM = IPV4_PAYLOAD + 6;

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
export function parseUdp(datagram: UdpDatagram, frame: Uint8Array, packet: Ipv4Packet): Verdict {
  const header = packet.start;
  if (packet.end - header < UDP_HEADER_SIZE) return "malformed";
  const length = readU16(frame, header + 4);
  if (length < UDP_HEADER_SIZE || length > packet.end - header) return "malformed";
  if (readU16(frame, header + 6) !== 0) {
    const sum = pseudoHeaderSum(packet.source, packet.destination, PROTOCOL_UDP, length);
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
  writeU16(frame, IPV4_PAYLOAD, sourcePort);
  writeU16(frame, IPV4_PAYLOAD + 2, destinationPort);
  writeU16(frame, IPV4_PAYLOAD + 4, length);
  writeU16(frame, CHECKSUM, 0);
  const sum = pseudoHeaderSum(source, destination, PROTOCOL_UDP, length);
  writeUdpChecksum(frame, addBytes(sum, frame, IPV4_PAYLOAD, IPV4_PAYLOAD + length));
}

/** Writes the checksum of a sum that includes the pseudo header. */
export function writeUdpChecksum(frame: Uint8Array, sum: number): void {
  const checksum = checksumOf(sum);
  writeU16(frame, CHECKSUM, checksum === 0 ? 0xffff : checksum);
}

/** The checksum of a frame that we wrote. */
export function readUdpChecksum(frame: Uint8Array): number {
  return readU16(frame, CHECKSUM);
}
