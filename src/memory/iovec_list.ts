/**
 * A list of memory segments in the form the kernel takes: an array of struct iovec in the arena.
 *
 * A virtqueue buffer becomes such a list once, when its descriptors have been checked; from then on it
 * can be handed to readv and writev as it is, or copied from and to. The list keeps the window beside
 * each iovec, for the few bytes that are read or written one by one. It is reused for every frame and
 * allocates nothing.
 *
 * Cost: addresses are written as two 32-bit halves and read as one bigint, which compiled code keeps in a
 * register; a bigint made from a Number that may be fractional would be an object each time. Hence the
 * `>>> 0` below, on values that are less than 2^32 as every segment and every copy is.
 */

import { allocate } from "../linux/arena.ts";
import { libc } from "../linux/libc.ts";
import type { MemoryWindow } from "./window.ts";

/** Here and not imported: compiled code loads an imported Number anew, half a nanosecond a descriptor. */
const TWO_TO_32 = 0x1_0000_0000;
const IOVEC_SIZE = 16;
/** The size of an iovec in words of 32 bits. */
export const IOVEC_WORDS: number = IOVEC_SIZE / 4;
/** The same in words of 64 bits. */
export const IOVEC_DOUBLE_WORDS: number = IOVEC_SIZE / 8;
/** Where an iovec keeps its length, in words of 32 bits; the high half is 0. */
export const LENGTH_WORD = 2;
/** A descriptor's length has 32 bits, and so has memcpy's here. */
const MAX_SEGMENT = 0xffff_ffff;

/** A segment of fewer bytes is short. */
const SHORT = 256;

function tooLong(length: number): Error {
  return new Error(`a segment of ${length} bytes`);
}

/**
 * An iovec array in the arena, for good, and the windows its segments lie in. Several lists may be parts of one
 * array; who fills them in a row writes the words itself (queue/device_queue.ts). Neighbours are nearly always of
 * the same window, and storing an object for each is not free: what is kept is where another window begins.
 */
export class IovecArray {
  /** The address of the first iovec. */
  readonly address: bigint;
  /** The array in words of 32 bits; the high half of a length is 0 for good. */
  readonly words: Uint32Array;
  /** The same in words of 64 bits, for addresses. */
  readonly addresses: BigUint64Array;
  /** By run of segments: the first of them, and their window. */
  readonly #firsts: Uint16Array;
  readonly #windows: MemoryWindow[];
  #runs = 0;
  #touched = 0;
  /** See {@link adjoining}. */
  behind = 0;

  /** Takes the array from the arena. @param capacity at most 1024, the kernel's IOV_MAX */
  constructor(readonly capacity: number) {
    const block = allocate(capacity * IOVEC_SIZE);
    const { buffer, byteOffset } = block.bytes;
    this.address = block.address;
    this.words = new Uint32Array(buffer, byteOffset, capacity * IOVEC_WORDS);
    this.addresses = new BigUint64Array(buffer, byteOffset, capacity * IOVEC_DOUBLE_WORDS);
    // One more: a run may begin behind the last segment.
    this.#firsts = new Uint16Array(capacity + 1);
    this.#windows = new Array(capacity);
  }

