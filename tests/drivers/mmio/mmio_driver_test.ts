/**
 * A driver behind the registers of virtio-mmio, and a device side on the other end of a bus: what the registers say
 * is what the device side has said, or it is waited for.
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { MmioDriver } from "../../../src/drivers/mmio/mmio_driver.ts";
import { Register as R, type RegisterState } from "../../../src/drivers/mmio/registers.ts";
import { VmsgError } from "../../../src/linux/errors.ts";
import { mapAnonymous } from "../../../src/linux/mapping.ts";
import { Reactor } from "../../../src/linux/reactor.ts";
import { codecFor } from "../../../src/message/codecs.ts";
import { createLog } from "../../../src/observe/log.ts";
import { openSharing } from "../../../src/sharing/mode.ts";
import { DeviceSide } from "../../../src/transport/device_side.ts";
import { DriverSide } from "../../../src/transport/driver_side.ts";
import { RingFeature, Status } from "../../../src/virtio/features.ts";
import { FAKE_FEATURES, FakeDevice, type FakeDeviceOptions } from "../../support/fake_device.ts";
import { inProcessBus } from "../../../src/bus/in_process_bus.ts";
import { cleanTest } from "../../support/leaks.ts";
import { VirtualClock } from "../../support/virtual_clock.ts";

const { ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK, DEVICE_NEEDS_RESET } = Status;
const AGREED = ACKNOWLEDGE | DRIVER | FEATURES_OK;
const RING_RESET = 1 << (RingFeature.RING_RESET - 32);
/** Where the guest's memory is, and in it the ring of queue 0. */
const RAM = 0x4000_0000;
const RAM_SIZE = 1 << 20;
const RING = { descriptor: RAM + 0x1000, driver: RAM + 0x2000, device: RAM + 0x3000 };
const SIZE = 16;

interface Rig {
  readonly reactor: Reactor;
  readonly driver: MmioDriver;
  readonly device: FakeDevice;
  readonly ram: DataView;
  readonly lines: string[];
  /** "raise" and "lower" since the last time. */
  interrupts(): string[];
  read(offset: number, size?: number): Promise<number>;
  write(offset: number, value: number, size?: number): Promise<void>;
  /** As far as a driver goes: features and one queue, at work. */
  start(): Promise<void>;
  /** The device side comes: it was not there. */
  arrive(): void;
  /** Another device side takes its place. */
  replace(): void;
}

interface RigOptions {
  readonly device?: FakeDeviceOptions;
  /** The device side is not there at first. */
  readonly isAlone?: boolean;
  readonly state?: RegisterState;
  /** Why the guest's memory cannot be mapped. */
  readonly problem?: string;
}

function mmioTest(name: string, body: (rig: Rig) => Promise<void>, options: RigOptions = {}): void {
  cleanTest(name, async () => {
    using reactor = new Reactor(new VirtualClock());
    using shared = mapAnonymous(1 << 20);
    using memory = mapAnonymous(RAM_SIZE);
    using pair = inProcessBus(reactor, undefined, 64, { memory: shared, start: 0 });
    const lines: string[] = [];
    const log = createLog("test", "debug", (line) => lines.push(line));
    const codec = codecFor("v1");
    using deviceSide = new DeviceSide({ reactor, bus: pair.device, codec, log, confined: true });
    const device = new FakeDevice(options.device);
    deviceSide.add(0, device);
    using side = new DriverSide({ reactor, bus: pair.driver, codec, log });
    const sharing = { reactor, bus: pair.driver, side, deviceCount: 1, log };
    using mode = openSharing({ ...sharing, confined: { size: undefined } });
    const remote = side.device(0);
    const interrupts: string[] = [];
    const region = { at: RAM, size: RAM_SIZE, memory, offset: 0 };
    using driver = new MmioDriver({
      ...{ reactor, log, device: remote, sharing: mode.forDevice(remote, 0) },
      name: "the domain's",
      state: options.state,
      host: {
        map: () =>
          options.problem === undefined
            ? Promise.resolve([region])
            : Promise.reject(new VmsgError("GONE", options.problem)),
        interrupt: (asserted) => interrupts.push(asserted ? "raise" : "lower"),
        keep: () => {},
      },
    });
    remote.listen(driver);
    side.open();
    if (!options.isAlone) deviceSide.open();
    const rig: Rig = {
      ...{ reactor, driver, device, lines },
      ram: new DataView(memory.buffer),
      interrupts: () => interrupts.splice(0),
      read: async (offset, size = 4) => await driver.registers.read(offset, size),
      write: async (offset, value, size = 4) => await driver.registers.write(offset, size, value),
      async start() {
        const { write } = rig;
        await write(R.STATUS, ACKNOWLEDGE | DRIVER);
        await write(R.DRIVER_FEATURES_SEL, 1);
        await write(R.DRIVER_FEATURES, 1);
        await write(R.STATUS, AGREED);
        await write(R.QUEUE_SEL, 0);
        await write(R.QUEUE_NUM, SIZE);
        await write(R.QUEUE_DESC_LOW, RING.descriptor);
        await write(R.QUEUE_DRIVER_LOW, RING.driver);
        await write(R.QUEUE_DEVICE_LOW, RING.device);
        await write(R.QUEUE_READY, 1);
        await write(R.STATUS, AGREED | DRIVER_OK);
      },
      arrive: () => deviceSide.open(),
      replace: () => pair.attachAgain(),
    };
    await reactor.until(body(rig));
  });
}

