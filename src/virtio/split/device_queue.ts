/**
 * The device's side of a split virtqueue (VIRTIO 1.2, section 2.7).
 *
 * Life: `openDeviceQueue` checks where the rings lie and makes views over exactly the three areas. Then
 * the queue is open; it is broken for good by the first thing in its memory that cannot be right
 * (`broken` says what, the device answers with DEVICE_NEEDS_RESET), and stopped by `stop`. A broken
 * queue still takes `complete` and `publish` for the buffers popped before, so that a batch has no
 * special end; a stopped queue touches memory no more.
 *
 * Indices, all free-running 16-bit numbers kept here and never read back from shared memory:
 *
 *     published <= used:       completed, not yet shown to the driver
 *     used .. base:            in flight, popped and not completed
 *     base .. available:       seen in the available ring, not popped
 *
 * Buffers are completed in the order they were made available. Hence the used index of a device that
 * died is the base of its successor, `rewind` and `stop` are exact, and `complete` can assert its
 * arguments. The heads in flight are remembered here, because the driver can rewrite its ring. A queue that
 * was opened with `anyOrder` gives all that up for devices that keep buffers: see open_buffers.ts.
 *
 * Hostile drivers: each word is read once into a local, checked, then used. A chain has at most as
 * many descriptors as the queue has entries, which also ends every loop (2.7.5.3.1; the descriptor that
 * names an indirect table is not counted, the table's are). An indirect table must lie in one window.
 * Descriptors of length zero are skipped: the specification allows them, and they hold nothing.
 * Readable after writable, INDIRECT with NEXT, INDIRECT in a table or without the feature, a chain of
 * 2^32 bytes or more, an index out of range, an address outside: the queue is broken. Areas may overlap
 * one another; that harms the driver alone.
 *
 * Cost: an atomic load of the available index per batch, an atomic store and load per `publish` and per
 * `wantKicks`; all else is plain access. Nothing is allocated after opening.
 */

import type { AddressSpace } from "../../memory/address_space.ts";
import { loadAcquire16, storeRelease16 } from "../../memory/atomics.ts";
import type { IovecList } from "../../memory/iovec_list.ts";
import type { Chain } from "./chain.ts";
import {
  AVAIL_HEADS,
  AVAIL_NO_INTERRUPT,
  availEventIndex,
  DESCRIPTOR_INDIRECT,
  DESCRIPTOR_NEXT,
  DESCRIPTOR_SIZE,
  DESCRIPTOR_WRITE,
  needsEvent,
  RING_FLAGS,
  RING_INDEX,
  USED_ELEMENTS,
  USED_NO_NOTIFY,
  usedEventIndex,
} from "./layout.ts";
import { OpenBuffers } from "./open_buffers.ts";
import { type QueueConfig, type RingViews, ringViews } from "./ring_views.ts";

/** A chain's bytes must be countable in a used element's 32-bit length. */
const MAX_CHAIN_BYTES = 0xffff_ffff;
const TWO_TO_32 = 0x1_0000_0000;
/**
 * Segments of the buffers of one batch: what a driver makes of its buffers must not let others wait. It is as many as 64
 * frames of 64 KiB in pages have. One buffer may go beyond it.
 */
export const SEGMENT_BUDGET = 1024;

/** What popping a buffer can come to. */
export const Pop: {
  /** No buffer is available (or the queue is stopped). */
  readonly EMPTY: 0;
  /** The chain holds a buffer. */
  readonly CHAIN: 1;
  /** The segment lists have no room for the next buffer beside those they hold; it was not popped. */
  readonly FULL: 2;
  /** The queue is broken; `broken` says why. */
  readonly BROKEN: 3;
  /** Where the buffer lies is being asked (memory/translated_space.ts); try again when it is known. */
  readonly PARKED: 4;
} = { EMPTY: 0, CHAIN: 1, FULL: 2, BROKEN: 3, PARKED: 4 };

