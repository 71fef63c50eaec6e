/**
 * A guest's virtqueue, and its shadow in a segment that the device side sees instead of the guest's memory.
 *
 * Theory of operation. The proxy is the device of the guest's queue and the driver of the shadow:
 *
 *     guest's queue --pop, copy in--> pool + shadow queue == device ==> used --copy out, complete--> guest
 *
 * Each of the guest's buffers becomes one of one or two elements in the pool: first what the device
 * reads, copied when it is forwarded, then as much room as it may write, copied back when it has been
 * used, as many bytes as the device says. Buffers stay whole and in order, so merged frames and
 * whatever else a device type means by its buffers need not be understood here.
 *
 * Back-pressure: what has no room in the pool, or no descriptor in the shadow, stays in the guest's
 * queue until the device has used something. Nothing is dropped, and nothing waits for what comes behind it.
 *
 * Notifications are suppressed on both sides as each side's event index allows: one kick and one call a
 * batch. Room that comes free is a reason to forward, so no {@link ShadowQueue.forward} is without a
 * {@link ShadowQueue.giveBack} before it, which leaves the device asked to call for the next buffer it uses. What
 * has come back is shown to the guest as a whole, because a merged frame must be; that is never more than
 * the pool holds.
 *
 * Where a buffer lies is read once, when it is forwarded, and remembered: a guest that rewrites descriptors
 * in flight changes nothing.
 *
 * Both sides are hostile. The guest's queue is checked by DeviceQueue, the shadow by DriverQueue: a device
 * cannot name a buffer that it does not have, nor more bytes than it was given room for.
 *
 * A device may use buffers out of order; they are held until those before them have come back. A stop
 * forgets what is held so, and the next device gets these buffers once more.
 */

import { type MappedMemory, SegmentRing } from "../../memory/mod.ts";
import type { QueueSetup } from "../../transport/device_model.ts";
import { Chain, type DeviceQueue, DriverQueue, Pop } from "../../virtqueue/mod.ts";
import { POOL_ALIGNMENT, RingPool } from "./pool.ts";

/** The guest's buffers given to the device per {@link ShadowQueue.forward}. */
const BATCH = 64;
/** Segments of a buffer: what Linux's network driver needs at most, and more. */
const CHAIN_CAPACITY = 256;
/** Writable segments that are out, per entry of the ring; it is at least a chain's. */
const SEGMENTS_PER_ENTRY = 16;
/** The most that a pool is made of: more than any ring fills, and offsets in it are whole 32-bit numbers. */
const MAX_POOL = 1 << 30;
/** Of an entry: the device has not used it yet. */
const WITH_DEVICE = -1;

/** Where a shadow lies. */
export interface ShadowPlace {
  /** The shared memory. */
  readonly memory: MappedMemory;
  /** The bus address of its first byte. */
  readonly busAddress: number;
  /** Of this queue's part of it, a multiple of 64. */
  readonly offset: number;
  /** Bytes of the part: the shadow's rings, then the pool. */
  readonly size: number;
}

/** The bytes of a part that a shadow's rings take. */
export function shadowRingsSize(entries: number): number {
  return Math.ceil(DriverQueue.bytesNeeded(entries) / POOL_ALIGNMENT) * POOL_ALIGNMENT;
}

// One chain serves all shadows: it holds a buffer only during a copy.
const chain = new Chain(CHAIN_CAPACITY);

/** See the head of this file. */
export class ShadowQueue {
  /** The queue that the device side is told of. */
  readonly shadow: DriverQueue;
  /** What went through, and how often the pool was full. */
  readonly counters = { forwarded: 0, returned: 0, bytesIn: 0, bytesOut: 0, full: 0 };
  readonly #pool: RingPool;
  /** The pool's place: in this process, and on the bus. */
  readonly #poolAddress: bigint;
  readonly #poolBus: number;
  /** Buffers out, by a free-running number modulo the guest's queue size; the oldest is `#first`. */
  readonly #heads: Uint16Array;
  readonly #places: Uint32Array;
  /** Bytes that the device reads, which precede those it writes. */
  readonly #readable: Uint32Array;
  /** Segments that the device writes, of those in `#writable`. */
  readonly #counts: Uint16Array;
  /** Bytes the device wrote, or {@link WITH_DEVICE}. */
  readonly #used: Int32Array;
  /** Where in the guest's memory the buffers are that the device writes. */
  readonly #writable: SegmentRing;
  readonly #mask: number;
  #first = 0;
  #next = 0;
  readonly #addresses = new Float64Array(2);
  readonly #lengths = new Uint32Array(2);

