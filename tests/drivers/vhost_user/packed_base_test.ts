/** Where a packed ring goes on, as vhost-user front ends say it and are told. */

import { assertEquals } from "@std/assert";
import { Vring, type VringHost } from "../../../src/drivers/vhost_user/vrings.ts";
import { Reactor } from "../../../src/linux/reactor.ts";
import { MockMemory } from "../../support/mock_driver.ts";
import { MockPackedDriver } from "../../support/mock_packed_driver.ts";

const AT = 0x4000_0000, SIZE = 0x10000;

interface Ring {
  readonly memory: MockMemory;
  readonly driver: MockPackedDriver;
  readonly vring: Vring;
}

function withVring(
  isPacked: boolean,
  body: (ring: Ring) => void,
  start = { index: 0, odd: false },
): void {
  using reactor = new Reactor();
  using memory = new MockMemory([{ at: AT, size: SIZE }]);
  const driver = new MockPackedDriver(memory, { size: 8, start });
  const region = { at: AT, size: SIZE, memory: memory.memory, offset: memory.offset(AT) };
  const busAddress = (_ring: number, address: number) => address;
  const counters = { calls: 0 };
  const kicked = () => {};
  const host: VringHost = { reactor, isPacked, regions: [region], busAddress, kicked, counters };
  using vring = new Vring(host, 0);
  vring.size = 8;
  vring.addresses = {
    descriptor: driver.descriptorAddress,
    available: driver.driverAddress,
    used: driver.deviceAddress,
  };
  body({ memory, driver, vring });
}

Deno.test("vhost-user, packed ring: both positions and wrap counters, of which one counts", () => {
  withVring(true, ({ vring }) => {
    for (
      const [said, base] of [
        // Of a ring that begins: QEMU; DPDK, which leaves the used half out; User-Mode Linux.
        [0x8000_8000, 0],
        [0x0000_8000, 0],
        [0, 0],
        [0x8005_8005, 5],
        [0x0003_0003, 0x8003],
        [0x0000_8007, 7],
      ] as const
    ) {
      vring.setBase(said);
      assertEquals(vring.setup().base, base);
    }
    vring.stopped(5);
    assertEquals([vring.setup().base, vring.baseToSay], [5, 0x8005_8005]);
    vring.stopped(0x8003);
    assertEquals([vring.setup().base, vring.baseToSay], [0x8003, 0x0003_0003]);
  });
});

Deno.test("vhost-user, packed ring: what a device side has left in it knows better than a front end", () => {
  withVring(true, ({ memory, driver, vring }) => {
    vring.setBase(0x8000_8000);
    memory.write32(driver.deviceAddress, 0x0001_8003);
    assertEquals(vring.setup().base, 0x8003);
    // The same, asking for a kick at that descriptor.
    memory.write32(driver.deviceAddress, 0x0002_0003);
    assertEquals(vring.setup().base, 0x8003);
    // No position: the front end is believed.
    memory.write32(driver.deviceAddress, 0x0001_0008);
    assertEquals(vring.setup().base, 0);
  }, { index: 3, odd: true });
});

Deno.test("vhost-user, split ring: the available index, of 16 bits", () => {
  withVring(false, ({ memory, driver, vring }) => {
    memory.write32(driver.deviceAddress, 0x0001_8003);
    vring.setBase(0x1_0005);
    assertEquals([vring.setup().base, vring.baseToSay], [5, 5]);
  });
});
