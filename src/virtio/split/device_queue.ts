/**
 * The device's side of a split virtqueue (VIRTIO 1.2, section 2.7); what is said in queue/device_queue.ts holds here.
 *
 * Indices, all free-running 16-bit numbers kept here and never read back from shared memory:
 *
 *     published <= used:       completed, not yet shown to the driver
 *     used .. base:            in flight, popped and not completed
 *     base .. available:       seen in the available ring, not popped
 *
 * With buffers completed in order the used index of a device that died is the base of its successor.
 *
 * Cost: an atomic load of the available index per batch, an atomic store and load per `publish` and per
 * `wantKicks`; all else is plain access. Nothing is allocated after opening.
 */

import type { AddressSpace } from "../../memory/address_space.ts";
import { loadAcquire16, storeRelease16 } from "../../memory/atomics.ts";
import type { ChainBatch } from "../queue/chain.ts";
import type { QueueConfig } from "../queue/config.ts";
import { DeviceQueue } from "../queue/device_queue.ts";
import { Pop, SEGMENT_BUDGET } from "../queue/pop.ts";
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
import type { RingViews } from "./ring_views.ts";

/** A chain's bytes must be countable in a used element's 32-bit length. */
const MAX_CHAIN_BYTES = 0xffff_ffff;
const TWO_TO_32 = 0x1_0000_0000;

/** See the head of this file. */
export class SplitDeviceQueue extends DeviceQueue {
  readonly #mask: number;
  readonly #descriptors: Uint32Array;
  readonly #avail: Uint16Array;
  readonly #used: Uint16Array;
  readonly #usedElements: Uint32Array;
  readonly #usedEvent: number;
  readonly #availEvent: number;
  /** Heads and writable bytes of the buffers in flight, by available index modulo size. */
  readonly #heads: Uint16Array;
  readonly #capacities: Uint32Array;
  /** Available index of the next buffer to pop. */
  #base: number;
  /** Buffers seen in the available ring and not popped. */
  #left = 0;
  /** Used index of the next element, ahead of the driver's view of it by the unpublished ones. */
  #usedIndex: number;
  /** The used index the driver has seen. */
  #published: number;
  /** The buffers in flight, where they are completed in any order. */
  readonly #open: OpenBuffers | undefined;

  constructor(space: AddressSpace, config: QueueConfig, views: RingViews) {
    super(space, config);
    this.#mask = config.size - 1;
    this.#descriptors = views.descriptors;
    this.#avail = views.avail;
    this.#used = views.used;
    this.#usedElements = views.usedElements;
    this.#usedEvent = usedEventIndex(config.size);
    this.#availEvent = availEventIndex(config.size);
    this.#heads = new Uint16Array(config.size);
    this.#capacities = new Uint32Array(config.size);
    this.#base = config.base;
    this.#usedIndex = config.used ?? config.base;
    this.#published = this.#usedIndex;
    this.#open = config.anyOrder === true ? new OpenBuffers(config.size) : undefined;
  }

  override get base(): number {
    return this.#base;
  }

