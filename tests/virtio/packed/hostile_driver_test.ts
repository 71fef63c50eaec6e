/**
 * Drivers of packed rings that break the rules: each row is one thing the device must notice, or must not be misled
 * by. Nothing throws, no byte outside the buffers changes.
 */

import { assertEquals, assertStringIncludes } from "@std/assert";
import { Chain, type DeviceQueue, openDeviceQueue, Pop } from "../../../src/virtio/queue/mod.ts";
import { MockMemory } from "../../support/mock_driver.ts";
import { MockPackedDriver, type MockPackedOptions } from "../../support/mock_packed_driver.ts";

const NEXT = 1, WRITE = 2, INDIRECT = 4, AVAIL = 1 << 7, USED = 1 << 15;
const LOW = 0x4000_0000, LOW_SIZE = 0x10000, SIZE = 8;
const chain = new Chain();

interface Ring {
  readonly memory: MockMemory;
  readonly driver: MockPackedDriver;
  readonly queue: DeviceQueue;
  /** Free memory of 8 KiB. */
  readonly data: number;
}

function withRing(options: Partial<MockPackedOptions>, body: (ring: Ring) => void): void {
  using memory = new MockMemory([{ at: LOW, size: LOW_SIZE }]);
  const driver = new MockPackedDriver(memory, { size: SIZE, ...options });
  const queue = openDeviceQueue(memory.space, driver.config);
  if (typeof queue === "string") throw new Error(queue);
  body({ memory, driver, queue, data: driver.end });
  memory.checkGuards();
}

interface Row {
  readonly name: string;
  readonly reason: string;
  readonly indirect?: boolean;
  readonly act: (driver: MockPackedDriver, data: number) => void;
}

const rows: Row[] = [
  {
    name: "a chain that goes round the whole ring",
    reason: "more descriptors than are not out of the queue's 8",
    act: (d, data) => {
      for (let i = 0; i < SIZE; i++) d.desc(d.slot(i), data, 1, 0, AVAIL | NEXT);
    },
  },
  {
    name: "the same of empty descriptors",
    reason: "more descriptors",
    act: (d) => {
      for (let i = 0; i < SIZE; i++) d.desc(d.slot(i), 0, 0, 0, AVAIL | NEXT);
    },
  },
  {
    name: "one byte before the window",
    reason: "outside",
    act: (d) => d.desc(d.slot(0), LOW - 1, 2, 0, AVAIL),
  },
  {
    name: "one byte behind the window",
    reason: "outside",
    act: (d) => d.desc(d.slot(0), LOW + LOW_SIZE - 1, 2, 0, AVAIL | WRITE),
  },
  {
    name: "address + length wraps at 2^64",
    reason: "outside",
    act: (d) => d.desc(d.slot(0), 0xffff_ffff_ffff_fff0n, 32, 0, AVAIL | WRITE),
  },
  {
    name: "lengths add up to 2^32",
    reason: "2^32 bytes or more",
    act: (d, data) => {
      d.desc(d.slot(0), data, 1, 0, AVAIL | NEXT);
      d.desc(d.slot(1), data, 0xffff_ffff, 0, AVAIL);
    },
  },
  {
    name: "readable after writable",
    reason: "descriptor 1 is readable but follows a writable one",
    act: (d, data) => {
      d.desc(d.slot(0), data, 1, 0, AVAIL | NEXT | WRITE);
      d.desc(d.slot(1), data, 1, 0, AVAIL);
    },
  },
  {
    name: "an indirect table that was not negotiated",
    reason: "not negotiated",
    act: (d, data) => d.desc(d.slot(0), data, 16, 0, AVAIL | INDIRECT),
  },
  {
    name: "INDIRECT with NEXT",
    reason: "descriptor 0 is indirect in a chain",
    indirect: true,
    act: (d, data) => d.desc(d.slot(0), data, 16, 0, AVAIL | INDIRECT | NEXT),
  },
  {
    name: "an indirect table behind a direct descriptor",
    reason: "descriptor 1 is indirect in a chain",
    indirect: true,
    act: (d, data) => {
      d.desc(d.slot(0), data, 1, 0, AVAIL | NEXT);
      d.desc(d.slot(1), data, 16, 0, AVAIL | INDIRECT);
    },
  },
  {
    name: "an indirect table of 0 bytes",
    reason: "indirect table of 0 bytes",
    indirect: true,
    act: (d, data) => d.desc(d.slot(0), data, 0, 0, AVAIL | INDIRECT),
  },
  {
    name: "an indirect table of one and a half descriptors",
    reason: "indirect table of 24 bytes",
    indirect: true,
    act: (d, data) => d.desc(d.slot(0), data, 24, 0, AVAIL | INDIRECT),
  },
  {
    name: "an indirect table of more descriptors than the queue has",
    reason: "an indirect table of 9 descriptors, the queue has 8",
    indirect: true,
    act: (d, data) => d.desc(d.slot(0), data, 16 * 9, 0, AVAIL | INDIRECT),
  },
  {
    name: "an indirect table that ends behind the window",
    reason: "indirect table at",
    indirect: true,
    act: (d) => d.desc(d.slot(0), LOW + LOW_SIZE - 16, 32, 0, AVAIL | INDIRECT),
  },
  {
    name: "an indirect table that names what is outside",
    reason: "outside",
    indirect: true,
    act: (d, data) => {
      d.desc(data, 1, 100, 0, WRITE);
      d.desc(d.slot(0), data, 16, 0, AVAIL | INDIRECT);
    },
  },
];

