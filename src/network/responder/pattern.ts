/**
 * An endless stream of bytes that repeats, with its checksum known in advance.
 *
 * Theory of operation. The stream's content follows from the offset, so what TCP has to send again is made
 * again instead of kept. A table holds one period and one segment more, so that a segment is one copy from
 * it; a second table holds the one's complement sum up to each byte, so that the sum of any part is one
 * subtraction. A part that begins at an odd byte has its sum's bytes the other way round (RFC 1071,
 * section 2 B).
 */

import { foldSum } from "./checksum.ts";
import { ETHERNET_FRAME_MAX } from "./ethernet.ts";
import { copyBytes } from "./network_order.ts";
import { writePattern } from "./numbered_datagram.ts";

/** See the head of this file. */
export class Pattern {
  readonly #bytes: Uint8Array;
  /** The sum of all bytes before each one, below 2^32. */
  readonly #sums: Float64Array;

  /**
   * Makes the tables.
   *
   * @param period bytes after which the stream repeats; even, at most 16384
   * @param fill writes the stream's first bytes into an array
   */
  constructor(readonly period: number, fill: (bytes: Uint8Array) => void) {
    if (period % 2 !== 0 || period > 16384) throw new RangeError(`a period of ${period} bytes`);
    const bytes = new Uint8Array(period + ETHERNET_FRAME_MAX);
    fill(bytes);
    const sums = new Float64Array(bytes.length + 1);
    for (let i = 0; i < bytes.length; i++) {
      sums[i + 1] = sums[i] + (i % 2 === 0 ? bytes[i] << 8 : bytes[i]);
    }
    this.#bytes = bytes;
    this.#sums = sums;
  }

  /**
   * Writes the `length` bytes from `offset` on, at most a frame's, into `target` and returns their sum,
   * for a place in a packet that is an even number of bytes from its start.
   */
  write(target: Uint8Array, at: number, offset: number, length: number): number {
    const from = offset % this.period;
    copyBytes(target, at, this.#bytes, from, length);
    const sum = foldSum(this.#sums[from + length] - this.#sums[from]);
    return from % 2 === 0 ? sum : (sum & 0xff) << 8 | sum >>> 8;
  }
}

/** RFC 864's: 95 lines of 72 characters, CR and LF, then from the start. */
export const CHARACTERS: Pattern = new Pattern(
  95 * 74,
  (bytes) => writePattern(bytes, 0, bytes.length),
);

/** Byte i is i modulo 251, a prime, so that lost and exchanged segments show. */
export const COUNTING: Pattern = new Pattern(2 * 251, (bytes) => {
  for (let i = 0; i < bytes.length; i++) bytes[i] = i % 251;
});
