/**
 * Memory that is sent as files, or named as a part of what the device side has: it works on the driver's own rings.
 *
 * Only a vmsg that speaks `v1` can be told of memory (ADD_MEMORY, REMOVE_MEMORY). Any other device side has been
 * given it by its own command line; where that cannot be ({@link SharedRegion.mustBeTold}) it is refused in words.
 */

import { VmsgError } from "../linux/errors.ts";
import { CallVector } from "./call_vector.ts";
import type { QueueSetup } from "../virtio/device.ts";
import { RingFeature } from "../virtio/features.ts";
import type { RemoteDevice } from "../transport/remote_device.ts";
import { RequestRefused } from "../transport/requests.ts";
import {
  differ,
  type RingOwner,
  type SharedRegion,
  type SharedRing,
  type Sharing,
} from "./sharing.ts";

/**
 * Tells a device side of a region, if it can be told; another one has to know.
 *
 * @throws VmsgError NO_MEMORY in words; what transport requests throw
 */
export async function tellRegion(device: RemoteDevice, region: SharedRegion): Promise<void> {
  const { fd, at, size, fileOffset = 0, from = 0, mustBeTold, advice } = region;
  if (device.side.peer !== "vmsg") {
    if (mustBeTold !== undefined) throw new VmsgError("NO_MEMORY", mustBeTold);
    return;
  }
  if (fd !== undefined) return await device.addMemory(fd, at, size, fileOffset, from);
  if (from === 0) {
    throw new VmsgError(
      "NO_MEMORY",
      "the driver's memory has no file that could be sent to the device side: use confined mode",
    );
  }
  try {
    await device.addSharedMemory(from, at, size, fileOffset);
  } catch (error) {
    if (!(error instanceof RequestRefused) || advice === undefined) throw error;
    throw new VmsgError("NO_MEMORY", `${error.message}: ${advice}`, { cause: error });
  }
}

/** Requests that are under way at once. */
const GROUP = 8;

/**
 * Does something for each region, for some at once: memory in many pieces would take as many round trips. What was begun has
 * ended when this fails, with the first failure.
 */
async function inGroups(
  regions: readonly SharedRegion[],
  act: (region: SharedRegion) => Promise<void>,
): Promise<void> {
  for (let first = 0; first < regions.length; first += GROUP) {
    const results = await Promise.allSettled(regions.slice(first, first + GROUP).map(act));
    const failed = results.find((result) => result.status === "rejected");
    if (failed !== undefined) throw failed.reason;
  }
}

/** See the head of this file. */
export class Descriptors implements Sharing {
  readonly own: readonly number[] = [];
  /** How many rings run. */
  running = 0;
  /** What the device side has. */
  readonly #regions: SharedRegion[] = [];

  /**
   * Nothing is told yet.
   *
   * @param beginsAnew no ring ever goes on where another device was: the driver makes them anew
   */
  constructor(readonly device: RemoteDevice, readonly beginsAnew = false) {}

  /** Where a packed ring goes on, only a vmsg device side can tell, or has left in it (packed/position.ts). */
  get withheld(): readonly number[] {
    return this.#tells || this.beginsAnew ? [] : [RingFeature.RING_PACKED];
  }

  get #tells(): boolean {
    return this.device.side.peer === "vmsg";
  }

  mustStopFor(regions: readonly SharedRegion[]): boolean {
    return this.#tells && differ(regions, this.#regions);
  }

  async prepare(regions: readonly SharedRegion[]): Promise<void> {
    const { session } = this.device;
    const gone = this.#regions.filter((region) => !regions.includes(region));
    const fresh = regions.filter((region) => !this.#regions.includes(region));
    await inGroups(gone, async (region) => {
      if (this.#tells) await this.device.removeMemory(region.at, region.size);
      this.device.checkSession(session);
      this.#regions.splice(this.#regions.indexOf(region), 1);
    });
    await inGroups(fresh, async (region) => {
      region.exposed?.();
      await tellRegion(this.device, region);
      this.device.checkSession(session);
      this.#regions.push(region);
    });
  }

  open(owner: RingOwner, setup: QueueSetup): SharedRing {
    const { device } = this;
    const vector = new CallVector(device, owner.index);
    const hasFds = device.side.link.bus.carriesFds;
    return {
      setup,
      start: () => {
        this.running++;
      },
      available: () => device.available(owner.index),
      used: () => owner.call(),
      handOver: !device.takesNotifiers
        ? undefined
        : hasFds
        ? async (events) => await device.setNotifier(owner.index, events) ? "all" : "none"
        : async ({ call }) => await vector.lendTo(call) ? "calls" : "none",
      stop: () => {
        this.running--;
        vector[Symbol.dispose]();
        return undefined;
      },
    };
  }

  letGo(region: SharedRegion): boolean {
    return !this.#regions.includes(region);
  }

  lost(): void {
    this.#regions.length = 0;
  }
}
