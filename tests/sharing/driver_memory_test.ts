/**
 * Where a driver's memory lies, and how the device side gets to see it: through a whole driver side and a
 * whole device side on a bus of two pages.
 */

import { assert, assertEquals, assertMatch, assertRejects, assertThrows } from "@std/assert";
import { windowsOf } from "../../src/cli/memory_option.ts";
import { inProcessBus } from "../../src/bus/in_process_bus.ts";
import { VmsgError } from "../../src/linux/errors.ts";
import { mapAnonymous } from "../../src/linux/mapping.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import type { Dialect } from "../../src/message/codec.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { createLog } from "../../src/observe/log.ts";
import { Descriptors, tellRegion } from "../../src/sharing/descriptors.ts";
import {
  type DriverMemory,
  knownMemory,
  ownMemory,
  segmentMemory,
} from "../../src/sharing/driver_memory.ts";
import { DeviceSide } from "../../src/transport/device_side.ts";
import { DriverSide } from "../../src/transport/driver_side.ts";
import type { RemoteDevice } from "../../src/transport/remote_device.ts";
import type { Bus } from "../../src/bus/bus.ts";
import { FakeDevice } from "../support/fake_device.ts";
import { cleanTest } from "../support/leaks.ts";
import { pageBus, pageLink } from "../support/page_link.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

const PAGE = 4096;
const START = 2 * PAGE;

interface Rig {
  readonly remote: RemoteDevice;
  readonly device: FakeDevice;
}

/** Both sides on two ends of a bus, once they have met. */
async function withSides(
  reactor: Reactor,
  ends: { driver: Bus; device: Bus },
  body: (rig: Rig) => Promise<void>,
  dialect: Dialect = "v1",
): Promise<void> {
  const codec = codecFor(dialect);
  const log = createLog("test", "error", () => {});
  using deviceSide = new DeviceSide({ reactor, bus: ends.device, codec, log });
  const device = new FakeDevice();
  deviceSide.add(0, device);
  using driverSide = new DriverSide({ reactor, bus: ends.driver, codec, log });
  const remote = driverSide.device(0);
  const met = reactor.defer<void>();
  driverSide.listen({ ready: () => met.resolve(), lost: () => {} });
  deviceSide.open();
  driverSide.open();
  await reactor.until(met.promise.then(() => body({ remote, device })));
}

/** Tells the device side of memory as the session of a driver does, and takes it back. */
async function announceAndWithdraw(
  memory: DriverMemory,
  { remote, device }: Rig,
  told: () => void,
): Promise<void> {
  const sharing = new Descriptors(remote);
  await sharing.prepare(memory.regions);
  told();
  await sharing.prepare([]);
  assertEquals(device.host.memory.windows.length, 0);
}

/** Tells the device side of memory. */
async function announce({ regions }: DriverMemory, remote: RemoteDevice): Promise<void> {
  for (const region of regions) await tellRegion(remote, region);
}

/** What is written at the driver's end is read at the device's, at the address that was told. */
function assertShared(memory: DriverMemory, device: FakeDevice): void {
  const windows = device.host.memory.windows.map(({ at, size }) => [at, size]);
  assertEquals(windows, [[memory.at, memory.size]]);
  const bytes = new Uint8Array(memory.memory.buffer, memory.offset, memory.size);
  bytes[0] = 0x11;
  bytes[memory.size - 1] = 0x99;
  const { view } = device.host.memory.windows[0]!;
  assertEquals([view.getUint8(0), view.getUint8(memory.size - 1)], [0x11, 0x99]);
}

cleanTest("driver memory: of its own, sent as a descriptor, and taken back", async () => {
  using reactor = new Reactor(new VirtualClock());
  using pair = inProcessBus(reactor);
  using memory = ownMemory(4 * PAGE);
  await withSides(reactor, pair, async (rig) => {
    for (let i = 0; i < 2; i++) {
      await announceAndWithdraw(memory, rig, () => assertShared(memory, rig.device));
    }
  });
});

cleanTest("driver memory: the bus's segment, all of it or a part", async () => {
  for (
    const [offset, size] of [[undefined, 0], [undefined, 3 * PAGE], [5 * PAGE, 0], [
      START,
      PAGE,
    ]] as const
  ) {
    using reactor = new Reactor(new VirtualClock());
    using link = pageLink(reactor, { named: true });
    using memory = segmentMemory(link.driver, offset, size);
    const start = offset ?? START;
    assertEquals([memory.offset, memory.at], [start, start]);
    assertEquals(memory.size, size || link.memory.size - start);
    await withSides(reactor, link, async (rig) => {
      await announceAndWithdraw(memory, rig, () => assertShared(memory, rig.device));
    });
  }
});

