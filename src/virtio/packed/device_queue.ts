/**
 * The device's side of a packed virtqueue (VIRTIO 1.2, section 2.8); what is said in queue/device_queue.ts holds here.
 *
 * Positions, in descriptors and modulo twice the size (layout.ts), kept here and never read back from shared memory:
 *
 *     published .. used:       of buffers that are completed, not yet shown to the driver
 *     used .. base:            in flight, popped and not completed
 *     base ..                  perhaps available: each chain's first descriptor says so itself
 *
 * Nothing is written to the ring before `publish`. It writes one used descriptor for each buffer, where the buffer's
 * first available one was, the batch's first one last: the driver looks there, and must not see a part of what belongs
 * together (2.8.9). With IN_ORDER one used descriptor stands for as many buffers as can be (2.8.8): those it skips count as written
 * completely, so only buffers without writable bytes are skipped. Where the ring goes on is left in it as well (position.ts).
 *
 * A ring that one slot of whose is available in a lap that cannot have begun, or a chain that runs into buffers that are still out, is
 * broken. A buffer's id is the driver's own affair: it is handed back as it came.
 *
 * The walk of a chain's segments stands in split/device_queue.ts as well: shared, it would be a call for each
 * descriptor, which is what made rings slow.
 *
 * Only in order: a queue that completes in any order could not say by one position where it goes on.
 *
 * Cost: an acquiring load per chain, an atomic store and load per `publish` and per `wantKicks`. Nothing is allocated
 * after opening.
 */

import type { AddressSpace } from "../../memory/address_space.ts";
import { loadAcquire32, storeRelease32 } from "../../memory/atomics.ts";
import type { ChainBatch } from "../queue/chain.ts";
import { findAreas, type QueueConfig } from "../queue/config.ts";
import { DeviceQueue } from "../queue/device_queue.ts";
import { Pop, SEGMENT_BUDGET } from "../queue/pop.ts";
import {
  availableFlags,
  DESCRIPTOR_AVAIL,
  DESCRIPTOR_INDIRECT,
  DESCRIPTOR_NEXT,
  DESCRIPTOR_USED,
  DESCRIPTOR_WRITE,
  EVENT_DISABLE,
  EVENT_ENABLE,
  eventAt,
  fromBase,
  needsEvent,
  toBase,
  usedFlags,
} from "./layout.ts";
import { findGap, type Gap, MARK, NO_GAP, SKIP } from "./position.ts";

/** A chain's bytes must be countable in a used descriptor's 32-bit length. */
const MAX_CHAIN_BYTES = 0xffff_ffff;
const TWO_TO_32 = 0x1_0000_0000;
const DESCRIPTOR_SIZE = 16;
const LAST_WORD = 3;

/** The areas of a packed queue as words, and where it begins. */
interface PackedViews {
  readonly ring: Uint32Array;
  readonly driver: Uint32Array;
  readonly device: Uint32Array;
  readonly position: number;
}

/** Views over exactly a packed queue's areas; or in one line why they cannot be. */
export function packedViews(space: AddressSpace, config: QueueConfig): PackedViews | string {
  if (config.anyOrder === true) return "a packed queue is used in order only";
  const areas = findAreas(space, config);
  if (typeof areas === "string") return areas;
  const position = fromBase(config.base, config.size);
  if (position === undefined) {
    return `a ring of ${config.size} entries does not go on at 0x${config.base.toString(16)}`;
  }
  const { descriptor, driver, device } = areas;
  return {
    ring: new Uint32Array(descriptor.buffer, descriptor.offset, descriptor.length / 4),
    driver: new Uint32Array(driver.buffer, driver.offset, 1),
    device: new Uint32Array(device.buffer, device.offset, 1),
    position,
  };
}

