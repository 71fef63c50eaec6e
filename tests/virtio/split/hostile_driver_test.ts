/**
 * Drivers that break the rules: each row is one thing the device must notice. The queue breaks with the
 * reason named, nothing throws, no byte outside the buffers changes.
 */

import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { Chain, ChainBatch } from "../../../src/virtio/queue/chain.ts";
import { openDeviceQueue } from "../../../src/virtio/queue/mod.ts";
import { Pop } from "../../../src/virtio/queue/pop.ts";
import { MockDriver, MockMemory } from "../../support/mock_driver.ts";

const NEXT = 1, WRITE = 2, INDIRECT = 4;
const LOW = 0x4000_0000, HIGH = 0x1_0000_0000;
const LOW_SIZE = 0x10000, HIGH_SIZE = 0x8000;

interface Row {
  readonly name: string;
  readonly reason: string;
  readonly indirect?: boolean;
  /** What the driver does; `data` is free memory of 8 KiB. The offered head is 0 unless it returns one. */
  readonly act: (driver: MockDriver, data: number) => number | void;
}

const rows: Row[] = [
  { name: "head = size", reason: "head 8 is not", act: () => 8 },
  { name: "head = 65535", reason: "head 65535 is not", act: () => 65535 },
  {
    name: "a descriptor that is its own next",
    reason: "more descriptors than the queue (8)",
    act: (d, data) => d.desc(0, data, 1, NEXT, 0),
  },
  {
    name: "a loop of two",
    reason: "more descriptors",
    act: (d, data) => {
      d.desc(0, data, 1, NEXT, 1);
      d.desc(1, data, 1, NEXT, 0);
    },
  },
  {
    name: "a loop of empty descriptors",
    reason: "more descriptors",
    act: (d, data) => d.desc(0, data, 0, NEXT, 0),
  },
  {
    name: "next = size",
    reason: "next 8 is not in a table of 8",
    act: (d, data) => d.desc(0, data, 1, NEXT, 8),
  },
  { name: "address 0", reason: "0x0 (1 bytes) is outside", act: (d) => d.desc(0, 0, 1, 0) },
  {
    name: "one byte before a window",
    reason: "outside",
    act: (d) => d.desc(0, LOW - 1, 2, 0),
  },
  {
    name: "one byte behind a window",
    reason: "outside",
    act: (d) => d.desc(0, LOW + LOW_SIZE - 1, 2, WRITE),
  },
  {
    name: "one byte behind the high window",
    reason: "outside",
    act: (d) => d.desc(0, HIGH + HIGH_SIZE - 100, 101, WRITE),
  },
  {
    name: "the low half of an address alone would fit",
    reason: "outside",
    act: (d, data) => d.desc(0, BigInt(data) + (1n << 32n), 16, WRITE),
  },
  { name: "address 2^53", reason: "outside", act: (d) => d.desc(0, 1n << 53n, 1, 0) },
  {
    name: "an address above 2^53 that is not exact",
    reason: "outside",
    act: (d, data) => d.desc(0, (1n << 53n) + BigInt(data) + 1n, 16, 0),
  },
  {
    name: "address + length wraps at 2^64",
    reason: "outside",
    act: (d) => d.desc(0, 0xffff_ffff_ffff_fff0n, 32, WRITE),
  },
  {
    name: "address + length wraps at 2^32",
    reason: "outside",
    act: (d, data) => d.desc(0, data, 0xffff_ffff, WRITE),
  },
  {
    name: "lengths add up to 2^32",
    reason: "2^32 bytes or more",
    act: (d, data) => {
      d.desc(0, data, 1, NEXT, 1);
      d.desc(1, data, 0xffff_ffff, 0);
    },
  },
  {
    name: "readable after writable",
    reason: "descriptor 1 is readable but follows a writable one",
    act: (d, data) => {
      d.desc(0, data, 1, NEXT | WRITE, 1);
      d.desc(1, data, 1, 0);
    },
  },
  {
    name: "INDIRECT with NEXT",
    reason: "both INDIRECT and NEXT",
    indirect: true,
    act: (d, data) => d.desc(0, data, 16, INDIRECT | NEXT, 1),
  },
  {
    name: "an indirect table in an indirect table",
    reason: "of an indirect table is indirect",
    indirect: true,
    act: (d, data) => {
      d.tableDesc(data, 0, data, 16, INDIRECT);
      d.desc(0, data, 16, INDIRECT);
    },
  },
  {
    name: "an indirect table of 0 bytes",
    reason: "indirect table of 0 bytes",
    indirect: true,
    act: (d, data) => d.desc(0, data, 0, INDIRECT),
  },
  {
    name: "an indirect table of 24 bytes",
    reason: "indirect table of 24 bytes",
    indirect: true,
    act: (d, data) => d.desc(0, data, 24, INDIRECT),
  },
  {
    name: "an indirect table of 2^32 - 16 bytes",
    reason: "is too long",
    indirect: true,
    act: (d, data) => d.desc(0, data, 0xffff_fff0, INDIRECT),
  },
  {
    name: "an indirect table that ends one descriptor behind the window",
    reason: "outside of memory",
    indirect: true,
    act: (d) => d.desc(0, HIGH + HIGH_SIZE - 16, 32, INDIRECT),
  },
  {
    name: "an indirect table above 2^53",
    reason: "outside of memory",
    indirect: true,
    act: (d, data) => d.desc(0, (1n << 60n) + BigInt(data), 16, INDIRECT),
  },
  {
    name: "next behind the indirect table",
    reason: "next 2 is not in a table of 2",
    indirect: true,
    act: (d, data) => {
      d.tableDesc(data, 0, data, 1, NEXT, 1);
      d.tableDesc(data, 1, data, 1, NEXT, 2);
      d.desc(0, data, 32, INDIRECT);
    },
  },
  {
    name: "a loop in an indirect table",
    reason: "more descriptors",
    indirect: true,
    act: (d, data) => {
      d.tableDesc(data, 0, data, 0, NEXT, 1);
      d.tableDesc(data, 1, data, 0, NEXT, 0);
      d.desc(0, data, 32, INDIRECT);
    },
  },
  {
    name: "an indirect chain of more descriptors than the queue has",
    reason: "more descriptors",
    indirect: true,
    act: (d, data) => {
      for (let i = 0; i < 9; i++) d.tableDesc(data, i, data, 1, i < 8 ? NEXT : 0, i + 1);
      d.desc(0, data, 9 * 16, INDIRECT);
    },
  },
  {
    name: "direct and indirect descriptors together more than the queue has",
    reason: "more descriptors",
    indirect: true,
    act: (d, data) => {
      d.desc(0, data, 1, NEXT, 1);
      d.desc(1, data, 8 * 16, INDIRECT);
      for (let i = 0; i < 8; i++) d.tableDesc(data, i, data, 1, i < 7 ? NEXT : 0, i + 1);
    },
  },
  {
    name: "readable in the table after writable before it",
    reason: "readable but follows a writable one",
    indirect: true,
    act: (d, data) => {
      d.desc(0, data, 1, NEXT | WRITE, 1);
      d.desc(1, data, 16, INDIRECT);
      d.tableDesc(data, 0, data, 1, 0);
    },
  },
];

