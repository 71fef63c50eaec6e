/**
 * A virtqueue's ring as it lies in memory, for people: where both sides are, what they want to be told, and the buffers that
 * the driver has made available and the device has not used. For whoever looks from outside, at the ring of a device that
 * runs or of one that died, be it ours or not.
 *
 * The areas are copied, and what is made of them is made of the copy; one that moved meanwhile is copied again. Every address
 * is looked up, a chain has at most as many descriptors as the queue, and nothing is written. Buffers are taken to be used in
 * the order they came: what a split ring's device used out of order is counted, but the buffers shown are the oldest.
 *
 * A packed ring has no indices. The driver's place is where AVAIL bits are of another lap. The device's place is left in the ring
 * by a device side of ours (packed/position.ts). Of another one it is not known: in front of the driver's place all descriptors
 * are looked at that are available, but behind a used chain's first one its others look the same, so that count is the most there
 * can be.
 */

import type { QueueSetup } from "../device.ts";
import * as packed from "../packed/layout.ts";
import { shownBase } from "../packed/position.ts";
import * as split from "../split/layout.ts";
import { areasOf, isQueueSize } from "./config.ts";

/** Memory to look at. */
export interface ReadableMemory {
  /** A copy of [address, address + length), or undefined if a byte of it cannot be had. */
  read(address: number, length: number): DataView<ArrayBuffer> | undefined;
  /** Does all of it lie in memory? */
  contains(address: number, length: number): boolean;
}

/** What was negotiated, and whose the device is. */
export interface ReadTerms {
  readonly isPacked: boolean;
  /** EVENT_IDX. */
  readonly eventIndex: boolean;
  /** A device side of ours, which leaves its place in a packed ring. */
  readonly isOurs: boolean;
}

/** One descriptor of a buffer. */
export interface ReadDescriptor {
  readonly address: number;
  readonly length: number;
  /** The device writes it. */
  readonly writable: boolean;
  /** It is one of an indirect table. */
  readonly indirect: boolean;
  readonly outside: boolean;
}

/** A buffer that is the device's to use. */
export interface ReadBuffer {
  /** Its first descriptor, in a packed ring its id. */
  readonly head: number;
  readonly descriptors: readonly ReadDescriptor[];
  /** Why it has no more of them. */
  readonly problem: string | undefined;
}

/**
 * What a side wants to be notified of: everything, nothing, or a place that the other side has passed, so that it is or was to
 * notify, or has still ahead.
 */
export type Wish = "each" | "none" | "passed" | "ahead";

/** One ring as it was. */
export interface ReadRing {
  /** By the specification's names; of a packed ring slots and wrap counters. */
  readonly indices: Readonly<Record<string, number>>;
  /** When the device wants to be kicked. */
  readonly kicks: Wish;
  /** When the driver wants to be called. */
  readonly calls: Wish;
  /** Buffers that are the device's to use. */
  readonly pending: number;
  /** There may be fewer. */
  readonly isUpperBound: boolean;
  /** The first of them. */
  readonly buffers: readonly ReadBuffer[];
  /** It was never twice the same: what is said of it may not fit together. */
  readonly isMoving: boolean;
  /** What cannot be right. */
  readonly problem: string | undefined;
}

/** How often a ring in use is read. */
const MAX_READS = 4;
/** Behind so many descriptors no further buffer of a ring is looked into. */
const MAX_DESCRIPTORS = 16384;

interface Copy extends ReadTerms {
  readonly memory: ReadableMemory;
  readonly size: number;
  readonly descriptors: DataView<ArrayBuffer>;
  readonly driver: DataView<ArrayBuffer>;
  readonly device: DataView<ArrayBuffer>;
  /** Buffers to show. */
  readonly most: number;
}

/**
 * Reads a ring.
 *
 * @param most buffers
 * @returns or in one line why it cannot be
 */
export function readRing(
  memory: ReadableMemory,
  setup: Omit<QueueSetup, "base">,
  terms: ReadTerms,
  most: number,
): ReadRing | string {
  const { size } = setup;
  if (!isQueueSize(size)) return `the size ${size} is none`;
  const areas = areasOf(terms.isPacked);
  const copy = (): Copy | undefined => {
    // What the device has used is read first, or else it could have used more than was made available.
    const [device, driver, descriptors] = (["device", "driver", "descriptor"] as const).map(
      (name) => memory.read(setup[`${name}Address`], areas[name].sizeFor(size)),
    );
    if (device === undefined || driver === undefined || descriptors === undefined) return undefined;
    return { ...terms, memory, size, descriptors, driver, device, most };
  };
  let [before, read, isMoving] = [copy(), copy(), true];
  for (let reads = 2; before !== undefined && read !== undefined; reads++) {
    isMoving = !isSame(before, read);
    if (!isMoving || reads === MAX_READS) {
      return { ...terms.isPacked ? readPacked(read) : readSplit(read), isMoving };
    }
    [before, read] = [read, copy()];
  }
  return "not all of it lies in memory that can be read";
}