  override pending(): number {
    if (this.broken !== undefined || this.stopped) return 0;
    // Acquire: descriptors and heads that the driver wrote before this index are visible from here on.
    const available = loadAcquire16(this.#avail, RING_INDEX);
    const left = (available - this.#base) & 0xffff;
    // No driver has more buffers out than the ring has entries; those in flight and those completed
    // without its knowledge are still out. This also bounds the two arrays of buffers in flight.
    const unpublished = (this.#usedIndex - this.#published) & 0xffff;
    if (left + this.inFlight + unpublished > this.size) {
      this.break(
        `available index ${available} is ${left} ahead, the queue has ${this.size} entries`,
      );
      return 0;
    }
    this.#left = left;
    return left;
  }

  override pop(batch: ChainBatch, most: number): number {
    const { array, segments, heads, starts, writableFrom, readableLengths, writableLengths } =
      batch;
    const first = batch.count;
    this.outcome = Pop.EMPTY;
    if (this.spent >= SEGMENT_BUDGET) return 0;
    if (this.#left === 0 && this.pending() === 0) {
      if (this.broken !== undefined) this.outcome = Pop.BROKEN;
      return 0;
    }
    const end = first + Math.min(most, this.#left, batch.most - first);
    const space = this.space;
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
    const mayBeIndirect = this.mayBeIndirect;
    let segment = segments.count, bytes = segments.length;
    let spent = this.spent, base = this.#base;
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
        outcome = this.break(`head ${head} is not in the descriptor table`);
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
            const misplaced = isIndirect
              ? "of an indirect table is indirect"
              : (flagsAndNext & DESCRIPTOR_NEXT) !== 0
              ? "has both INDIRECT and NEXT"
              : undefined;
            const found = this.table(index, high, low, length, misplaced);
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
          outcome = this.break(`descriptor ${index} is readable but follows a writable one`);
          break chains;
        }
        if (length !== 0) {
          total += length;
          if (total > MAX_CHAIN_BYTES) {
            outcome = this.break("a chain has 2^32 bytes or more");
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
              outcome = this.lost(index, high, low, length, segments);
              if (outcome === Pop.FULL && start === 0) {
                outcome = this.break(`chain ${head} has more segments than the device takes`);
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
          outcome = this.break(`next ${index} is not in a table of ${last + 1} descriptors`);
          break chains;
        }
      }
      if (left < 0) {
        outcome = this.break(
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
        outcome = this.break(`head ${head} is offered again while the device has it`);
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
    this.spent = spent;
    this.#base = base;
    this.inFlight += popped;
    // In a broken queue nothing is left.
    if (this.broken === undefined) this.#left -= popped;
    this.outcome = outcome;
    if (outcome === Pop.PARKED && !space.collects) this.park(batch);
    return popped;
  }

  override complete(head: number, written: number): void {
    if (this.#open === undefined) {
      const oldest = (this.#base - this.inFlight) & this.#mask;
      if (this.inFlight === 0 || head !== this.#heads[oldest]) throw this.notOldest(head);
      if (!(written >= 0 && written <= this.#capacities[oldest])) {
        throw this.tooMuch(written, this.#capacities[oldest]);
      }
    } else {
      this.#open.close(head, written);
    }
    const element = USED_ELEMENTS + ((this.#usedIndex & this.#mask) << 1);
    this.#usedElements[element] = head;
    this.#usedElements[element + 1] = written;
    this.#usedIndex = (this.#usedIndex + 1) & 0xffff;
    this.inFlight--;
  }

  override completeOldest(count: number): void {
    if (!(count <= this.inFlight) || this.#open !== undefined) {
      throw this.notSoMany(count);
    }
    const heads = this.#heads, elements = this.#usedElements, mask = this.#mask;
    let slot = this.#base - this.inFlight, index = this.#usedIndex;
    for (let i = 0; i < count; i++) {
      const element = USED_ELEMENTS + ((index & mask) << 1);
      elements[element] = heads[slot++ & mask];
      elements[element + 1] = 0;
      index++;
    }
    this.#usedIndex = index & 0xffff;
    this.inFlight -= count;
  }

  override rewind(count: number): void {
    if (!(count >= 0 && count <= this.inFlight)) {
      throw this.notBack(count);
    }
    this.#open?.takeBack(this.#heads, this.#base, count);
    this.inFlight -= count;
    this.#base = (this.#base - count) & 0xffff;
    // In a broken queue nothing may be popped again, so nothing is left.
    if (this.broken === undefined) this.#left += count;
  }

  override publish(): boolean {
    const old = this.#published;
    const index = this.#usedIndex;
    if (index === old) return false;
    // Release: used elements and what was written to the buffers is visible before the index.
    storeRelease16(this.#used, RING_INDEX, index);
    this.#published = index;
    // The driver writes used_event (or flags), then looks at the index; we the other way round. If this load
    // could pass the store, both could miss each other and the driver sleep for good; it cannot (atomics.ts).
    const wish = loadAcquire16(this.#avail, this.eventIndex ? this.#usedEvent : RING_FLAGS);
    const wants = this.eventIndex
      ? needsEvent(wish, index, old)
      : (wish & AVAIL_NO_INTERRUPT) === 0;
    if (!wants) this.suppressed++;
    return wants;
  }

  override wantKicks(): boolean {
    if (this.broken !== undefined || this.stopped || this.parked) return false;
    if (this.isSpent) return true;
    // The mirror image of `publish`: `pending` loads the index, and that cannot pass this store.
    if (this.eventIndex) {
      storeRelease16(this.#used, this.#availEvent, (this.#base + this.#left) & 0xffff);
    } else storeRelease16(this.#used, RING_FLAGS, 0);
    return this.pending() !== 0;
  }

  override noKicks(): void {
    super.noKicks();
    if (this.eventIndex || this.broken !== undefined || this.stopped) return;
    // Plain: whether the driver sees it soon or late is a matter of cost only.
    this.#used[RING_FLAGS] = USED_NO_NOTIFY;
  }

  override stop(): boolean {
    const asks = super.stop();
    this.#left = 0;
    return asks;
  }

  protected override mayTakeBack(): number {
    const { inFlight } = this;
    return this.#open?.newest(this.#heads, this.#base, inFlight) ?? inFlight;
  }

  protected override break(reason: string): number {
    this.#left = 0;
    return super.break(reason);
  }
}
