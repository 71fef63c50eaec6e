/** What a queue is made from: its setup as the driver named it, and views over its three areas, checked. */

import type { AddressSpace } from "../../memory/address_space.ts";
import type { QueueSetup } from "../device.ts";
import { AREAS, isQueueSize, MAX_QUEUE_SIZE, USED_ELEMENTS } from "./layout.ts";

/** Where a queue lies, and how it is used, as negotiated; nothing in it needs to be trusted. */
export interface QueueConfig extends QueueSetup {
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

  const descriptors = findArea(space, "descriptor", config.descriptorAddress, size);
  if (typeof descriptors === "string") return descriptors;
  const driver = findArea(space, "driver", config.driverAddress, size);
  if (typeof driver === "string") return driver;
  const device = findArea(space, "device", config.deviceAddress, size);
  if (typeof device === "string") return device;
  return {
    descriptors: new Uint32Array(descriptors.buffer, descriptors.offset, descriptors.length / 4),
    avail: new Uint16Array(driver.buffer, driver.offset, driver.length / 2),
    used: new Uint16Array(device.buffer, device.offset, device.length / 2),
    // Ends before avail_event, which is half a word.
    usedElements: new Uint32Array(device.buffer, device.offset, USED_ELEMENTS + 2 * size),
  };
}

function isIndex(value: number): boolean {
  return Number.isInteger(value) && value >= 0 && value <= 0xffff;
}

/** Where an area's bytes are in this process; or in one line why they cannot be there. */
function findArea(
  space: AddressSpace,
  area: keyof typeof AREAS,
  address: number,
  queueSize: number,
): { buffer: ArrayBuffer; offset: number; length: number } | string {
  const { alignment, sizeFor } = AREAS[area];
  const length = sizeFor(queueSize);
  const where = `${area} area at 0x${address.toString(16)}`;
  if (address % alignment !== 0) return `${where} is not aligned to ${alignment} bytes`;
  const window = space.find(address, length);
  if (window === undefined) return `${where} (${length} bytes) is not inside one memory window`;
  const offset = window.byteOffset + (address - window.at);
  // A window can begin anywhere; a typed array (and the processor's atomic access) cannot. Descriptors
  // are read in 32-bit words.
  if (offset % Math.min(alignment, 4) !== 0) {
    return `${where} is not aligned in the memory behind it`;
  }
  return { buffer: window.buffer, offset, length };
}
