/**
 * Several writable buffers behind one another, filled by one system call.
 *
 * With mergeable receive buffers (VIRTIO 1.2, section 5.1.6.3.2) a frame may span buffers, and how many is
 * known only after it was read. So the device pops buffers until the largest frame fits, hands all their
 * segments to one readv, completes as many as the frame needs, and keeps the rest for the next frame:
 *
 *     buffers     0   1   2 | 3   4   5   6   7 |                     the iovec array
 *                 completed | in flight: `bytes` | room for more
 *
 * At the array's end the remaining buffers are given back to the queue and popped again at its beginning, so it
 * should have room for several frames of the largest kind.
 *
 * A sequence belongs to a device, like a chain: its arrays are in the arena for good. The buffers it holds
 * must be the queue's newest. When the queue stops or is reset, `clear` the sequence.
 */

import type { IovecList } from "../../memory/iovec_list.ts";
import { Chain } from "./chain.ts";
import { type DeviceQueue, Pop } from "./device_queue.ts";

export class ChainSequence {
  /** The segments of all buffers held, used ones too; see {@link firstSegment}. */
  readonly writable: IovecList;
  /** How many bytes the unused buffers hold. */
  bytes = 0;
  readonly #chain: Chain;
  readonly #maxBuffers: number;
  readonly #heads: Uint16Array;
  readonly #capacities: Uint32Array;
  /** Where each buffer's segments begin; one entry more than there are buffers. */
  readonly #segments: Uint16Array;
  /** Buffers before this one are completed. */
  #first = 0;
  #count = 0;

  /** @param capacity how many segments, at most 1024 (IOV_MAX) */
  constructor(maxBuffers = 256, capacity = 1024) {
    // Readable descriptors do not belong here; room for one shows that there are some.
    this.#chain = new Chain(1, capacity);
    this.writable = this.#chain.writable;
    this.#maxBuffers = maxBuffers;
    this.#heads = new Uint16Array(maxBuffers);
    this.#capacities = new Uint32Array(maxBuffers);
    this.#segments = new Uint16Array(maxBuffers + 1);
  }

  /** How many unused buffers it holds; the queue counts them as in flight. */
  get buffers(): number {
    return this.#count - this.#first;
  }

  /** The first segment of the first unused buffer, for copyIn and setUint16 of {@link writable}. */
  get firstSegment(): number {
    return this.#segments[this.#first];
  }

  /**
   * Pops buffers until the unused ones hold `wanted` bytes.
   *
   * @returns false if there are not as many, in the queue (look at `broken`) or in this sequence
   */
  fill(queue: DeviceQueue, wanted: number): boolean {
    const chain = this.#chain;
    while (this.bytes < wanted) {
      const before = this.writable.length;
      const outcome = this.#count === this.#maxBuffers ? Pop.FULL : queue.append(chain);
      if (outcome === Pop.FULL && this.#first > 0) {
        this.release(queue);
        continue;
      }
      if (outcome !== Pop.CHAIN) return false;
      if (chain.readable.count > 0) {
        queue.refuse(`buffer ${chain.head} has readable descriptors where none belong`);
        return false;
      }
      const capacity = this.writable.length - before;
      this.#heads[this.#count] = chain.head;
      this.#capacities[this.#count] = capacity;
      this.#count++;
      this.#segments[this.#count] = this.writable.count;
      this.bytes += capacity;
    }
    return true;
  }

  /**
   * How many buffers `written` bytes take, for a header that must say so before they are completed.
   *
   * @param written at least 1, at most {@link bytes}
   */
  buffersFor(written: number): number {
    if (!(written > 0 && written <= this.bytes)) throw this.#tooMuch(written);
    let buffer = this.#first;
    for (let rest = written; rest > 0; buffer++) rest -= this.#capacities[buffer];
    return buffer - this.#first;
  }

  /**
   * Completes the buffers that `written` bytes took, each but the last to its end (5.1.6.4.1). The others
   * stay for the next frame. The driver sees them after `queue.publish()`.
   *
   * @param written at least 1, at most {@link bytes}
   * @returns how many buffers that were
   */
  complete(queue: DeviceQueue, written: number): number {
    if (!(written > 0 && written <= this.bytes)) throw this.#tooMuch(written);
    const before = this.#first;
    while (written > 0) {
      const capacity = this.#capacities[this.#first];
      const part = written < capacity ? written : capacity;
      queue.complete(this.#heads[this.#first], part);
      written -= part;
      this.bytes -= capacity;
      this.#first++;
    }
    return this.#first - before;
  }

  #tooMuch(written: number): Error {
    return new Error(`${written} bytes written to buffers of ${this.bytes}`);
  }

  release(queue: DeviceQueue): void {
    queue.rewind(this.buffers);
    this.clear();
  }

  /** Forgets all buffers, after the queue was stopped or reset. */
  clear(): void {
    this.#chain.clear();
    this.#first = 0;
    this.#count = 0;
    this.#segments[0] = 0;
    this.bytes = 0;
  }
}
