/**
 * Which features a front end may be offered (docs/guests.md).
 *
 * A front end acknowledges for its guest whatever it is offered, and carries out by itself what is no vhost-user
 * message. Then the guest and the device each believe of the other what is not so: with RING_RESET a guest frees rings
 * that the device goes on reading. So bits of the ring and the transport are offered by name, what nobody has thought
 * of is not; and of a network card not those whose use begins with a command, which QEMU and DPDK keep. How many queue
 * pairs are used is commanded too, but a device side of ours sees it by the rings that run (devices/net/net_device.ts).
 */

import { DEVICE_NET, NetFeature, RingFeature } from "../virtio/features.ts";

/** Of bits 24 to 49, which belong to the ring and the transport (VIRTIO 1.2, 6), those that all sides carry. */
const CARRIED = [
  RingFeature.NOTIFY_ON_EMPTY,
  RingFeature.ANY_LAYOUT,
  RingFeature.INDIRECT_DESC,
  RingFeature.EVENT_IDX,
  RingFeature.VERSION_1,
  RingFeature.RING_PACKED,
  RingFeature.IN_ORDER,
  RingFeature.ORDER_PLATFORM,
];
const [FIRST_OF_RING, FIRST_BEHIND] = [24, 50];

/** Of a network card: what the driver switches on, or confirms, by a command. */
const COMMANDED = [
  NetFeature.GUEST_ANNOUNCE,
  NetFeature.HASH_TUNNEL,
  NetFeature.VQ_NOTF_COAL,
  NetFeature.NOTF_COAL,
  NetFeature.HASH_REPORT,
  NetFeature.RSS,
];

/**
 * The bits that a front end of such a device may be offered, in blocks of 32.
 *
 * @param isForeign is the device side none of ours?
 */
export function carriedFeatures(deviceId: number, isForeign = false): Uint32Array {
  const mask = new Uint32Array(2);
  const commanded = isForeign ? [...COMMANDED, NetFeature.MQ] : COMMANDED;
  const kept: readonly number[] = deviceId === DEVICE_NET ? commanded : [];
  for (let bit = 0; bit < 64; bit++) {
    const isOfRing = bit >= FIRST_OF_RING && bit < FIRST_BEHIND;
    const isCarried = isOfRing ? (CARRIED as number[]).includes(bit) : !kept.includes(bit);
    if (isCarried) mask[bit >> 5]! |= 1 << (bit & 31);
  }
  return mask;
}
