/**
 * The driver's side of a split virtqueue (VIRTIO 1.2, section 2.7), in memory of our own that the device
 * shares: for `vmsg driver`, and as the counterpart of DeviceQueue in tests.
 *
 * Life: made empty; buffers are added, published, used by the device, taken back with `nextUsed`; `reset`
 * makes it empty again for a device that was reset (2.7.13, 2.7.14). A device that says something
 * impossible breaks it until then: `broken` says what.
 *
 * The device can write the whole region, so nothing in it is believed. Free descriptors, the descriptors of
 * each buffer, its token and its writable bytes are remembered in private arrays; shared memory is only
 * written, but for the used index, the used elements and the suppression fields. Each of those is read
 * once, then checked: a head that is not with the device, or more bytes than the buffer has, breaks the
 * queue.
 *
 * With indirect descriptors, buffers of two to 16 elements take one descriptor and a table (2.7.5.3).
 */

import { loadAcquire16, storeRelease16 } from "../../memory/atomics.ts";
import type { Place } from "../place.ts";
import { isQueueSize } from "../queue/config.ts";
import {
  AREAS,
  AVAIL_HEADS,
  AVAIL_NO_INTERRUPT,
  availEventIndex,
  DESCRIPTOR_INDIRECT,
  DESCRIPTOR_NEXT,
  DESCRIPTOR_SIZE,
  DESCRIPTOR_WRITE,
  descriptorAreaSize,
  deviceAreaSize,
  driverAreaSize,
  needsEvent,
  RING_FLAGS,
  RING_INDEX,
  USED_ELEMENTS,
  USED_NO_NOTIFY,
  usedEventIndex,
} from "./layout.ts";

/** The most elements of a buffer that goes through an indirect table. */
const INDIRECT_TABLE_LENGTH = 16;

const TWO_TO_32 = 0x1_0000_0000;

/** Where a {@link DriverQueue} lies and what was negotiated. */
export interface DriverQueueOptions {
  /**
   * The queue's region, in memory shared with the device: it takes the first
   * {@link DriverQueue.bytesNeeded} bytes. Offset and bus address are multiples of 16.
   */
  readonly place: Place;
  /** Entries: a power of two, at most 32768. */
  readonly size: number;
  /** Whether VIRTIO_F_EVENT_IDX was negotiated. */
  readonly eventIndex: boolean;
  /** Whether VIRTIO_F_INDIRECT_DESC was negotiated. */
  readonly indirect: boolean;
}

/** The driver's side of one split virtqueue. */
export class DriverQueue {
  /** Entries. */
  readonly size: number;
  /** Bus address of the descriptor table. */
  readonly descriptorAddress: number;
  /** Bus address of the available ring. */
  readonly driverAddress: number;
  /** Bus address of the used ring. */
  readonly deviceAddress: number;
  /** How many descriptors are free. */
  free: number;
  /** After {@link nextUsed}: what `add` was given for this buffer. */
  usedToken = 0;
  /** After {@link nextUsed}: how many bytes the device wrote, from the first writable one on. */
  usedLength = 0;
  /** Why the queue is broken; undefined while it is not. */
  broken: string | undefined = undefined;
  /** See {@link DriverRing.suppressed}. */
  suppressed = 0;

  readonly #eventIndex: boolean;
  readonly #indirect: boolean;
  readonly #mask: number;
  readonly #region: Uint8Array;
  /** The descriptor table, and behind it, from {@link #tables} on, the indirect tables. */
  readonly #words: Uint32Array;
  readonly #avail: Uint16Array;
  readonly #used: Uint16Array;
  readonly #usedElements: Uint32Array;
  readonly #usedEvent: number;
  readonly #availEvent: number;
  /** Word index of the first indirect table, and its bus address. */
  readonly #tables: number;
  readonly #tablesAddress: number;
  /** Links the free descriptors, and those of each buffer. */
  readonly #next: Uint16Array;
  #firstFree = 0;
  /** By head: descriptors taken (0: not with the device), token, writable bytes, available index. */
  readonly #taken: Uint16Array;
  readonly #tokens: Float64Array;
  readonly #capacities: Float64Array;
  readonly #offered: Uint16Array;
  /** Available index of the next buffer, and as far as the device has seen it. */
  #available = 0;
  #published = 0;
  /** Used index of the next element to look at, and the device's as last seen. */
  #seen = 0;
  #usedIndex = 0;
  // One-element lists for addOne.
  readonly #oneAddress = new Float64Array(1);
  readonly #oneLength = new Uint32Array(1);

  /** The size of the region a queue takes, in bytes. */
  static bytesNeeded(size: number, indirect = false): number {
    return regionLayout(size, indirect).end;
  }

