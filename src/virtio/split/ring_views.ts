/** What a queue is made from: its setup as the driver named it, and views over its three areas, checked. */

import type { AddressSpace } from "../../memory/address_space.ts";
import type { MemoryWindow } from "../../memory/window.ts";
import {
  DESCRIPTOR_AREA_ALIGNMENT,
  descriptorAreaSize,
  DEVICE_AREA_ALIGNMENT,
  deviceAreaSize,
  DRIVER_AREA_ALIGNMENT,
  driverAreaSize,
  isQueueSize,
  MAX_QUEUE_SIZE,
  USED_ELEMENTS,
} from "./layout.ts";

/** Where a queue lies and how it is used, as negotiated; nothing in it needs to be trusted. */
export interface QueueConfig {
  /** Entries: a power of two, at most 32768. */
  readonly size: number;
  /** Bus address of the descriptor table. */
  readonly descriptorAddress: number;
  /** Bus address of the available ring. */
  readonly driverAddress: number;
  /** Bus address of the used ring. */
  readonly deviceAddress: number;
  /** The available index to begin at: 0, or {@link DeviceQueue.base} of the queue's predecessor. */
  readonly base: number;
  /** The used index to begin at; the base unless given. */
  readonly used?: number;
  /** Whether VIRTIO_F_EVENT_IDX was negotiated. */
  readonly eventIndex: boolean;
  /** Whether VIRTIO_F_INDIRECT_DESC was negotiated. */
  readonly indirect: boolean;
  /** Whether buffers are completed in any order; in the order they came unless given. */
  readonly anyOrder?: boolean;
}

/** The views over a queue's three areas, as {@link openDeviceQueue} makes them. */
export interface RingViews {
  /** The descriptor table, in words. */
  readonly descriptors: Uint32Array;
  /** The available ring. */
  readonly avail: Uint16Array;
  /** The used ring. */
  readonly used: Uint16Array;
  /** The used ring without avail_event, in words. */
  readonly usedElements: Uint32Array;
}

/**
 * Checks where a queue lies and makes views over exactly its three areas.
 *
 * @returns the views, or in one line why they cannot be
 */
export function ringViews(space: AddressSpace, config: QueueConfig): RingViews | string {
  const { size, base, used = base } = config;
  if (!isQueueSize(size)) {
    return `queue size ${size} is not a power of two from 1 to ${MAX_QUEUE_SIZE}`;
  }
  if (!isIndex(base)) return `available index ${base} is not a 16-bit number`;
  if (!isIndex(used)) return `used index ${used} is not a 16-bit number`;

  const descriptorLength = descriptorAreaSize(size);
  const descriptors = findArea(
    space,
    "descriptor area",
    config.descriptorAddress,
    descriptorLength,
    DESCRIPTOR_AREA_ALIGNMENT,
  );
  if (typeof descriptors === "string") return descriptors;
  const driver = findArea(
    space,
    "driver area",
    config.driverAddress,
    driverAreaSize(size),
    DRIVER_AREA_ALIGNMENT,
  );
  if (typeof driver === "string") return driver;
  const device = findArea(
    space,
    "device area",
    config.deviceAddress,
    deviceAreaSize(size),
    DEVICE_AREA_ALIGNMENT,
  );
  if (typeof device === "string") return device;

  const descriptorOffset = offsetIn(descriptors, config.descriptorAddress);
  const driverOffset = offsetIn(driver, config.driverAddress);
  const deviceOffset = offsetIn(device, config.deviceAddress);
  return {
    descriptors: new Uint32Array(descriptors.buffer, descriptorOffset, descriptorLength / 4),
    avail: new Uint16Array(driver.buffer, driverOffset, driverAreaSize(size) / 2),
    used: new Uint16Array(device.buffer, deviceOffset, deviceAreaSize(size) / 2),
    // Ends before avail_event, which is half a word.
    usedElements: new Uint32Array(device.buffer, deviceOffset, USED_ELEMENTS + 2 * size),
  };
}

function isIndex(value: number): boolean {
  return Number.isInteger(value) && value >= 0 && value <= 0xffff;
}

function offsetIn(window: MemoryWindow, address: number): number {
  return window.byteOffset + (address - window.at);
}

function findArea(
  space: AddressSpace,
  what: string,
  address: number,
  length: number,
  alignment: number,
): MemoryWindow | string {
  const where = `${what} at 0x${address.toString(16)}`;
  if (address % alignment !== 0) return `${where} is not aligned to ${alignment} bytes`;
  const window = space.find(address, length);
  if (window === undefined) return `${where} (${length} bytes) is not inside one memory window`;
  // A window can begin anywhere; a typed array (and the processor's atomic access) cannot. Descriptors
  // are read in 32-bit words.
  if (offsetIn(window, address) % Math.min(alignment, 4) !== 0) {
    return `${where} is not aligned in the memory behind it`;
  }
  return window;
}
