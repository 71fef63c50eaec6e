/**
 * The segments of buffers that are out for a while, given back in the order they came: a ring of struct
 * iovec, of which each buffer has a few.
 *
 * Who keeps them need not look at the driver's descriptors again, which the driver may have changed meanwhile.
 * The segments name memory that must stay mapped as long.
 */

import { libc } from "../linux/libc.ts";
import { IOVEC_DOUBLE_WORDS, IOVEC_WORDS, type IovecList, LENGTH_WORD } from "./iovec_list.ts";

/** See the head of this file. */
export class IovecRing {
  readonly #words: Uint32Array;
  /** The same, for the addresses. */
  readonly #addresses: BigUint64Array;
  readonly #mask: number;
  /** Free-running indices of the first free segment and of the oldest one. */
  #head = 0;
  #tail = 0;

  /**
   * Makes an empty ring.
   *
   * @param capacity how many segments it holds: a power of two
   */
  constructor(readonly capacity: number) {
    this.#addresses = new BigUint64Array(capacity * IOVEC_DOUBLE_WORDS);
    this.#words = new Uint32Array(this.#addresses.buffer);
    this.#mask = capacity - 1;
  }

  /** How many segments there is room for. */
  get free(): number {
    return this.capacity - ((this.#head - this.#tail) >>> 0);
  }

  /** Keeps a buffer's segments, for which there must be room. */
  push(list: IovecList): void {
    const { count } = list;
    for (let i = 0; i < count; i++) {
      list.copyIovec(i, this.#words, ((this.#head + i) & this.#mask) * IOVEC_WORDS);
    }
    this.#head = (this.#head + count) >>> 0;
  }

  /**
   * Copies bytes into the oldest buffer's segments.
   *
   * @param source an address of stable memory
   * @param length in bytes, at most as many as the buffer has
   */
  copyIn(source: bigint, length: number): void {
    const words = this.#words;
    for (let index = this.#tail, done = 0; done < length;) {
      const first = index & this.#mask;
      const left = length - done;
      let word = first * IOVEC_WORDS;
      let size = words[word + LENGTH_WORD];
      const high = words[word + 1];
      // Pieces that adjoin are copied by one call, see IovecArray.adjoining; slots of a ring begin anew.
      for (let next = words[word] + size; size < left;) {
        word = (++index & this.#mask) * IOVEC_WORDS;
        if (words[word] !== next || words[word + 1] !== high) break;
        size += words[word + LENGTH_WORD];
        next += words[word + LENGTH_WORD];
      }
      const part = Math.min(size, left) >>> 0;
      libc.memcpy(this.#addresses[first * IOVEC_DOUBLE_WORDS], source + BigInt(done >>> 0), part);
      done += part;
    }
  }

  /** Is any segment, or part of one, at these addresses? */
  isWithin(from: number, to: number): boolean {
    for (let index = this.#tail; index !== this.#head; index = (index + 1) >>> 0) {
      const slot = index & this.#mask;
      const at = Number(this.#addresses[slot * IOVEC_DOUBLE_WORDS]);
      const length = this.#words[slot * IOVEC_WORDS + LENGTH_WORD];
      if (at < to && at + length > from) return true;
    }
    return false;
  }

  /** Forgets the oldest buffer's segments. @param count how many they are */
  shift(count: number): void {
    this.#tail = (this.#tail + count) >>> 0;
  }
}