/** Runs `act` against a fresh queue and checks how that ends. */
function expectBroken(row: Row, indirect: boolean, start: number): void {
  using memory = new MockMemory([{ at: LOW, size: LOW_SIZE }, { at: HIGH, size: HIGH_SIZE }]);
  const driver = new MockDriver(memory, { size: 8, indirect, start });
  const queue = openDeviceQueue(memory.space, driver.config);
  if (typeof queue === "string") throw new Error(queue);
  const head = row.act(driver, driver.end) ?? 0;
  driver.offer(head);
  driver.publish();
  const before = memory.windows.map(({ at, size }) => memory.bytes(at, size).slice());

  const chain = new Chain(16);
  assertEquals(queue.next(chain), Pop.BROKEN);
  assertStringIncludes(queue.broken!, row.reason);
  assertEquals([chain.readable.count, chain.writable.count], [0, 0]);
  assertEquals([queue.base, queue.inFlight, queue.publish()], [start, 0, false]);
  assertEquals(queue.next(chain), Pop.BROKEN);
  queue.wantKicks();
  queue.noKicks();
  queue.stop();
  assertEquals(memory.windows.map(({ at, size }) => memory.bytes(at, size)), before);
  memory.checkGuards();
}

for (const row of rows) {
  Deno.test(`hostile driver: ${row.name}`, () => {
    for (const start of [0, 65535]) {
      // What is wrong without indirect descriptors must be noticed by both ways of walking.
      if (!row.indirect) expectBroken(row, false, start);
      expectBroken(row, true, start);
    }
  });
}

