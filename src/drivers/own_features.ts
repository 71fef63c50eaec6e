/** What drivers of our own take of what a device offers, of what rings and transport have. */

import { VmsgError } from "../linux/errors.ts";
import { hasFeature, RingFeature } from "../virtio/features.ts";
import type { RingTerms } from "../virtio/queue/mod.ts";

/** How rings lie in memory. */
export type RingFormat = "split" | "packed";

/** Taken if offered, whatever the device is. The last two are what a modern device cannot do without. */
const ALWAYS = [
  RingFeature.INDIRECT_DESC,
  RingFeature.EVENT_IDX,
  RingFeature.VERSION_1,
  RingFeature.ACCESS_PLATFORM,
];
/** With packed rings; a split one of ours is told of each buffer. */
const PACKED = [RingFeature.RING_PACKED, RingFeature.IN_ORDER];

/**
 * Features to accept, in blocks of 32.
 *
 * @param number of the device, for lines for people
 * @param own what its type has, taken if offered
 * @throws VmsgError LEGACY_DEVICE, NO_PACKED_RINGS
 */
export function chooseFeatures(
  number: number,
  offered: Uint32Array,
  own: readonly number[],
  format: RingFormat,
): Uint32Array {
  const accepted = new Uint32Array(offered.length);
  for (const bit of [...ALWAYS, ...own, ...format === "packed" ? PACKED : []]) {
    if (hasFeature(offered, bit)) accepted[bit >> 5]! |= 1 << (bit & 31);
  }
  if (!hasFeature(accepted, RingFeature.VERSION_1)) {
    throw new VmsgError("LEGACY_DEVICE", `device ${number} is no modern device`);
  }
  if (format === "packed" && !hasFeature(accepted, RingFeature.RING_PACKED)) {
    const what = `device ${number} offers no packed rings`;
    throw new VmsgError("NO_PACKED_RINGS", `${what}: leave --rings packed out`);
  }
  return accepted;
}

/** What they are for rings. */
export function ringTerms(accepted: Uint32Array): RingTerms {
  const has = (bit: number) => hasFeature(accepted, bit);
  return {
    packed: has(RingFeature.RING_PACKED),
    inOrder: has(RingFeature.IN_ORDER),
    eventIndex: has(RingFeature.EVENT_IDX),
    indirect: has(RingFeature.INDIRECT_DESC),
  };
}
