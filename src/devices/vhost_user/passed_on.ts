/**
 * Which features of a vhost-user back end a driver is offered.
 *
 * Not packed rings, since without the back end it cannot be seen what has become of them; not what is no matter of rings and
 * buffers: addresses to be translated, and what a network card's driver asks for by its control queue, which front ends keep
 * for themselves. Nor what is about a field of the configuration space that is not there: DPDK's network card offers MTU, and
 * leaves it to the front end to have one. RING_RESET and ACCESS_PLATFORM are ours, and no back end hears of them.
 */

import { DEVICE_NET, hasFeature, NetFeature, RingFeature } from "../../virtio/features.ts";
import type { DeviceType } from "./device_types.ts";

/** Of bits 24 to 49, which belong to the ring and the transport (VIRTIO 1.3, 6), those that are passed on. */
const PASSED_ON: readonly number[] = [
  RingFeature.INDIRECT_DESC,
  RingFeature.EVENT_IDX,
  RingFeature.VERSION_1,
  RingFeature.IN_ORDER,
  RingFeature.ORDER_PLATFORM,
];
const [FIRST_OF_RING, FIRST_BEHIND] = [24, 50];

/** Of a network card, what goes by its control queue. */
const COMMANDED: readonly number[] = [
  NetFeature.CTRL_GUEST_OFFLOADS,
  NetFeature.CTRL_VQ,
  NetFeature.CTRL_RX,
  NetFeature.CTRL_VLAN,
  NetFeature.CTRL_RX_EXTRA,
  NetFeature.GUEST_ANNOUNCE,
  NetFeature.MQ,
  NetFeature.CTRL_MAC_ADDR,
  NetFeature.VQ_NOTF_COAL,
  NetFeature.NOTF_COAL,
  NetFeature.HASH_REPORT,
  NetFeature.RSS,
];

const OWN: readonly number[] = [RingFeature.RING_RESET, RingFeature.ACCESS_PLATFORM];

function setBit(words: Uint32Array, bit: number): void {
  words[bit >> 5]! |= 1 << (bit & 31);
}

/** What of a back end's bits is passed on, in blocks of 32; of a configuration space of so many bytes. */
export function passedOn(words: Uint32Array, type: DeviceType, configSize: number): Uint32Array {
  const offered = new Uint32Array(2);
  for (let bit = 0; bit < 64; bit++) {
    const isOfRing = bit >= FIRST_OF_RING && bit < FIRST_BEHIND;
    const isPassed = isOfRing
      ? PASSED_ON.includes(bit)
      : type.id !== DEVICE_NET || !COMMANDED.includes(bit);
    const lacksField = type.fields?.some(([of, end]) => of === bit && end > configSize) ?? false;
    if (isPassed && !lacksField && hasFeature(words, bit)) setBit(offered, bit);
  }
  return offered;
}

/** The same with what is ours. */
export function offeredFeatures(
  words: Uint32Array,
  type: DeviceType,
  configSize: number,
): Uint32Array {
  const offered = passedOn(words, type, configSize);
  for (const bit of OWN) setBit(offered, bit);
  return offered;
}

/** What the back end is told of what a driver accepted. */
export function withoutOwn(words: Uint32Array): Uint32Array {
  const told = Uint32Array.of(words[0]!, words[1]!);
  for (const bit of OWN) told[bit >> 5]! &= ~(1 << (bit & 31));
  return told;
}

/** Are all of these bits among those? */
export function areAmong(words: Uint32Array, offered: Uint32Array): boolean {
  return words.every((word, i) => (word & ~(offered[i] ?? 0)) === 0);
}
