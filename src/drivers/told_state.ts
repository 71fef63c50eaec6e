/**
 * What a driver side has told a device at the other end, where others can read it (observe/state.ts): status, features, the
 * driver's memory, and its rings as they lie there. So rings can be looked at also where no device side of ours tells of them.
 * A device that is lost keeps what it was told, its queues disabled, until another one comes.
 */

import type { Clock } from "../linux/clock.ts";
import { countingAsNow } from "../observe/counters.ts";
import { DeviceState, MemoryState } from "../observe/state.ts";
import type { RemoteDevice } from "../transport/remote_device.ts";
import { VENDOR_ELSEWHERE } from "../virtio/device.ts";
import { Status } from "../virtio/features.ts";
import type { Told, ToldRing, Wanted } from "./wanted.ts";

const NO_FEATURES = new Uint32Array(2);
const NEGOTIATED = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK;

/** Between whom; of a session's options. */
interface Link {
  readonly reactor: Clock;
  readonly device: RemoteDevice;
  readonly owner: Wanted;
}

/** See the head of this file. */
export class ToldState implements Disposable {
  readonly #memory: MemoryState;
  readonly #counting = countingAsNow();
  #device: { readonly key: string; readonly state: DeviceState } | undefined;
  #isGone = false;
  #rings: readonly (ToldRing | undefined)[] = [];

  constructor(readonly told: Told, readonly link: Link) {
    this.#memory = new MemoryState(link.device.number, "remote");
  }

  /** As it is now; what did not change costs nothing. */
  show(): void {
    if (this.#isGone) return;
    const { told, link: { device: { number, side }, owner, reactor } } = this;
    this.#memory.show(owner.regions);
    const { info, negotiated, driverOk } = told;
    if (info !== undefined) {
      const leavesPlace = side.peer === "vmsg" && info.vendorId !== VENDOR_ELSEWHERE;
      const key = `${info.deviceId} ${info.maxQueues} ${leavesPlace}`;
      if (this.#device?.key !== key) {
        this.#device?.state[Symbol.dispose]();
        this.#rings = [];
        const options = { where: "remote", leavesPlace } as const;
        const { deviceId, maxQueues } = info;
        const state = this.#counting(() =>
          new DeviceState(number, deviceId, maxQueues, reactor, options)
        );
        this.#device = { key, state };
      }
    }
    const state = this.#device?.state;
    const status = negotiated === undefined ? 0 : NEGOTIATED | (driverOk ? Status.DRIVER_OK : 0);
    state?.device(status, negotiated ?? NO_FEATURES);
    const rings = told.rings.slice();
    for (let index = 0; index < Math.max(rings.length, this.#rings.length); index++) {
      const [before, now] = [this.#rings[index], rings[index]];
      if (before === now) continue;
      state?.queue(index, now !== undefined, (now ?? before)!.setup);
      // Notifications are counted where they are taken.
      state?.unseen(index);
    }
    this.#rings = rings;
  }

  [Symbol.dispose](): void {
    this.#isGone = true;
    this.#memory.show([]);
    this.#device?.state[Symbol.dispose]();
  }
}
