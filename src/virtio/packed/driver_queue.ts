/**
 * The driver's side of a packed virtqueue (VIRTIO 1.2, section 2.8), in memory of our own that the device shares: for `vmsg
 * driver`, and as the counterpart of a device's side in tests. Its life is that of a split one (split/driver_queue.ts).
 *
 * The device can write the whole region, so nothing in it is believed. What is out is remembered by buffer id in
 * private arrays; of shared memory one descriptor is read, where the next used one must be, and the device's wish.
 *
 * With IN_ORDER a used descriptor stands for all buffers up to the one it names; those before it count as written completely.
 */

import { loadAcquire32, storeRelease32 } from "../../memory/atomics.ts";
import { isQueueSize } from "../queue/config.ts";
import type { DriverQueueOptions } from "../split/driver_queue.ts";
import {
  AREAS,
  availableFlags,
  DESCRIPTOR_AVAIL,
  DESCRIPTOR_INDIRECT,
  DESCRIPTOR_NEXT,
  DESCRIPTOR_USED,
  DESCRIPTOR_WRITE,
  EVENT_DISABLE,
  EVENT_ENABLE,
  eventAt,
  needsEvent,
  usedFlags,
} from "./layout.ts";

/** The most elements of a buffer that goes through an indirect table. */
const INDIRECT_TABLE_LENGTH = 16;
const DESCRIPTOR_SIZE = 16;
const TWO_TO_32 = 0x1_0000_0000;
const LAST_WORD = 3;
/** The wishes lie apart from the ring and each other by whole cache lines: each is written by one side. */
const LINE = 64;

/** The driver's side of one packed virtqueue. */
export class PackedDriverQueue {
  readonly size: number;
  readonly descriptorAddress: number;
  readonly driverAddress: number;
  readonly deviceAddress: number;
  free: number;
  usedToken = 0;
  usedLength = 0;
  broken: string | undefined = undefined;
  /** See {@link DriverRing.suppressed}. */
  suppressed = 0;
  readonly #eventIndex: boolean;
  readonly #indirect: boolean;
  readonly #inOrder: boolean;
  readonly #mask: number;
  /** The ring, and behind it, from {@link #tables} on, the indirect tables. */
  readonly #words: Uint32Array;
  readonly #driverEvent: Uint32Array;
  readonly #deviceEvent: Uint32Array;
  readonly #tables: number;
  readonly #tablesAddress: number;
  /** By id: descriptors taken (0: not with the device), token, writable bytes, number. */
  readonly #taken: Uint16Array;
  readonly #tokens: Float64Array;
  readonly #capacities: Float64Array;
  readonly #numbers: Uint32Array;
  /** Ids that are free, and by number modulo size those that were added, in order. */
  readonly #freeIds: Uint16Array;
  #freeCount = 0;
  readonly #order: Uint16Array;
  /** Free-running numbers of the next buffer to add, to publish, and with IN_ORDER to take back. */
  #added = 0;
  #published = 0;
  #returned = 0;
  /** With IN_ORDER: the number of the buffer that the used descriptor names which is being taken back. */
  #shown = 0;
  #shownLength = 0;
  /** Positions (layout.ts): of the next descriptor to fill, as far as published, and of the next used one. */
  #available = 0;
  #start = 0;
  #used = 0;
  /** The flags and id that make the first unpublished buffer available. */
  #firstWord = 0;
  readonly #oneAddress = new Float64Array(1);
  readonly #oneLength = new Uint32Array(1);

  /** The size of the region a queue takes, in bytes. */
  static bytesNeeded(size: number, indirect = false): number {
    const tables = indirect ? size * INDIRECT_TABLE_LENGTH * DESCRIPTOR_SIZE : 0;
    return wishesAt(size) + 2 * LINE + tables;
  }