/** See the head of this file. */
export class PackedDeviceQueue extends DeviceQueue {
  readonly #mask: number;
  readonly #ring: Uint32Array;
  readonly #driverEvent: Uint32Array;
  readonly #deviceEvent: Uint32Array;
  readonly #inOrder: boolean;
  /** Of buffers that are out, by their number modulo size: id, descriptors, writable bytes, and bytes written. */
  readonly #ids: Uint16Array;
  readonly #counts: Uint16Array;
  readonly #capacities: Uint32Array;
  readonly #written: Uint32Array;
  /** Positions, see the head of this file. */
  #base: number;
  #published: number;
  /** Free-running numbers: of the next buffer to pop, to complete is `#next - inFlight`, to show. */
  #next = 0;
  #unshown = 0;
  /** What a predecessor had used when it died, behind what it had not. */
  #gap: Gap;
  /** What the event suppression word asks for: one of EVENT_. */
  #wish = EVENT_ENABLE;

  constructor(space: AddressSpace, config: QueueConfig, views: PackedViews) {
    super(space, config);
    const { size } = config;
    this.#mask = size - 1;
    this.#ring = views.ring;
    this.#driverEvent = views.driver;
    this.#deviceEvent = views.device;
    this.#inOrder = config.inOrder ?? false;
    this.#ids = new Uint16Array(size);
    this.#counts = new Uint16Array(size);
    this.#capacities = new Uint32Array(size);
    this.#written = new Uint32Array(size);
    this.#base = views.position;
    this.#published = views.position;
    this.#gap = findGap(views.ring, views.position);
  }

