/** The two sides on one bus: what they say to each other when nobody is in between. */

import { assert, assertEquals } from "@std/assert";
import { inProcessBus } from "../../src/bus/in_process_bus.ts";
import { LinuxUserBus } from "../../src/bus/linux_user.ts";
import type { Bus } from "../../src/bus/bus.ts";
import { createSealedMemory } from "../../src/linux/fd.ts";
import { mapAnonymous } from "../../src/linux/mapping.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { codecFor } from "../../src/message/codecs.ts";
import type { Dialect } from "../../src/message/codec.ts";
import { createLog } from "../../src/observe/log.ts";
import { createTracer } from "../../src/observe/trace.ts";
import { DeviceSide } from "../../src/transport/device_side.ts";
import { DriverSide } from "../../src/transport/driver_side.ts";
import { RequestRefused } from "../../src/transport/requests.ts";
import { FAKE_FEATURES, FakeDevice } from "../support/fake_device.ts";
import { cleanTest, withDirectory } from "../support/leaks.ts";
import { VirtualClock } from "../support/virtual_clock.ts";
import { DIALECTS } from "../../src/message/message.ts";

interface Rig {
  readonly reactor: Reactor;
  readonly driver: DriverSide;
  readonly device: DeviceSide;
  readonly model: FakeDevice;
  readonly deviceBus: Bus;
  readonly events: string[];
  readonly lines: string[];
  /** A device side with a model of its own on the same bus, as a new process has it. */
  replace(): { device: DeviceSide; model: FakeDevice };
  wait(condition: () => boolean): Promise<void>;
}

async function withBoth(body: (rig: Rig) => Promise<void>, dialect: Dialect = "v1"): Promise<void> {
  using reactor = new Reactor(new VirtualClock());
  using stack = new DisposableStack();
  const pair = stack.use(inProcessBus(reactor));
  const codec = codecFor(dialect);
  const lines: string[] = [];
  const log = createLog("test", "debug", (line) => lines.push(line));
  const tracer = createTracer((line) => lines.push(line), reactor);
  const makeDevice = () => {
    const side = stack.use(new DeviceSide({ reactor, bus: pair.device, codec, log }));
    const model = new FakeDevice();
    side.add(0, model);
    return { device: side, model };
  };
  const { device, model } = makeDevice();
  const driver = stack.use(new DriverSide({ reactor, bus: pair.driver, codec, log, tracer }));
  const events: string[] = [];
  driver.listen({
    ready: () => events.push("ready"),
    lost: (reason) => events.push(`lost: ${reason}`),
  });
  driver.open();
  device.open();
  await reactor.until(body({
    reactor,
    driver,
    device,
    model,
    deviceBus: pair.device,
    events,
    lines,
    replace() {
      const made = makeDevice();
      made.device.open();
      made.device.attached();
      return made;
    },
    async wait(condition) {
      const endMs = reactor.now() + 4000;
      while (!condition()) {
        if (reactor.now() > endMs) throw new Error(`never so: ${condition}`);
        await reactor.sleep(1);
      }
    },
  }));
}

const SETUP = { size: 64, descriptorAddress: 0x1000, driverAddress: 0x2000, deviceAddress: 0x3000 };

/** The whole bring-up of 3.1.1 with features [0x21, VERSION_1] and queues 0 and 1. */
async function bringUp({ driver }: Rig, base = 0): Promise<void> {
  const device = driver.device(0);
  const info = await device.info();
  assertEquals([info.deviceId, info.featureBlocks, info.configSize, info.maxQueues], [1, 2, 12, 3]);
  await device.reset();
  assertEquals(await device.setStatus(0x3), 0x3);
  assertEquals([...await device.features(2)], [...FAKE_FEATURES]);
  await device.setFeatures(Uint32Array.of(0x21, 1));
  assertEquals(await device.setStatus(0xb), 0xb);
  for (const index of [0, 1]) {
    assertEquals((await device.queue(index)).maxSize, 256);
    await device.startQueue(index, { ...SETUP, base });
  }
  assertEquals(await device.setStatus(0xf), 0xf);
}

