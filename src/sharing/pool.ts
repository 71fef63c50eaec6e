/**
 * Buffer space of one shadow queue: pieces of any length, given back in the order they were taken.
 *
 * A virtqueue's buffers come back to the driver in order here (forwarding_queue.ts), so the space is a ring: the
 * newest piece is taken at the head, the oldest given back at the tail. A piece is never split; what is left at the end of the space when one does not fit there stays unused
 * until the pieces before it are back. A small frame takes little, a large one as much as it needs, and
 * nothing is ever fragmented.
 */

/** Pieces begin at multiples of this: whole cache lines, each written by one side. */
export const POOL_ALIGNMENT = 64;

/** See the head of this file. Offsets count from the beginning of the space. */
export class RingPool {
  /** Where the next piece begins, if it fits. */
  #head = 0;
  /** Where the oldest piece begins. */
  #tail = 0;
  /** Pieces out. */
  #count = 0;

  /** @param size of the space in bytes, a multiple of {@link POOL_ALIGNMENT} below 2^31 */
  constructor(readonly size: number) {}

  /**
   * Takes a piece.
   *
   * @param length in bytes, from 1 to {@link size}
   * @returns its offset, or -1 if there is no room for it now
   */
  take(length: number): number {
    const size = (length + POOL_ALIGNMENT - 1) & ~(POOL_ALIGNMENT - 1);
    if (this.#count === 0) this.#head = this.#tail = 0;
    // Equal with pieces out means full.
    const wrapped = this.#head < this.#tail || (this.#count > 0 && this.#head === this.#tail);
    let at = this.#head;
    if (wrapped) {
      if (at + size > this.#tail) return -1;
    } else if (at + size > this.size) {
      if (size > this.#tail) return -1;
      at = 0;
    }
    this.#head = at + size;
    this.#count++;
    return at;
  }

  /** Gives the oldest piece back. @param next where the next oldest begins, if there is one */
  giveBack(next: number): void {
    this.#count--;
    this.#tail = this.#count === 0 ? this.#head : next;
  }
}
