/** Views over a split queue's three areas. */

import type { AddressSpace } from "../../memory/address_space.ts";
import { findAreas, type QueueConfig } from "../queue/config.ts";
import { USED_ELEMENTS } from "./layout.ts";

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
  const areas = findAreas(space, config);
  if (typeof areas === "string") return areas;
  if (!isIndex(base)) return `available index ${base} is not a 16-bit number`;
  if (!isIndex(used)) return `used index ${used} is not a 16-bit number`;
  const { descriptor: descriptors, driver, device } = areas;
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
