/** What a queue is made from: its setup as the driver named it, and where its three areas are, checked. */

import type { AddressSpace } from "../../memory/address_space.ts";
import type { QueueSetup } from "../device.ts";
import * as packed from "../packed/layout.ts";
import * as split from "../split/layout.ts";

/** Where a queue lies, and how it is used, as negotiated; nothing in it needs to be trusted. */
export interface QueueConfig extends QueueSetup {
  /** The used index to begin at, of a split ring; the base unless given. */
  readonly used?: number;
  /** Whether VIRTIO_F_RING_PACKED was negotiated; split unless given. */
  readonly packed?: boolean;
  /** Whether VIRTIO_F_IN_ORDER was: one used element stands for several buffers. */
  readonly inOrder?: boolean;
  /** Whether VIRTIO_F_EVENT_IDX was negotiated. */
  readonly eventIndex: boolean;
  /** Whether VIRTIO_F_INDIRECT_DESC was negotiated. */
  readonly indirect: boolean;
  /** Whether buffers are completed in any order; in the order they came unless given. */
  readonly anyOrder?: boolean;
}

/** The largest queue size in either format (2.7, 2.8). */
export const MAX_QUEUE_SIZE = 32768;

/** Whether a number can be a queue size: a power of two, at most {@link MAX_QUEUE_SIZE}. */
export function isQueueSize(size: number): boolean {
  return Number.isInteger(size) && size > 0 && size <= MAX_QUEUE_SIZE && (size & (size - 1)) === 0;
}

/** What an area's address must be a multiple of (2.7, 2.8.10.1), and how many bytes there are. */
export interface Area {
  readonly alignment: number;
  sizeFor(queueSize: number): number;
}

/** The three areas of a queue. */
export interface Areas {
  readonly descriptor: Area;
  readonly driver: Area;
  readonly device: Area;
}

/** Those of a format. */
export function areasOf(isPacked: boolean): Areas {
  return isPacked ? packed.AREAS : split.AREAS;
}

type AreaAddress = "descriptorAddress" | "driverAddress" | "deviceAddress";

/** Whether areas lie at addresses that can be, as far as that is so in both formats. */
export function isAligned(queue: Readonly<Record<AreaAddress, number>>): boolean {
  const { descriptor, driver, device } = split.AREAS;
  return isMultiple(queue.descriptorAddress, descriptor.alignment) &&
    isMultiple(queue.driverAddress, driver.alignment) &&
    isMultiple(queue.deviceAddress, device.alignment);
}

function isMultiple(address: number, alignment: number): boolean {
  return Number.isSafeInteger(address) && address % alignment === 0;
}

/** Where an area's bytes are in this process. */
export interface FoundArea {
  readonly buffer: ArrayBuffer;
  readonly offset: number;
  readonly length: number;
}

/** Where a queue's areas are; or in one line why they cannot be there. */
export function findAreas(
  space: AddressSpace,
  config: QueueConfig,
): Record<keyof Areas, FoundArea> | string {
  const { size, packed: isPacked = false } = config;
  if (!isQueueSize(size)) {
    return `queue size ${size} is not a power of two from 1 to ${MAX_QUEUE_SIZE}`;
  }
  const areas = areasOf(isPacked);
  const find = (name: keyof Areas) =>
    findArea(space, name, config[`${name}Address`], areas[name], size);
  const descriptor = find("descriptor");
  if (typeof descriptor === "string") return descriptor;
  const driver = find("driver");
  if (typeof driver === "string") return driver;
  const device = find("device");
  return typeof device === "string" ? device : { descriptor, driver, device };
}

function findArea(
  space: AddressSpace,
  name: keyof Areas,
  address: number,
  { alignment, sizeFor }: Area,
  queueSize: number,
): FoundArea | string {
  const length = sizeFor(queueSize);
  const where = `${name} area at 0x${address.toString(16)}`;
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