function isSame(one: Copy, other: Copy): boolean {
  return (["device", "driver", "descriptors"] as const).every((name) => {
    const [a, b] = [new Uint8Array(one[name].buffer), new Uint8Array(other[name].buffer)];
    return a.every((byte, at) => byte === b[at]);
  });
}

// --- split -----------------------------------------------------------------------------------------

const wordOf = (view: DataView, index: number) => view.getUint16(2 * index, true);

function readSplit(copy: Copy): Omit<ReadRing, "isMoving"> {
  const { size, driver, device, eventIndex, most } = copy;
  const available = wordOf(driver, split.RING_INDEX);
  const used = wordOf(device, split.RING_INDEX);
  const last = 4 * split.USED_ELEMENTS + 8 * ((used - 1) & (size - 1));
  const flags = [wordOf(driver, split.RING_FLAGS), wordOf(device, split.RING_FLAGS)] as const;
  const usedEvent = wordOf(driver, split.usedEventIndex(size));
  const availEvent = wordOf(device, split.availEventIndex(size));
  const wish = (isMasked: boolean, event: number, index: number): Wish => {
    if (!eventIndex) return isMasked ? "none" : "each";
    return ((index - event - 1) & 0xffff) < 0x8000 ? "passed" : "ahead";
  };
  const pending = (available - used) & 0xffff;
  const isSound = pending <= size;
  const buffers: ReadBuffer[] = [];
  for (let n = 0; isSound && n < Math.min(pending, most) && !isFull(buffers); n++) {
    const head = wordOf(driver, split.AVAIL_HEADS + ((used + n) & (size - 1)));
    buffers.push(splitBuffer(copy, head));
  }
  return {
    indices: {
      "avail.idx": available,
      "used.idx": used,
      "avail.flags": flags[0],
      "used.flags": flags[1],
      used_event: usedEvent,
      avail_event: availEvent,
      "last used id": device.getUint32(last, true),
      "last used length": device.getUint32(last + 4, true),
    },
    kicks: wish((flags[1] & split.USED_NO_NOTIFY) !== 0, availEvent, available),
    calls: wish((flags[0] & split.AVAIL_NO_INTERRUPT) !== 0, usedEvent, used),
    pending: isSound ? pending : 0,
    isUpperBound: false,
    buffers,
    problem: isSound
      ? undefined
      : `avail.idx ${available} is ${pending} ahead of used.idx ${used}, the size is ${size}`,
  };
}

function isFull(buffers: readonly ReadBuffer[]): boolean {
  return buffers.reduce((sum, { descriptors }) => sum + descriptors.length, 0) >= MAX_DESCRIPTORS;
}

function splitBuffer({ memory, descriptors: ring, size }: Copy, head: number): ReadBuffer {
  const descriptors: ReadDescriptor[] = [];
  const done = (problem?: string) => ({ head, descriptors, problem });
  let [table, entries, index, indirect] = [ring, size, head, false];
  for (;;) {
    if (index >= entries) return done(`there is no descriptor ${index}, of ${entries}`);
    const at = split.DESCRIPTOR_SIZE * index;
    const flags = table.getUint16(at + 12, true);
    const bytes = bytesAt(table, at);
    if ((flags & split.DESCRIPTOR_INDIRECT) !== 0) {
      const found = indirect ? undefined : tableOf(memory, size, bytes);
      if (found === undefined) return done(noTable(bytes));
      [table, entries, index, indirect] = [found, bytes.length / split.DESCRIPTOR_SIZE, 0, true];
      continue;
    }
    if (descriptors.length === size) return done(`it has more descriptors than the queue`);
    descriptors.push(descriptor(memory, bytes, (flags & split.DESCRIPTOR_WRITE) !== 0, indirect));
    if ((flags & split.DESCRIPTOR_NEXT) === 0) return done();
    index = table.getUint16(at + 14, true);
  }
}

// --- both ------------------------------------------------------------------------------------------

interface Bytes {
  readonly address: number;
  readonly length: number;
}

function bytesAt(table: DataView, at: number): Bytes {
  const address = table.getUint32(at, true) + 2 ** 32 * table.getUint32(at + 4, true);
  return { address, length: table.getUint32(at + 8, true) };
}

function descriptor(memory: ReadableMemory, bytes: Bytes, writable: boolean, indirect: boolean) {
  const outside = !memory.contains(bytes.address, bytes.length);
  return { ...bytes, writable, indirect, outside };
}

function noTable({ address, length }: Bytes): string {
  return `no indirect table of ${length} bytes is at 0x${address.toString(16)}`;
}

function tableOf(memory: ReadableMemory, size: number, { address, length }: Bytes) {
  const entries = length / split.DESCRIPTOR_SIZE;
  if (!Number.isInteger(entries) || entries === 0 || entries > size) return undefined;
  return memory.read(address, length);
}

// --- packed ----------------------------------------------------------------------------------------