for (const dialect of DIALECTS) {
  cleanTest(
    `bring-up in ${dialect}, notifications both ways, reset`,
    () =>
      withBoth(async (rig) => {
        const { driver, model, wait } = rig;
        await wait(() => driver.isReady);
        assertEquals(driver.peer, dialect === "v1" ? "vmsg" : "foreign");
        if (dialect !== "proto") await bringUp(rig);
        else {
          const device = driver.device(0);
          await device.reset();
          assertEquals(await device.setStatus(0x3), 0x3);
          await device.setFeatures(Uint32Array.of(0x21, 1));
          assertEquals(await device.setStatus(0xb), 0xb);
          await device.startQueue(1, { ...SETUP, base: 0 });
          assertEquals(await device.setStatus(0xf), 0xf);
        }
        assertEquals(model.accepted, [0x21, 1]);
        assertEquals(model.setups.at(-1), { ...SETUP, base: 0 });
        assertEquals(model.host.mayTouchMemory(), true);
        model.takeCalls();
        const used: number[] = [];
        const device = driver.device(0);
        device.onUsed = (queue) => used.push(queue);
        device.available(1);
        model.host.used(1);
        await wait(() => used.length === 1 && model.calls.length === 1);
        assertEquals([used, model.takeCalls()], [[1], ["available 1"]]);
        const status: number[] = [];
        device.onConfig = (value) => status.push(value);
        model.host.needsReset("test");
        await wait(() => status.length === 1);
        assertEquals(status, [0x4f]);
        await device.reset();
        assertEquals(model.host.mayTouchMemory(), false);
      }, dialect),
  );
}

cleanTest(
  "memory: added, refused, removed; a queue is stopped and goes on at its base",
  () =>
    withBoth(async (rig) => {
      const { driver, model, wait } = rig;
      await wait(() => driver.isReady);
      using fd = createSealedMemory("vmsg-test", 8192);
      const device = driver.device(0);
      await device.addMemory(fd, 0x4000_0000, 8192, 0);
      const refusal = await device.addMemory(fd, 0x4000_0000, 4096, 0).catch((error) => error);
      assert(refusal instanceof RequestRefused && refusal.message.endsWith("EEXIST"));
      await bringUp(rig);
      const busy = await device.removeMemory(0x4000_0000, 8192).catch((error) => error);
      assert(busy instanceof RequestRefused && busy.message.endsWith("EBUSY"));
      model.base = 0xffff;
      assertEquals(await device.stopQueue(0), 0xffff);
      assertEquals((await device.queue(0)).enabled, false);
      await device.startQueue(0, { ...SETUP, base: 0xffff });
      assertEquals(model.setups.at(-1)!.base, 0xffff);
      await device.stopQueue(0);
      // A copy of a queue that has been in use; it is said each time anew.
      for (const goesOn of [true, false]) {
        await device.startQueue(0, { ...SETUP, base: 0, goesOn });
        assertEquals(model.setups.at(-1), { ...SETUP, base: 0, ...(goesOn ? { goesOn } : {}) });
        await device.stopQueue(0);
      }
      await device.stopQueue(1);
      await device.removeMemory(0x4000_0000, 8192);
      assertEquals(model.host.memory.windows, []);
    }),
);

cleanTest(
  "a device side that is replaced on a bus that tells nobody is found by its epoch",
  () =>
    withBoth(async (rig) => {
      const { driver, events, wait, reactor } = rig;
      await wait(() => driver.isReady);
      await bringUp(rig);
      const open = driver.device(0).status();
      await open;
      const next = rig.replace();
      await wait(() => events.length === 3);
      assertEquals(events, ["ready", "lost: the device side was replaced", "ready"]);
      assertEquals(await driver.device(0).status(), 0);
      await bringUp(rig);
      assertEquals(next.model.accepted, [0x21, 1]);
      await reactor.sleep(0);
    }),
);