/**
 * Opens the device's side of a queue.
 *
 * @param space where the driver's bus addresses lead
 * @param config as the driver set it up
 * @returns the queue, or in one line why it cannot be one
 */
export function openDeviceQueue(space: AddressSpace, config: QueueConfig): DeviceQueue | string {
  const views = ringViews(space, config);
  return typeof views === "string" ? views : new DeviceQueue(space, config, views);
}

/**
 * The device's side of one split virtqueue. The loop of a device that reads buffers:
 *
 * @example
 * ```ts
 * import { AddressSpace } from "../../memory/address_space.ts";
 * import { Chain } from "./chain.ts";
 *
 * // 64 KiB of the driver's memory, and a queue of 256 entries at its beginning
 * const memory = { address: 0n, buffer: new ArrayBuffer(65536), size: 65536 };
 * const space = new AddressSpace();
 * space.add(0x4000_0000, memory.size, memory);
 * const queue = openDeviceQueue(space, {
 *   size: 256,
 *   descriptorAddress: 0x4000_0000,
 *   driverAddress: 0x4000_1000,
 *   deviceAddress: 0x4000_2000,
 *   base: 0,
 *   eventIndex: true,
 *   indirect: false,
 * });
 * if (typeof queue === "string") throw new Error(queue);
 *
 * const chain = new Chain();
 * let bytes = 0;
 * do {
 *   queue.noKicks();
 *   while (queue.next(chain) === Pop.CHAIN) {
 *     bytes += chain.readable.length; // here: writev(fd, chain.readable.address, chain.readable.count)
 *     queue.complete(chain.head, 0);
 *   }
 *   if (queue.publish()) console.log("send a used buffer notification");
 *   // Kicks are wanted again; look once more, for a buffer may have come before the driver saw that.
 * } while (queue.wantKicks());
 * if (queue.broken !== undefined) console.log(`set DEVICE_NEEDS_RESET: ${queue.broken}`);
 * ```
 */
export class DeviceQueue {
  /** Entries. */
  readonly size: number;
  readonly #space: AddressSpace;
  readonly #eventIndex: boolean;
  readonly #mask: number;
  readonly #descriptors: Uint32Array;
  readonly #avail: Uint16Array;
  readonly #used: Uint16Array;
  readonly #usedElements: Uint32Array;
  readonly #usedEvent: number;
  readonly #availEvent: number;
  /** Whether a chain may end in an indirect table. */
  readonly #indirect: boolean;
  /** Heads and writable bytes of the buffers in flight, by available index modulo size. */
  readonly #heads: Uint16Array;
  readonly #capacities: Uint32Array;
  /** Available index of the next buffer to pop. */
  #base: number;
  /** Buffers seen in the available ring and not popped. */
  #left = 0;
  /** Buffers popped and not completed. */
  #inFlight = 0;
  /** Used index of the next element, ahead of the driver's view of it by the unpublished ones. */
  #usedIndex: number;
  /** The used index the driver has seen. */
  #published: number;
  #broken: string | undefined = undefined;
  #stopped = false;
  /** In this batch: the next buffer cannot be popped before its addresses are known. */
  #parked = false;
  /** In this batch: segments that were popped, and what else was charged. */
  #spent = 0;
  /** The buffers in flight, where they are completed in any order. */
  readonly #open: OpenBuffers | undefined;

  /** Use {@link openDeviceQueue}, which checks everything first. */
  constructor(space: AddressSpace, config: QueueConfig, views: RingViews) {
    this.size = config.size;
    this.#space = space;
    this.#eventIndex = config.eventIndex;
    this.#mask = config.size - 1;
    this.#descriptors = views.descriptors;
    this.#avail = views.avail;
    this.#used = views.used;
    this.#usedElements = views.usedElements;
    this.#usedEvent = usedEventIndex(config.size);
    this.#availEvent = availEventIndex(config.size);
    this.#indirect = config.indirect;
    this.#heads = new Uint16Array(config.size);
    this.#capacities = new Uint32Array(config.size);
    this.#base = config.base;
    this.#usedIndex = config.used ?? config.base;
    this.#published = this.#usedIndex;
    this.#open = config.anyOrder === true ? new OpenBuffers(config.size) : undefined;
  }

