/**
 * Where a ring goes on when its device is gone and cannot say.
 *
 * The used index of a split ring counts the buffers that the device has given back. Where buffers are used in the order in which
 * they were made available, that is also where the ring goes on: the device types in {@link IN_ORDER} do so in
 * every vmsg device side, and what was used but not yet shown is done once more. A program that is behind a device side of ours
 * (devices/vhost_user) completes what it has taken when it is left alone, and the rest it has not begun. Of any other device the used index
 * says how many buffers came back, but not which. If it was all of them the ring goes on there; else nobody knows
 * what became of the rest, and the driver has to start over.
 *
 * A packed ring has no used index. Device sides of vmsg, which serve such rings in order only, leave it in the ring's memory
 * (virtio/packed/position.ts).
 */

import { VmsgError } from "../linux/errors.ts";
import type { MemoryRegion } from "../memory/mod.ts";
import type { DeviceInfo } from "../transport/remote_device.ts";
import { type QueueSetup, VENDOR_ELSEWHERE } from "../virtio/device.ts";
import {
  DEVICE_BLK,
  DEVICE_CONSOLE,
  DEVICE_NET,
  DEVICE_RNG,
  DEVICE_VSOCK,
} from "../virtio/features.ts";
import { shownBase } from "../virtio/packed/position.ts";
import { areasOf, isAligned, isQueueSize } from "../virtio/queue/config.ts";

/**
 * Device types whose buffers come back in order: an entropy device answers one request after another, a disk works on
 * many at a time and tells of them in turn.
 */
const IN_ORDER: ReadonlySet<number> = new Set([
  DEVICE_NET,
  DEVICE_BLK,
  DEVICE_CONSOLE,
  DEVICE_RNG,
  DEVICE_VSOCK,
]);

/** Of the index in an available or used ring (VIRTIO 1.2, 2.7.6 and 2.7.8). */
const RING_INDEX = 2;

/** Where bytes lie in the mapping of a region; undefined outside of the memory. */
function find(
  regions: readonly MemoryRegion[],
  address: number,
  length: number,
): { buffer: ArrayBuffer; offset: number } | undefined {
  const region = regions.find(({ at, size }) => address >= at && address + length <= at + size);
  if (region === undefined) return undefined;
  return { buffer: region.memory.buffer, offset: region.offset + address - region.at };
}

function readIndex(regions: readonly MemoryRegion[], ring: number): number | undefined {
  const place = find(regions, ring + RING_INDEX, 2);
  return place && new DataView(place.buffer, place.offset, 2).getUint16(0, true);
}

/** What was left in a packed ring; undefined if nothing was, or the ring cannot be. */
function leftIn(regions: readonly MemoryRegion[], setup: QueueSetup): number | undefined {
  const { size, descriptorAddress, deviceAddress } = setup;
  if (!isQueueSize(size) || !isAligned(setup)) return undefined;
  const length = areasOf(true).descriptor.sizeFor(size);
  const ring = find(regions, descriptorAddress, length);
  const device = find(regions, deviceAddress, 4);
  if (ring === undefined || device === undefined || ring.offset % 4 !== 0) return undefined;
  const word = new DataView(device.buffer, device.offset, 4).getUint32(0, true);
  return shownBase(new Uint32Array(ring.buffer, ring.offset, length / 4), word);
}

/**
 * Where a ring of an in-order device has come to; undefined outside the memory, or if a packed ring does not tell.
 */
export function ringPosition(
  regions: readonly MemoryRegion[],
  setup: QueueSetup,
  isPacked: boolean,
): number | undefined {
  if (isPacked) return leftIn(regions, setup);
  return readIndex(regions, setup.deviceAddress);
}

/**
 * Where a ring goes on whose device died; undefined if nobody can tell.
 *
 * @param device what it was
 */
export function positionAfterLoss(
  regions: readonly MemoryRegion[],
  setup: QueueSetup,
  { deviceId, vendorId }: Pick<DeviceInfo, "deviceId" | "vendorId">,
  isPacked: boolean,
): number | undefined {
  const position = ringPosition(regions, setup, isPacked);
  const isInOrder = IN_ORDER.has(deviceId) || vendorId === VENDOR_ELSEWHERE;
  if (isPacked || isInOrder) return position;
  return position === readIndex(regions, setup.driverAddress) ? position : undefined;
}

/** @throws VmsgError BAD_RING if a part of it is at address 0, which QEMU, as others, takes for "not set up" */
export function checkAddresses(index: number, setup: QueueSetup): void {
  const { descriptorAddress, driverAddress, deviceAddress } = setup;
  if (descriptorAddress !== 0 && driverAddress !== 0 && deviceAddress !== 0) return;
  throw new VmsgError("BAD_RING", `ring ${index} is at address 0, where no device expects one`);
}
