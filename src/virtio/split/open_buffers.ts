/**
 * The buffers that a device has popped and not completed, where it completes them in any order: a disk's
 * requests, or whatever a device in another process is at work on.
 *
 * What in-order completion gets from two indices is remembered here by head. A driver that offers a head again
 * that is still open breaks the queue: completing it would not say which of the two buffers is meant.
 *
 * What follows for stopping and restarting. The driver knows an index only, the base: whatever came before it
 * was used, whatever comes from it on was not. In any order that is true only if no open buffer was overtaken:
 *
 *     popped     0  1  2  3  4  5          open 1, 4, 5: the base can go back to 4, not to 1,
 *     used       x  .  x  x  .  .          for 2 and 3 would be used twice
 *
 * - `stop` takes the newest open buffers back (4 and 5). Those that were overtaken (1) stay open for good,
 *   and the driver gets them back only by a reset. So a device finishes them before it lets its queue stop.
 * - A device that died leaves a used index, which says how many buffers were used and not which. A successor
 *   that begins there would use some twice and others never, and neither ring can tell it: the driver writes
 *   over entries of the available ring once as many buffers as the ring holds came back. Without a record
 *   outside of the rings (vhost-user's inflight memory) the driver has to reset such a device.
 */

export class OpenBuffers {
  /** 1 where a head is open. */
  readonly #isOpen: Uint8Array;
  /** By head: the available index it was popped at. */
  readonly #indices: Uint16Array;
  /** By head: writable bytes. */
  readonly #capacities: Uint32Array;

  constructor(size: number) {
    this.#isOpen = new Uint8Array(size);
    this.#indices = new Uint16Array(size);
    this.#capacities = new Uint32Array(size);
  }

  /** A buffer was popped; false if its head is open already. */
  open(head: number, index: number, capacity: number): boolean {
    if (this.#isOpen[head] === 1) return false;
    this.#isOpen[head] = 1;
    this.#indices[head] = index;
    this.#capacities[head] = capacity;
    return true;
  }

  close(head: number, written: number): void {
    // Of any number: heads that are not in the table are not open.
    if (this.#isOpen[head] !== 1) throw new Error(`head ${head} is not in flight`);
    if (!(written >= 0 && written <= this.#capacities[head])) {
      throw new Error(`${written} bytes written to a buffer of ${this.#capacities[head]}`);
    }
    this.#isOpen[head] = 0;
  }

  /** Is the buffer still open that was popped at this available index with this head? */
  #isStill(head: number, index: number): boolean {
    return this.#isOpen[head] === 1 && this.#indices[head] === index;
  }

  /** How many of the `count` buffers popped last are open, up to the first that is not; see {@link takeBack}. */
  newest(heads: Uint16Array, base: number, count: number): number {
    for (let back = 1; back <= count; back++) {
      const index = (base - back) & 0xffff;
      if (!this.#isStill(heads[index & (heads.length - 1)], index)) return back - 1;
    }
    return count;
  }

  /**
   * The `count` buffers popped last were not popped.
   *
   * @param heads by available index modulo size
   * @param base the available index behind them
   */
  takeBack(heads: Uint16Array, base: number, count: number): void {
    for (let back = 1; back <= count; back++) {
      const index = (base - back) & 0xffff;
      const head = heads[index & (heads.length - 1)];
      if (!this.#isStill(head, index)) {
        throw new Error(`cannot take head ${head} back: it was completed`);
      }
      this.#isOpen[head] = 0;
    }
  }
}
