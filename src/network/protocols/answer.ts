/** The headers of answers: to whoever sent a packet of either version, from the address that it used. */

import { readU32 } from "./byte_order.ts";
import { ETHERNET_SOURCE, writeEthernetHeader } from "./ethernet.ts";
import { IPV4, IPV4_SOURCE, writeIpv4Header } from "./ipv4.ts";
import { HOP_LIMIT, IPV6_DESTINATION, IPV6_SOURCE, writeIpv6Header } from "./ipv6.ts";
import { type Packet, Protocol, type Station } from "./packet.ts";
import { UDP_HEADER_SIZE, writeUdpHeader } from "./udp.ts";

/** Writes the Ethernet and Internet headers of an answer with a payload of `length` bytes. */
export function writeAnswer(by: Station, to: Packet, protocol: number, length: number): void {
  const { slot, mac } = by;
  const { frame, version } = to;
  writeEthernetHeader(slot, frame, ETHERNET_SOURCE, mac, version.ethertype);
  if (version === IPV4) {
    const destination = readU32(frame, IPV4_SOURCE);
    writeIpv4Header(slot, length, protocol, readU32(frame, IPV4_SOURCE + 4), destination);
  } else {
    const [from, to] = [IPV6_DESTINATION, IPV6_SOURCE];
    writeIpv6Header(slot, length, protocol, HOP_LIMIT, frame, from, frame, to);
  }
}

/** Writes all headers of a datagram around `size` bytes that are in place. Returns the frame's length. */
export function writeUdpAnswer(
  by: Station,
  to: Packet,
  size: number,
  sourcePort: number,
  destinationPort: number,
): number {
  const length = UDP_HEADER_SIZE + size;
  writeAnswer(by, to, Protocol.UDP, length);
  writeUdpHeader(by.slot, to.version, length, sourcePort, destinationPort);
  return to.version.payload + length;
}
