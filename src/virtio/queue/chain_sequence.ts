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

import type { IovecList, MemoryRegion } from "../../memory/mod.ts";
import { ChainBatch } from "./chain.ts";
import type { DeviceQueue } from "./device_queue.ts";
import { Pop } from "./pop.ts";

export class ChainSequence {
  /** The segments of all buffers held, used ones too; see {@link firstSegment}. */
  readonly writable: IovecList;
  /** How many bytes the unused buffers hold. */
  bytes = 0;
  readonly #batch: ChainBatch;
  /** Buffers before this one are completed. */
  #first = 0;

  /** @param capacity how many segments, at most 1024 (IOV_MAX) */
  constructor(maxBuffers = 256, capacity = 1024) {
    this.#batch = new ChainBatch(maxBuffers, capacity);
    this.writable = this.#batch.segments;
  }

  /** How many unused buffers it holds; the queue counts them as in flight. */
  get buffers(): number {
    return this.#batch.count - this.#first;
  }

  /** The first segment of the first unused buffer, for copyIn and setUint16 of {@link writable}. */
  get firstSegment(): number {
    return this.#batch.starts[this.#first];
  }

  /**
   * Pops buffers until the unused ones hold `wanted` bytes.
   *
   * @param ahead how many are popped at once at least, since more frames may follow
   * @returns false if there are not as many, in the queue (look at `broken`) or in this sequence
   */
  fill(queue: DeviceQueue, wanted: number, ahead = 1): boolean {
    while (this.bytes < wanted) {
      if (!this.#pop(queue, wanted, ahead)) return false;
    }
    return true;
  }

  #pop(queue: DeviceQueue, wanted: number, ahead: number): boolean {
    const batch = this.#batch;
    const { starts, writableFrom, writableLengths } = batch;
    const from = batch.count;
    // Buffers are mostly of one size.
    const size = from === 0 ? 0 : writableLengths[from - 1];
    const most = size === 0 ? ahead : Math.max(ahead, Math.ceil((wanted - this.bytes) / size));
    if (queue.pop(batch, most) === 0) {
      if (queue.outcome !== Pop.FULL || this.#first === 0) return false;
      this.release(queue);
      return true;
    }
    for (let i = from; i < batch.count; i++) {
      if (writableFrom[i] !== starts[i]) {
        queue.refuse(`buffer ${batch.heads[i]} has readable descriptors where none belong`);
        return false;
      }
      this.bytes += writableLengths[i];
    }
    return true;
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
    const { heads, writableLengths } = this.#batch;
    const capacity = writableLengths[before];
    // Most frames take one; this is short enough to be compiled into callers.
    if (written <= capacity) {
      this.#first = before + 1;
      this.bytes -= capacity;
      queue.complete(heads[before], written);
      return 1;
    }
    return this.#completeSeveral(queue, written);
  }

  #completeSeveral(queue: DeviceQueue, written: number): number {
    const before = this.#first;
    const { heads, writableLengths } = this.#batch;
    while (written > 0) {
      const capacity = writableLengths[this.#first];
      const part = written < capacity ? written : capacity;
      queue.complete(heads[this.#first], part);
      written -= part;
      this.bytes -= capacity;
      this.#first++;
    }
    return this.#first - before;
  }

  #tooMuch(written: number): Error {
    return new Error(`${written} bytes written to buffers of ${this.bytes}`);
  }

  /** Is any unused buffer in this region? */
  isIn(region: MemoryRegion): boolean {
    return this.#batch.isIn(region, this.#first);
  }

  release(queue: DeviceQueue): void {
    queue.rewind(this.buffers);
    this.clear();
  }

  /** Forgets all buffers, after the queue was stopped or reset. */
  clear(): void {
    this.#batch.clear();
    this.#first = 0;
    this.bytes = 0;
  }
}
