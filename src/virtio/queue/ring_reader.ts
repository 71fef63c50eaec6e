/**
 * A virtqueue's ring as it lies in memory, for people: indices, and the buffers that the driver has made available and the
 * device has not used. For whoever looks from outside, at the ring of a device that runs or of one that died, be it ours or not.
 *
 * Each area is copied once, and what is made of it is made of the copy: every address is looked up, each chain has at most as many
 * descriptors as the queue, and nothing is written. Buffers are taken to be used in the order they came; what a
 * device has used out of order is counted, but the buffers shown are the oldest.
 *
 * A packed ring has no indices. The driver's place is where AVAIL bits are of another lap. Of descriptors in front of it those
 * with AVAIL unlike USED are the device's to use; but behind a used buffer's first descriptor its other ones look the same.
 * Where the device waits for a kick, its event word says where it is, and the count is exact; else it is the most there can be.
 */

import type { QueueSetup } from "../device.ts";
import * as packed from "../packed/layout.ts";
import * as split from "../split/layout.ts";
import { areasOf, isQueueSize } from "./config.ts";

/** Memory to look at. */
export interface ReadableMemory {
  /** A copy of [address, address + length), or undefined if a byte of it cannot be had. */
  read(address: number, length: number): DataView | undefined;
  /** Does all of it lie in memory? */
  contains(address: number, length: number): boolean;
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

/** One ring as it was. */
export interface ReadRing {
  /** By the specification's names, and of a packed ring also what follows from it. */
  readonly indices: Readonly<Record<string, number>>;
  /** Buffers that are the device's to use. */
  readonly pending: number;
  /** There may be fewer. */
  readonly isUpperBound: boolean;
  /** The first of them. */
  readonly buffers: readonly ReadBuffer[];
  /** What cannot be right. */
  readonly problem: string | undefined;
}

/** How often a ring in use is read when it seems to be wrong: indices move while they are copied. */
const MAX_READS = 4;

/**
 * Reads a ring.
 *
 * @param most buffers
 * @returns or in one line why it cannot be
 */
export function readRing(
  memory: ReadableMemory,
  setup: Omit<QueueSetup, "base">,
  isPacked: boolean,
  most: number,
): ReadRing | string {
  if (!isQueueSize(setup.size)) return `the size ${setup.size} is none`;
  const areas = areasOf(isPacked);
  for (let reads = 1;; reads++) {
    // What the device has used is read first, or else it could have used more than was made available.
    const [device, driver, descriptors] = (["device", "driver", "descriptor"] as const).map(
      (name) => memory.read(setup[`${name}Address`], areas[name].sizeFor(setup.size)),
    );
    if (device === undefined || driver === undefined || descriptors === undefined) {
      return "not all of it lies in memory that can be read";
    }
    const read = { memory, size: setup.size, descriptors, driver, device, most };
    const ring = isPacked ? readPacked(read) : readSplit(read);
    if (ring.problem === undefined || reads === MAX_READS) return ring;
  }
}

interface Areas {
  readonly memory: ReadableMemory;
  readonly size: number;
  readonly descriptors: DataView;
  readonly driver: DataView;
  readonly device: DataView;
  readonly most: number;
}

const word = (view: DataView, index: number) => view.getUint16(2 * index, true);
const addressAt = (view: DataView, at: number) =>
  view.getUint32(at, true) + 2 ** 32 * view.getUint32(at + 4, true);

function readSplit({ memory, size, descriptors, driver, device, most }: Areas): ReadRing {
  const available = word(driver, split.RING_INDEX);
  const used = word(device, split.RING_INDEX);
  const pending = (available - used) & 0xffff;
  const last = 4 * split.USED_ELEMENTS + 8 * ((used - 1) & (size - 1));
  const indices = {
    "avail.idx": available,
    "used.idx": used,
    "avail.flags": word(driver, split.RING_FLAGS),
    "used.flags": word(device, split.RING_FLAGS),
    used_event: word(driver, split.usedEventIndex(size)),
    avail_event: word(device, split.availEventIndex(size)),
    "last used id": device.getUint32(last, true),
    "last used length": device.getUint32(last + 4, true),
  };
  if (pending > size) {
    const problem = `avail.idx ${available} is ${pending} ahead of used.idx ${used}, of ${size}`;
    return { indices, pending: 0, isUpperBound: false, buffers: [], problem };
  }
  const buffers = Array.from({ length: Math.min(pending, most) }, (_, n) => {
    const head = word(driver, split.AVAIL_HEADS + ((used + n) & (size - 1)));
    return splitBuffer(memory, descriptors, size, head);
  });
  return { indices, pending, isUpperBound: false, buffers, problem: undefined };
}

function splitBuffer(
  memory: ReadableMemory,
  ring: DataView,
  size: number,
  head: number,
): ReadBuffer {
  const descriptors: ReadDescriptor[] = [];
  const done = (problem?: string) => ({ head, descriptors, problem });
  let [table, entries, index, indirect] = [ring, size, head, false];
  for (;;) {
    if (index >= entries) return done(`descriptor ${index} of ${entries}`);
    const at = split.DESCRIPTOR_SIZE * index;
    const address = addressAt(table, at);
    const length = table.getUint32(at + 8, true);
    const flags = table.getUint16(at + 12, true);
    if ((flags & split.DESCRIPTOR_INDIRECT) !== 0) {
      const found = indirect ? undefined : tableAt(memory, size, address, length);
      if (found === undefined) return done(noTable(address, length));
      [table, entries, index, indirect] = [found, length / split.DESCRIPTOR_SIZE, 0, true];
      continue;
    }
    const writable = (flags & split.DESCRIPTOR_WRITE) !== 0;
    descriptors.push(descriptor(memory, address, length, writable, indirect));
    if ((flags & split.DESCRIPTOR_NEXT) === 0) return done();
    if (descriptors.length >= size) return done(`more descriptors than the queue's ${size}`);
    index = table.getUint16(at + 14, true);
  }
}

function descriptor(
  memory: ReadableMemory,
  address: number,
  length: number,
  writable: boolean,
  indirect: boolean,
): ReadDescriptor {
  return { address, length, writable, indirect, outside: !memory.contains(address, length) };
}

function noTable(address: number, length: number): string {
  return `no indirect table of ${length} bytes is at 0x${address.toString(16)}`;
}

function tableAt(memory: ReadableMemory, size: number, address: number, length: number) {
  const entries = length / split.DESCRIPTOR_SIZE;
  if (!Number.isInteger(entries) || entries === 0 || entries > size) return undefined;
  return memory.read(address, length);
}

function readPacked({ memory, size, descriptors, driver, device, most }: Areas): ReadRing {
  // A descriptor's last word: id, and flags in the high half.
  const last = (slot: number) => descriptors.getUint32(16 * (slot & (size - 1)) + 12, true);
  const lapOf = (slot: number) => (last(slot) & packed.DESCRIPTOR_AVAIL) !== 0;
  const isAvailable = (slot: number) =>
    lapOf(slot) !== ((last(slot) & packed.DESCRIPTOR_USED) !== 0);
  let next = 1;
  while (next < size && lapOf(next) === lapOf(0)) next++;
  // Counted in laps of the driver's: it is in the second one, so that what came before has numbers as well.
  let from = next + size;
  const end = from;
  while (from > end - size && isAvailable(from - 1)) from--;
  const wrap = lapOf(next - 1) !== (next === size);
  const event = device.getUint32(0, true);
  const waits = eventSlot(event, next, size, wrap);
  const isExact = from === end || (waits !== undefined && waits >= from);
  if (waits !== undefined && waits >= from) from = waits;
  const indices = {
    "driver's next": next & (size - 1),
    "driver's wrap counter": Number(wrap),
    "last used": (from === end - size ? end : from - 1) & (size - 1),
    "driver event": driver.getUint32(0, true),
    "device event": event,
  };
  const buffers: ReadBuffer[] = [];
  let pending = 0;
  while (from < end) {
    const { buffer, count } = packedBuffer(memory, descriptors, size, from, end);
    if (buffers.length < most) buffers.push(buffer);
    pending++;
    from += count;
  }
  return { indices, pending, isUpperBound: !isExact, buffers, problem: undefined };
}

/** Where the device waits for a kick, counted as in {@link readPacked}; undefined if it does not say. */
function eventSlot(event: number, next: number, size: number, wrap: boolean): number | undefined {
  const slot = event & (packed.LAP - 1);
  if ((event & packed.EVENT_FLAGS) !== packed.EVENT_DESCRIPTOR || slot >= size) return undefined;
  // At the end of a lap, `wrap` is the next one's, and `next` is counted as the last slot of the one before.
  const isSameLap = ((event & packed.LAP) !== 0) === wrap;
  const place = slot + (next === size ? (isSameLap ? 2 : 1) : isSameLap ? 1 : 0) * size;
  return place <= next + size ? place : undefined;
}

function packedBuffer(
  memory: ReadableMemory,
  ring: DataView,
  size: number,
  from: number,
  end: number,
): { buffer: ReadBuffer; count: number } {
  const descriptors: ReadDescriptor[] = [];
  let problem: string | undefined;
  for (let count = 1;; count++) {
    const at = 16 * ((from + count - 1) & (size - 1));
    const [address, length, last] = [
      addressAt(ring, at),
      ring.getUint32(at + 8, true),
      ring.getUint32(at + 12, true),
    ];
    const writable = (last & packed.DESCRIPTOR_WRITE) !== 0;
    if ((last & packed.DESCRIPTOR_INDIRECT) === 0) {
      descriptors.push(descriptor(memory, address, length, writable, false));
    } else problem ??= appendTable(memory, size, address, length, descriptors);
    const hasNext = (last & packed.DESCRIPTOR_NEXT) !== 0;
    if (hasNext && from + count < end) continue;
    if (hasNext) problem ??= "it goes on in a descriptor that is not available";
    return { buffer: { head: last & 0xffff, descriptors, problem }, count };
  }
}

/** Appends all of a packed ring's indirect table (2.8.7), whose descriptors follow one another. */
function appendTable(
  memory: ReadableMemory,
  size: number,
  address: number,
  length: number,
  descriptors: ReadDescriptor[],
): string | undefined {
  const table = tableAt(memory, size, address, length);
  if (table === undefined) return noTable(address, length);
  for (let at = 0; at < length; at += split.DESCRIPTOR_SIZE) {
    const writable = (table.getUint32(at + 12, true) & packed.DESCRIPTOR_WRITE) !== 0;
    const [where, bytes] = [addressAt(table, at), table.getUint32(at + 8, true)];
    descriptors.push(descriptor(memory, where, bytes, writable, true));
  }
  return undefined;
}
