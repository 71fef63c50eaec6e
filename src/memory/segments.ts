/**
 * A list of memory segments in the form the kernel takes: an array of struct iovec in the arena.
 *
 * A virtqueue buffer becomes such a list once, when its descriptors have been checked; from then on it
 * can be handed to readv and writev as it is, or copied from and to. The list keeps the window beside
 * each iovec, because the copy function takes addresses as bigint (base + offset) while an iovec takes
 * two 32-bit halves. It is reused for every frame and allocates nothing.
 */

import { allocate } from "../linux/arena.ts";
import { libc } from "../linux/libc.ts";
import type { MemoryWindow } from "./address_space.ts";

const IOVEC_SIZE = 16;

/** Segments of one buffer, at most `capacity` of them. */
export class SegmentList {
  /** How many segments there are. */
  count = 0;
  /** The sum of their lengths, in bytes. */
  length = 0;
  /** The address of the struct iovec array, for readv and writev. */
  readonly address: bigint;
  readonly #iovec: DataView;
  readonly #windows: MemoryWindow[];
  readonly #offsets: Float64Array;
  readonly #lengths: Float64Array;

  /**
   * Takes the iovec array from the arena, for good.
   *
   * @param capacity at most 1024, the kernel's IOV_MAX
   */
  constructor(readonly capacity: number) {
    const block = allocate(capacity * IOVEC_SIZE);
    this.address = block.address;
    this.#iovec = block.view;
    this.#windows = new Array(capacity);
    this.#offsets = new Float64Array(capacity);
    this.#lengths = new Float64Array(capacity);
  }

  /** Makes the list empty. */
  clear(): void {
    this.count = 0;
    this.length = 0;
  }

  /** Appends `length` bytes at `offset` of a window; false when the list is full. */
  push(window: MemoryWindow, offset: number, length: number): boolean {
    const i = this.count;
    if (i === this.capacity) return false;
    this.#windows[i] = window;
    this.#offsets[i] = offset;
    this.#lengths[i] = length;
    const address = window.addressNumber + offset;
    const at = i * IOVEC_SIZE;
    this.#iovec.setUint32(at, address >>> 0, true);
    this.#iovec.setUint32(at + 4, address / 0x1_0000_0000, true);
    this.#iovec.setUint32(at + 8, length >>> 0, true);
    this.#iovec.setUint32(at + 12, length / 0x1_0000_0000, true);
    this.count = i + 1;
    this.length += length;
    return true;
  }

  /** The address of the iovec of segment `first`, to hand the segments from there on to readv. */
  addressFrom(first: number): bigint {
    return this.address + BigInt(first * IOVEC_SIZE);
  }

  /**
   * Copies bytes out of the segments, from byte `skip` on.
   *
   * @param target an address of stable memory (the arena, a mapping), never of a JavaScript array
   * @param length how many at most
   * @param first the segment whose first byte is byte 0
   * @returns how many bytes there were to copy
   */
  copyOut(skip: number, target: bigint, length: number, first = 0): number {
    return this.#copy(skip, target, length, first, true);
  }

  /**
   * Copies bytes into the segments, from byte `skip` on; otherwise as {@link copyOut}.
   *
   * @param source an address of stable memory
   */
  copyIn(skip: number, source: bigint, length: number, first = 0): number {
    return this.#copy(skip, source, length, first, false);
  }

  #copy(skip: number, other: bigint, length: number, first: number, out: boolean): number {
    let done = 0;
    for (let i = first; i < this.count && done < length; i++) {
      const size = this.#lengths[i];
      if (skip >= size) {
        skip -= size;
        continue;
      }
      const part = Math.min(size - skip, length - done);
      const here = this.#windows[i].address + BigInt(this.#offsets[i] + skip);
      const there = other + BigInt(done);
      if (out) libc.memcpy(there, here, part);
      else libc.memcpy(here, there, part);
      done += part;
      skip = 0;
    }
    return done;
  }

  /**
   * Stores one 16-bit little-endian value at byte `at`; false if that lies outside.
   *
   * @param first the segment whose first byte is byte 0
   */
  setUint16(at: number, value: number, first = 0): boolean {
    return this.setUint8(at, value & 0xff, first) && this.setUint8(at + 1, value >>> 8, first);
  }

  /**
   * The byte at `at`, or 0 outside.
   *
   * @param first the segment whose first byte is byte 0
   */
  getUint8(at: number, first = 0): number {
    for (let i = first; i < this.count; i++) {
      if (at < this.#lengths[i]) return this.#windows[i].view.getUint8(this.#offsets[i] + at);
      at -= this.#lengths[i];
    }
    return 0;
  }

  /** Stores one byte; otherwise as {@link setUint16}. */
  setUint8(at: number, value: number, first = 0): boolean {
    for (let i = first; i < this.count; i++) {
      if (at < this.#lengths[i]) {
        this.#windows[i].view.setUint8(this.#offsets[i] + at, value);
        return true;
      }
      at -= this.#lengths[i];
    }
    return false;
  }
}