  /** Makes an empty queue and clears its region. */
  constructor(options: DriverQueueOptions) {
    const { place, size, eventIndex, indirect } = options;
    const { memory, offset, at } = place;
    if (!isQueueSize(size)) throw new Error(`not a queue size: ${size}`);
    const { alignment } = AREAS.descriptor;
    if (offset % alignment !== 0 || at % alignment !== 0) {
      throw new Error(`queue at offset ${offset}, bus address ${at}: not aligned`);
    }
    const layout = regionLayout(size, indirect);
    if (layout.end > place.size || offset + layout.end > memory.size) {
      const room = Math.min(place.size, memory.size - offset);
      throw new Error(`queue of ${layout.end} bytes in a place of ${room}`);
    }
    this.size = size;
    this.descriptorAddress = at;
    this.driverAddress = this.descriptorAddress + layout.driver;
    this.deviceAddress = this.descriptorAddress + layout.device;
    this.#eventIndex = eventIndex;
    this.#indirect = indirect;
    this.#mask = size - 1;
    const { buffer } = memory;
    this.#region = new Uint8Array(buffer, offset, layout.end);
    this.#words = new Uint32Array(buffer, offset, layout.end / 4);
    this.#avail = new Uint16Array(buffer, offset + layout.driver, driverAreaSize(size) / 2);
    this.#used = new Uint16Array(buffer, offset + layout.device, deviceAreaSize(size) / 2);
    this.#usedElements = new Uint32Array(buffer, offset + layout.device, USED_ELEMENTS + 2 * size);
    this.#usedEvent = usedEventIndex(size);
    this.#availEvent = availEventIndex(size);
    this.#tables = layout.tables / 4;
    this.#tablesAddress = this.descriptorAddress + layout.tables;
    this.#next = new Uint16Array(size);
    this.#taken = new Uint16Array(size);
    this.#tokens = new Float64Array(size);
    this.#capacities = new Float64Array(size);
    this.#offered = new Uint16Array(size);
    this.free = size;
    this.reset();
  }

  /**
   * Makes the queue empty again and clears its region; for when the device is reset and touches it no
   * more. Buffers that were with the device are the caller's again.
   */
  reset(): void {
    this.#region.fill(0);
    for (let i = 0; i < this.size; i++) this.#next[i] = (i + 1) & this.#mask;
    this.#taken.fill(0);
    this.#firstFree = 0;
    this.free = this.size;
    this.#available = 0;
    this.#published = 0;
    this.#seen = 0;
    this.#usedIndex = 0;
    this.broken = undefined;
  }

  /**
   * Adds a buffer of one element. The device sees it after {@link publish}.
   *
   * @param address bus address
   * @param length in bytes
   * @param writable whether the device writes it, otherwise it reads
   * @param token what {@link nextUsed} shall say when the buffer comes back
   * @returns false if no descriptor is free
   */
  addOne(address: number, length: number, writable: boolean, token: number): boolean {
    this.#oneAddress[0] = address;
    this.#oneLength[0] = length;
    return this.add(this.#oneAddress, this.#oneLength, writable ? 0 : 1, writable ? 1 : 0, token);
  }

  /**
   * Adds a buffer of several elements: those the device reads, then those it writes. The device sees it
   * after {@link publish}.
   *
   * @param addresses bus addresses
   * @param lengths in bytes, less than 2^32 together
   * @param readableCount how many elements are for reading
   * @param writableCount how many after these are for writing
   * @param token what {@link nextUsed} shall say when the buffer comes back
   * @returns false if not enough descriptors are free
   */
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

    const head = this.#firstFree;
    let capacity = 0;
    let index = head;
    const table = this.#tables + head * INDIRECT_TABLE_LENGTH * 4;
    for (let i = 0; i < count; i++) {
      const length = lengths[i];
      let flags = i < count - 1 ? DESCRIPTOR_NEXT : 0;
      if (i >= readableCount) {
        flags |= DESCRIPTOR_WRITE;
        capacity += length;
      }
      if (indirect) {
        this.#write(table + 4 * i, addresses[i], length, flags, i + 1);
      } else {
        const next = this.#next[index];
        this.#write(4 * index, addresses[i], length, flags, next);
        index = next;
      }
    }
    if (indirect) {
      const address = this.#tablesAddress + head * INDIRECT_TABLE_LENGTH * DESCRIPTOR_SIZE;
      this.#write(4 * head, address, count * DESCRIPTOR_SIZE, DESCRIPTOR_INDIRECT, 0);
      index = this.#next[head];
    }
    this.#firstFree = index;
    this.free -= taken;
    this.#taken[head] = taken;
    this.#tokens[head] = token;
    this.#capacities[head] = capacity;
    this.#offered[head] = this.#available;
    this.#avail[AVAIL_HEADS + (this.#available & this.#mask)] = head;
    this.#available = (this.#available + 1) & 0xffff;
    return true;
  }

