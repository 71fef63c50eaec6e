/**
 * A buffer of the driver, popped from a queue: the descriptor chain (VIRTIO 1.2, section 2.7.5) with
 * its addresses checked and turned into segments of our memory.
 *
 * A chain is made once and filled again for every buffer; its iovec arrays stay in the arena for good,
 * so it belongs to a device and outlives the queues it is used with. The readable segments precede the
 * writable ones in the buffer (2.7.4.2); each list goes to writev or readv as it is.
 */

import { IovecList } from "../../memory/iovec_list.ts";

/** The segments a chain can hold unless told otherwise; Linux's network driver needs at most 47. */
const DEFAULT_CAPACITY = 256;

/** One popped buffer, reused for the next. */
export class Chain {
  /** The index of the buffer's first descriptor, to be handed to `complete`. */
  head = 0;
  /** What the device may read, in order. */
  readonly readable: IovecList;
  /** What the device may write, in order. */
  readonly writable: IovecList;

  /**
   * Takes the iovec arrays from the arena, for good.
   *
   * @param readableCapacity how many readable segments it can hold, at most 1024 (IOV_MAX)
   * @param writableCapacity how many writable segments; the same as readable ones unless given
   */
  constructor(
    readableCapacity: number = DEFAULT_CAPACITY,
    writableCapacity: number = readableCapacity,
  ) {
    this.readable = new IovecList(readableCapacity);
    this.writable = new IovecList(writableCapacity);
  }

  /** Forgets the segments. */
  clear(): void {
    this.readable.clear();
    this.writable.clear();
  }
}
