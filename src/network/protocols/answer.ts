/** The headers of answers: to whoever sent a packet of either version, from the address that it used. */

import { readU32 } from "./byte_order.ts";
import { ETHERNET_SOURCE, writeEthernetHeader } from "./ethernet.ts";
import { IPV4, IPV4_SOURCE, PROTOCOL_UDP, writeIpv4Header } from "./ipv4.ts";
import { HOP_LIMIT, IPV6_DESTINATION, IPV6_SOURCE, writeIpv6Header } from "./ipv6.ts";
import type { Packet } from "./packet.ts";
import { UDP_HEADER_SIZE, writeUdpHeader } from "./udp.ts";

/** Writes the Ethernet and Internet headers of an answer with a payload of `length` bytes. */
export function writeAnswerHeaders(
  reply: Uint8Array,
  mac: Uint8Array,
  frame: Uint8Array,
  { version }: Packet,
  protocol: number,
  length: number,
): void {
  writeEthernetHeader(reply, frame, ETHERNET_SOURCE, mac, version.ethertype);
  if (version === IPV4) {
    const destination = readU32(frame, IPV4_SOURCE);
    writeIpv4Header(reply, length, protocol, readU32(frame, IPV4_SOURCE + 4), destination);
  } else {
    const [from, to] = [IPV6_DESTINATION, IPV6_SOURCE];
    writeIpv6Header(reply, length, protocol, HOP_LIMIT, frame, from, frame, to);
  }
}

/** Writes all headers of a datagram around a payload that is in place. Returns the frame's length. */
export function writeUdpAnswer(
  reply: Uint8Array,
  mac: Uint8Array,
  frame: Uint8Array,
  packet: Packet,
  payloadLength: number,
  sourcePort: number,
  destinationPort: number,
): number {
  const length = UDP_HEADER_SIZE + payloadLength;
  writeAnswerHeaders(reply, mac, frame, packet, PROTOCOL_UDP, length);
  writeUdpHeader(reply, packet.version, length, sourcePort, destinationPort);
  return packet.version.payload + length;
}
