/**
 * Where a packed ring goes on when its device is gone and cannot say.
 *
 * No index is in the ring's memory, and its flags do not tell: behind the first descriptor of a used chain the others look
 * available, and a driver soon writes over used ones. But one word is the device's alone, the one that says
 * when it wants to be kicked, and half of it means nothing unless it names a descriptor. There our device side
 * keeps what it has shown:
 *
 *     ENABLE or DISABLE   | base behind what was shown
 *     DESCRIPTOR          | the same in the specification's form: asked for only where all that was popped was shown
 *
 * Of a batch the first used descriptor is written last. One who dies before leaves used ones behind a buffer that
 * is not, a gap for its successor, which each say in their address how many descriptors they stand for.
 *
 * A ring that begins has 0 there, which is its base. The word is written after the used descriptors. For one who dies between the
 * two, the first of these holds the new base in its address, which means nothing in a used descriptor (2.8.5). What is
 * not told by that is a death in the nanoseconds between the two whose driver is on its next lap already, when we look.
 */

import {
  availableFlags,
  DESCRIPTOR_AVAIL,
  DESCRIPTOR_NEXT,
  DESCRIPTOR_USED,
  EVENT_DESCRIPTOR,
  EVENT_FLAGS,
  fromBase,
  LAP,
  usedFlags,
} from "./layout.ts";

/** In the high half of a used descriptor's address, above the base: no processor has such addresses. */
export const MARK = 0x5650_0000;
/** The same of the others of a batch, above the number of descriptors. */
export const SKIP = 0x5651_0000;

/** Where used descriptors lie among those that are not yet, as a position modulo twice the size; -1: nowhere. */
export interface Gap {
  readonly at: number;
  readonly length: number;
}

export const NO_GAP: Gap = { at: -1, length: 0 };

/** What a predecessor has left behind a position. A driver that forges it harms its own ring. */
export function findGap(ring: Uint32Array, position: number): Gap {
  const size = ring.length >>> 2;
  const wordAt = (at: number, word: number) => ring[((at & (size - 1)) << 2) + word]!;
  const stateAt = (at: number) => wordAt(at, 3) & (DESCRIPTOR_AVAIL | DESCRIPTOR_USED);
  let at = position;
  while (at < position + size && stateAt(at) === availableFlags(at, size)) {
    while (at < position + size && (wordAt(at, 3) & DESCRIPTOR_NEXT) !== 0) at++;
    at++;
  }
  let end = at;
  while (end < position + size && stateAt(end) === usedFlags(end, size)) {
    const mark = wordAt(end, 1);
    if ((mark & 0xffff_0000) !== SKIP || (mark & 0xffff) === 0) break;
    end += mark & 0xffff;
  }
  if (at === position || end === at || end > position + size) return NO_GAP;
  return { at: at & (2 * size - 1), length: end - at };
}

/**
 * The base that our device side has left.
 *
 * @param ring the descriptor ring
 * @param word the device's event suppression word
 * @returns undefined if it cannot be one
 */
export function shownBase(ring: Uint32Array, word: number): number | undefined {
  const size = ring.length >>> 2;
  const low = word & 0xffff;
  const base = (word & EVENT_FLAGS) === EVENT_DESCRIPTOR ? low ^ LAP : low;
  const position = fromBase(base, size);
  if (position === undefined) return undefined;
  const at = (position & (size - 1)) << 2;
  const state = ring[at + 3]! & (DESCRIPTOR_AVAIL | DESCRIPTOR_USED);
  // Not used yet in this lap: that is where the driver will look next.
  if (state !== usedFlags(position, size)) return base;
  const mark = ring[at + 1]!;
  const next = mark & 0xffff;
  return (mark & 0xffff_0000) === MARK && fromBase(next, size) !== undefined ? next : undefined;
}