function readPacked(copy: Copy): Omit<ReadRing, "isMoving"> {
  const { size, descriptors, driver, device, isOurs, most } = copy;
  const ring = new Uint32Array(descriptors.buffer);
  const lap = 2 * size - 1;
  const lastWord = (position: number) => ring[((position & (size - 1)) << 2) + 3]!;
  const isAvailable = (position: number) =>
    (lastWord(position) & (packed.DESCRIPTOR_AVAIL | packed.DESCRIPTOR_USED)) ===
      packed.availableFlags(position, size);
  const word = device.getUint32(0, true);
  // Positions are modulo twice the size, see layout.ts.
  const place = isOurs ? packed.fromBase(shownBase(ring, word) ?? -1, size) : undefined;
  let [from, next] = [place ?? 0, place ?? driversPlace(lastWord, size)];
  if (place === undefined) {
    for (from = next; ((next - from) & lap) < size && isAvailable(from - 1);) {
      from = (from - 1) & lap;
    }
  } else {
    const wrapAt = (position: number) => packed.usedFlags(position, size) & packed.DESCRIPTOR_AVAIL;
    const isOfLap = () => (lastWord(next) & packed.DESCRIPTOR_AVAIL) === wrapAt(next);
    while (((next - from) & lap) < size && isOfLap()) next = (next + 1) & lap;
  }

  const buffers: ReadBuffer[] = [];
  let pending = 0;
  for (let left = (next - from) & lap, at = from; left > 0;) {
    let count = 1;
    // What is used already in front of what is not: by a device that died before it had shown all.
    if (isAvailable(at)) {
      const goesOn = (n: number) => (lastWord(at + n - 1) & packed.DESCRIPTOR_NEXT) !== 0;
      while (count < left && goesOn(count)) count++;
      if (pending < most && !isFull(buffers)) buffers.push(packedBuffer(copy, at, count));
      pending++;
    }
    [at, left] = [at + count, left - count];
  }
  const slotAndWrap = (name: string, position: number) => ({
    [`${name} slot`]: position & (size - 1),
    [`${name} wrap counter`]: Number((position & size) === 0),
  });
  const driverWord = driver.getUint32(0, true);
  return {
    indices: {
      ...slotAndWrap("driver's", next),
      ...place === undefined ? {} : slotAndWrap("device's", place),
      "driver event": driverWord,
      "device event": word,
    },
    kicks: packedWish(word, next, size),
    calls: packedWish(driverWord, from, size),
    pending,
    isUpperBound: place === undefined && pending > 0,
    buffers,
    problem: isOurs && place === undefined ? "the device's place in it cannot be right" : undefined,
  };
}

/**
 * The slots in front of it are of the driver's lap, the others of the one before. Where the last is as the first is, all are, or
 * a driver is about to publish a chain whose first descriptor, in slot 0, comes last.
 */
function driversPlace(lastWord: (slot: number) => number, size: number): number {
  const wrap = (slot: number) => lastWord(slot) & packed.DESCRIPTOR_AVAIL;
  let filled = 1;
  while (filled < size && wrap(filled) === wrap(0)) filled++;
  if (wrap(size - 1) === wrap(0)) filled = size;
  return ((wrap(0) !== 0 ? 0 : size) + filled) & (2 * size - 1);
}

function packedWish(word: number, position: number, size: number): Wish {
  if ((word & packed.EVENT_FLAGS) === packed.EVENT_ENABLE) return "each";
  if ((word & packed.EVENT_FLAGS) !== packed.EVENT_DESCRIPTOR) return "none";
  return packed.needsEvent(word, position, size, size) ? "passed" : "ahead";
}

/** A chain of descriptors that follow one another, or the descriptors of its table. */
function packedBuffer(
  { memory, descriptors: ring, size }: Copy,
  from: number,
  count: number,
): ReadBuffer {
  const descriptors: ReadDescriptor[] = [];
  let [head, problem]: [number, string | undefined] = [0, undefined];
  const append = (table: DataView, at: number, indirect: boolean) => {
    const writable = (table.getUint32(at + 12, true) & packed.DESCRIPTOR_WRITE) !== 0;
    descriptors.push(descriptor(memory, bytesAt(table, at), writable, indirect));
  };
  for (let n = 0; n < count; n++) {
    const at = split.DESCRIPTOR_SIZE * ((from + n) & (size - 1));
    const last = ring.getUint32(at + 12, true);
    // The id is in the chain's last one.
    head = last & 0xffff;
    if ((last & packed.DESCRIPTOR_INDIRECT) === 0) append(ring, at, false);
    else {
      const bytes = bytesAt(ring, at);
      const table = count === 1 ? tableOf(memory, size, bytes) : undefined;
      // All of it is the buffer: the descriptors of such a table follow one another (2.8.7).
      for (let entry = 0; entry < (table?.byteLength ?? 0); entry += split.DESCRIPTOR_SIZE) {
        append(table!, entry, true);
      }
      if (table === undefined) problem ??= noTable(bytes);
    }
    if (n === count - 1 && (last & packed.DESCRIPTOR_NEXT) !== 0) {
      problem ??= "it goes on in a descriptor that is not available";
    }
  }
  return { head, descriptors, problem };
}