for (const { name, reason, indirect = false, act } of rows) {
  Deno.test(`hostile packed ring: ${name}`, () => {
    withRing({ indirect }, ({ driver, queue, data }) => {
      act(driver, data);
      assertEquals(queue.next(chain), Pop.BROKEN);
      assertStringIncludes(queue.broken!, reason);
      assertEquals([queue.inFlight, queue.base, queue.publish()], [0, 0, false]);
    });
  });
}

Deno.test("packed ring: what is not available in this lap is not taken", () => {
  for (const flags of [0, AVAIL | USED, USED, USED | NEXT, USED | INDIRECT]) {
    withRing({}, ({ driver, queue, data }) => {
      driver.desc(driver.slot(0), data, 1, 0, flags);
      assertEquals([queue.next(chain), queue.pending(), queue.broken], [Pop.EMPTY, 0, undefined]);
    });
  }
});

Deno.test("hostile packed ring: a buffer that is still out is made available in the next lap", () => {
  withRing({ size: 2 }, ({ driver, queue, data }) => {
    for (let i = 0; i < 2; i++) driver.desc(driver.slot(i), data, 1, i, AVAIL);
    assertEquals([queue.next(chain), queue.next(chain)], [Pop.CHAIN, Pop.CHAIN]);
    assertEquals(queue.next(chain), Pop.EMPTY);
    driver.desc(driver.slot(0), data, 1, 0, USED);
    assertEquals(queue.next(chain), Pop.BROKEN);
    // Those popped before are completed all the same.
    queue.complete(0, 0);
    queue.complete(1, 0);
    queue.publish();
    assertEquals([driver.flagsAt(0), driver.flagsAt(1)], [AVAIL | USED, AVAIL | USED]);
  });
});

Deno.test("hostile packed ring: a chain runs into buffers that are out", () => {
  withRing({ size: 4 }, ({ driver, queue, data }) => {
    for (let i = 0; i < 2; i++) driver.desc(driver.slot(i), data, 1, i, AVAIL);
    queue.next(chain);
    queue.next(chain);
    for (let i = 2; i < 4; i++) driver.desc(driver.slot(i), data, 1, i, AVAIL | NEXT);
    assertEquals(queue.next(chain), Pop.BROKEN);
    assertStringIncludes(queue.broken!, "not out");
  });
});

Deno.test("packed ring: any id is handed back as it came, also what is rewritten in flight", () => {
  withRing({}, ({ memory, driver, queue, data }) => {
    driver.desc(driver.slot(0), data, 4, 0xffff, AVAIL | WRITE);
    queue.next(chain);
    memory.write16(driver.slot(0) + 12, 3);
    memory.write32(driver.slot(0) + 8, 0xffff_ffff);
    queue.complete(chain.head, 4);
    queue.publish();
    const at = driver.slot(0);
    assertEquals([chain.head, memory.read16(at + 12), memory.read32(at + 8)], [0xffff, 0xffff, 4]);
  });
});

Deno.test("packed ring: flags but WRITE mean nothing in an indirect table", () => {
  withRing({ indirect: true }, ({ driver, queue, data }) => {
    driver.desc(data, data + 64, 4, 0, NEXT | INDIRECT | AVAIL | USED);
    driver.desc(data + 16, data + 128, 5, 0, WRITE);
    driver.desc(driver.slot(0), data, 32, 7, AVAIL | INDIRECT | WRITE);
    assertEquals([queue.next(chain), chain.head], [Pop.CHAIN, 7]);
    assertEquals([chain.readable.length, chain.writable.length], [4, 5]);
  });
});

Deno.test("packed ring: where it cannot begin, it is not opened", () => {
  using memory = new MockMemory([{ at: LOW, size: LOW_SIZE }]);
  const { config } = new MockPackedDriver(memory, { size: SIZE });
  const open = (change: object) => openDeviceQueue(memory.space, { ...config, ...change });
  for (const base of [SIZE, 0x8000 + SIZE, 0x10000, -1, 0.5]) {
    assertEquals(typeof open({ base }), "string");
  }
  assertStringIncludes(open({ driverAddress: config.driverAddress + 2 }) as string, "aligned to 4");
  assertStringIncludes(open({ anyOrder: true }) as string, "in order only");
  assertEquals(typeof open({ base: 0x8000 + SIZE - 1 }), "object");
});
