/**
 * The block at the start of an AMP layout (docs/wire.md 4.5): 64 bytes by which shared memory says where in it each side has
 * what. The device side writes it, the magic last; the driver side believes none of it before {@link readBlock} has.
 *
 *     0  u16 magic "OL"   2 u16 bytes, 64   4 u16 version, 1   6 u16 features, bit 0: masks of notifications
 *     8  u8 words in each array of notifications   9 u8 notifications a device   10 u16 elements   12 u16 bytes of one
 *     14 u16 reserved
 *     16 u64 notifications, 24 u64 head, 32 u64 elements of the device side; from 40 on the driver side's
 *
 * Notifications of single queues are not used here, only set to 0: messages carry them, as on every bus.
 */

import { loadAcquire16, storeRelease16 } from "../memory/mod.ts";
import type { Side } from "./bus.ts";

const BLOCK_MAGIC = 0x4c4f;
const BLOCK_SIZE = 64;
const VERSION = 1;
const HAS_MASKS = 1;
/** Bytes of a side's head. */
export const HEAD_SIZE = 8;
/** Bytes of a message that this side may write, and of an element as this side makes it. */
export const ELEMENT_SIZE = 64;
const MAX_NOTIFICATION_WORDS = 64;
const NOTIFICATIONS = [1, 2, 4, 8, 16];
const AREAS = { device: 16, driver: 40 } as const;

/** Does memory begin with such a block? */
export function isAmpLayout(bytes: Uint8Array): boolean {
  return (bytes[0]! | bytes[1]! << 8) === BLOCK_MAGIC;
}

/** Where one side has what, from the layout's start on. */
export interface AmpSide {
  /** Meaningless without any. */
  readonly notifications: number;
  readonly head: number;
  readonly elements: number;
}

/** What a block says. */
export interface AmpPlace {
  /** Bytes of a side's notifications. */
  readonly notificationSize: number;
  readonly count: number;
  readonly elementSize: number;
  readonly device: AmpSide;
  readonly driver: AmpSide;
}

/** The layout that a device side makes of so many bytes, as QEMU's does. */
export function placeIn(size: number): AmpPlace {
  const elements = BLOCK_SIZE + 2 * HEAD_SIZE;
  const count = Math.min(0xffff, Math.floor((size - elements) / (2 * ELEMENT_SIZE)));
  return {
    ...{ count, elementSize: ELEMENT_SIZE, notificationSize: 0 },
    device: { notifications: 0, head: BLOCK_SIZE, elements },
    driver: {
      ...{ notifications: 0, head: BLOCK_SIZE + HEAD_SIZE },
      elements: elements + ELEMENT_SIZE * count,
    },
  };
}

/** The block's bytes. */
function blockOf({ count, elementSize, device, driver }: AmpPlace): Uint16Array {
  const words = new Uint16Array(BLOCK_SIZE / 2);
  words.set([BLOCK_MAGIC, BLOCK_SIZE, VERSION, 0, 0, count, elementSize]);
  const view = new DataView(words.buffer);
  for (
    const [at, { head, elements }] of [[AREAS.device, device], [AREAS.driver, driver]] as const
  ) {
    view.setUint32(at + 8, head, true);
    view.setUint32(at + 16, elements, true);
  }
  return words;
}

/** Is this layout there already, as an earlier process left it? */
export function hasPlace(memory: Uint16Array, place: AmpPlace): boolean {
  return hasBlock(memory, blockOf(place));
}

/** A copy of the block that is there. */
export function copyBlock(memory: Uint16Array): Uint16Array {
  return Uint16Array.from({ length: BLOCK_SIZE / 2 }, (_, i) => memory[i]!);
}

/** Is it there still? */
export function hasBlock(memory: Uint16Array, block: Uint16Array): boolean {
  for (let i = 0; i < block.length; i++) {
    if (memory[i] !== block[i]) return false;
  }
  return true;
}

/** Empties the memory and writes the block. @param memory all of the layout's */
export function writeBlock(memory: Uint16Array, place: AmpPlace): void {
  storeRelease16(memory, 0, 0);
  const block = blockOf(place);
  // Word by word, as a device's memory wants it.
  for (let i = 1; i < memory.length; i++) memory[i] = block[i] ?? 0;
  // Release: who sees the magic sees the rest.
  storeRelease16(memory, 0, BLOCK_MAGIC);
}

/**
 * What the block in memory says; undefined where there is none yet, or what is wrong with it.
 *
 * @param memory all that the layout may lie in
 * @param least bytes of an element that are enough
 */
export function readBlock(
  memory: Uint16Array,
  least: number = ELEMENT_SIZE,
): AmpPlace | string | undefined {
  if (loadAcquire16(memory, 0) !== BLOCK_MAGIC) return undefined;
  // One copy, so that what is checked is what is used.
  const view = new DataView(copyBlock(memory).buffer);
  const u16 = (at: number) => view.getUint16(at, true);
  if (u16(2) !== BLOCK_SIZE) return `a block of ${u16(2)} bytes`;
  if (u16(4) !== VERSION) return `version ${u16(4)}`;
  if ((u16(6) & ~HAS_MASKS) !== 0) return `features 0x${u16(6).toString(16)}`;
  if (u16(14) !== 0) return "a reserved field that is not 0";
  const words = view.getUint8(8);
  if (words > MAX_NOTIFICATION_WORDS) return `${words} words of notifications`;
  if (words > 0 && !NOTIFICATIONS.includes(view.getUint8(9))) {
    return `${view.getUint8(9)} notifications of a device`;
  }
  const [count, elementSize] = [u16(10), u16(12)];
  if (count < 2) return `${count} elements`;
  if (elementSize < least) {
    return `elements of ${elementSize} bytes, and a message here may need ${least}`;
  }
  const notificationSize = 8 * words * ((u16(6) & HAS_MASKS) === 0 ? 2 : 3);
  const sideOf = (side: Side): AmpSide => {
    const at = (n: number) => Number(view.getBigUint64(AREAS[side] + 8 * n, true));
    return { notifications: at(0), head: at(1), elements: at(2) };
  };
  const sides = { device: sideOf("device"), driver: sideOf("driver") };
  const place = { count, elementSize, notificationSize, ...sides };
  return misplaced(place, memory.byteLength) ?? place;
}

/** Does anything not lie in the memory, or aligned, or does it lie in anything else? */
function misplaced(place: AmpPlace, size: number): string | undefined {
  const { count, elementSize, notificationSize } = place;
  const parts: [what: string, at: number, size: number, alignment: number][] = [
    ["block", 0, BLOCK_SIZE, 1],
  ];
  for (const side of ["device", "driver"] as const) {
    const { notifications, head, elements } = place[side];
    if (notificationSize > 0) {
      parts.push([`${side} notifications`, notifications, notificationSize, 8]);
    }
    parts.push([`${side} head`, head, HEAD_SIZE, 2]);
    parts.push([`${side} elements`, elements, count * elementSize, 1]);
  }
  for (const [what, at, bytes, alignment] of parts.slice(1)) {
    if (at === 0) return `${what} at 0`;
    if (at % alignment !== 0) return `${what} at ${at}`;
    if (at + bytes > size) return `${what} up to ${at + bytes}, of ${size} bytes`;
  }
  const inOrder = parts.toSorted((a, b) => a[1] - b[1]);
  for (const [i, [what, at]] of inOrder.entries()) {
    const before = inOrder[i - 1];
    if (before !== undefined && before[1] + before[2] > at) return `${what} in ${before[0]}`;
  }
  return undefined;
}