  /** Segments lie in `window`, from number `i` on and until this is called for a later one. */
  beginRun(i: number, window: MemoryWindow): void {
    let runs = this.#runs;
    while (runs > 0 && this.#firsts[runs - 1] >= i) runs--;
    if (runs === 0 || this.#windows[runs - 1] !== window) {
      this.#firsts[runs] = i;
      this.#windows[runs] = window;
      runs++;
    }
    this.#runs = runs;
  }

  /** The window of segment `i`. */
  windowOf(i: number): MemoryWindow {
    let run = this.#runs - 1;
    while (this.#firsts[run] > i) run--;
    return this.#windows[run];
  }

  /**
   * How many bytes follow one another in memory from the beginning of segment `i` on, at least `wanted` of them if
   * there are as many before segment `end`; {@link behind} is the segment after them then. A driver's pages often
   * adjoin, and one call copies them all.
   */
  adjoining(i: number, end: number, wanted: number): number {
    const { words } = this;
    let word = i * IOVEC_WORDS;
    let size = words[word + LENGTH_WORD];
    const high = words[word + 1];
    // What reaches the next 4 GiB has a `next` that no lower half is.
    let next = words[word] + size;
    for (i++; i < end && size < wanted; i++) {
      word += IOVEC_WORDS;
      if (words[word] !== next || words[word + 1] !== high) break;
      const length = words[word + LENGTH_WORD];
      size += length;
      next += length;
    }
    this.behind = i;
    return size;
  }

  /** Stores the byte right behind segment `i`, one of the array that {@link IovecList.cutByte} has cut off. */
  setByteBehind(i: number, value: number): void {
    const behind = this.offsetOf(i) + this.words[i * IOVEC_WORDS + LENGTH_WORD];
    this.windowOf(i).view.setUint8(behind, value);
  }

  /**
   * Reads a byte of the first two cache lines of each short segment from `i` on and before `end`: what another processor
   * has written comes from there, and many loads wait for it together, while copies would wait one after another. (A long
   * copy waits for many lines by itself.)
   */
  touch(i: number, end: number): void {
    const { words } = this;
    let sum = 0;
    while (i < end) {
      let run = this.#runs - 1;
      while (this.#firsts[run] > i) run--;
      const window = this.#windows[run], { view } = window;
      const runEnd = run + 1 < this.#runs ? Math.min(end, this.#firsts[run + 1]) : end;
      // Lower halves are enough, and integers; of a larger window this would be some other byte.
      const addressLow = window.addressLow | 0, mask = window.size < TWO_TO_32 ? -1 : 0;
      for (; i < runEnd; i++) {
        const word = i * IOVEC_WORDS;
        const offset = ((words[word] - addressLow) & mask) >>> 0;
        const last = words[word + LENGTH_WORD] - 1;
        if (last >= SHORT) continue;
        sum += view.getUint8(offset) ^ view.getUint8(offset + ((last < 64 ? last : 64) & mask));
      }
    }
    // Otherwise a compiler might leave the loads out.
    this.#touched = sum;
  }

  /** Where segment `i` begins in its window. */
  offsetOf(i: number): number {
    const word = i * IOVEC_WORDS;
    const address = this.words[word + 1] * TWO_TO_32 + this.words[word];
    return address - this.windowOf(i).addressNumber;
  }
}

/** Segments of one buffer, at most `capacity` of them. */
export class IovecList {
  /** The first of the list's segments in its array. */
  start = 0;
  /** How many segments there are. */
  count = 0;
  /** The sum of their lengths, in bytes. */
  length = 0;
  readonly #array: IovecArray;
  readonly #words: Uint32Array;
  readonly #addresses: BigUint64Array;

  /** Makes an empty list: a part of an array, or with one of its own of so many segments, at most 1024. */
  constructor(array: IovecArray | number) {
    this.#array = typeof array === "number" ? new IovecArray(array) : array;
    this.#words = this.#array.words;
    this.#addresses = this.#array.addresses;
  }

  /** How many segments its array has. */
  get capacity(): number {
    return this.#array.capacity;
  }

  /** The address of its first iovec, for readv and writev. */
  get address(): bigint {
    return this.addressFrom(0);
  }

  /** Makes the list empty. */
  clear(): void {
    this.count = 0;
    this.length = 0;
  }

  /**
   * Appends `length` bytes at `offset` of a window, less than 2^32 of them; false when the array is full.
   */
  push(window: MemoryWindow, offset: number, length: number): boolean {
    const i = this.start + this.count;
    if (i === this.#array.capacity) return false;
    if (length > MAX_SEGMENT) throw tooLong(length);
    this.#array.beginRun(i, window);
    const low = window.addressLow + offset;
    const word = i * IOVEC_WORDS;
    const words = this.#words;
    words[word] = low;
    words[word + 1] = low < TWO_TO_32
      ? window.addressHigh
      : window.addressHigh + Math.floor(low / TWO_TO_32);
    // Its high half is 0 for good.
    words[word + LENGTH_WORD] = length;
    this.count++;
    this.length += length;
    return true;
  }

  /** The virtual address of segment `i`, as a Number: user-space addresses are below 2^47. */
  addressOf(i: number): number {
    const word = (this.start + i) * IOVEC_WORDS;
    return this.#words[word + 1] * TWO_TO_32 + this.#words[word];
  }

  /** The length of segment `i`. */
  lengthOf(i: number): number {
    return this.#words[(this.start + i) * IOVEC_WORDS + LENGTH_WORD];
  }

  /** Does any segment from `first` on begin, or have bytes, in these addresses? (One that has none may be written behind.) */
  isWithin(from: number, to: number, first = 0): boolean {
    for (let i = first; i < this.count; i++) {
      const at = this.addressOf(i);
      if (at < to && at + Math.max(1, this.lengthOf(i)) > from) return true;
    }
    return false;
  }

  /** Copies the iovec of segment `i` to a place in `words`, whose length's high half is 0 already. */
  copyIovec(i: number, words: Uint32Array, at: number): void {
    const word = (this.start + i) * IOVEC_WORDS;
    words[at] = this.#words[word];
    words[at + 1] = this.#words[word + 1];
    words[at + LENGTH_WORD] = this.#words[word + LENGTH_WORD];
  }

  /** Takes the first bytes off the list, for good; there must be as many. */
  skip(bytes: number): void {
    const words = this.#words;
    this.length -= bytes;
    for (; bytes > 0; this.start++, this.count--) {
      const word = this.start * IOVEC_WORDS;
      const size = words[word + LENGTH_WORD];
      if (bytes < size) {
        const low = words[word] + bytes;
        words[word] = low;
        if (low >= TWO_TO_32) words[word + 1]++;
        words[word + LENGTH_WORD] = size - bytes;
        return;
      }
      bytes -= size;
    }
  }

  /** Takes the last byte off the list, for good; it must not be empty. @returns the segment it is right behind */
  cutByte(): number {
    const last = this.start + this.count - 1;
    this.length--;
    if (--this.#words[last * IOVEC_WORDS + LENGTH_WORD] === 0) this.count--;
    return last;
  }

  /** The address of the iovec of segment `first`, to hand the segments from there on to readv. */
  addressFrom(first: number): bigint {
    return this.#array.address + BigInt(((this.start + first) * IOVEC_SIZE) >>> 0);
  }

  /**
   * Copies bytes out of the segments, from byte `skip` on.
   *
   * @param target an address of stable memory (the arena, a mapping), never of a JavaScript array
   * @param length how many at most, less than 2^32
   * @param first the segment whose first byte is byte 0
   * @returns how many bytes there were to copy
   */
  copyOut(skip: number, target: bigint, length: number, first = 0): number {
    const i = this.start + first;
    const end = skip + length;
    // Most frames lie in one piece; this is short enough to be compiled into callers.
    if (first < this.count && length > 0 && end <= this.#words[i * IOVEC_WORDS + LENGTH_WORD]) {
      libc.memcpy(target, this.#addresses[i * IOVEC_DOUBLE_WORDS] + BigInt(skip >>> 0), length);
      return length;
    }
    return this.#copyPiecesOut(skip, target, length, i);
  }

  #copyPiecesOut(skip: number, target: bigint, length: number, i: number): number {
    let done = 0;
    const end = this.start + this.count;
    while (i < end && done < length) {
      const from = i;
      const size = this.#array.adjoining(from, end, skip + length - done);
      i = this.#array.behind;
      if (skip >= size) {
        skip -= size;
        continue;
      }
      const part = Math.min(size - skip, length - done) >>> 0;
      const source = this.#addresses[from * IOVEC_DOUBLE_WORDS] + BigInt(skip >>> 0);
      libc.memcpy(target + BigInt(done >>> 0), source, part);
      done += part;
      skip = 0;
    }
    return done;
  }

  /**
   * Copies bytes into the segments, from byte `skip` on; otherwise as {@link copyOut}. (Written twice, because
   * each call of C is compiled where it stands.)
   *
   * @param source an address of stable memory
   */
  copyIn(skip: number, source: bigint, length: number, first = 0): number {
    const i = this.start + first;
    const end = skip + length;
    if (first < this.count && length > 0 && end <= this.#words[i * IOVEC_WORDS + LENGTH_WORD]) {
      libc.memcpy(this.#addresses[i * IOVEC_DOUBLE_WORDS] + BigInt(skip >>> 0), source, length);
      return length;
    }
    return this.#copyPiecesIn(skip, source, length, i);
  }

  #copyPiecesIn(skip: number, source: bigint, length: number, i: number): number {
    let done = 0;
    const end = this.start + this.count;
    while (i < end && done < length) {
      const from = i;
      const size = this.#array.adjoining(from, end, skip + length - done);
      i = this.#array.behind;
      if (skip >= size) {
        skip -= size;
        continue;
      }
      const part = Math.min(size - skip, length - done) >>> 0;
      const target = this.#addresses[from * IOVEC_DOUBLE_WORDS] + BigInt(skip >>> 0);
      libc.memcpy(target, source + BigInt(done >>> 0), part);
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
    // Headers nearly always lie in one piece.
    const i = this.start + first;
    if (first < this.count && at + 2 <= this.#words[i * IOVEC_WORDS + LENGTH_WORD]) {
      this.#array.windowOf(i).view.setUint16(this.#array.offsetOf(i) + at, value, true);
      return true;
    }
    return this.setUint8(at, value & 0xff, first) && this.setUint8(at + 1, value >>> 8, first);
  }

  /**
   * The byte at `at`, or 0 outside.
   *
   * @param first the segment whose first byte is byte 0
   */
  getUint8(at: number, first = 0): number {
    for (let i = this.start + first; i < this.start + this.count; i++) {
      const size = this.#words[i * IOVEC_WORDS + LENGTH_WORD];
      if (at < size) return this.#array.windowOf(i).view.getUint8(this.#array.offsetOf(i) + at);
      at -= size;
    }
    return 0;
  }

  /** Stores one byte; otherwise as {@link setUint16}. */
  setUint8(at: number, value: number, first = 0): boolean {
    for (let i = this.start + first; i < this.start + this.count; i++) {
      const size = this.#words[i * IOVEC_WORDS + LENGTH_WORD];
      if (at < size) {
        this.#array.windowOf(i).view.setUint8(this.#array.offsetOf(i) + at, value);
        return true;
      }
      at -= size;
    }
    return false;
  }
}
