/**
 * Somebody who can be answered later: the MAC and Internet addresses of a sender, and ours that it used.
 *
 * Answers to one frame can take the addresses from that frame; a chargen request outlives its own, so it
 * keeps a peer. Both versions of the Internet protocol look the same from outside.
 */

import { addBytes, addU32, foldSum } from "../protocols/checksum.ts";
import {
  ETHERNET_SOURCE,
  ETHERTYPE_IPV4,
  ETHERTYPE_IPV6,
  MAC_SIZE,
  writeEthernetHeader,
} from "../protocols/ethernet.ts";
import { IPV4_PAYLOAD, IPV4_SOURCE, PROTOCOL_UDP, writeIpv4Header } from "../protocols/ipv4.ts";
import {
  HOP_LIMIT,
  IPV6_ADDRESS_SIZE,
  IPV6_DESTINATION,
  IPV6_PAYLOAD,
  IPV6_SOURCE,
  writeIpv6Header,
} from "../protocols/ipv6.ts";
import { copyBytes, readU32 } from "../protocols/byte_order.ts";
import type { Packet } from "../protocols/packet.ts";
import { UDP_HEADER_SIZE, writeUdpHeader } from "../protocols/udp.ts";

/** See the head of this file. */
export class Peer {
  /** 4 or 6. */
  version: 4 | 6 = 4;
  /** Where the payload of a frame to it starts. */
  payload: number = IPV4_PAYLOAD;
  /** One's complement sum of both addresses, folded. */
  addressSum = 0;
  readonly #mac = new Uint8Array(MAC_SIZE);
  #local4 = 0;
  #remote4 = 0;
  readonly #local6 = new Uint8Array(IPV6_ADDRESS_SIZE);
  readonly #remote6 = new Uint8Array(IPV6_ADDRESS_SIZE);

  /** Becomes the sender of a packet. */
  set(frame: Uint8Array, packet: Packet): void {
    if (packet.version === 4) {
      const source = readU32(frame, IPV4_SOURCE);
      this.set4(frame, ETHERNET_SOURCE, readU32(frame, IPV4_SOURCE + 4), source);
      return;
    }
    this.version = 6;
    this.payload = IPV6_PAYLOAD;
    this.addressSum = foldSum(addBytes(0, frame, IPV6_SOURCE, IPV6_PAYLOAD));
    copyBytes(this.#mac, 0, frame, ETHERNET_SOURCE, MAC_SIZE);
    copyBytes(this.#remote6, 0, frame, IPV6_SOURCE, IPV6_ADDRESS_SIZE);
    copyBytes(this.#local6, 0, frame, IPV6_DESTINATION, IPV6_ADDRESS_SIZE);
  }

  /** Becomes an IPv4 station with the MAC address at `macAt` of `mac`. */
  set4(mac: Uint8Array, macAt: number, local: number, remote: number): void {
    this.version = 4;
    this.payload = IPV4_PAYLOAD;
    this.addressSum = foldSum(addU32(addU32(0, local), remote));
    copyBytes(this.#mac, 0, mac, macAt, MAC_SIZE);
    this.#local4 = local;
    this.#remote4 = remote;
  }

  /** Whether a packet comes from it, to the same address of ours. Its MAC address may have changed. */
  sent(frame: Uint8Array, packet: Packet): boolean {
    if (packet.version !== this.version) return false;
    if (this.version === 4) {
      return readU32(frame, IPV4_SOURCE) === this.#remote4 &&
        readU32(frame, IPV4_SOURCE + 4) === this.#local4;
    }
    for (let i = 0; i < IPV6_ADDRESS_SIZE; i++) {
      if (
        frame[IPV6_SOURCE + i] !== this.#remote6[i] ||
        frame[IPV6_DESTINATION + i] !== this.#local6[i]
      ) return false;
    }
    return true;
  }

  /**
   * Writes all headers of a datagram to it around a payload that is in place, behind the UDP header at
   * {@link payload}. Returns the frame's length.
   */
  writeUdpHeaders(
    frame: Uint8Array,
    ourMac: Uint8Array,
    payloadLength: number,
    sourcePort: number,
    destinationPort: number,
  ): number {
    const length = UDP_HEADER_SIZE + payloadLength;
    this.#writeHeaders(frame, ourMac, PROTOCOL_UDP, length);
    const sum = this.addressSum + PROTOCOL_UDP + length;
    writeUdpHeader(frame, this.payload, length, sourcePort, destinationPort, sum);
    return this.payload + length;
  }

  /** Writes the Ethernet and Internet headers. */
  #writeHeaders(
    frame: Uint8Array,
    ourMac: Uint8Array,
    protocol: number,
    payloadLength: number,
  ): void {
    if (this.version === 4) {
      writeEthernetHeader(frame, this.#mac, 0, ourMac, ETHERTYPE_IPV4);
      writeIpv4Header(frame, payloadLength, protocol, this.#local4, this.#remote4);
      return;
    }
    writeEthernetHeader(frame, this.#mac, 0, ourMac, ETHERTYPE_IPV6);
    writeIpv6Header(
      frame,
      payloadLength,
      protocol,
      HOP_LIMIT,
      this.#local6,
      0,
      this.#remote6,
      0,
    );
  }
}