  /** Makes an empty queue and clears its region. */
  constructor(options: DriverQueueOptions & { readonly inOrder?: boolean }) {
    const { place, size, eventIndex, indirect, inOrder = false } = options;
    const { memory, offset, at } = place;
    if (!isQueueSize(size)) throw new Error(`not a queue size: ${size}`);
    const { alignment } = AREAS.descriptor;
    if (offset % alignment !== 0 || at % alignment !== 0) {
      throw new Error(`queue at offset ${offset}, bus address ${at}: not aligned`);
    }
    const end = PackedDriverQueue.bytesNeeded(size, indirect);
    const room = Math.min(place.size, memory.size - offset);
    if (end > room) throw new Error(`queue of ${end} bytes in a place of ${room}`);
    const wishes = wishesAt(size);
    this.size = size;
    this.descriptorAddress = at;
    this.driverAddress = at + wishes;
    this.deviceAddress = at + wishes + LINE;
    this.#eventIndex = eventIndex;
    this.#indirect = indirect;
    this.#inOrder = inOrder;
    this.#mask = size - 1;
    this.#words = new Uint32Array(memory.buffer, offset, end / 4);
    this.#driverEvent = new Uint32Array(memory.buffer, offset + wishes, 1);
    this.#deviceEvent = new Uint32Array(memory.buffer, offset + wishes + LINE, 1);
    this.#tables = (wishes + 2 * LINE) / 4;
    this.#tablesAddress = at + wishes + 2 * LINE;
    this.#taken = new Uint16Array(size);
    this.#tokens = new Float64Array(size);
    this.#capacities = new Float64Array(size);
    this.#numbers = new Uint32Array(size);
    this.#freeIds = new Uint16Array(size);
    this.#order = new Uint16Array(size);
    this.free = size;
    this.reset();
  }

  reset(): void {
    this.#words.fill(0);
    this.#taken.fill(0);
    for (let i = 0; i < this.size; i++) this.#freeIds[i] = this.#mask - i;
    this.#freeCount = this.size;
    this.free = this.size;
    this.#added =
      this.#published =
      this.#returned =
      this.#shown =
        0;
    this.#available = this.#start = this.#used = 0;
    this.broken = undefined;
  }

  addOne(address: number, length: number, writable: boolean, token: number): boolean {
    this.#oneAddress[0] = address;
    this.#oneLength[0] = length;
    return this.add(this.#oneAddress, this.#oneLength, writable ? 0 : 1, writable ? 1 : 0, token);
  }

  add(
    addresses: Float64Array,
    lengths: Uint32Array,
    readableCount: number,
    writableCount: number,
    token: number,
  ): boolean {
    const count = readableCount + writableCount;
    if (!(count > 0 && count <= this.size)) throw new Error(`a buffer of ${count} elements`);
    const indirect = this.#indirect && count > 1 && count <= INDIRECT_TABLE_LENGTH;
    const taken = indirect ? 1 : count;
    if (this.broken !== undefined || taken > this.free) return false;
    const id = this.#freeIds[--this.#freeCount];
    const first = this.#available;
    let capacity = 0;
    const table = this.#tables + id * INDIRECT_TABLE_LENGTH * 4;
    for (let i = 0; i < count; i++) {
      const length = lengths[i];
      let flags = 0;
      if (i >= readableCount) {
        flags = DESCRIPTOR_WRITE;
        capacity += length;
      }
      if (indirect) this.#write(table + 4 * i, addresses[i], length, flags);
      else {this.#fill(
          first,
          i,
          addresses[i],
          length,
          flags | (i < count - 1 ? DESCRIPTOR_NEXT : 0),
          id,
        );}
    }
    if (indirect) {
      const address = this.#tablesAddress + id * INDIRECT_TABLE_LENGTH * DESCRIPTOR_SIZE;
      this.#fill(first, 0, address, count * DESCRIPTOR_SIZE, DESCRIPTOR_INDIRECT, id);
    }
    this.#available = (first + taken) & (2 * this.size - 1);
    this.free -= taken;
    this.#taken[id] = taken;
    this.#tokens[id] = token;
    this.#capacities[id] = capacity;
    this.#numbers[id] = this.#added;
    this.#order[this.#added & this.#mask] = id;
    this.#added = (this.#added + 1) >>> 0;
    return true;
  }