cleanTest(
  "driver memory: a segment that the device side has not is told with what to do",
  async () => {
    using reactor = new Reactor(new VirtualClock());
    using link = pageLink(reactor, { named: true });
    using small = mapAnonymous(4 * PAGE);
    // Both ends hear each other, but the device side's says that it is smaller.
    const device = new Proxy(link.device, {
      get(target, key) {
        if (key === "segment") return { memory: small, start: START };
        const value = Reflect.get(target, key);
        return typeof value === "function" ? value.bind(target) : value;
      },
      set: (target, key, value) => Reflect.set(target, key, value),
    });
    using memory = segmentMemory(link.driver, undefined, 0);
    await withSides(reactor, { driver: link.driver, device }, async ({ remote }) => {
      const { code, message } = await assertRejects(() => announce(memory, remote), VmsgError);
      assertEquals(code, "NO_MEMORY");
      assertMatch(message, /refused ADD_MEMORY: EINVAL: its shared memory is smaller .*size=/);
    });
  },
);

cleanTest(
  "driver memory: a device side that is told nothing must know, and is told so",
  async () => {
    using reactor = new Reactor(new VirtualClock());
    using link = pageLink(reactor);
    using segment = segmentMemory(link.driver, undefined, 0);
    using own = ownMemory(PAGE);
    using known = mapAnonymous(PAGE);
    using file = knownMemory(known, 0x4000_0000);
    await withSides(reactor, link, async ({ remote, device }) => {
      for (const memory of [segment, own]) {
        const { message } = await assertRejects(() => announce(memory, remote), VmsgError);
        assertMatch(message, /no vmsg that speaks v1, .*: give both --memory$/);
      }
      await announce(file, remote);
      assertEquals(device.host.memory.windows, []);
    }, "proto");
  },
);

cleanTest("driver memory: files on a bus that carries none are told at once", async () => {
  using reactor = new Reactor(new VirtualClock());
  using link = pageLink(reactor, { named: true });
  using memory = ownMemory(PAGE);
  await withSides(reactor, link, async ({ remote }) => {
    const { message } = await assertRejects(() => announce(memory, remote), VmsgError);
    assertMatch(message, /^driver end carries no files, .*: use confined mode/);
  });
});

cleanTest("driver memory: parts that cannot be are usage, told before anything is sent", () => {
  using reactor = new Reactor(new VirtualClock());
  using link = pageLink(reactor, {}, 16 * PAGE);
  using bare = inProcessBus(reactor);
  const fails = (bus: Bus, offset: number | undefined, size: number) =>
    assertThrows(() => segmentMemory(bus, offset, size), VmsgError).message;
  assertMatch(fails(bare.driver, undefined, 0), /in-process bus has no shared memory/);
  assertMatch(fails(link.driver, START + 1, 0), /must be a multiple of 4096, from 8192 on/);
  assertMatch(fails(link.driver, PAGE, 0), /from 8192 on/);
  assertMatch(fails(link.driver, undefined, 15 * PAGE), /65536 bytes .* not 61440 from 8192 on$/);
  assertMatch(fails(link.driver, 16 * PAGE, 0), /none of them from 65536 on$/);
  using memory = mapAnonymous(2 * PAGE);
  using only = pageBus("driver", reactor, memory);
  assertMatch(fails(only, undefined, 0), /has 8192 bytes .*, none of them from 8192 on$/);
  assertThrows(() => knownMemory(memory, 1), VmsgError, "multiple of 4096");
});

Deno.test("--memory of a device side: one window, or two around the hole", () => {
  using memory = mapAnonymous(16 * PAGE);
  const windows = (at: number, size: number, low: number, hole: number) => {
    const source = { kind: "file", file: "x" } as const;
    return windowsOf({ source, at, size, low, hole }, memory).map((window) => {
      assert(window.memory === memory);
      return [window.at, window.size, window.offset];
    });
  };
  const all = 16 * PAGE;
  assertEquals(windows(0, 0, 0, 0), [[0, all, 0]]);
  assertEquals(windows(0x4000_0000, PAGE, 0, 0), [[0x4000_0000, PAGE, 0]]);
  // Wire document 8.2: [off, off + low), [off + low + hole, off + hole + total).
  assertEquals(windows(PAGE, 0, 2 * PAGE, 0x8000_0000), [
    [PAGE, 2 * PAGE, 0],
    [PAGE + 2 * PAGE + 0x8000_0000, all - 2 * PAGE, 2 * PAGE],
  ]);
  assertEquals(windows(0, 0, all, PAGE), [[0, all, 0]], "all of it is below the hole");
  assertEquals(windows(0, 0, 2 * all, PAGE), [[0, all, 0]]);
  assertEquals(windows(0, 0, PAGE, 0), [[0, all, 0]], "low= means nothing without hole=");
});