Deno.test("hostile driver: INDIRECT that was not negotiated", () => {
  const act = (d: MockDriver, data: number) => d.desc(0, data, 16, INDIRECT);
  expectBroken({ name: "", reason: "was not negotiated", act }, false, 0);
});

Deno.test("hostile driver: what comes before a bad chain in a batch is popped, completed and shown", () => {
  using memory = new MockMemory();
  const driver = new MockDriver(memory, { size: 8, start: 65534 });
  const queue = openDeviceQueue(memory.space, driver.config);
  if (typeof queue === "string") throw new Error(queue);
  for (let i = 0; i < 3; i++) driver.add([{ address: driver.end + 64 * i, length: 10 + i }], []);
  driver.desc(7, 0x7fff_0000, 16, 0);
  driver.offer(7);
  driver.publish();
  const batch = new ChainBatch(8, 16);
  assertEquals([queue.pop(batch, 8), queue.outcome, batch.count], [3, Pop.BROKEN, 3]);
  assertStringIncludes(queue.broken!, "descriptor 7: 0x7fff0000");
  batch.select(2);
  assertEquals([batch.readable.length, batch.segments.count, batch.segments.length], [12, 3, 33]);
  assertEquals([queue.pop(batch, 8), queue.outcome], [0, Pop.BROKEN]);
  queue.completeOldest(2);
  assertThrows(() => queue.completeOldest(2), Error, "cannot complete 2 of 1");
  queue.stop();
  assertEquals([driver.usedIndex, queue.base], [0, 0]);
});

Deno.test("hostile driver: the available index jumps by more than the queue has", () => {
  for (const [start, index] of [[0, 9], [0, 65535], [65530, 3], [5, 4]]) {
    using memory = new MockMemory();
    const driver = new MockDriver(memory, { size: 8, start });
    const queue = openDeviceQueue(memory.space, driver.config);
    if (typeof queue === "string") throw new Error(queue);
    driver.setAvailableIndex(index);
    assertEquals(queue.pending(), 0);
    assertStringIncludes(queue.broken!, `available index ${index}`);
    assertEquals(queue.next(new Chain(1)), Pop.BROKEN);
  }
});

Deno.test("hostile driver: more buffers out than the queue has entries", () => {
  using memory = new MockMemory();
  const driver = new MockDriver(memory, { size: 8 });
  const queue = openDeviceQueue(memory.space, driver.config);
  if (typeof queue === "string") throw new Error(queue);
  const chain = new Chain(1);
  for (let i = 0; i < 8; i++) driver.desc(i, driver.end, 1, 0);
  for (let i = 0; i < 8; i++) driver.offer(i);
  driver.publish();
  for (let i = 0; i < 8; i++) assertEquals(queue.next(chain), Pop.CHAIN);
  queue.complete(0, 0);
  driver.offer(0); // its completion is not published yet
  driver.publish();
  assertEquals(queue.next(chain), Pop.BROKEN);
  assertStringIncludes(queue.broken!, "1 ahead");
});

Deno.test("hostile driver: the same head twice is the driver's own trouble", () => {
  using memory = new MockMemory();
  const driver = new MockDriver(memory, { size: 8 });
  const queue = openDeviceQueue(memory.space, driver.config);
  if (typeof queue === "string") throw new Error(queue);
  const chain = new Chain(1);
  driver.desc(5, driver.end, 1, 0);
  driver.offer(5);
  driver.offer(5);
  driver.publish();
  assertEquals([queue.next(chain), queue.next(chain)], [Pop.CHAIN, Pop.CHAIN]);
  queue.complete(5, 0);
  queue.complete(5, 0);
  queue.publish();
  assertEquals(driver.usedIndex, 2);
});

Deno.test("hostile driver: rings that overlap each other harm nobody else", () => {
  using memory = new MockMemory();
  const driver = new MockDriver(memory, { size: 8 });
  const at = driver.descriptorAddress;
  const config = { ...driver.config, driverAddress: at, deviceAddress: at };
  const queue = openDeviceQueue(memory.space, config);
  if (typeof queue === "string") throw new Error(queue);
  const chain = new Chain(1);
  for (let i = 0; i < 100 && queue.next(chain) === Pop.CHAIN; i++) {
    queue.complete(chain.head, 0);
    queue.publish();
    queue.wantKicks();
  }
  memory.checkGuards();
});
