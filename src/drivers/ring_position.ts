/**
 * Where a ring goes on when its device is gone and cannot say.
 *
 * The used index counts the buffers that the device has given back. Where buffers are used in the order in which
 * they were made available, that is also where the ring goes on: the device types in {@link IN_ORDER} do so in
 * every vmsg device side, and what was used but not yet shown is done once more. Of any other device the used index
 * says how many buffers came back, but not which. If it was all of them the ring goes on there; else nobody knows
 * what became of the rest, and the driver has to start over. No driver is offered packed rings, which have no used index.
 */

import type { MemoryRegion } from "../memory/mod.ts";
import type { QueueSetup } from "../virtio/device.ts";
import { DEVICE_BLK, DEVICE_CONSOLE, DEVICE_NET, DEVICE_RNG } from "../virtio/features.ts";

/**
 * Device types whose buffers come back in order: an entropy device answers one request after another, a disk works on
 * many at a time and tells of them in turn.
 */
const IN_ORDER: ReadonlySet<number> = new Set([DEVICE_NET, DEVICE_BLK, DEVICE_CONSOLE, DEVICE_RNG]);

/** Of the index in an available or used ring (VIRTIO 1.2, 2.7.6 and 2.7.8). */
const RING_INDEX = 2;

function readIndex(regions: readonly MemoryRegion[], ring: number): number | undefined {
  const address = ring + RING_INDEX;
  const region = regions.find(({ at, size }) => address >= at && address + 2 <= at + size);
  if (region === undefined) return undefined;
  const offset = region.offset + address - region.at;
  return new DataView(region.memory.buffer, offset, 2).getUint16(0, true);
}

/** The used index, which is where a ring of an in-order device has come to; undefined outside the memory. */
export function usedIndex(
  regions: readonly MemoryRegion[],
  { deviceAddress }: QueueSetup,
): number | undefined {
  return readIndex(regions, deviceAddress);
}

/**
 * Where a ring goes on whose device died; undefined if nobody can tell.
 *
 * @param deviceId the type of the device
 */
export function positionAfterLoss(
  regions: readonly MemoryRegion[],
  setup: QueueSetup,
  deviceId: number,
): number | undefined {
  const used = usedIndex(regions, setup);
  if (IN_ORDER.has(deviceId) || used === readIndex(regions, setup.driverAddress)) return used;
  return undefined;
}
