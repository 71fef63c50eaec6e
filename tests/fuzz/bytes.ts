/** Bytes that are nearly right. */

import type { Bus } from "../../src/bus/bus.ts";
import type { Random } from "../support/mock_driver.ts";

/** Bytes of a message in a queue. */
export const SLOT = 64;

/** Numbers that are at an edge of something. */
const EDGES = [
  0,
  1,
  2,
  3,
  0x3f,
  0x40,
  0x41,
  0xff,
  0x7fff,
  0x8000,
  0xffff,
  0x7fff_ffff,
  0xffff_ffff,
];

/**
 * Changes one to three places.
 *
 * @param plausible numbers that mean something where these bytes go
 */
export function mutate(bytes: DataView, random: Random, plausible: readonly number[] = []): void {
  if (bytes.byteLength === 0) return;
  for (let n = 1 + random.below(3); n > 0; n--) {
    const at = random.below(bytes.byteLength);
    const word = at & ~3;
    if (random.chance(0.5) || word + 4 > bytes.byteLength) {
      const bit = bytes.getUint8(at) ^ (1 << random.below(8));
      bytes.setUint8(at, random.chance(0.5) ? bit : random.u32() & 0xff);
    } else if (random.chance(0.7)) {
      bytes.setUint32(word, random.pick([...EDGES, ...plausible]), true);
    } else bytes.setUint32(word, random.u32(), true);
  }
}

/** A slot of mere bytes. */
export function noise(random: Random): DataView {
  return new DataView(Uint32Array.from({ length: SLOT / 4 }, () => random.u32()).buffer);
}

/** Sends a slot; false if there is no room. */
export function putSlot(bus: Bus, bytes: DataView): boolean {
  const offset = bus.claim();
  if (offset < 0) return false;
  for (let i = 0; i < SLOT; i++) bus.view.setUint8(offset + i, bytes.getUint8(i));
  bus.send();
  return true;
}