  /** Fills a descriptor of the ring; the first that is not published is made available by {@link publish}. */
  #fill(
    first: number,
    i: number,
    address: number,
    length: number,
    flags: number,
    id: number,
  ): void {
    const position = first + i;
    const word = flags | availableFlags(position, this.size) | id;
    if (this.#added === this.#published && i === 0) {
      this.#firstWord = word;
      const at = (position & this.#mask) << 2;
      this.#words[at] = address >>> 0;
      this.#words[at + 1] = address / TWO_TO_32;
      this.#words[at + 2] = length;
    } else this.#write((position & this.#mask) << 2, address, length, word);
  }

  #write(at: number, address: number, length: number, word: number): void {
    this.#words[at] = address >>> 0;
    this.#words[at + 1] = address / TWO_TO_32;
    this.#words[at + 2] = length;
    this.#words[at + LAST_WORD] = word;
  }

  publish(): boolean {
    if (this.#added === this.#published) return false;
    const { size } = this;
    const start = this.#start;
    // Release (2.8.21): descriptors and the buffers' bytes are visible before these flags.
    storeRelease32(this.#words, ((start & this.#mask) << 2) + LAST_WORD, this.#firstWord);
    const position = this.#available;
    // All of the ring at once is as far round as nothing.
    const moved = ((position - start - 1) & (2 * size - 1)) + 1;
    this.#start = position;
    this.#published = this.#added;
    // The device writes its wish, then looks at the flags; we the other way round. This load cannot pass the store.
    const wants = needsEvent(loadAcquire32(this.#deviceEvent, 0), position, moved, size);
    if (!wants) this.suppressed++;
    return wants;
  }

  nextUsed(): boolean {
    if (this.#inOrder && this.#returned !== this.#shown) return this.#giveBack();
    if (this.broken !== undefined) return false;
    const at = ((this.#used & this.#mask) << 2) + LAST_WORD;
    // Acquire: the length, and the bytes the device wrote before these flags, are visible from here on.
    const word = loadAcquire32(this.#words, at);
    if (!this.#isUsed(word)) return false;
    const id = word & 0xffff;
    const length = this.#words[at - 1];
    // Published, however long ago: the device may keep one while any number of others come and go.
    const isOut = id <= this.#mask && this.#taken[id] !== 0 &&
      ((this.#numbers[id] - this.#published) >>> 0) >= ((this.#added - this.#published) >>> 0);
    if (!isOut) return this.#break(`the device returns buffer ${id}, which it does not have`);
    // Without WRITE the length is reserved (2.8.5).
    const written = (word & DESCRIPTOR_WRITE) !== 0 ? length : 0;
    if (written > this.#capacities[id]) {
      return this.#break(`the device wrote ${written} bytes to ${this.#capacities[id]}`);
    }
    if (!this.#inOrder) return this.#take(id, written);
    this.#shown = (this.#numbers[id] + 1) >>> 0;
    this.#shownLength = written;
    return this.#giveBack();
  }

  /** The oldest buffer, of those that a used descriptor stands for. */
  #giveBack(): boolean {
    const id = this.#order[this.#returned & this.#mask];
    this.#returned = (this.#returned + 1) >>> 0;
    const isLast = this.#returned === this.#shown;
    return this.#take(id, isLast ? this.#shownLength : this.#capacities[id]);
  }

  #take(id: number, written: number): boolean {
    const taken = this.#taken[id];
    this.#taken[id] = 0;
    this.#freeIds[this.#freeCount++] = id;
    this.free += taken;
    this.#used = (this.#used + taken) & (2 * this.size - 1);
    this.usedToken = this.#tokens[id];
    this.usedLength = written;
    return true;
  }

  #isUsed(word: number): boolean {
    return (word & (DESCRIPTOR_AVAIL | DESCRIPTOR_USED)) === usedFlags(this.#used, this.size) &&
      this.free < this.size;
  }

  wantCalls(): boolean {
    if (this.broken !== undefined) return false;
    if (this.#inOrder && this.#returned !== this.#shown) return true;
    storeRelease32(
      this.#driverEvent,
      0,
      this.#eventIndex ? eventAt(this.#used, this.size) : EVENT_ENABLE,
    );
    // This load cannot pass that store.
    const at = ((this.#used & this.#mask) << 2) + LAST_WORD;
    return this.#isUsed(loadAcquire32(this.#words, at));
  }

  noCalls(): void {
    if (!this.#eventIndex) this.#driverEvent[0] = EVENT_DISABLE;
  }

  #break(reason: string): boolean {
    this.broken = reason;
    return false;
  }
}

/** Where the two wishes lie in a region, in bytes. */
function wishesAt(size: number): number {
  return Math.ceil(DESCRIPTOR_SIZE * size / LINE) * LINE;
}
