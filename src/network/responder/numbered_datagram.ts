/**
 * A UDP frame that is sent many times and differs in one number: the first four payload bytes. The rest is the
 * character pattern of RFC 864. Sending copies the frame, writes the number and adds its two halves to the checksum
 * of number 0 (RFC 1071, section 2), so the cost of a frame is one memory copy.
 */

import { writeU32 } from "../protocols/byte_order.ts";
import { ETHERNET_FRAME_MAX } from "../protocols/ethernet.ts";
import type { Packet } from "../protocols/packet.ts";
import { writePattern } from "../protocols/traffic.ts";
import { addToUdpChecksum, UDP_HEADER_SIZE } from "../protocols/udp.ts";

/** See the head of this file. */
export class NumberedDatagram {
  readonly #memory = new Uint8Array(ETHERNET_FRAME_MAX);
  /** Exactly the frame, so that set() copies it without a view made on the way. */
  #frame: Uint8Array = this.#memory;
  #udp = 0;
  #sequence = 0;

  get length(): number {
    return this.#frame.length;
  }

  /**
   * Makes the payload, `size` bytes behind the UDP header at `udp`, which is within the limits for the
   * protocol; numbers begin with 0. Returns the frame, for the caller to write the headers.
   */
  prepare(udp: number, size: number): Uint8Array {
    const start = udp + UDP_HEADER_SIZE;
    const length = start + size;
    if (length !== this.#frame.length) this.#frame = this.#memory.subarray(0, length);
    this.#udp = udp;
    this.#sequence = 0;
    writePattern(this.#frame, start, length);
    writeU32(this.#frame, start, 0);
    return this.#frame;
  }

  /** Whether it answers whoever sent a packet, which may have another MAC address by now. */
  answers({ frame, version }: Packet): boolean {
    if (this.#udp !== version.payload) return false;
    const { addresses, payload } = version;
    const size = (payload - addresses) / 2;
    for (let from = addresses, to = addresses + size; to < payload; from++, to++) {
      if (frame[from] !== this.#frame[to] || frame[to] !== this.#frame[from]) return false;
    }
    return true;
  }

  /** Copies the frame with the next number into `target`; returns its length, 0 if it does not fit. */
  next(target: Uint8Array): number {
    const sequence = this.#sequence;
    this.#sequence = (sequence + 1) >>> 0;
    if (this.length > target.length) return 0;
    target.set(this.#frame);
    writeU32(target, this.#udp + UDP_HEADER_SIZE, sequence);
    addToUdpChecksum(target, this.#udp, sequence);
    return this.length;
  }
}