  #write(word: number, address: number, length: number, flags: number, next: number): void {
    this.#words[word] = address >>> 0;
    this.#words[word + 1] = address / TWO_TO_32;
    this.#words[word + 2] = length;
    // The last element's next is not looked at (no NEXT flag), so it may point anywhere in range.
    this.#words[word + 3] = flags | (next << 16);
  }

  /**
   * Shows the added buffers to the device.
   *
   * @returns whether the device wants an available buffer notification (a kick) now
   */
  publish(): boolean {
    const old = this.#published;
    const index = this.#available;
    if (index === old) return false;
    // Release (2.7.13.3.1): descriptors, heads and the buffers' bytes are visible before the index.
    storeRelease16(this.#avail, RING_INDEX, index);
    this.#published = index;
    // 2.7.13.4.1: the device writes avail_event (or flags), then looks at the index; we the other way round.
    // If this load could pass the store, both could miss each other; it cannot (atomics.ts).
    const wish = loadAcquire16(this.#used, this.#eventIndex ? this.#availEvent : RING_FLAGS);
    const wants = this.#eventIndex ? needsEvent(wish, index, old) : (wish & USED_NO_NOTIFY) === 0;
    if (!wants) this.suppressed++;
    return wants;
  }

  /**
   * Takes the next used buffer back and says in {@link usedToken} and {@link usedLength} which it is.
   *
   * @returns false if there is none, or the queue is broken
   */
  nextUsed(): boolean {
    if (this.#seen === this.#usedIndex && this.#look() === 0) return false;
    const element = USED_ELEMENTS + ((this.#seen & this.#mask) << 1);
    // Plain: `#look` has acquired the index that covers this element. Read once, the device may change it.
    const head = this.#usedElements[element];
    const length = this.#usedElements[element + 1];
    if (head > this.#mask || this.#taken[head] === 0 || !this.#isPublished(head)) {
      return this.#break(`the device returns buffer ${head}, which it does not have`);
    }
    if (length > this.#capacities[head]) {
      return this.#break(`the device wrote ${length} bytes to ${this.#capacities[head]}`);
    }
    this.#seen = (this.#seen + 1) & 0xffff;
    const taken = this.#taken[head];
    let last = head;
    for (let i = 1; i < taken; i++) last = this.#next[last];
    this.#next[last] = this.#firstFree;
    this.#firstFree = head;
    this.#taken[head] = 0;
    this.free += taken;
    this.usedToken = this.#tokens[head];
    this.usedLength = length;
    return true;
  }

  /**
   * Asks the device for a notification (a call) with the next buffer it uses.
   *
   * @returns true if there are used buffers already, for which it may not call: take them first
   */
  wantCalls(): boolean {
    if (this.broken !== undefined) return false;
    // 2.7.14: `#look` loads the used index, and that cannot pass this store.
    if (this.#eventIndex) storeRelease16(this.#avail, this.#usedEvent, this.#seen);
    else storeRelease16(this.#avail, RING_FLAGS, 0);
    return this.#look() !== 0;
  }

  /**
   * Tells the device that calls are not needed for now. With EVENT_IDX nothing is to be done: it calls
   * once, when it passes the index of the last {@link wantCalls}.
   */
  noCalls(): void {
    if (!this.#eventIndex) this.#avail[RING_FLAGS] = AVAIL_NO_INTERRUPT;
  }

  /** Reads the used index; how many elements are to be taken. */
  #look(): number {
    if (this.broken !== undefined) return 0;
    // Acquire: elements and the bytes the device wrote before this index are visible from here on.
    const index = loadAcquire16(this.#used, RING_INDEX);
    const count = (index - this.#seen) & 0xffff;
    const out = (this.#published - this.#seen) & 0xffff;
    if (count > out) {
      this.#break(`the device has used ${count} of ${out} buffers`);
      return 0;
    }
    this.#usedIndex = index;
    return count;
  }

  #isPublished(head: number): boolean {
    const ahead = (this.#offered[head] - this.#published) & 0xffff;
    return ahead >= ((this.#available - this.#published) & 0xffff);
  }

  #break(reason: string): boolean {
    this.broken = reason;
    this.#usedIndex = this.#seen;
    return false;
  }
}

/** Where the parts of a region lie, in bytes from its beginning. */
function regionLayout(
  size: number,
  indirect: boolean,
): { driver: number; device: number; tables: number; end: number } {
  const driver = descriptorAreaSize(size);
  const device = align(driver + driverAreaSize(size));
  const tables = align(device + deviceAreaSize(size));
  const end = tables + (indirect ? size * INDIRECT_TABLE_LENGTH * DESCRIPTOR_SIZE : 0);
  return { driver, device, tables, end };
}

/** The rings apart from each other by whole cache lines: each is written by one side. */
function align(offset: number): number {
  return (offset + 63) & ~63;
}
