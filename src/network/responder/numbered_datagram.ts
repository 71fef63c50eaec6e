/**
 * A UDP frame that is sent many times and differs in one number: the first four payload bytes.
 *
 * Theory of operation. The frame is built once; the rest of its payload is the character pattern of RFC
 * 864. Sending copies it and writes the sequence number, and the checksum follows from that of number 0
 * by adding the two halves (RFC 1071, section 2), so the cost of a frame is one memory copy.
 */

import { writeU32 } from "../protocols/byte_order.ts";
import { addU32 } from "../protocols/checksum.ts";
import { ETHERNET_FRAME_MAX } from "../protocols/ethernet.ts";
import { writePattern } from "../protocols/traffic.ts";
import { readUdpChecksum, UDP_HEADER_SIZE, writeUdpChecksum } from "../protocols/udp.ts";
import type { Host } from "./host.ts";
import type { Peer } from "./peer.ts";

/** A frame made once and sent with rising sequence numbers. */
export class NumberedDatagram {
  readonly #memory = new Uint8Array(ETHERNET_FRAME_MAX);
  /** Exactly the frame, so that set() copies it without a view made on the way. */
  #frame: Uint8Array = this.#memory;
  /** Where the UDP header is. */
  #udp = 0;
  /** The one's complement sum with sequence number 0. */
  #sum = 0;

  /** Bytes of the frame. */
  get length(): number {
    return this.#frame.length;
  }

  /** Makes the frame. `size`, the UDP payload, is within the limits for the peer's protocol. */
  prepare(
    host: Host,
    peer: Peer,
    sourcePort: number,
    destinationPort: number,
    size: number,
  ): void {
    const start = peer.payload + UDP_HEADER_SIZE;
    const length = start + size;
    if (length !== this.#frame.length) this.#frame = this.#memory.subarray(0, length);
    this.#udp = peer.payload;
    const frame = this.#frame;
    writePattern(frame, start, length);
    writeU32(frame, start, 0);
    peer.writeUdpHeaders(frame, host.mac, size, sourcePort, destinationPort);
    this.#sum = readUdpChecksum(frame, peer.payload) ^ 0xffff;
  }

  /** Copies the frame with this number into `target`, which is large enough. */
  write(target: Uint8Array, sequence: number): void {
    target.set(this.#frame);
    writeU32(target, this.#udp + UDP_HEADER_SIZE, sequence);
    writeUdpChecksum(target, this.#udp, addU32(this.#sum, sequence));
  }
}
