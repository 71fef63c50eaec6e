/**
 * Buffers of the driver, popped from a queue: descriptor chains (VIRTIO 1.2, section 2.7.5) with their addresses
 * checked and turned into segments of our memory.
 *
 * A batch holds the segments of all its chains in one iovec array, chain behind chain, in each the readable ones
 * before the writable ones (2.7.4.2), so that each part goes to writev or readv as it is:
 *
 *     starts            0           1     2
 *     segments          | r   w   w | r   | w   w   w | room for more
 *     writableFrom        0:^            1:^2:^
 *
 * A batch is made once and filled again and again; its array stays in the arena for good, so it belongs to a device
 * and outlives the queues it is used with.
 */

import { IovecArray, IovecList } from "../../memory/iovec_list.ts";
import type { MemoryRegion } from "../../memory/mod.ts";

/** The segments that are room for unless told otherwise; Linux's network driver needs at most 47 a chain. */
const DEFAULT_CAPACITY = 512;

/** Popped buffers, one of which is selected. The arrays are the queue's to fill (device_queue.ts). */
export class ChainBatch {
  /** How many chains it holds. */
  count = 0;
  /** The index of the selected chain's first descriptor, to be handed to `complete`. */
  head = 0;
  /** What the device may read of the selected chain, in order. */
  readonly readable: IovecList;
  /** What the device may write of it, in order. */
  readonly writable: IovecList;
  /** All segments, of whatever chain. */
  readonly segments: IovecList;
  /** Their array. */
  readonly array: IovecArray;
  /** By chain: its first descriptor. */
  readonly heads: Uint16Array;
  /** By chain: its first segment. One entry more, for where the next chain begins. */
  readonly starts: Uint16Array;
  /** By chain: its first writable segment, or its end. */
  readonly writableFrom: Uint16Array;
  /** By chain, in bytes. */
  readonly readableLengths: Uint32Array;
  /** By chain, in bytes. */
  readonly writableLengths: Uint32Array;

  /**
   * Takes the iovec array from the arena, for good.
   *
   * @param most chains
   * @param capacity how many segments it can hold, at most 1024 (IOV_MAX)
   */
  constructor(readonly most: number, capacity: number) {
    this.array = new IovecArray(capacity);
    this.segments = new IovecList(this.array);
    this.readable = new IovecList(this.array);
    this.writable = new IovecList(this.array);
    this.heads = new Uint16Array(most);
    this.starts = new Uint16Array(most + 1);
    this.writableFrom = new Uint16Array(most);
    this.readableLengths = new Uint32Array(most);
    this.writableLengths = new Uint32Array(most);
  }

  /** Forgets all chains. */
  clear(): void {
    this.count = 0;
    this.segments.clear();
    this.readable.clear();
    this.writable.clear();
  }

  /** Is anything of the chains from number `first` on in this region? */
  isIn({ memory, offset, size }: MemoryRegion, first: number): boolean {
    if (first >= this.count) return false;
    const from = Number(memory.address) + offset;
    return this.segments.isWithin(from, from + size, this.starts[first]);
  }

  /** Makes `head`, `readable` and `writable` those of chain `i`. */
  select(i: number): void {
    this.selectReadable(i);
    this.selectWritable(i);
  }

  /** The same without `writable`, which belongs to another chain then. */
  selectReadable(i: number): void {
    const { readable } = this;
    const start = this.starts[i];
    this.head = this.heads[i];
    readable.start = start;
    readable.count = this.writableFrom[i] - start;
    readable.length = this.readableLengths[i];
  }

  /** The same without `readable`. */
  selectWritable(i: number): void {
    const { writable } = this;
    const start = this.writableFrom[i];
    this.head = this.heads[i];
    writable.start = start;
    writable.count = this.starts[i + 1] - start;
    writable.length = this.writableLengths[i];
  }
}

/** One popped buffer, reused for the next. */
export class Chain extends ChainBatch {
  /**
   * Takes the iovec array from the arena, for good.
   *
   * @param capacity how many segments it can hold, at most 1024 (IOV_MAX)
   */
  constructor(capacity: number = DEFAULT_CAPACITY) {
    super(1, capacity);
  }
}