  /** Why the queue is broken; undefined while it is not. */
  get broken(): string | undefined {
    return this.#broken;
  }

  /** The available index of the next buffer to pop; after {@link stop} what a successor begins at. */
  get base(): number {
    return this.#base;
  }

  /** Has this batch had its segments? Then no more buffers are in it: others come first. */
  get isSpent(): boolean {
    return this.#spent >= SEGMENT_BUDGET;
  }

  /** The batch does other work for each piece of a buffer, as if it had so many more segments. */
  charge(segments: number): void {
    this.#spent += segments;
  }

  /** How many buffers are popped and not completed. */
  get inFlight(): number {
    return this.#inFlight;
  }

  /**
   * Looks into the available ring.
   *
   * @returns how many buffers can be popped; 0 also when the queue is broken or stopped
   */
  pending(): number {
    if (this.#broken !== undefined || this.#stopped) return 0;
    // Acquire: descriptors and heads that the driver wrote before this index are visible from here on.
    const available = loadAcquire16(this.#avail, RING_INDEX);
    const left = (available - this.#base) & 0xffff;
    // No driver has more buffers out than the ring has entries; those in flight and those completed
    // without its knowledge are still out. This also bounds the two arrays of buffers in flight.
    const unpublished = (this.#usedIndex - this.#published) & 0xffff;
    if (left + this.#inFlight + unpublished > this.size) return this.#tooFarAhead(available, left);
    this.#left = left;
    return left;
  }

  #tooFarAhead(available: number, left: number): number {
    this.#break(
      `available index ${available} is ${left} ahead, the queue has ${this.size} entries`,
    );
    return 0;
  }

  /**
   * Pops the next buffer into `chain`, which forgets what it held.
   *
   * @returns one of {@link Pop}, never FULL: a buffer that alone does not fit breaks the queue (2.7.4.1
   * lets a device limit a chain's descriptors)
   */
  next(chain: Chain): number {
    chain.readable.clear();
    chain.writable.clear();
    return this.append(chain);
  }

  /**
   * Pops the next buffer and appends its segments to those `chain` holds already; `chain.head` becomes
   * the new buffer's.
   *
   * @returns one of {@link Pop}; unless it is CHAIN, `chain` is as before
   */
  append(chain: Chain): number {
    if (this.#spent >= SEGMENT_BUDGET) return Pop.EMPTY;
    if (this.#left === 0 && this.pending() === 0) {
      return this.#broken === undefined ? Pop.EMPTY : Pop.BROKEN;
    }
    const slot = this.#base & this.#mask;
    // Plain: `pending` has acquired the index that covers this entry.
    const head = this.#avail[AVAIL_HEADS + slot];
    if (head > this.#mask) return this.#break(`head ${head} is not in the descriptor table`);

    const { readable, writable } = chain;
    const readableCount = readable.count, readableLength = readable.length;
    const writableCount = writable.count, writableLength = writable.length;
    let outcome = this.#walk(head, chain);
    const capacity = writable.length - writableLength;
    if (this.#open !== undefined && outcome === Pop.CHAIN) outcome = this.#keep(head, capacity);
    if (outcome !== Pop.CHAIN) {
      if (outcome === Pop.PARKED) outcome = this.#park(head, chain);
      readable.cut(readableCount, readableLength);
      writable.cut(writableCount, writableLength);
      return outcome === Pop.FULL && readableCount + writableCount === 0
        ? this.#tooManySegments(head)
        : outcome;
    }
    this.#spent += readable.count + writable.count - readableCount - writableCount;
    chain.head = head;
    this.#heads[slot] = head;
    this.#capacities[slot] = capacity;
    this.#base = (this.#base + 1) & 0xffff;
    this.#left--;
    this.#inFlight++;
    return Pop.CHAIN;
  }

  /** A walk met an address that is not known yet; another one has all asked for that the chain lacks. */
  #park(head: number, chain: Chain): number {
    this.#space.collects = true;
    const outcome = this.#walk(head, chain);
    this.#space.collects = false;
    this.#space.missed = 0;
    // What else is wrong with the chain is wrong all the same.
    if (outcome === Pop.BROKEN) return outcome;
    this.#parked = true;
    return Pop.PARKED;
  }

  #keep(head: number, capacity: number): number {
    if (this.#open!.open(head, this.#base, capacity)) return Pop.CHAIN;
    return this.#break(`head ${head} is offered again while the device has it`);
  }

  /**
   * Gives the oldest buffer in flight back, or with `anyOrder` any of them. The driver sees it after
   * {@link publish}.
   *
   * @param head of that buffer
   * @param written how many bytes were written, from the first writable one on
   */
  complete(head: number, written: number): void {
    if (this.#open === undefined) {
      const oldest = (this.#base - this.#inFlight) & this.#mask;
      if (this.#inFlight === 0 || head !== this.#heads[oldest]) throw this.#notOldest(head);
      if (!(written >= 0 && written <= this.#capacities[oldest])) {
        throw this.#tooMuch(written, this.#capacities[oldest]);
      }
    } else {
      this.#open.close(head, written);
    }
    const element = USED_ELEMENTS + ((this.#usedIndex & this.#mask) << 1);
    this.#usedElements[element] = head;
    this.#usedElements[element + 1] = written;
    this.#usedIndex = (this.#usedIndex + 1) & 0xffff;
    this.#inFlight--;
  }

  // Sentences stand apart, so that the code around them is short enough to be compiled into its callers.
  #notOldest(head: number): Error {
    return new Error(`head ${head} is not the oldest of ${this.#inFlight} buffers in flight`);
  }

  #tooMuch(written: number, capacity: number): Error {
    return new Error(`${written} bytes written to a buffer of ${capacity}`);
  }

  /**
   * Takes the `count` buffers popped last back, as if they had not been popped. With `anyOrder` none of them
   * may be completed.
   */
  rewind(count: number): void {
    if (!(count >= 0 && count <= this.#inFlight)) {
      throw new Error(`cannot take back ${count} of ${this.#inFlight} buffers in flight`);
    }
    if (this.#open !== undefined) this.#takeBack(this.#open, count);
    this.#inFlight -= count;
    this.#base = (this.#base - count) & 0xffff;
    // In a broken queue nothing may be popped again, so nothing is left.
    if (this.#broken === undefined) this.#left += count;
  }

  #takeBack(open: OpenBuffers, count: number): void {
    for (let back = 1; back <= count; back++) {
      const index = (this.#base - back) & 0xffff;
      open.takeBack(this.#heads[index & this.#mask], index);
    }
  }

  /** How many of the buffers popped last are open, up to the first that is not. */
  #newestOpen(open: OpenBuffers): number {
    let count = 0;
    while (count < this.#inFlight) {
      const index = (this.#base - count - 1) & 0xffff;
      if (!open.isOpen(this.#heads[index & this.#mask], index)) break;
      count++;
    }
    return count;
  }

  /**
   * Shows the completed buffers to the driver.
   *
   * @returns whether the driver wants a used buffer notification now
   */
  publish(): boolean {
    const old = this.#published;
    const index = this.#usedIndex;
    if (index === old) return false;
    // Release: used elements and what was written to the buffers is visible before the index.
    storeRelease16(this.#used, RING_INDEX, index);
    this.#published = index;
    // The driver writes used_event (or flags), then looks at the index; we the other way round. If this load
    // could pass the store, both could miss each other and the driver sleep for good; it cannot (atomics.ts).
    const wish = loadAcquire16(this.#avail, this.#eventIndex ? this.#usedEvent : RING_FLAGS);
    return this.#eventIndex ? needsEvent(wish, index, old) : (wish & AVAIL_NO_INTERRUPT) === 0;
  }

  /**
   * Asks the driver for a notification (a kick) with the next buffer it makes available. A ring is also
   * looked at when it starts: until this was called once, nobody promised a kick.
   *
   * @returns true if there are buffers already, for which the driver may not kick, or may be, because this batch
   * {@link isSpent}: pop them first. Also false where the next one is parked, which no kick changes
   */
  wantKicks(): boolean {
    if (this.#broken !== undefined || this.#stopped || this.#parked) return false;
    if (this.isSpent) return true;
    // The mirror image of `publish`: `pending` loads the index, and that cannot pass this store.
    if (this.#eventIndex) {
      storeRelease16(this.#used, this.#availEvent, (this.#base + this.#left) & 0xffff);
    } else storeRelease16(this.#used, RING_FLAGS, 0);
    return this.pending() !== 0;
  }

  /**
   * Tells the driver that kicks are not needed for now. With EVENT_IDX nothing is to be done: the
   * driver kicks once, when it passes the index of the last {@link wantKicks}. To be called when a batch begins.
   */
  noKicks(): void {
    this.#parked = false;
    this.#spent = 0;
    if (this.#eventIndex || this.#broken !== undefined || this.#stopped) return;
    // Plain: whether the driver sees it soon or late is a matter of cost only.
    this.#used[RING_FLAGS] = USED_NO_NOTIFY;
  }

  /**
   * Stops the queue: publishes what is completed, takes back what is in flight, so that {@link base} is
   * exact. Nothing can be popped any more; chains that hold buffers of this queue must be forgotten. With
   * `anyOrder` those that were overtaken cannot be taken back: {@link inFlight} says how many that are.
   *
   * @returns whether the driver wants a last notification
   */
  stop(): boolean {
    this.rewind(this.#open === undefined ? this.#inFlight : this.#newestOpen(this.#open));
    this.#left = 0;
    this.#stopped = true;
    return this.publish();
  }

  /**
   * Declares the queue broken: the driver put something into a buffer, or made a buffer of a kind,
   * that the device cannot go on with.
   *
   * @param reason one line for people
   */
  refuse(reason: string): void {
    if (this.#broken === undefined) this.#break(reason);
  }

  #break(reason: string): number {
    this.#broken = reason;
    this.#left = 0;
    return Pop.BROKEN;
  }

  /** Walks a chain, as far as the queue's own table goes. */
  #walk(head: number, chain: Chain): number {
    const table = this.#descriptors;
    const space = this.#space;
    let list = chain.readable;
    let total = 0;
    let index = head;
    for (let left = this.size; left > 0; left--) {
      const word = index << 2;
      const low = table[word], high = table[word + 1];
      const length = table[word + 2];
      const flagsAndNext = table[word + 3];
      if ((flagsAndNext & DESCRIPTOR_INDIRECT) !== 0) {
        const problem = this.#indirectProblem(index, length, flagsAndNext);
        if (problem !== undefined) return this.#break(problem);
        // The naming descriptor is not one of the chain's, and its WRITE is ignored (2.7.5.3.2).
        return this.#walkTable(high, low, length, chain, list, total, left);
      }
      if ((flagsAndNext & DESCRIPTOR_WRITE) !== 0) list = chain.writable;
      else if (list !== chain.readable) return this.#outOfOrder(index);
      if (length !== 0) {
        total += length;
        if (total > MAX_CHAIN_BYTES) return this.#tooLong();
        if (!space.translateHalves(high, low, length, list)) {
          return this.#lost(index, high * TWO_TO_32 + low, length, list);
        }
      }
      if ((flagsAndNext & DESCRIPTOR_NEXT) === 0) return Pop.CHAIN;
      index = flagsAndNext >>> 16;
      if (index > this.#mask) return this.#outside(index, this.size);
    }
    return this.#endless();
  }

  #indirectProblem(index: number, length: number, flagsAndNext: number): string | undefined {
    if (!this.#indirect) return `descriptor ${index} is indirect, which was not negotiated`;
    if ((flagsAndNext & DESCRIPTOR_NEXT) !== 0) {
      return `descriptor ${index} has both INDIRECT and NEXT`;
    }
    if (length === 0 || length % DESCRIPTOR_SIZE !== 0) return `indirect table of ${length} bytes`;
    return undefined;
  }

  /**
   * Walks the rest of a chain, which lies in an indirect table (2.7.5.3). Tables lie anywhere in memory,
   * so this one reads through a DataView, which is nearly as fast and fast at any offset.
   *
   * @param list where the next segment belongs if it is readable
   * @param total bytes of the chain so far
   * @param left how many descriptors it may still have
   */
  #walkTable(
    tableHigh: number,
    tableLow: number,
    tableLength: number,
    chain: Chain,
    list: IovecList,
    total: number,
    left: number,
  ): number {
    const space = this.#space;
    const window = space.findHalves(tableHigh, tableLow, tableLength);
    if (window === undefined) {
      return this.#lostTable(tableHigh * TWO_TO_32 + tableLow, tableLength);
    }
    const { view } = window;
    const start = (tableHigh - window.atHigh) * TWO_TO_32 + (tableLow - window.atLow);
    const count = tableLength / DESCRIPTOR_SIZE;
    let index = 0;
    for (; left > 0; left--) {
      const at = start + index * DESCRIPTOR_SIZE;
      const low = view.getUint32(at, true), high = view.getUint32(at + 4, true);
      const length = view.getUint32(at + 8, true);
      const flagsAndNext = view.getUint32(at + 12, true);
      if ((flagsAndNext & DESCRIPTOR_INDIRECT) !== 0) return this.#nested(index);
      if ((flagsAndNext & DESCRIPTOR_WRITE) !== 0) list = chain.writable;
      else if (list !== chain.readable) return this.#outOfOrder(index);
      if (length !== 0) {
        total += length;
        if (total > MAX_CHAIN_BYTES) return this.#tooLong();
        if (!space.translateHalves(high, low, length, list)) {
          return this.#lost(index, high * TWO_TO_32 + low, length, list);
        }
      }
      if ((flagsAndNext & DESCRIPTOR_NEXT) === 0) return Pop.CHAIN;
      index = flagsAndNext >>> 16;
      if (index >= count) return this.#outside(index, count);
    }
    return this.#endless();
  }

  #lostTable(address: number, length: number): number {
    if (this.#space.missed !== 0) return Pop.PARKED;
    const where = `0x${address.toString(16)} (${length} bytes)`;
    return this.#break(`indirect table at ${where} ${this.#space.explainTable(address, length)}`);
  }

  #nested(index: number): number {
    return this.#break(`descriptor ${index} of an indirect table is indirect`);
  }

  #outside(index: number, count: number): number {
    return this.#break(`next ${index} is not in a table of ${count} descriptors`);
  }

  #outOfOrder(index: number): number {
    return this.#break(`descriptor ${index} is readable but follows a writable one`);
  }

  #tooManySegments(head: number): number {
    return this.#break(`chain ${head} has more segments than the device takes`);
  }

  #tooLong(): number {
    return this.#break("a chain has 2^32 bytes or more");
  }

  #endless(): number {
    return this.#break(`a chain has more descriptors than the queue (${this.size}): a loop?`);
  }

  /** A descriptor that could not be translated: no room in the list, or not in memory. */
  #lost(index: number, address: number, length: number, list: IovecList): number {
    // A list that ran full says nothing about the address; the next attempt, with room, will.
    if (list.count === list.capacity) return Pop.FULL;
    // A walk that collects passes over what is missing, so this is refused.
    if (this.#space.missed !== 0 && !this.#space.collects) return Pop.PARKED;
    const where = `0x${address.toString(16)} (${length} bytes)`;
    return this.#break(`descriptor ${index}: ${where} ${this.#space.explain(address, length)}`);
  }
}