  override get base(): number {
    return toBase(this.#base, this.size);
  }

  override pending(): number {
    if (this.broken !== undefined || this.stopped) return 0;
    const word = loadAcquire32(this.#ring, ((this.#base & this.#mask) << 2) + LAST_WORD);
    const state = word & (DESCRIPTOR_AVAIL | DESCRIPTOR_USED);
    return state === availableFlags(this.#base, this.size) ? 1 : 0;
  }

  override pop(batch: ChainBatch, most: number): number {
    const { array, segments, heads, starts, writableFrom, readableLengths, writableLengths } =
      batch;
    const first = batch.count;
    this.outcome = Pop.EMPTY;
    if (this.spent >= SEGMENT_BUDGET || this.stopped) return 0;
    if (this.broken !== undefined) {
      this.outcome = Pop.BROKEN;
      return 0;
    }
    const end = first + Math.min(most, batch.most - first);
    const { space, size } = this;
    const ring = this.#ring, mask = this.#mask;
    const ids = this.#ids, counts = this.#counts, capacities = this.#capacities;
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
    let segment = segments.count, bytes = segments.length;
    let spent = this.spent, base = this.#base, next = this.#next;
    // Descriptors that are not out: whatever else a chain names belongs to a buffer that the driver gave before.
    const { at: gapAt, length: gap } = this.#gap;
    let free = size - ((base - this.#published) & (2 * size - 1));
    let outcome: number = end - first < most ? Pop.FULL : Pop.CHAIN;
    let count = first;

    chains:
    for (; count < end; count++) {
      if (spent >= SEGMENT_BUDGET) {
        outcome = Pop.EMPTY;
        break;
      }
      // Acquire: the descriptors, and the buffer's bytes, that the driver wrote before these flags are visible from here on.
      let word = loadAcquire32(ring, ((base & mask) << 2) + LAST_WORD);
      const state = word & (DESCRIPTOR_AVAIL | DESCRIPTOR_USED);
      if (state !== ((base & size) === 0 ? DESCRIPTOR_AVAIL : DESCRIPTOR_USED)) {
        outcome = Pop.EMPTY;
        break;
      }
      const start = segment;
      let writable = -1, readable = 0, total = 0, taken = 0;
      for (let isWhole = false; !isWhole;) {
        // Not ===: behind a gap that somebody forged less than nothing would be free, and the walk never end.
        if (taken >= free) {
          outcome = this.break(
            `a chain has more descriptors than are not out of the queue's ${size}: a loop?`,
          );
          break chains;
        }
        const at = ((base + taken) & mask) << 2;
        taken++;
        let low = ring[at], high = ring[at + 1], length = ring[at + 2];
        let flags = word;
        // The table of the moment is an indirect one, which may lie at any address.
        let table = 0, left = 1, view: DataView | undefined;
        if ((flags & DESCRIPTOR_INDIRECT) !== 0) {
          const isAlone = taken === 1 && (flags & DESCRIPTOR_NEXT) === 0;
          const misplaced = isAlone ? undefined : "is indirect in a chain";
          const found = this.table(at >> 2, high, low, length, misplaced);
          if (found === undefined) {
            outcome = this.outcome;
            break chains;
          }
          left = length / DESCRIPTOR_SIZE;
          if (left > size) {
            outcome = this.break(`an indirect table of ${left} descriptors, the queue has ${size}`);
            break chains;
          }
          view = found.view;
          table = (high - found.atHigh) * TWO_TO_32 + (low - found.atLow);
        }
        for (; left > 0; left--) {
          if (view !== undefined) {
            low = view.getUint32(table, true);
            high = view.getUint32(table + 4, true);
            length = view.getUint32(table + 8, true);
            flags = view.getUint32(table + 12, true);
            table += DESCRIPTOR_SIZE;
          }
          if ((flags & DESCRIPTOR_WRITE) !== 0) {
            if (writable < 0) {
              writable = segment;
              readable = total;
            }
          } else if (writable >= 0) {
            outcome = this.break(`descriptor ${at >> 2} is readable but follows a writable one`);
            break chains;
          }
          if (length === 0) continue;
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
            const to = segment << 2;
            const address = (addressLow + offset) >>> 0;
            words[to] = address;
            words[to + 1] = address < offset ? addressHigh + 1 : addressHigh;
            words[to + 2] = length;
            segment++;
          } else {
            segments.count = segment;
            if (!space.translateHalves(high, low, length, segments)) {
              outcome = this.lost(at >> 2, high, low, length, segments);
              if (outcome === Pop.FULL && start === 0) {
                outcome = this.break("a chain has more segments than the device takes");
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
        isWhole = (word & DESCRIPTOR_NEXT) === 0;
        // Plain: the flags of the chain's first descriptor cover it. Its own AVAIL and USED are not looked at.
        if (!isWhole) word = ring[(((base + taken) & mask) << 2) + LAST_WORD];
      }
      if (writable < 0) {
        writable = segment;
        readable = total;
      }
      if (((base + taken) & (2 * size - 1)) === gapAt) taken += gap;
      const room = total - readable;
      // The id is in the chain's last descriptor.
      const id = word & 0xffff;
      heads[count] = id;
      starts[count + 1] = segment;
      writableFrom[count] = writable;
      readableLengths[count] = readable;
      writableLengths[count] = room;
      const number = next & mask;
      ids[number] = id;
      counts[number] = taken;
      capacities[number] = room;
      next++;
      free -= taken;
      base += taken;
      spent += segment - start;
      bytes += total;
    }
    const popped = count - first;
    batch.count = count;
    segments.count = starts[count];
    segments.length = bytes;
    this.spent = spent;
    this.#base = base & (2 * size - 1);
    this.#next = next >>> 0;
    this.inFlight += popped;
    this.outcome = outcome;
    if (outcome === Pop.PARKED && !space.collects) this.park(batch);
    return popped;
  }

  override complete(head: number, written: number): void {
    const oldest = (this.#next - this.inFlight) & this.#mask;
    if (this.inFlight === 0 || head !== this.#ids[oldest]) throw this.notOldest(head);
    if (!(written >= 0 && written <= this.#capacities[oldest])) {
      throw this.tooMuch(written, this.#capacities[oldest]);
    }
    this.#written[oldest] = written;
    this.#unshown++;
    this.inFlight--;
  }

  override completeOldest(count: number): void {
    if (!(count <= this.inFlight)) throw this.notSoMany(count);
    let number = this.#next - this.inFlight;
    for (let i = 0; i < count; i++) this.#written[number++ & this.#mask] = 0;
    this.#unshown += count;
    this.inFlight -= count;
  }

  override rewind(count: number): void {
    if (!(count >= 0 && count <= this.inFlight)) throw this.notBack(count);
    let back = 0;
    for (let i = 1; i <= count; i++) back += this.#counts[(this.#next - i) & this.#mask];
    this.inFlight -= count;
    this.#next = (this.#next - count) >>> 0;
    this.#base = (this.#base - back) & (2 * this.size - 1);
  }

  override publish(): boolean {
    if (this.#unshown === 0) return false;
    const { size } = this;
    const ring = this.#ring, mask = this.#mask, counts = this.#counts, written = this.#written;
    const ids = this.#ids, capacities = this.#capacities;
    const inOrder = this.#inOrder;
    const first = this.#next - this.inFlight - this.#unshown;
    let moved = 0;
    for (let i = 0; i < this.#unshown; i++) moved += counts[(first + i) & mask];
    const end = (this.#published + moved) & (2 * size - 1);
    const { at: gapAt } = this.#gap;
    if (gapAt >= 0 && ((gapAt - this.#published) & (2 * size - 1)) < moved) this.#gap = NO_GAP;
    let position = this.#published + moved;
    for (let i = this.#unshown - 1; i >= 0; i--) {
      const last = (first + i) & mask, behind = position;
      position -= counts[last];
      // One descriptor for all that follow one another and have nothing written.
      for (; inOrder && i > 0 && capacities[(first + i - 1) & mask] === 0; i--) {
        position -= counts[(first + i - 1) & mask];
      }
      const at = (position & mask) << 2;
      const word = ids[last] | usedFlags(position, size) |
        (written[last] !== 0 ? DESCRIPTOR_WRITE : 0);
      ring[at + 2] = written[last];
      if (i > 0) {
        // Plain: the driver looks at them when it has seen the first.
        ring[at + 1] = SKIP | (behind - position);
        ring[at + LAST_WORD] = word;
        continue;
      }
      ring[at + 1] = MARK | toBase(end, size);
      // Release: all of that, and what was written to the buffers, is visible before these flags.
      storeRelease32(ring, at + LAST_WORD, word);
    }
    this.#published = end;
    this.#unshown = 0;
    // Plain: one that dies before is found out by the mark.
    this.#deviceEvent[0] = this.#wishWord();
    // The driver writes its wish, then looks at the ring; we the other way round. If this load could pass the
    // store, both could miss each other and the driver sleep for good; it cannot (atomics.ts).
    const wants = needsEvent(loadAcquire32(this.#driverEvent, 0), end, moved, size);
    if (!wants) this.suppressed++;
    return wants;
  }

  override wantKicks(): boolean {
    if (this.broken !== undefined || this.stopped || this.parked) return false;
    if (this.isSpent) return true;
    // The mirror image of `publish`: `pending` loads flags, and that cannot pass this store.
    this.#wish = EVENT_ENABLE;
    storeRelease32(this.#deviceEvent, 0, this.#wishWord());
    return this.pending() !== 0;
  }

  /**
   * The event suppression word, which holds as well where the ring goes on (position.ts). So the next descriptor is asked for by
   * name, which has the driver kick once, only where that is one and the same. Else each batch of the driver's is a
   * kick until the device has woken up; one that was popped already means that it is awake.
   */
  #wishWord(): number {
    const { size } = this;
    const base = this.#base;
    return this.#wish === EVENT_ENABLE && this.eventIndex && base === this.#published
      ? eventAt(base, size)
      : this.#wish | toBase(this.#published, size);
  }

  override noKicks(): void {
    super.noKicks();
    if (this.broken !== undefined || this.stopped) return;
    this.#wish = EVENT_DISABLE;
    // Plain: whether the driver sees it soon or late is a matter of cost only.
    this.#deviceEvent[0] = this.#wishWord();
  }
}
