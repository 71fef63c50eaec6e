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
import type { MemoryWindow } from "../../memory/window.ts";
import type { Chain, ChainBatch } from "./chain.ts";
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
import { Pop, SEGMENT_BUDGET } from "./pop.ts";
import { type QueueConfig, type RingViews, ringViews } from "./ring_views.ts";

/** A chain's bytes must be countable in a used element's 32-bit length. */
const MAX_CHAIN_BYTES = 0xffff_ffff;
const TWO_TO_32 = 0x1_0000_0000;
/** Opens the device's side of a queue; or says in one line why it cannot be one. */
export function openDeviceQueue(space: AddressSpace, config: QueueConfig): DeviceQueue | string {
  const views = ringViews(space, config);
  return typeof views === "string" ? views : new DeviceQueue(space, config, views);
}

/** The device's side of one split virtqueue; an example is at the head of mod.ts. */
export class DeviceQueue {
  /** Entries. */
  readonly size: number;
  /** Why the last {@link pop} popped no more: one of {@link Pop}. */
  outcome: number = Pop.EMPTY;
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
  #charged = 0;
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
    this.#charged += segments;
  }

  /** Is that alone all a batch may have? Then buffers that are popped already are not in it either. */
  get isCharged(): boolean {
    return this.#charged >= SEGMENT_BUDGET;
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
    if (left + this.#inFlight + unpublished > this.size) {
      this.#break(
        `available index ${available} is ${left} ahead, the queue has ${this.size} entries`,
      );
      return 0;
    }
    this.#left = left;
    return left;
  }

  /**
   * Pops the next buffer into `chain`, which forgets what it held.
   *
   * @returns one of {@link Pop}, never FULL: a buffer that alone does not fit breaks the queue (2.7.4.1
   * lets a device limit a chain's descriptors)
   */
  next(chain: Chain): number {
    chain.clear();
    if (this.pop(chain, 1) === 0) return this.outcome;
    chain.select(0);
    return Pop.CHAIN;
  }

  /**
   * Pops the next buffers and appends them to those `batch` holds.
   *
   * This is one function because it is the path of every frame: what it needs of the queue, the batch and the window
   * found last is in locals from the first chain to the last. A segment in that window is checked and written
   * right here; whatever else a descriptor may be is somewhere below.
   *
   * @param most how many
   * @returns how many were popped; if not as many, {@link outcome} says why
   */
  pop(batch: ChainBatch, most: number): number {
    const { array, segments, heads, starts, writableFrom, readableLengths, writableLengths } =
      batch;
    const first = batch.count;
    this.outcome = Pop.EMPTY;
    if (this.#spent >= SEGMENT_BUDGET) return 0;
    if (this.#left === 0 && this.pending() === 0) {
      if (this.#broken !== undefined) this.outcome = Pop.BROKEN;
      return 0;
    }
    const end = first + Math.min(most, this.#left, batch.most - first);
    const space = this.#space;
    const descriptors = this.#descriptors, avail = this.#avail, mask = this.#mask;
    const { words, capacity } = array;
    let window = space.last;
    let atHigh = -1, atLow = 0, lowSize = 0, addressLow = 0, addressHigh = 0;
    // Cut to 32 bits, so that compiled code has them as integers.
    if (window !== undefined) {
      atHigh = window.atHigh | 0;
      atLow = window.atLow | 0;
      lowSize = window.lowSize >>> 0;
      addressLow = window.addressLow | 0;
      addressHigh = window.addressHigh | 0;
      array.beginRun(segments.count, window);
    }
    const openBuffers = this.#open, inFlightHeads = this.#heads, capacities = this.#capacities;
    const mayBeIndirect = this.#indirect;
    let segment = segments.count, bytes = segments.length;
    let spent = this.#spent, base = this.#base;
    let outcome: number = end - first < most ? end < batch.most ? Pop.EMPTY : Pop.FULL : Pop.CHAIN;
    let count = first;

    chains:
    for (; count < end; count++) {
      if (spent >= SEGMENT_BUDGET) {
        outcome = Pop.EMPTY;
        break;
      }
      const slot = base & mask;
      // Plain: `pending` has acquired the index that covers this entry.
      const head = avail[AVAIL_HEADS + slot];
      if (head > mask) {
        outcome = this.#break(`head ${head} is not in the descriptor table`);
        break;
      }
      const start = segment;
      let writable = -1, readable = 0, total = 0;
      // The table of the moment: the queue's, or an indirect one, which may lie at any address.
      let table = descriptors, view: DataView | undefined, tableAt = 0, last = mask;
      let index = head, left = mask + 1, isIndirect = false;
      while (left-- > 0) {
        let low: number, high: number, length: number, flagsAndNext: number;
        if (view === undefined) {
          const word = tableAt + (index << 2);
          low = table[word];
          high = table[word + 1];
          length = table[word + 2];
          flagsAndNext = table[word + 3];
        } else {
          const at = tableAt + index * DESCRIPTOR_SIZE;
          low = view.getUint32(at, true);
          high = view.getUint32(at + 4, true);
          length = view.getUint32(at + 8, true);
          flagsAndNext = view.getUint32(at + 12, true);
        }
        if ((flagsAndNext & DESCRIPTOR_INDIRECT) !== 0) {
          const offset = (low - atLow) >>> 0;
          const words = high === atHigh && offset < lowSize && length <= lowSize - offset &&
              (offset & 3) === 0 && !isIndirect
            ? window!.words
            : undefined;
          // Wherever else it is, and whatever else is wrong with it: `#table`.
          if (
            words !== undefined && mayBeIndirect && (flagsAndNext & DESCRIPTOR_NEXT) === 0 &&
            length !== 0 && length % DESCRIPTOR_SIZE === 0
          ) {
            table = words;
            tableAt = offset >>> 2;
          } else {
            const found = this.#table(index, high, low, length, flagsAndNext, isIndirect);
            if (found === undefined) {
              outcome = this.outcome;
              break chains;
            }
            view = found.view;
            tableAt = (high - found.atHigh) * TWO_TO_32 + (low - found.atLow);
          }
          // The naming descriptor is not one of the chain's, and its WRITE is ignored (2.7.5.3.2).
          left++;
          isIndirect = true;
          last = length / DESCRIPTOR_SIZE - 1;
          index = 0;
          continue;
        }
        if ((flagsAndNext & DESCRIPTOR_WRITE) !== 0) {
          if (writable < 0) {
            writable = segment;
            readable = total;
          }
        } else if (writable >= 0) {
          outcome = this.#break(`descriptor ${index} is readable but follows a writable one`);
          break chains;
        }
        if (length !== 0) {
          total += length;
          if (total > MAX_CHAIN_BYTES) {
            outcome = this.#break("a chain has 2^32 bytes or more");
            break chains;
          }
          // Below the window, this is beyond every window's `lowSize`.
          const offset = (low - atLow) >>> 0;
          if (
            high === atHigh && offset < lowSize && length <= lowSize - offset && segment < capacity
          ) {
            const word = segment << 2;
            const address = (addressLow + offset) >>> 0;
            words[word] = address;
            words[word + 1] = address < offset ? addressHigh + 1 : addressHigh;
            words[word + 2] = length;
            segment++;
          } else {
            segments.count = segment;
            if (!space.translateHalves(high, low, length, segments)) {
              const address = high * TWO_TO_32 + low;
              outcome = this.#lost(index, address, length, segments);
              if (outcome === Pop.FULL && start === 0) {
                outcome = this.#break(`chain ${head} has more segments than the device takes`);
              }
              break chains;
            }
            segment = segments.count;
            window = space.last;
            if (window !== undefined) {
              array.beginRun(segment, window);
              atHigh = window.atHigh | 0;
              atLow = window.atLow | 0;
              lowSize = window.lowSize >>> 0;
              addressLow = window.addressLow | 0;
              addressHigh = window.addressHigh | 0;
            }
          }
        }
        if ((flagsAndNext & DESCRIPTOR_NEXT) === 0) break;
        index = flagsAndNext >>> 16;
        if (index > last) {
          outcome = this.#break(`next ${index} is not in a table of ${last + 1} descriptors`);
          break chains;
        }
      }
      if (left < 0) {
        outcome = this.#break(
          `a chain has more descriptors than the queue (${this.size}): a loop?`,
        );
        break;
      }
      if (writable < 0) {
        writable = segment;
        readable = total;
      }
      const room = total - readable;
      if (openBuffers !== undefined && !openBuffers.open(head, base, room)) {
        outcome = this.#break(`head ${head} is offered again while the device has it`);
        break;
      }
      heads[count] = head;
      starts[count + 1] = segment;
      writableFrom[count] = writable;
      readableLengths[count] = readable;
      writableLengths[count] = room;
      inFlightHeads[slot] = head;
      capacities[slot] = room;
      base = (base + 1) & 0xffff;
      spent += segment - start;
      bytes += total;
    }
    const popped = count - first;
    batch.count = count;
    segments.count = starts[count];
    segments.length = bytes;
    this.#spent = spent;
    this.#base = base;
    this.#inFlight += popped;
    // In a broken queue nothing is left.
    if (this.#broken === undefined) this.#left -= popped;
    this.outcome = outcome;
    if (outcome === Pop.PARKED && !space.collects) this.#park(batch);
    return popped;
  }

  /** A walk met an address that is not known yet; another one has all asked for that the chain lacks. */
  #park(batch: ChainBatch): void {
    const { count, segments } = batch;
    const { count: segmentCount, length } = segments;
    const spent = this.#spent;
    this.#spent = 0;
    this.#space.collects = true;
    this.rewind(this.pop(batch, 1));
    this.#space.collects = false;
    this.#space.missed = 0;
    this.#spent = spent;
    batch.count = count;
    segments.count = segmentCount;
    segments.length = length;
    // What else is wrong with the chain is wrong all the same.
    if (this.#broken !== undefined) return;
    this.#parked = true;
    this.outcome = Pop.PARKED;
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

  /** Gives the `count` oldest buffers in flight back with nothing written, of a queue without `anyOrder`. */
  completeOldest(count: number): void {
    if (!(count <= this.#inFlight) || this.#open !== undefined) {
      throw new Error(`cannot complete ${count} of ${this.#inFlight} buffers in flight`);
    }
    const heads = this.#heads, elements = this.#usedElements, mask = this.#mask;
    let slot = this.#base - this.#inFlight, index = this.#usedIndex;
    for (let i = 0; i < count; i++) {
      const element = USED_ELEMENTS + ((index & mask) << 1);
      elements[element] = heads[slot++ & mask];
      elements[element + 1] = 0;
      index++;
    }
    this.#usedIndex = index & 0xffff;
    this.#inFlight -= count;
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
    this.#open?.takeBack(this.#heads, this.#base, count);
    this.#inFlight -= count;
    this.#base = (this.#base - count) & 0xffff;
    // In a broken queue nothing may be popped again, so nothing is left.
    if (this.#broken === undefined) this.#left += count;
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
    this.#charged = 0;
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
    this.rewind(this.#open?.newest(this.#heads, this.#base, this.#inFlight) ?? this.#inFlight);
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

  /** The indirect table (2.7.5.3) that a descriptor names; if it is none, `outcome` says what that comes to. */
  #table(
    index: number,
    high: number,
    low: number,
    length: number,
    flagsAndNext: number,
    isNested: boolean,
  ): MemoryWindow | undefined {
    let problem: string | undefined;
    if (isNested) problem = `descriptor ${index} of an indirect table is indirect`;
    else if (!this.#indirect) problem = `descriptor ${index} is indirect, which was not negotiated`;
    else if ((flagsAndNext & DESCRIPTOR_NEXT) !== 0) {
      problem = `descriptor ${index} has both INDIRECT and NEXT`;
    } else if (length === 0 || length % DESCRIPTOR_SIZE !== 0) {
      problem = `indirect table of ${length} bytes`;
    } else {
      const space = this.#space, window = space.findHalves(high, low, length);
      if (window !== undefined) return window;
      const at = high * TWO_TO_32 + low;
      problem = `indirect table at 0x${at.toString(16)} (${length} bytes) ` +
        space.explainTable(at, length);
      if (space.missed !== 0) {
        this.outcome = Pop.PARKED;
        return undefined;
      }
    }
    this.outcome = this.#break(problem);
    return undefined;
  }

  /** A descriptor that could not be translated: no room in the array, or not in memory. */
  #lost(index: number, address: number, length: number, list: IovecList): number {
    // An array that ran full says nothing about the address; the next attempt, with room, will.
    if (list.count === list.capacity) return Pop.FULL;
    // A walk that collects passes over what is missing, so this is refused.
    if (this.#space.missed !== 0 && !this.#space.collects) return Pop.PARKED;
    const where = `0x${address.toString(16)} (${length} bytes)`;
    return this.#break(`descriptor ${index}: ${where} ${this.#space.explain(address, length)}`);
  }
}
