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
 * A ring that begins has 0 there, which is its base. The word is written after the used descriptors. For one who dies between the
 * two, the first of these holds the new base in its address, which means nothing in a used descriptor (2.8.5). What is
 * not told by that is a death in the nanoseconds between the two whose driver is on its next lap already, when we look.
 */

import {
  DESCRIPTOR_AVAIL,
  DESCRIPTOR_USED,
  EVENT_DESCRIPTOR,
  EVENT_FLAGS,
  fromBase,
  LAP,
  usedFlags,
} from "./layout.ts";

/** In the high half of a used descriptor's address, above the base: no processor has such addresses. */
export const MARK = 0x5650_0000;

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
