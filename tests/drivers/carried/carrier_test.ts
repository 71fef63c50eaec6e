/** Devices of one bus on another: what they are there, what is asked of them, and when they come and go. */

import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { RequestDriver } from "../../../src/drivers/request_driver.ts";
import { readEntropy, RNG_DRIVER } from "../../../src/drivers/rng.ts";
import { rngDevice } from "../../../src/devices/rng.ts";
import { ownMemory } from "../../../src/sharing/driver_memory.ts";
import type { RemoteDevice } from "../../../src/transport/remote_device.ts";
import { hasFeature, RingFeature, Status } from "../../../src/virtio/features.ts";
import { type CarrierRig, type CarrierRigOptions, withCarrier } from "../../support/carrier_rig.ts";
import { FakeDevice } from "../../support/fake_device.ts";
import { LateDevice } from "../../support/late_device.ts";
import { cleanTest } from "../../support/leaks.ts";
import { DIALECTS } from "../../../src/message/message.ts";

const { ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK, DEVICE_NEEDS_RESET } = Status;
const WHOLE = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
/** Block 0: bits of the device and of rings, 24 and up. */
const BLOCK_0 = 0x3900_0021;

/** Runs a test with one fake device, as the driver sees it. */
const withFake = (
  body: (device: RemoteDevice, fake: FakeDevice, rig: CarrierRig) => Promise<void>,
  options: Partial<CarrierRigOptions> = {},
  fake = new FakeDevice({ features: [BLOCK_0, 0xffff_ffff] }),
) =>
  withCarrier(async (rig) => {
    const device = rig.driver.device(0);
    await rig.wait(() => device.isReady);
    await body(device, fake, rig);
  }, { models: () => ({ 0: fake }), ...options });

/** As far as features are agreed on; the status that is shown then. */
async function negotiate(device: RemoteDevice, features: number[]): Promise<number> {
  await device.reset();
  await device.setStatus(ACKNOWLEDGE);
  await device.setStatus(ACKNOWLEDGE | DRIVER);
  await device.setFeatures(Uint32Array.from(features));
  return await device.setStatus(ACKNOWLEDGE | DRIVER | FEATURES_OK);
}

/** Gives a device memory and its queue 0 on it, and sets DRIVER_OK. */
async function bringUp(device: RemoteDevice, memory: ReturnType<typeof ownMemory>): Promise<void> {
  assertEquals(await negotiate(device, [0x21, 1]), ACKNOWLEDGE | DRIVER | FEATURES_OK);
  const [region] = memory.regions;
  await device.addMemory(region!.fd!, memory.at, memory.size, 0);
  const { at } = memory;
  await device.startQueue(0, {
    ...{ size: 8, descriptorAddress: at, driverAddress: at + 0x1000, deviceAddress: at + 0x2000 },
    base: 0,
  });
  await device.setStatus(WHOLE);
}

cleanTest(
  "carrier: a device is what it is, but for features that cannot be carried",
  () =>
    withFake(async (device) => {
      const { deviceId, vendorId, configSize, maxQueues } = await device.info();
      assertEquals([deviceId, vendorId, configSize, maxQueues], [1, 0x1af4, 12, 3]);
      assertEquals((await device.queue(1)).maxSize, 256);
      const features = await device.features(2);
      assertEquals(
        features[0],
        BLOCK_0,
        "NOTIFY_ON_EMPTY, ANY_LAYOUT, the ring's and the device's",
      );
      const { SR_IOV, ADMIN_VQ, VERSION_1, RING_RESET, ACCESS_PLATFORM } = RingFeature;
      for (const bit of [SR_IOV, ADMIN_VQ, 42, 49]) {
        assert(!hasFeature(features, bit), `bit ${bit}`);
      }
      for (const bit of [VERSION_1, RING_RESET, ACCESS_PLATFORM, 50, 63]) {
        assert(hasFeature(features, bit), `bit ${bit}`);
      }
    }),
);

cleanTest("carrier: ACCESS_PLATFORM is offered, and told only a device that has it", () =>
  withFake(
    async (device, fake) => {
      assert(hasFeature(await device.features(2), RingFeature.ACCESS_PLATFORM));
      assertEquals(await negotiate(device, [0x21, 3]), ACKNOWLEDGE | DRIVER | FEATURES_OK);
      assertEquals(fake.accepted, [0x21, 1]);
    },
    {},
    new FakeDevice(),
  ));

cleanTest(
  "carrier: features that the device refuses are refused",
  () =>
    withFake(async (device, fake) => {
      fake.acceptsFeatures = false;
      assertEquals(await negotiate(device, [0x21, 1]), ACKNOWLEDGE | DRIVER);
      fake.acceptsFeatures = true;
      assertEquals(await negotiate(device, [0x21, 1]), ACKNOWLEDGE | DRIVER | FEATURES_OK);
    }),
);