mmioTest("mmio: what the device is, its features, queues and configuration", async (rig) => {
  const { read, write } = rig;
  assertEquals([await read(R.DEVICE_ID), await read(R.VENDOR_ID)], [1, 0x1af4]);
  assertEquals(await read(R.DEVICE_FEATURES), FAKE_FEATURES[0]);
  await write(R.DEVICE_FEATURES_SEL, 1);
  // VERSION_1, and what a ring of the proxy's own can do: RING_PACKED, IN_ORDER
  assertEquals(await read(R.DEVICE_FEATURES), 0x0d);
  assertEquals(await read(R.QUEUE_NUM_MAX), 256);
  await write(R.QUEUE_SEL, 3);
  assertEquals(await read(R.QUEUE_NUM_MAX), 0);
  assertEquals([await read(0x100, 1), await read(0x102, 2), await read(0x104)], [
    1,
    0x0403,
    0x0807_0605,
  ]);
  assertEquals([await read(0x10a), await read(0x10c)], [0x0c0b, 0]);
  await write(0x103, 0xaabb, 2);
  assertEquals([...rig.device.config.subarray(2, 6)], [3, 0xbb, 0xaa, 6]);
});

mmioTest(
  "mmio: features are asked about at FEATURES_OK, the queue starts at DRIVER_OK",
  async (rig) => {
    const { start, device, read, interrupts } = rig;
    await start();
    assertEquals(device.accepted, [0, 1]);
    assertEquals(await read(R.STATUS), AGREED | DRIVER_OK);
    const calls = device.takeCalls();
    assertEquals(calls.filter((call) => /accept|start/.test(call)), ["accept", "start 0"]);
    assertEquals(device.setups[0]!.size, SIZE);
    // A driver looks once when its queue starts.
    assertEquals([await read(R.INTERRUPT_STATUS), interrupts()], [1, ["raise"]]);
  },
);

