/** What a device at the other end of a bus is, as it is offered on another bus. */

import type { RemoteDevice } from "../../transport/remote_device.ts";
import type { Sharing } from "../../sharing/sharing.ts";
import { RingFeature } from "../../virtio/features.ts";
import { MAX_QUEUE_SIZE } from "../../virtio/queue/config.ts";
import { carriedFeatures } from "../offer.ts";

/** Queues that are carried, of a device that has more. */
const MAX_QUEUES = 256;
/** Bytes of the configuration space that are carried; the largest of VIRTIO 1.3 has 160. */
const MAX_CONFIG = 1024;
/** Bytes that are looked at where a dialect does not say how many there are. */
const CONFIG_LOOK = 256;
const CONFIG_WORD = 4;

/** Commands are between the two sides, and what they switch on with them; a queue's reset is passed on. */
const CARRIED = carriedFeatures(0);
setBit(CARRIED, RingFeature.RING_RESET);

/** See the head of this file. */
export interface Description {
  readonly deviceId: number;
  readonly vendorId: number;
  /** Features that a driver is offered, in two blocks of 32. */
  readonly features: Uint32Array;
  readonly configSize: number;
  /** By queue. */
  readonly queueSizes: readonly number[];
}

/** How many bytes of configuration a type of device has, if that is known. */
export type ConfigSizeOf = (deviceId: number) => number | undefined;

function setBit(words: Uint32Array, bit: number): void {
  words[bit >> 5]! |= 1 << (bit & 31);
}

/** Asks a device what it is. @throws PeerLost; VmsgError BAD_ANSWER */
export async function describe(
  device: RemoteDevice,
  { withheld, own }: Sharing,
  configSizeOf: ConfigSizeOf,
): Promise<Description> {
  const { deviceId, vendorId, featureBlocks, configSize, maxQueues } = await device.info();
  const { configSizeIsNamed } = device.side.link.codec.conduct;
  const features = (await device.features(Math.max(2, featureBlocks))).slice(0, 2);
  for (const bit of withheld) features[bit >> 5]! &= ~(1 << (bit & 31));
  for (const bit of own) setBit(features, bit);
  CARRIED.forEach((mask, i) => features[i]! &= mask);
  // Addresses are the bus's with it and without, and drivers demand it (rule V43).
  setBit(features, RingFeature.ACCESS_PLATFORM);
  const queueSizes: number[] = [];
  // The first peers of `rfc-q` left the number out.
  const isCounted = !configSizeIsNamed || maxQueues === 0;
  const most = isCounted ? MAX_QUEUES : Math.min(maxQueues, MAX_QUEUES);
  while (queueSizes.length < most) {
    const { maxSize } = await device.queue(queueSizes.length);
    if (maxSize === 0 && isCounted) break;
    const size = Math.min(maxSize, MAX_QUEUE_SIZE);
    queueSizes.push(size === 0 ? 0 : 2 ** Math.floor(Math.log2(size)));
  }
  const size = configSizeIsNamed
    ? Math.min(configSize, MAX_CONFIG)
    : configSizeOf(deviceId) ?? await findConfigSize(device);
  return { deviceId, vendorId, features, configSize: size, queueSizes };
}

/** Behind the end a device that names no size reads as ones. */
async function findConfigSize(device: RemoteDevice): Promise<number> {
  let size = 0;
  while (size < CONFIG_LOOK) {
    const word = await device.config(size, CONFIG_WORD);
    const count = word.findLastIndex((byte) => byte !== 0xff) + 1;
    size += count;
    if (count < CONFIG_WORD) break;
  }
  return size;
}

/** May a device that is `now` go on for what was offered `before`? */
export function mayStandIn(now: Description, before: Description): boolean {
  const { features, queueSizes } = before;
  return now.deviceId === before.deviceId && now.vendorId === before.vendorId &&
    now.configSize === before.configSize && now.queueSizes.length === queueSizes.length &&
    features.every((word, i) => (word & ~now.features[i]!) === 0) &&
    queueSizes.every((size, i) => now.queueSizes[i]! >= size);
}