cleanTest(
  "carrier: configuration is the device's, its writes and refusals too",
  () =>
    withFake(async (device, fake) => {
      assertEquals([...await device.config(2, 4)], [3, 4, 5, 6]);
      assert(await device.setConfig(4, Uint8Array.of(50, 60)));
      assertEquals([...fake.config.subarray(3, 7)], [4, 50, 60, 7]);
      assertEquals([...await device.config(3, 4)], [4, 50, 60, 7]);
      fake.acceptsConfig = false;
      assertEquals(await device.setConfig(4, Uint8Array.of(7)), false);
      assertEquals(fake.takeCalls(), ["config 4+2", "config 4+1"]);
    }),
);

for (const from of DIALECTS) {
  cleanTest(
    `carrier: a change of configuration is told once, and is another generation, ${from}`,
    () =>
      withFake(async (device, fake, rig) => {
        await negotiate(device, [0x21, 1]);
        const [before] = await device.config(0, 1);
        const { generation } = device;
        let events = 0;
        device.onConfig = () => events++;
        fake.config[0] = 99;
        fake.host.configChanged();
        await rig.wait(() => events > 0);
        assertEquals([before, ...await device.config(0, 1)], [1, 99]);
        assert(device.generation !== generation);
        await rig.reactor.sleep(100);
        assertEquals(events, 1);
      }, { from }),
  );
}

cleanTest(
  "carrier: a device that needs a reset needs one, until it is reset",
  () =>
    withFake(async (device, fake, { lines }) => {
      using memory = ownMemory(0x4000);
      await bringUp(device, memory);
      fake.host.needsReset("test");
      assertEquals(await device.status(), WHOLE | DEVICE_NEEDS_RESET);
      assertMatch(lines.join("\n"), /device 0 needs a reset: device 0 of in-process bus needs one/);
      await device.reset();
      assertEquals(await device.status(), 0);
      assert(fake.takeCalls().includes("stop 0"));
    }),
);

cleanTest(
  "carrier: rings are the driver's own, and DRIVER_OK is what starts them",
  () =>
    withFake(async (device, fake, rig) => {
      using memory = ownMemory(0x4000);
      fake.takeCalls();
      await bringUp(device, memory);
      await rig.wait(() => fake.calls.includes("resume"));
      assertEquals(fake.takeCalls().slice(0, 2), ["accept", "start 0"]);
      assertEquals(fake.setups[0]!.descriptorAddress, memory.at);
      assertEquals(fake.host.regions.map(({ at, size }) => [at, size]), [[memory.at, memory.size]]);
      device.available(0);
      await rig.wait(() => fake.calls.includes("available 0"));
      const used: number[] = [];
      device.onUsed = (queue) => used.push(queue);
      fake.host.used(0);
      await rig.wait(() => used.length > 0);
      fake.base = 5;
      assertEquals(await device.stopQueue(0), 5);
      await device.removeMemory(memory.at, memory.size);
      assertEquals(fake.host.regions, []);
      await device.reset();
    }),
);

cleanTest(
  "carrier: a queue that the device does not take makes it need a reset",
  () =>
    withFake(async (device, fake, { lines }) => {
      fake.startProblem = "no such thing";
      using memory = ownMemory(0x4000);
      await bringUp(device, memory);
      while ((await device.status() & DEVICE_NEEDS_RESET) === 0);
      assertMatch(lines.join("\n"), /device 0 needs a reset: the device did not take queue 0/);
    }),
);

cleanTest("carrier: unplugged and plugged", () =>
  withFake(async (device, fake, rig) => {
    const { devices, wait } = rig;
    using memory = ownMemory(0x4000);
    await bringUp(device, memory);
    await devices.remove(0);
    await wait(() => device.isRemoved);
    assert(fake.calls.includes("dispose"));
    await rig.reactor.sleep(2000);
    devices.add(0, new FakeDevice({ configSize: 20 }));
    await wait(() => device.isReady);
    assertEquals((await device.info()).configSize, 20);
    // One that nobody has asked for.
    const other = rig.driver.device(7);
    await assertRejects(() => other.info(), Error, "has no device 7");
    devices.add(7, new FakeDevice());
    await wait(() => other.isReady);
    assertEquals((await other.info()).deviceId, 1);
  }));

