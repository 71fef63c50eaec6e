/** Which way the device side gets to see drivers' memory: chosen once for a bus, for all device numbers on it. */

import type { Bus } from "../bus/bus.ts";
import type { Reactor } from "../linux/reactor.ts";
import type { MemoryQuota } from "../memory/mod.ts";
import type { Log } from "../observe/log.ts";
import type { DriverSide } from "../transport/driver_side.ts";
import type { RemoteDevice } from "../transport/remote_device.ts";
import { Descriptors } from "./descriptors.ts";
import { Direct } from "./direct.ts";
import { Forwarding } from "./forwarding.ts";
import { Pages } from "./pages.ts";
import { Segment } from "./segment.ts";
import type { Sharing } from "./sharing.ts";

/** What {@link openSharing} goes by. */
export interface SharingOptions {
  /** The loop it runs in. */
  readonly reactor: Reactor;
  /** The bus. */
  readonly bus: Bus;
  /** The driver side on it. */
  readonly side: DriverSide;
  /** Confined mode: bytes of the segment, undefined for all that the bus has. */
  readonly confined: { readonly size: number | undefined } | undefined;
  /** How many device numbers there are. */
  readonly deviceCount: number;
  /** Where lines for people go. */
  readonly log: Log;
  /** How much of the guests' memory may be pinned. */
  readonly quota?: MemoryQuota | undefined;
  /** Where direct mode's rings go, instead of huge pages of the bus's machine; for tests. */
  readonly pages?: Pages | undefined;
}

/** Makes a {@link Sharing} for each device number; the memory behind them is its own. */
export interface SharingMode extends Disposable {
  /** @param position of the device number among those of {@link SharingOptions.deviceCount} */
  forDevice(device: RemoteDevice, position: number): Sharing;
}

/**
 * Confined if that is wanted; else descriptors where the bus carries them, and direct between machines, where the
 * device side sees RAM by physical address.
 *
 * @throws VmsgError SEGMENT, HUGE_PAGES
 */
export function openSharing(options: SharingOptions): SharingMode {
  const { reactor, bus, side, confined, deviceCount, log, pages, quota } = options;
  if (confined !== undefined) {
    const place = new Segment(bus, confined.size, deviceCount);
    return {
      forDevice: (device, position) => new Forwarding({ reactor, device, place, position, log }),
      [Symbol.dispose]: () => place[Symbol.dispose](),
    };
  }
  if (pages === undefined && bus.carriesFds) {
    return { forDevice: (device) => new Descriptors(device), [Symbol.dispose]: () => {} };
  }
  const place = pages ?? new Pages(bus, deviceCount, log, undefined, quota?.limits.pinned);
  side.listen(place);
  return {
    forDevice: (device, position) => new Direct({ reactor, device, place, position, log }),
    [Symbol.dispose]: () => place[Symbol.dispose](),
  };
}
