/** Which queue it is that a driver set up. */

import { PackedDriverQueue } from "../packed/driver_queue.ts";
import { DriverQueue, type DriverQueueOptions } from "../split/driver_queue.ts";
import type { DriverRing, RingTerms } from "./driver_ring.ts";
import type { AddressSpace } from "../../memory/address_space.ts";
import { PackedDeviceQueue, packedViews } from "../packed/device_queue.ts";
import { SplitDeviceQueue } from "../split/device_queue.ts";
import { ringViews } from "../split/ring_views.ts";
import type { QueueConfig } from "./config.ts";
import type { DeviceQueue } from "./device_queue.ts";

/** Opens the device's side of a queue; or says in one line why it cannot be one. */
export function openDeviceQueue(space: AddressSpace, config: QueueConfig): DeviceQueue | string {
  if (config.packed === true) {
    const views = packedViews(space, config);
    return typeof views === "string" ? views : new PackedDeviceQueue(space, config, views);
  }
  const views = ringViews(space, config);
  return typeof views === "string" ? views : new SplitDeviceQueue(space, config, views);
}

/** Why {@link openDeviceQueue} could not open a queue, without opening it; undefined if it could. */
export function whyNoQueue(space: AddressSpace, config: QueueConfig): string | undefined {
  const views = config.packed === true ? packedViews(space, config) : ringViews(space, config);
  return typeof views === "string" ? views : undefined;
}

/** Makes an empty ring of the format that was negotiated. */
export function openDriverRing(
  options: Pick<DriverQueueOptions, "place" | "size"> & RingTerms,
): DriverRing {
  return options.packed ? new PackedDriverQueue(options) : new DriverQueue(options);
}

/** Room for a ring of either format with tables, in bytes. */
export function driverRingSize(size: number): number {
  return Math.max(DriverQueue.bytesNeeded(size, true), PackedDriverQueue.bytesNeeded(size, true));
}