cleanTest("carrier: named devices only, under other numbers, and a limit", async () => {
  const models = () => ({ 0: new FakeDevice(), 3: new FakeDevice({ configSize: 8 }) });
  await withCarrier(async ({ driver, wait }) => {
    const [zero, one] = [driver.device(0), driver.device(1)];
    await wait(() => zero.isReady && one.isReady);
    assertEquals((await zero.info()).configSize, 8);
    await assertRejects(() => one.info(), Error, "has no device 1");
  }, { models, numbers: new Map([[3, 0]]) });
  await withCarrier(async ({ driver, wait, lines }) => {
    const [zero, three] = [driver.device(0), driver.device(3)];
    await wait(() => zero.isReady && three.isReady);
    assertEquals((await zero.info()).configSize, 12);
    await assertRejects(() => three.info(), Error, "has no device 3");
    assertMatch(lines.join("\n"), /device 3 is not carried: at most 1 are \(--limit\)/);
  }, { models, limit: 1 });
});

cleanTest(
  "carrier: a device that is lost and comes back is the driver's all the while",
  () =>
    withFake(async (device, fake, rig) => {
      using memory = ownMemory(0x4000);
      await bringUp(device, memory);
      await rig.wait(() => fake.calls.includes("resume"));
      const { session } = device;
      fake.takeCalls();
      rig.restartDevices();
      await rig.wait(() => fake.calls.includes("start 0"));
      assertEquals(fake.takeCalls().filter((call) => !call.startsWith("available")), [
        ...["stop 0", "accept", "start 0", "resume"],
      ]);
      assertEquals([device.session, await device.status()], [session, WHOLE]);
      await device.reset();
    }),
);

cleanTest(
  "carrier: one that comes back as another is removed, and added",
  () =>
    withFake(async (device, _fake, rig) => {
      using memory = ownMemory(0x4000);
      await bringUp(device, memory);
      const { session } = device;
      const removed = rig.devices.remove(0);
      rig.devices.options.bus.drop("before it is told");
      await removed;
      rig.devices.add(0, new FakeDevice({ configSize: 40 }));
      rig.restartDevices();
      await rig.wait(() => device.session !== session && device.isReady);
      assertEquals((await device.info()).configSize, 40);
      assertMatch(rig.lines.join("\n"), /device 0 is another one than before/);
    }),
);

cleanTest(
  "carrier: what is asked while the device is lost is answered when it is back",
  () =>
    withFake(async (device, _fake, rig) => {
      rig.devices.options.bus.drop("for a while");
      await rig.reactor.sleep(10);
      const asked = device.config(0, 1);
      await rig.reactor.sleep(100);
      rig.restartDevices();
      assertEquals([...await asked], [1]);
    }),
);

cleanTest(
  "carrier: a device that does not answer counts as broken, and serves again after a reset",
  () => {
    let late!: LateDevice;
    return withCarrier(async (rig) => {
      const device = rig.driver.device(0);
      await rig.wait(() => device.isReady);
      late.isLate = true;
      const read = device.config(0, 1);
      await assertRejects(() => read, Error);
      late.isLate = false;
      late.answer();
      await rig.reactor.sleep(5000);
      await device.reset();
      assertEquals([...await device.config(0, 1)], [1]);
    }, { models: (reactor) => ({ 0: late = new LateDevice(reactor) }) });
  },
);

for (const copied of [false, true]) {
  cleanTest(
    `carrier: entropy, while the device is started again, ${copied ? "copied" : "own rings"}`,
    () =>
      withCarrier(async ({ reactor, driver: side, log, restartDevices }) => {
        using memory = ownMemory(1 << 20);
        const options = { memory, number: 0, rings: "split", ...RNG_DRIVER } as const;
        using driver = new RequestDriver(reactor, side, log, options);
        let bytes = 0, pieces = 0;
        await readEntropy(driver, 100_000, (piece) => {
          bytes += piece.length;
          if (++pieces % 4 === 0) restartDevices();
        });
        assertEquals(bytes, 100_000);
      }, { models: (reactor) => ({ 0: rngDevice(reactor) }), copied }),
  );
}

cleanTest(
  "carrier: many come and go, few at a time",
  () =>
    withCarrier(async ({ driver, devices, wait, lines }) => {
      await wait(() => driver.isReady);
      for (let number = 10; number < 20; number++) {
        const device = driver.device(number);
        await assertRejects(() => device.info());
        devices.add(number, new FakeDevice());
        await wait(() => device.isReady);
        if (number === 19) break;
        await devices.remove(number);
        await wait(() => device.isRemoved);
      }
      assert(!/--limit/.test(lines.join("\n")));
      const [other, waits] = [driver.device(30), driver.device(31)];
      for (const device of [other, waits]) await assertRejects(() => device.info());
      devices.add(30, new FakeDevice());
      await wait(() => other.isReady);
      devices.add(31, new FakeDevice());
      await wait(() => /device 31 is not carried/.test(lines.join("\n")));
      await assertRejects(() => waits.info());
      await devices.remove(19);
      await wait(() => waits.isReady);
      assertEquals((await waits.info()).deviceId, 1);
    }, { models: () => ({}), limit: 2 }),
);
