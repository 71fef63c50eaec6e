/**
 * A guest's virtqueue, and its copy in a segment that the device side sees instead of the guest's memory.
 *
 * Theory of operation, beside that of forwarding_queue.ts. Each of the guest's buffers becomes one of one or
 * two elements in the pool: first what the device reads, copied when it is forwarded, then as much room as
 * it may write, copied back when it has been used, as many bytes as the device says.
 *
 * Where a buffer lies is read once, when it is forwarded, and remembered: a guest that rewrites descriptors
 * in flight changes nothing.
 */

import { IovecRing } from "../memory/mod.ts";
import type { Place } from "../virtio/place.ts";
import { type ChainBatch, type DeviceQueue, DriverQueue } from "../virtio/queue/mod.ts";
import { CHAIN_CAPACITY, ForwardingQueue } from "./forwarding_queue.ts";
import { POOL_ALIGNMENT, RingPool } from "./pool.ts";

/** Writable segments that are out, per entry of the ring; it is at least a chain's. */
const SEGMENTS_PER_ENTRY = 16;
/** The most that a pool is made of: more than any ring fills, and offsets in it are whole 32-bit numbers. */
const MAX_POOL = 1 << 30;

/** The bytes of a part that the rings for the device take. */
export function copiedRingsSize(entries: number): number {
  return Math.ceil(DriverQueue.bytesNeeded(entries) / POOL_ALIGNMENT) * POOL_ALIGNMENT;
}

/** See the head of this file. */
export class CopiedQueue extends ForwardingQueue {
  /** Bytes copied into the pool, and out of it. */
  readonly copied = { in: 0, out: 0 };
  readonly #pool: RingPool;
  /** The pool's place: in this process, and on the bus. */
  readonly #poolAddress: bigint;
  readonly #poolBus: number;
  /** By slot: where in the pool the buffer is. */
  readonly #places: Uint32Array;
  /** Bytes that the device reads, which precede those it writes. */
  readonly #readable: Uint32Array;
  /** Segments that the device writes, of those in `#writable`. */
  readonly #counts: Uint16Array;
  /** Where in the guest's memory the buffers are that the device writes. */
  readonly #writable: IovecRing;
  readonly #addresses = new Float64Array(2);
  readonly #lengths = new Uint32Array(2);

  /**
   * Makes an empty shadow; its part of the segment is cleared.
   *
   * @param guest the guest's queue, of which this is now the only user
   * @param place of this queue's part of the segment, a multiple of 64: the rings, then the pool
   * @param eventIndex whether VIRTIO_F_EVENT_IDX was negotiated
   * @param name whose ring it is, for its counters
   */
  constructor(guest: DeviceQueue, place: Place, eventIndex: boolean, name: string = "") {
    const { memory, offset, at } = place;
    const { size } = guest;
    // A buffer that is read and written takes two descriptors, also in a ring of one.
    const entries = Math.max(size, 2);
    super(guest, new DriverQueue({ place, size: entries, eventIndex, indirect: false }), name);
    const rings = copiedRingsSize(entries);
    const room = Math.min(place.size - rings, MAX_POOL);
    this.#pool = new RingPool(room - room % POOL_ALIGNMENT);
    this.#poolAddress = memory.address + BigInt(offset + rings);
    this.#poolBus = at + rings;
    this.#places = new Uint32Array(size);
    this.#readable = new Uint32Array(size);
    this.#counts = new Uint16Array(size);
    this.#writable = new IovecRing(Math.max(CHAIN_CAPACITY, SEGMENTS_PER_ENTRY * size));
  }

  /** What the device reads is copied already. */
  override holdsIn(from: number, to: number): boolean {
    return this.#writable.isWithin(from, to);
  }

  /** Buffers of one queue are mostly of one kind: those that the device reads are fetched together. */
  protected override popped({ array, segments, writableFrom }: ChainBatch): void {
    if (writableFrom[0] > 0) array.touch(0, segments.count);
  }

  /** Copies what the device reads, and takes room for what it writes. */
  protected override add({ readable, writable }: ChainBatch, slot: number): boolean {
    const { shadow } = this;
    const readableLength = readable.length, writableLength = writable.length;
    const length = readableLength + writableLength;
    if (length === 0 || length > this.#pool.size) {
      this.guest.refuse(
        `a buffer of ${length} bytes, the segment has room for 1 to ${this.#pool.size} in this queue: ` +
          "give a larger one, or have fewer devices share it",
      );
      return false;
    }
    const reads = readableLength > 0 ? 1 : 0;
    const writes = writableLength > 0 ? 1 : 0;
    const hasRoom = reads + writes <= shadow.free && writable.count <= this.#writable.free;
    const place = hasRoom ? this.#pool.take(length) : -1;
    if (place < 0) return false;
    if (reads === 1) {
      readable.copyOut(0, this.#poolAddress + BigInt(place >>> 0), readableLength);
      this.copied.in += readableLength;
    }
    const at = this.#poolBus + place;
    this.#addresses[0] = at;
    this.#lengths[0] = reads === 1 ? readableLength : writableLength;
    this.#addresses[1] = at + readableLength;
    this.#lengths[1] = writableLength;
    shadow.add(this.#addresses, this.#lengths, reads, writes, slot);
    this.#places[slot] = place;
    this.#readable[slot] = readableLength;
    this.#counts[slot] = writable.count;
    this.#writable.push(writable);
    return true;
  }

  /** Copies what the device wrote to where the guest wants it. */
  protected override returned(slot: number, written: number, next: number): void {
    if (written > 0) {
      const from = (this.#places[slot] + this.#readable[slot]) >>> 0;
      this.#writable.copyIn(this.#poolAddress + BigInt(from), written);
      this.copied.out += written;
    }
    this.#writable.shift(this.#counts[slot]);
    this.#pool.giveBack(this.#places[next]);
  }
}
