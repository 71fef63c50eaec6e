/**
 * Frames that wait for the guest: a fixed ring of preallocated slots, first in, first out.
 *
 * A writer builds the frame in {@link FrameRing.slot}, which is always there, and commits its length; what is not
 * committed costs nothing. When all slots are taken a commit is refused, as a switch does with a full port:
 * nothing that the guest sends can make the ring grow.
 */

import { copyBytes } from "../protocols/byte_order.ts";

/** Bytes of a slot. The responder writes no frame above 1514 bytes; the rest keeps slots page-friendly. */
const SLOT_SIZE = 2048;

/** See the head of this file. */
export class FrameRing {
  /** One more than frames can wait: the one that is written. */
  readonly #slots: Uint8Array[] = [];
  readonly #lengths: Uint16Array;
  #head = 0;
  #count = 0;

  constructor(readonly capacity: number = 256) {
    const memory = new Uint8Array((capacity + 1) * SLOT_SIZE);
    for (let at = 0; at < memory.length; at += SLOT_SIZE) {
      this.#slots.push(memory.subarray(at, at + SLOT_SIZE));
    }
    this.#lengths = new Uint16Array(capacity + 1);
  }

  get count(): number {
    return this.#count;
  }

  /** The slot for the next frame, with an older frame's bytes in it. */
  get slot(): Uint8Array {
    return this.#slots[this.#head];
  }

  /** Queues the frame that was written into {@link slot}; false if the ring is full. */
  commit(length: number): boolean {
    if (!(length > 0 && length <= SLOT_SIZE)) throw new RangeError(`a frame of ${length} bytes`);
    if (this.#count === this.capacity) return false;
    this.#lengths[this.#head] = length;
    this.#head = this.#head === this.capacity ? 0 : this.#head + 1;
    this.#count++;
    return true;
  }

  peekLength(): number {
    return this.#count === 0 ? 0 : this.#lengths[this.#tail()];
  }

  /** Moves the oldest frame into `target`; its length, 0 if none waits or it is too long: that one is dropped. */
  shift(target: Uint8Array): number {
    if (this.#count === 0) return 0;
    const tail = this.#tail();
    const length = this.#lengths[tail];
    this.#count--;
    if (length > target.length) return 0;
    copyBytes(target, 0, this.#slots[tail], 0, length);
    return length;
  }

  #tail(): number {
    const tail = this.#head - this.#count;
    return tail < 0 ? tail + this.#slots.length : tail;
  }
}
