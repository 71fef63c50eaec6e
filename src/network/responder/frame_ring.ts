/**
 * Frames that wait for the guest: a fixed ring of preallocated slots, first in, first out.
 *
 * Theory of operation. A writer reserves the slot at the head, builds the frame in place and commits its
 * length; a reservation that is not committed costs nothing and is handed out again. The reader copies
 * the frame at the tail out. When all slots are taken the new frame is dropped and counted, as a switch
 * does with a full port: nothing that the guest sends can make the ring grow.
 */

import { copyBytes } from "../protocols/byte_order.ts";

/** Bytes of a slot. The responder writes no frame above 1514 bytes; the rest keeps slots page-friendly. */
export const FRAME_SLOT_SIZE = 2048;

/** A first-in, first-out queue of frames in memory that is allocated once. */
export class FrameRing {
  readonly #slots: Uint8Array[] = [];
  readonly #lengths: Uint16Array;
  #head = 0;
  #count = 0;
  #dropped = 0;

  /** Allocates room for `capacity` frames, at least 1. */
  constructor(readonly capacity: number = 256) {
    const memory = new Uint8Array(capacity * FRAME_SLOT_SIZE);
    for (let i = 0; i < capacity; i++) {
      this.#slots.push(memory.subarray(i * FRAME_SLOT_SIZE, (i + 1) * FRAME_SLOT_SIZE));
    }
    this.#lengths = new Uint16Array(capacity);
  }

  /** Frames that wait. */
  get count(): number {
    return this.#count;
  }

  /** Frames that found the ring full, and frames that were larger than the reader's buffer. */
  get dropped(): number {
    return this.#dropped;
  }

  /** The slot for the next frame, with an older frame's bytes in it; undefined (and counted) if full. */
  reserve(): Uint8Array | undefined {
    if (this.#count === this.capacity) {
      this.#dropped++;
      return undefined;
    }
    return this.#slots[this.#head];
  }

  /** Queues the frame that was written into the reserved slot. */
  commit(length: number): void {
    if (this.#count === this.capacity || !(length > 0 && length <= FRAME_SLOT_SIZE)) {
      throw new RangeError(`commit of ${length} bytes without a reserved slot of that size`);
    }
    this.#lengths[this.#head] = length;
    this.#head = this.#head + 1 === this.capacity ? 0 : this.#head + 1;
    this.#count++;
  }

  /** Bytes of the oldest frame, 0 if none waits. */
  peekLength(): number {
    return this.#count === 0 ? 0 : this.#lengths[this.#tail()];
  }

  /**
   * Moves the oldest frame into `target` and returns its length. Returns 0 if none waits, or if it does
   * not fit: then it is dropped and counted, for it would hold up all others.
   */
  shift(target: Uint8Array): number {
    if (this.#count === 0) return 0;
    const tail = this.#tail();
    const length = this.#lengths[tail];
    this.#count--;
    if (length > target.length) {
      this.#dropped++;
      return 0;
    }
    copyBytes(target, 0, this.#slots[tail], 0, length);
    return length;
  }

  /** Forgets all frames, without counting them as dropped. */
  clear(): void {
    this.#count = 0;
  }

  #tail(): number {
    const tail = this.#head - this.#count;
    return tail < 0 ? tail + this.capacity : tail;
  }
}
