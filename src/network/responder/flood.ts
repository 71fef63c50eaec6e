/**
 * A flood: numbered UDP broadcasts to the discard port (RFC 863) at a set rate, so that a guest receives
 * traffic before it has an address.
 *
 * The rate is a token bucket that starts empty and keeps at most 64 frames: a driver side
 * that stops taking frames finds no backlog later. A host answers a broadcast with no error (RFC 1122
 * 3.2.2), so a guest without a listener stays quiet.
 */

import { EtherType, MAC_BROADCAST, writeEthernetHeader } from "../protocols/ethernet.ts";
import { IPV4_PAYLOAD } from "../protocols/ipv4.ts";
import { DISCARD_PORT } from "../protocols/traffic.ts";
import { writeUdpHeaders } from "../protocols/udp.ts";
import type { Host } from "./host.ts";
import { NumberedDatagram } from "./numbered_datagram.ts";
import { TokenBucket } from "./token_bucket.ts";

/** UDP payload bytes of a flood frame; the frame is 42 bytes longer. */
const PAYLOAD_SIZE = 1400;
const BURST = 64;

export class Flood {
  readonly #bucket: TokenBucket;
  readonly #datagram = new NumberedDatagram();

  /** Starts the flow, from the host's address; the first frame is due after the time of one. */
  constructor(host: Host, framesPerSecond: number, now: () => number) {
    this.#bucket = new TokenBucket(framesPerSecond, BURST, 0, now);
    const { mac, address, broadcast } = host;
    const frame = this.#datagram.prepare(IPV4_PAYLOAD, PAYLOAD_SIZE);
    writeEthernetHeader(frame, MAC_BROADCAST, 0, mac, EtherType.IPV4);
    writeUdpHeaders(frame, PAYLOAD_SIZE, [address, DISCARD_PORT], [broadcast, DISCARD_PORT]);
  }

  delayMs(): number {
    return this.#bucket.delayMs();
  }

  nextLength(): number {
    return this.#bucket.available() ? this.#datagram.length : 0;
  }

  /** Makes the frame that is due in `target` and returns its length; 0 if none is, or if it was too long. */
  next(target: Uint8Array): number {
    return this.#bucket.take() ? this.#datagram.next(target) : 0;
  }
}
