/** Rings that are carried over for a driver whose memory may not be touched all the time. */

import { assertEquals } from "@std/assert";
import { Reactor } from "../../src/linux/reactor.ts";
import { createLog } from "../../src/observe/log.ts";
import { Forwarding, type ForwardingPlace } from "../../src/sharing/forwarding.ts";
import type { RemoteDevice } from "../../src/transport/remote_device.ts";
import { cleanTest } from "../support/leaks.ts";
import { MockDriver, MockMemory } from "../support/mock_driver.ts";
import { InOrderDevice, segmentOf, segmentSize, shadowOf } from "../support/shadow_rig.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

cleanTest(
  "forwarding: a driver's memory is touched while it may be, and not when the ring stops",
  async () => {
    using reactor = new Reactor(new VirtualClock());
    using guest = new MockMemory();
    const driver = new MockDriver(guest, { size: 8 });
    const { memory, place } = segmentOf(segmentSize(8, 4096));
    using _ = memory;
    const shadow = shadowOf(driver, place);
    const device = new InOrderDevice(memory, shadow.setup, false);
    const lent: Pick<ForwardingPlace, "addRegion" | "removeRegion" | "doubt" | "open"> = {
      addRegion: () => {},
      removeRegion: () => {},
      doubt: () => {},
      open: () => shadow,
    };
    let calls = 0, mayTouch = true;
    const forwarding = new Forwarding({
      reactor,
      device: { number: 0, available: () => {} } as unknown as RemoteDevice,
      place: { ...lent, announce: () => Promise.resolve(), divide: () => new Map() },
      position: 0,
      log: createLog("test", "error", () => {}),
    });
    const [{ at, size, offset }] = guest.windows;
    await forwarding.prepare([{ at, size, offset, memory: guest.memory }], [], {
      info: { deviceId: 4, vendorId: 0, featureBlocks: 2, configSize: 0, maxQueues: 1 },
      features: new Uint32Array(2),
    });
    const owner = { index: 0, call: () => calls++, fail: () => {}, mayTouch: () => mayTouch };
    const ring = forwarding.open(owner, driver.config, {
      features: new Uint32Array(2),
      maxSize: 8,
    });
    ring.start();
    const give = (): void => {
      driver.add([], [{ address: driver.end, length: 16 }]);
      driver.publish();
      ring.available();
    };
    const use = (): void => {
      device.use(device.pop()!, 4);
      device.publish();
      ring.used();
    };
    const turn = () => reactor.until(reactor.sleep(1));
    give();
    await turn();
    use();
    await turn();
    assertEquals([shadow.counters.forwarded, calls, driver.usedIndex], [1, 1, 1]);
    give();
    await turn();
    mayTouch = false;
    use();
    give();
    await turn();
    assertEquals(
      [shadow.counters.forwarded, calls, driver.usedIndex],
      [2, 1, 1],
      "neither given back nor taken",
    );
    mayTouch = true;
    ring.available();
    await turn();
    assertEquals([shadow.counters.forwarded, calls, driver.usedIndex], [3, 2, 2]);
    use();
    mayTouch = false;
    await turn();
    assertEquals([ring.stop(), driver.usedIndex], [2, 2], "what was used is done once more");
  },
);