mmioTest("mmio: a device that refuses the features", async (rig) => {
  const { write, read, device, lines } = rig;
  device.acceptsFeatures = false;
  await write(R.DRIVER_FEATURES_SEL, 1);
  await write(R.DRIVER_FEATURES, 1);
  await write(R.STATUS, AGREED);
  assertEquals(await read(R.STATUS), ACKNOWLEDGE | DRIVER);
  assertMatch(lines.join("\n"), /device 0, the domain's driver: device 0 refuses/);
});

mmioTest("mmio: a driver waits for the device side", async (rig) => {
  const { read, reactor, arrive, lines } = rig;
  assertEquals([await read(R.MAGIC_VALUE), await read(R.STATUS)], [0x7472_6976, 0]);
  // Its last driver's reset needs nobody.
  await rig.write(R.STATUS, 0);
  let id: number | undefined;
  const answered = read(R.DEVICE_ID).then((value) => id = value);
  await reactor.sleep(5000);
  assertEquals(id, undefined);
  assertMatch(lines.join("\n"), /the domain's driver waits for the device side/);
  arrive();
  assertEquals(await answered, 1);
}, { isAlone: true });

mmioTest(
  "mmio: the configuration changes: interrupt and generation, after DRIVER_OK",
  async (rig) => {
    const { read, write, device, reactor, interrupts } = rig;
    await read(R.DEVICE_ID);
    const before = await read(R.CONFIG_GENERATION);
    await rig.start();
    await write(R.INTERRUPT_ACK, 3);
    interrupts();
    device.config[0] = 99;
    device.host.configChanged();
    await reactor.sleep(50);
    assertEquals([await read(R.INTERRUPT_STATUS), interrupts()], [2, ["raise"]]);
    assert(await read(R.CONFIG_GENERATION) !== before);
    assertEquals(await read(0x100, 1), 99);
  },
);

mmioTest("mmio: a device that needs a reset says so, and gets it", async (rig) => {
  const { read, write, device, reactor } = rig;
  await rig.start();
  device.host.needsReset("a test");
  await reactor.sleep(50);
  assertEquals(await read(R.STATUS), AGREED | DRIVER_OK | DEVICE_NEEDS_RESET);
  assertEquals(await read(R.INTERRUPT_STATUS) & 2, 2);
  await write(R.STATUS, 0);
  assertEquals(await read(R.STATUS), 0);
  await rig.start();
  assertEquals(await read(R.STATUS), AGREED | DRIVER_OK);
});

mmioTest(
  "mmio: a queue that is not ready, or reset, is not worked on when the write is answered",
  async (rig) => {
    const { write, device } = rig;
    await rig.start();
    device.takeCalls();
    await write(R.QUEUE_READY, 0);
    assertEquals(device.takeCalls().filter((call) => /stop|start/.test(call)), ["stop 0"]);
    await write(R.QUEUE_READY, 1);
    assertEquals(device.takeCalls().filter((call) => /stop|start/.test(call)), ["start 0"]);
    await write(R.STATUS, 0);
    assertEquals(device.takeCalls().filter((call) => /stop|start/.test(call)), ["stop 0"]);
  },
);

mmioTest("mmio: QueueReset of a device that has it", async (rig) => {
  const { write, read, device } = rig;
  await write(R.DRIVER_FEATURES_SEL, 1);
  await write(R.DRIVER_FEATURES, RING_RESET);
  await rig.start();
  assertEquals(await read(R.STATUS), AGREED | DRIVER_OK);
  // The rig's driver has not accepted it.
  await write(R.QUEUE_RESET, 1);
  assertEquals(await read(R.QUEUE_READY), 1);
  device.takeCalls();
  await write(R.STATUS, 0);
  await write(R.DRIVER_FEATURES_SEL, 1);
  await write(R.DRIVER_FEATURES, 1 | RING_RESET);
  await write(R.STATUS, AGREED);
  assertEquals(device.accepted, [0, 1 | RING_RESET]);
}, { device: { features: [0, 1 | RING_RESET] } });

mmioTest("mmio: of the ring and the transport the driver sees what is known", async (rig) => {
  const { write, read } = rig;
  const bits = (from: number, word: number) =>
    Array.from({ length: 32 }, (_, bit) => from + bit).filter((_, bit) => (word >>> bit) & 1);
  const offered = bits(0, await read(R.DEVICE_FEATURES));
  await write(R.DEVICE_FEATURES_SEL, 1);
  offered.push(...bits(32, await read(R.DEVICE_FEATURES)));
  assertEquals(offered.filter((bit) => bit >= 24 && bit < 50), [
    24,
    27,
    28,
    29,
    32,
    34,
    35,
    36,
    40,
  ]);
  assertEquals(offered.filter((bit) => bit < 24 || bit >= 50).length, 24 + 14);
}, { device: { features: [0xffff_ffff, 0xffff_ffff] } });

mmioTest(
  "mmio: queue addresses outside of memory, in part or in all, end in NEEDS_RESET",
  async (rig) => {
    const { write, read, lines } = rig;
    const places = [0, RAM - 0x1000, RAM + RAM_SIZE, RAM + RAM_SIZE - 16, 0xffff_f000];
    for (const register of [R.QUEUE_DESC_LOW, R.QUEUE_DRIVER_LOW, R.QUEUE_DEVICE_LOW]) {
      for (const place of places) {
        await write(R.STATUS, 0);
        await rig.start();
        assertEquals(await read(R.STATUS), AGREED | DRIVER_OK);
        await write(R.QUEUE_READY, 0);
        await write(register, place);
        lines.length = 0;
        await rig.reactor.sleep(2000);
        await write(R.QUEUE_READY, 1);
        assertEquals(
          await read(R.STATUS),
          AGREED | DRIVER_OK | DEVICE_NEEDS_RESET,
          `${register} ${place}`,
        );
        assertMatch(lines.join("\n"), /device 0, the domain's driver: .*ring 0/);
      }
      // Far beyond what can be.
      await write(R.STATUS, 0);
      await rig.start();
      await write(R.QUEUE_READY, 0);
      await write(register + 4, 0xffff_ffff);
      await write(R.QUEUE_READY, 1);
      assertEquals(await read(R.STATUS) & DEVICE_NEEDS_RESET, DEVICE_NEEDS_RESET);
    }
  },
);

mmioTest("mmio: sizes that no ring has", async (rig) => {
  const { write, read } = rig;
  for (const size of [3, 100, 255]) {
    await write(R.STATUS, 0);
    await rig.start();
    await write(R.QUEUE_READY, 0);
    await write(R.QUEUE_NUM, size);
    await write(R.QUEUE_READY, 1);
    assertEquals(await read(R.STATUS) & DEVICE_NEEDS_RESET, DEVICE_NEEDS_RESET, `${size}`);
  }
});

mmioTest("mmio: memory that cannot be mapped ends in NEEDS_RESET", async (rig) => {
  await rig.start();
  assertEquals(await rig.read(R.STATUS), AGREED | DRIVER_OK | DEVICE_NEEDS_RESET);
  assertMatch(rig.lines.join("\n"), /the domain's driver: the domain is gone/);
}, { problem: "the domain is gone" });

mmioTest("mmio: a device side that is replaced is brought where the driver is", async (rig) => {
  const { read, write, device, reactor, replace, interrupts } = rig;
  await rig.start();
  await write(R.INTERRUPT_ACK, 3);
  const before = await read(R.CONFIG_GENERATION);
  device.takeCalls();
  interrupts();
  replace();
  await reactor.sleep(2000);
  const calls = device.takeCalls().filter((call) => /accept|stop|start/.test(call));
  assertEquals(calls.slice(-2), ["accept", "start 0"]);
  assertEquals(await read(R.STATUS), AGREED | DRIVER_OK);
  assertEquals(await read(R.INTERRUPT_STATUS), 3, "both are looked at once");
  assert(await read(R.CONFIG_GENERATION) !== before);
});

const LEFT: RegisterState = {
  ...{ status: AGREED | DRIVER_OK, features: [0, 1], generation: 7 },
  ...{ deviceFeaturesSel: 0, driverFeaturesSel: 0, queueSel: 0 },
  queues: [{ size: SIZE, ready: true, ...RING }],
};

mmioTest(
  "mmio: registers that another process has left go on where the used index says",
  async (rig) => {
    const { ram, read, write, reactor, device, driver } = rig;
    ram.setUint16(RING.driver - RAM + 2, 5, true);
    ram.setUint16(RING.device - RAM + 2, 5, true);
    assertEquals(await read(R.STATUS), AGREED | DRIVER_OK);
    await reactor.sleep(1000);
    assertEquals(device.takeCalls().filter((call) => /accept|start/.test(call)), [
      "accept",
      "start 0",
    ]);
    assertEquals(driver.rings[0]!.setup().base, 5);
    assertEquals(await read(R.INTERRUPT_STATUS), 3, "what the last one told is not known");
    // A new ring begins at 0.
    await write(R.QUEUE_READY, 0);
    await write(R.QUEUE_READY, 1);
    assertEquals(driver.rings[0]!.setup().base, 0);
  },
  { state: LEFT },
);

mmioTest("mmio: the domain is gone: the device is left reset", async (rig) => {
  const { device, driver } = rig;
  await rig.start();
  device.takeCalls();
  await driver.end();
  assertEquals(device.takeCalls().filter((call) => /stop|start/.test(call)), ["stop 0"]);
  rig.replace();
  await rig.reactor.sleep(1000);
  assertEquals(device.takeCalls().filter((call) => /stop|start/.test(call)), []);
});