cleanTest(
  "lease: with the heartbeat it holds, without it memory is left alone, then work resumes",
  () =>
    withBoth(async (rig) => {
      const { driver, model, wait, reactor } = rig;
      await wait(() => driver.isReady);
      await bringUp(rig);
      // Longer than a lease: the heartbeat carries it.
      const endMs = reactor.now() + 400;
      while (reactor.now() < endMs) {
        assertEquals(model.host.mayTouchMemory(), true);
        await reactor.sleep(20);
      }
      model.takeCalls();
      // The driver's machine is paused: its messages do not come.
      const incoming = rig.deviceBus as unknown as { rung(): void };
      const { rung } = incoming;
      const startMs = reactor.now();
      incoming.rung = () => {};
      await wait(() => !model.host.mayTouchMemory());
      const pausedMs = reactor.now() - startMs;
      assert(pausedMs <= 300, `${pausedMs} ms`);
      incoming.rung = rung;
      await wait(() => model.calls.includes("resume"));
      assertEquals(model.host.mayTouchMemory(), true);
      assertEquals(model.takeCalls(), ["resume"]);
    }),
);

cleanTest(
  "trace and log: the attachment in words",
  () =>
    withBoth(async ({ driver, wait, lines }) => {
      await wait(() => driver.isReady);
      await driver.device(0).status();
      const words = lines.map((line) => line.replace(/^\+\d+\.\d{6} /, ""));
      assert(words.some((line) => /^-> bus {3}HELLO\? /.test(line)), words.join("\n"));
      assert(words.some((line) => /^<- bus {3}HELLO = .* \d+ us( after \S+)?$/.test(line)));
      assert(words.some((line) => line.startsWith("-> dev 0 GET_DEVICE_STATUS?")));
      assert(words.includes("test: in-process bus: a vmsg device side is there"));
      assert(words.includes("test: in-process bus: the driver side is there"));
    }),
);

cleanTest(
  "linux-user: two sides find each other as vmsg in every order, again and again",
  () =>
    withDirectory(async (directory) => {
      for (let round = 0; round < 10; round++) {
        using reactor = new Reactor(new VirtualClock());
        using stack = new DisposableStack();
        const codec = codecFor("v1");
        const log = createLog("test", "error", () => {});
        const bus = (side: "driver" | "device") =>
          stack.use(
            new LinuxUserBus(side, reactor, {
              name: "test",
              directory,
              socket: `${directory}/socket`,
              listen: side === "device",
              wait: true,
              reset: false,
              lock: true,
              discardOnAttach: true,
              ringPerMessage: false,
              log: () => {},
            }),
          );
        const openDevice = () => {
          const side = stack.use(new DeviceSide({ reactor, bus: bus("device"), codec, log }));
          side.add(0, new FakeDevice());
          side.open();
        };
        const openDriver = () => {
          const side = stack.use(new DriverSide({ reactor, bus: bus("driver"), codec, log }));
          side.open();
          return side;
        };
        if (round % 2 === 0) openDevice();
        const driver = openDriver();
        if (round % 2 === 1) openDevice();
        const ready = reactor.defer<void>();
        driver.listen({ ready: () => ready.resolve(), lost: () => {} });
        await reactor.until(ready.promise);
        assertEquals(driver.peer, "vmsg");
        await reactor.until(driver.device(0).info());
      }
    }),
);

cleanTest("windows of the command line serve a peer that announces no memory", async () => {
  using memory = mapAnonymous(4096);
  await withBoth(async ({ model, driver, wait }) => {
    assertEquals(model.host.memory.add(0x4000_0000, 4096, memory), undefined);
    await wait(() => driver.isReady);
    await driver.device(0).reset();
    assertEquals(model.host.memory.find(0x4000_0000, 4096)?.at, 0x4000_0000);
  }, "proto");
});
