/** Slots larger than an SPSC queue's, as on the kernel's bridge. */

import { assertEquals } from "@std/assert";
import { Reactor } from "../../src/linux/reactor.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { createLog } from "../../src/observe/log.ts";
import { DeviceSide } from "../../src/transport/device_side.ts";
import { DriverSide } from "../../src/transport/driver_side.ts";
import { BRIDGE_SLOT } from "../message/bridge_kernel.ts";
import { FakeDevice } from "../support/fake_device.ts";
import { cleanTest } from "../support/leaks.ts";
import { slotBuses } from "../support/slot_bus.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

const LOG = createLog("test", "error", () => {});

cleanTest("GET_CONFIG and SET_CONFIG are as large as the bus carries", async () => {
  using reactor = new Reactor(new VirtualClock());
  const buses = slotBuses(reactor, BRIDGE_SLOT);
  const codec = codecFor("v1", BRIDGE_SLOT);
  using deviceSide = new DeviceSide({ reactor, bus: buses.device, codec, log: LOG });
  using driverSide = new DriverSide({ reactor, bus: buses.driver, codec, log: LOG });
  const model = new FakeDevice({ configSize: 250 });
  deviceSide.add(0, model);
  deviceSide.open();
  const device = driverSide.device(0);
  driverSide.open();
  await reactor.until((async () => {
    while (!device.isReady) await reactor.sleep(1);
    await device.info();
    const before = driverSide.counters.received;
    const bytes = await device.config(0, 250);
    assertEquals(driverSide.counters.received - before, 3, "108 bytes in an answer of 128");
    assertEquals(bytes, model.config);
    assertEquals(await device.setConfig(100, new Uint8Array(108).fill(0xaa)), true);
    assertEquals(model.takeCalls(), ["config 100+108"]);
    assertEquals(model.config.subarray(100, 208), new Uint8Array(108).fill(0xaa));
  })());
});
