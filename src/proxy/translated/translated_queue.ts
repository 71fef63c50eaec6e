/**
 * A guest's virtqueue, and a copy of its descriptors with physical addresses: nothing else is copied.
 *
 * Theory of operation. As in confined mode the proxy is the device of the guest's queue and the driver of a
 * queue of its own, in a huge page of this machine. What it puts there for a buffer is where the buffer lies
 * in this machine's RAM, page by page where it is scattered (physical_map.ts). The device in the other
 * machine, which sees this RAM, reads and writes the guest's pages themselves.
 *
 * So the device side needs neither the guest's addresses nor their translation: no request on the data path,
 * no cache that could be stale, and rings that lie in one piece; and a device side that is no vmsg and takes
 * physical addresses, such as the prototype's, is served alike.
 *
 * A buffer of many pages takes many descriptors; one of up to 16 goes through an indirect table where
 * that was negotiated. Back-pressure, order and notifications are as in confined/shadow_queue.ts.
 */

import type { QueueSetup } from "../../transport/device_model.ts";
import { Chain, type DeviceQueue, DriverQueue, Pop } from "../../virtqueue/mod.ts";
import type { ShadowPlace } from "../confined/shadow_queue.ts";
import { type PhysicalMap, PhysicalPieces } from "./physical_map.ts";

/** The guest's buffers given to the device per {@link TranslatedQueue.forward}. */
const BATCH = 64;
/** Pieces of a buffer: 64 KiB in pages of their own, and more. */
const MAX_PIECES = 256;
/** Descriptors in the device's ring per entry of the guest's. */
const ENTRIES_PER_BUFFER = 4;
/** Of an entry: the device has not used it yet. */
const WITH_DEVICE = -1;

// They hold a buffer only while it is forwarded.
const chain = new Chain(MAX_PIECES);
const pieces = new PhysicalPieces(MAX_PIECES);

/** The largest ring of at most `entries` whose parts, indirect tables included, fit into `size` bytes. */
function ringThatFits(entries: number, size: number): number {
  let fitting = 2 ** Math.floor(Math.log2(entries));
  while (fitting > 1 && DriverQueue.bytesNeeded(fitting, true) > size) fitting /= 2;
  return fitting;
}

/** See the head of this file. */
export class TranslatedQueue {
  /** The queue that the device side is told of. */
  readonly shadow: DriverQueue;
  /** What went through, and how often the ring was full. */
  readonly counters = { forwarded: 0, returned: 0, pieces: 0, full: 0 };
  /** Buffers out, by a free-running number modulo the guest's queue size; the oldest is `#first`. */
  readonly #heads: Uint16Array;
  /** Bytes the device wrote, or {@link WITH_DEVICE}. */
  readonly #used: Float64Array;
  readonly #mask: number;
  #first = 0;
  #next = 0;

  /**
   * Makes an empty queue; its place is cleared.
   *
   * @param guest the guest's queue, of which this is now the only user
   * @param maxSize the most entries that the device takes
   */
  constructor(
    readonly guest: DeviceQueue,
    readonly physical: PhysicalMap,
    place: ShadowPlace,
    maxSize: number,
    features: { readonly eventIndex: boolean; readonly indirect: boolean },
  ) {
    const { memory, offset, busAddress } = place;
    const { size } = guest;
    // A buffer may take several descriptors, so there are more of them than the guest has.
    const entries = ringThatFits(Math.min(maxSize, ENTRIES_PER_BUFFER * size), place.size);
    this.shadow = new DriverQueue({ memory, offset, size: entries, busAddress, ...features });
    this.#mask = size - 1;
    this.#heads = new Uint16Array(size);
    this.#used = new Float64Array(size);
  }

  /** Why one of the queues is broken; undefined while neither is. */
  get broken(): string | undefined {
    return this.guest.broken ?? this.shadow.broken;
  }

  /** What the device is told of the queue. */
  get setup(): QueueSetup {
    const { size, descriptorAddress, driverAddress, deviceAddress } = this.shadow;
    return { size, descriptorAddress, driverAddress, deviceAddress, base: 0 };
  }

  /** After {@link forward}: it ended because a batch was full, and there may be more. */
  more = false;

  /**
   * Gives a batch of the guest's buffers to the device, after {@link giveBack}.
   *
   * @returns whether the device wants to be kicked
   */
  forward(): boolean {
    const { guest, shadow } = this;
    this.more = false;
    if (this.broken !== undefined) return false;
    guest.noKicks();
    for (let i = 0; i < BATCH; i++) {
      const outcome = guest.next(chain);
      if (outcome !== Pop.CHAIN) {
        if (outcome === Pop.EMPTY && guest.wantKicks()) continue;
        return shadow.publish();
      }
      if (!this.#add()) {
        guest.rewind(1);
        return shadow.publish();
      }
    }
    this.more = true;
    return shadow.publish();
  }

  /** Adds the popped buffer; false if there is no room. */
  #add(): boolean {
    const { readable, writable, head } = chain;
    const { guest, physical, shadow, counters } = this;
    pieces.count = 0;
    let fits = physical.translate(readable, pieces);
    const reads = pieces.count;
    fits = fits && physical.translate(writable, pieces);
    if (!fits || pieces.count === 0 || pieces.count > shadow.size) {
      const most = Math.min(MAX_PIECES, shadow.size);
      guest.refuse(
        `a buffer in ${fits ? pieces.count : "too many"} pieces, 1 to ${most} are taken`,
      );
      return false;
    }
    const { addresses, lengths, count } = pieces;
    const slot = this.#next & this.#mask;
    if (!shadow.add(addresses, lengths, reads, count - reads, slot)) {
      counters.full++;
      return false;
    }
    this.#heads[slot] = head;
    this.#used[slot] = WITH_DEVICE;
    this.#next = (this.#next + 1) >>> 0;
    counters.forwarded++;
    counters.pieces += count;
    return true;
  }

  /**
   * Gives everything back to the guest that the device has used.
   *
   * @returns whether the guest wants to be called
   */
  giveBack(): boolean {
    const { guest, shadow } = this;
    do {
      while (shadow.nextUsed()) this.#used[shadow.usedToken] = shadow.usedLength;
      this.#completeOldest();
    } while (shadow.wantCalls());
    return guest.publish();
  }

  #completeOldest(): void {
    while (this.#first !== this.#next) {
      const slot = this.#first & this.#mask;
      const written = this.#used[slot];
      if (written === WITH_DEVICE) return;
      this.guest.complete(this.#heads[slot], written);
      this.#first = (this.#first + 1) >>> 0;
      this.counters.returned++;
    }
  }

  /**
   * Ends the queue when the device touches it no more: what it has used is given back, the rest is
   * the guest's again as if it had never been taken.
   *
   * @returns where the guest's queue goes on
   */
  stop(): number {
    this.giveBack();
    this.guest.stop();
    return this.guest.base;
  }
}