  /**
   * Makes an empty shadow; its part of the segment is cleared.
   *
   * @param guest the guest's queue, of which this is now the only user
   * @param eventIndex whether VIRTIO_F_EVENT_IDX was negotiated
   */
  constructor(readonly guest: DeviceQueue, place: ShadowPlace, eventIndex: boolean) {
    const { memory, busAddress, offset } = place;
    const { size } = guest;
    this.shadow = new DriverQueue({
      memory,
      offset,
      size,
      busAddress,
      eventIndex,
      indirect: false,
    });
    const rings = shadowRingsSize(size);
    const room = Math.min(place.size - rings, MAX_POOL);
    this.#pool = new RingPool(room - room % POOL_ALIGNMENT);
    this.#poolAddress = memory.address + BigInt(offset + rings);
    this.#poolBus = busAddress + offset + rings;
    this.#mask = size - 1;
    this.#heads = new Uint16Array(size);
    this.#places = new Uint32Array(size);
    this.#readable = new Uint32Array(size);
    this.#counts = new Uint16Array(size);
    this.#used = new Int32Array(size);
    this.#writable = new SegmentRing(Math.max(CHAIN_CAPACITY, SEGMENTS_PER_ENTRY * size));
  }

  /** Why one of the queues is broken; undefined while neither is. */
  get broken(): string | undefined {
    return this.guest.broken ?? this.shadow.broken;
  }

  /** What the device is told of the shadow. */
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

  /** Adds the popped buffer to the shadow; false if there is no room. */
  #add(): boolean {
    const { readable, writable, head } = chain;
    const { shadow, counters } = this;
    const readableLength = readable.length, writableLength = writable.length;
    const length = readableLength + writableLength;
    if (length === 0 || length > this.#pool.size) {
      this.guest.refuse(
        `a buffer of ${length} bytes, the segment has room for 1 to ${this.#pool.size} in this queue`,
      );
      return false;
    }
    const reads = readableLength > 0 ? 1 : 0;
    const writes = writableLength > 0 ? 1 : 0;
    const hasRoom = reads + writes <= shadow.free && writable.count <= this.#writable.free;
    const place = hasRoom ? this.#pool.take(length) : -1;
    if (place < 0) {
      counters.full++;
      return false;
    }
    if (reads === 1) {
      readable.copyOut(0, this.#poolAddress + BigInt(place >>> 0), readableLength);
      counters.bytesIn += readableLength;
    }
    const slot = this.#next & this.#mask;
    const at = this.#poolBus + place;
    this.#addresses[0] = at;
    this.#lengths[0] = reads === 1 ? readableLength : writableLength;
    this.#addresses[1] = at + readableLength;
    this.#lengths[1] = writableLength;
    shadow.add(this.#addresses, this.#lengths, reads, writes, slot);
    this.#heads[slot] = head;
    this.#places[slot] = place;
    this.#readable[slot] = readableLength;
    this.#counts[slot] = writable.count;
    this.#writable.push(writable);
    this.#used[slot] = WITH_DEVICE;
    this.#next = (this.#next + 1) >>> 0;
    counters.forwarded++;
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
      if (written > 0) {
        const from = (this.#places[slot] + this.#readable[slot]) >>> 0;
        this.#writable.copyIn(this.#poolAddress + BigInt(from), written);
      }
      this.#writable.shift(this.#counts[slot]);
      this.guest.complete(this.#heads[slot], written);
      this.#first = (this.#first + 1) >>> 0;
      this.#pool.giveBack(this.#places[this.#first & this.#mask]);
      this.counters.returned++;
      this.counters.bytesOut += written;
    }
  }

  /**
   * Ends the shadow when the device touches it no more: what it has used is given back, the rest is
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
