/** A vhost-user device with a back end under the test's control, and a driver that writes its rings by hand. */

import { createSealedMemory, type Fd } from "../../../src/linux/fd.ts";
import { mapShared } from "../../../src/linux/mapping.ts";
import { Reactor } from "../../../src/linux/reactor.ts";
import { AddressSpace, type MemoryRegion } from "../../../src/memory/mod.ts";
import { createLog } from "../../../src/observe/log.ts";
import type { DeviceHost } from "../../../src/virtio/device.ts";
import {
  VhostUserDevice,
  type VhostUserOptions,
} from "../../../src/devices/vhost_user/vhost_user_device.ts";
import { waitUntil } from "../../support/front_end.ts";
import { withDirectory } from "../../support/leaks.ts";
import { MockBackEnd, type MockBackEndOptions } from "../../support/mock_back_end.ts";
import { VirtualClock } from "../../support/virtual_clock.ts";

export const BLOCK = 2;
/** Where the driver's memory is, and a ring in it. */
export const AT = 0x4000_0000, SIZE = 0x10000;
export const ENTRIES = 8;
/** In which a ring runs, if it ever does. */
const START_MS = 5000;
export const SETUP = {
  size: ENTRIES,
  descriptorAddress: AT + 0x1000,
  driverAddress: AT + 0x2000,
  deviceAddress: AT + 0x3000,
  base: 0,
};
/** The same for another queue. */
export const SECOND = {
  ...SETUP,
  descriptorAddress: AT + 0x5000,
  driverAddress: AT + 0x6000,
  deviceAddress: AT + 0x7000,
};
/** VERSION_1, EVENT_IDX, INDIRECT_DESC, and ACCESS_PLATFORM, which no back end hears of. */
export const ACCEPTED = Uint32Array.of(0x3000_0000, 3);

/** Who has the device. */
export class Host implements DeviceHost {
  readonly memory = new AddressSpace();
  readonly regions: MemoryRegion[] = [];
  isRunning = false;
  /** Used notifications, by queue. */
  readonly told: number[] = [];
  changes = 0;
  readonly problems: string[] = [];

  mayTouchMemory(): boolean {
    return this.isRunning;
  }
  used(queue: number): void {
    this.told[queue] = (this.told[queue] ?? 0) + 1;
  }
  configChanged(): void {
    this.changes++;
  }
  needsReset(reason: string): void {
    this.problems.push(reason);
  }
}

/** See the head of this file. */
export interface VhostUserRig {
  readonly reactor: Reactor;
  readonly clock: VirtualClock;
  readonly device: VhostUserDevice;
  readonly backEnd: MockBackEnd;
  readonly host: Host;
  readonly region: MemoryRegion;
  readonly lines: string[];
  /** Features, memory, queue 0 (and 1), DRIVER_OK. */
  start(queues?: number): Promise<void>;
  /** Makes buffers with these heads available in a ring, without a kick. */
  offer(heads: readonly number[], setup?: typeof SETUP): void;
  /** Heads that came back, all of them from the first on; of less than {@link ENTRIES}. */
  cameBack(setup?: typeof SETUP): number[];
  until(condition: () => boolean): Promise<void>;
}

export function openMemory(size: number, at: number): MemoryRegion & { fd: Fd } & Disposable {
  const fd = createSealedMemory("vmsg-guest", size);
  const memory = mapShared(fd.number, size);
  return {
    at,
    size,
    memory,
    offset: 0,
    fd,
    fileOffset: 0,
    [Symbol.dispose]: () => {
      memory[Symbol.dispose]();
      fd[Symbol.dispose]();
    },
  };
}

/** Runs a test's body in a reactor with virtual time. */
export function withBackEnd(
  body: (rig: VhostUserRig) => Promise<void>,
  backEndOptions: Partial<MockBackEndOptions> = {},
  options: Partial<VhostUserOptions> = {},
): Promise<void> {
  return withDirectory(async (directory) => {
    const clock = new VirtualClock();
    using reactor = new Reactor(clock);
    const socket = `${directory}/back.sock`;
    using backEnd = new MockBackEnd(reactor, socket, backEndOptions);
    const lines: string[] = [];
    const log = createLog("test", "debug", (line) => lines.push(line));
    using region = openMemory(SIZE, AT);
    const all = { socket, deviceId: BLOCK, queueSize: 128, name: "0 test", ...options };
    using device = new VhostUserDevice(reactor, all, log);
    const host = new Host();
    host.memory.add(AT, SIZE, region.memory);
    host.regions.push(region);
    const view = new DataView(region.memory.buffer);
    const rig: VhostUserRig = {
      reactor,
      clock,
      device,
      backEnd,
      host,
      region,
      lines,
      async start(queues = 1) {
        await device.ready;
        device.connect(host);
        if (!await device.acceptFeatures(ACCEPTED)) throw new Error("features are refused");
        for (
          const problem of [
            await device.memoryAdded([region]),
            await device.startQueue(0, SETUP),
            queues > 1 ? await device.startQueue(1, SECOND) : undefined,
          ]
        ) if (problem !== undefined) throw new Error(problem);
        host.isRunning = true;
        device.resume();
        await waitUntil(reactor, () => backEnd.rings[queues - 1]?.enabled === true, START_MS);
      },
      offer(heads, { driverAddress } = SETUP) {
        const at = driverAddress - AT;
        for (const head of heads) {
          const index = view.getUint16(at + 2, true);
          view.setUint16(at + 4 + 2 * (index % ENTRIES), head, true);
          view.setUint16(at + 2, index + 1, true);
        }
      },
      cameBack({ deviceAddress } = SETUP) {
        const at = deviceAddress - AT;
        return Array.from(
          { length: view.getUint16(at + 2, true) },
          (_, i) => view.getUint32(at + 4 + 8 * (i % ENTRIES), true),
        );
      },
      until: (condition) => waitUntil(reactor, condition),
    };
    await reactor.until(body(rig));
  });
}
