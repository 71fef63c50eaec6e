/** The device's side of a split ring, against the mock driver: what it does step by step. */

import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { Chain, ChainBatch } from "../../../src/virtio/queue/chain.ts";
import { type DeviceQueue, openDeviceQueue } from "../../../src/virtio/queue/mod.ts";
import { Pop } from "../../../src/virtio/queue/pop.ts";
import type { QueueConfig } from "../../../src/virtio/queue/mod.ts";
import { needsEvent } from "../../../src/virtio/split/layout.ts";
import { MockDriver, type MockDriverOptions, MockMemory } from "../../support/mock_driver.ts";

const NEXT = 1, WRITE = 2, INDIRECT = 4;
const chain = new Chain();

function open(driver: MockDriver, overrides: Partial<QueueConfig> = {}): DeviceQueue {
  const queue = openDeviceQueue(driver.memory.space, { ...driver.config, ...overrides });
  if (typeof queue === "string") throw new Error(queue);
  return queue;
}

function setUp(options: Partial<MockDriverOptions> = {}, memory = new MockMemory()) {
  const driver = new MockDriver(memory, { size: 8, ...options });
  return {
    memory,
    driver,
    queue: open(driver),
    data: driver.end,
    [Symbol.dispose]() {
      memory.checkGuards();
      memory[Symbol.dispose]();
    },
  };
}

Deno.test("needsEvent is right at every wrap-around", () => {
  for (const old of [0, 1, 5, 0x7fff, 0x8000, 0xfff0, 0xffff]) {
    for (let moved = 0; moved < 40; moved++) {
      for (let ahead = -45; ahead < 45; ahead++) {
        const event = (old + ahead) & 0xffff;
        const expected = ahead >= 0 && ahead < moved;
        assertEquals(
          needsEvent(event, (old + moved) & 0xffff, old),
          expected,
          `${old} ${moved} ${ahead}`,
        );
      }
    }
  }
});

Deno.test("a buffer goes there and back", () => {
  using s = setUp();
  assertEquals(s.queue.next(chain), Pop.EMPTY);
  s.driver.desc(3, s.data, 100, NEXT, 5);
  s.driver.desc(5, s.data + 4096, 200, NEXT | WRITE, 1);
  s.driver.desc(1, s.data + 8192, 300, WRITE, 77); // next without NEXT is not looked at
  s.driver.offer(3);
  assertEquals(s.queue.next(chain), Pop.EMPTY, "not published yet");
  s.driver.publish();
  assertEquals(s.queue.pending(), 1);
  assertEquals(s.queue.next(chain), Pop.CHAIN);
  assertEquals(chain.head, 3);
  assertEquals(s.memory.ranges(chain.readable), [{ address: s.data, length: 100 }]);
  assertEquals(s.memory.ranges(chain.writable), [
    { address: s.data + 4096, length: 200 },
    { address: s.data + 8192, length: 300 },
  ]);
  assertEquals([chain.readable.length, chain.writable.length], [100, 500]);
  assertEquals([s.queue.base, s.queue.inFlight], [1, 1]);
  assertEquals(s.queue.next(chain), Pop.EMPTY);
  assertEquals(chain.readable.count, 0, "next forgets the last buffer");
  s.queue.complete(3, 321);
  assertEquals(s.driver.usedIndex, 0, "not published yet");
  assert(s.queue.publish());
  assert(!s.queue.publish(), "nothing new");
  assertEquals([s.driver.usedIndex, s.driver.usedElement(0)], [1, { head: 3, length: 321 }]);
});

Deno.test("openDeviceQueue refuses what cannot be a queue, with a reason", () => {
  const at = 0x1_0000_0000;
  using memory = new MockMemory([{ at, size: 0x10000 }, { at: at + 0x10000, size: 0x10000 }]);
  const driver = new MockDriver(memory, { size: 256 });
  const cases: [Partial<QueueConfig>, string][] = [
    [{ size: 0 }, "power of two"],
    [{ size: 3 }, "power of two"],
    [{ size: 65536 }, "power of two"],
    [{ size: -8 }, "power of two"],
    [{ size: 2.5 }, "power of two"],
    [{ size: NaN }, "power of two"],
    [{ base: 65536 }, "available index"],
    [{ base: -1 }, "available index"],
    [{ used: 65536 }, "used index"],
    [{ descriptorAddress: at + 8 }, "descriptor area at 0x100000008 is not aligned to 16"],
    [{ driverAddress: at + 1 }, "driver area at 0x100000001 is not aligned to 2"],
    [{ deviceAddress: at + 2 }, "device area at 0x100000002 is not aligned to 4"],
    [{ descriptorAddress: 0 }, "descriptor area at 0x0 (4096 bytes) is not inside"],
    [{ descriptorAddress: NaN }, "descriptor area"],
    [{ descriptorAddress: at + 0x1f010 }, "not inside one memory window"],
    [{ descriptorAddress: at + 0xff00 }, "not inside one memory window"], // over two windows
    [{ driverAddress: at + 0x20000 - 516 }, "driver area"],
    [{ deviceAddress: at + 0x20000 - 2052 }, "device area"],
    [{ deviceAddress: 2 ** 53 }, "device area"],
    [{ deviceAddress: 2 ** 64 }, "device area"],
    [{ deviceAddress: -4 }, "device area"],
  ];
  for (const [overrides, reason] of cases) {
    const result = openDeviceQueue(memory.space, { ...driver.config, ...overrides });
    assert(typeof result === "string", `accepted ${JSON.stringify(overrides)}`);
    assertStringIncludes(result, reason);
  }
  // The areas may end where a window ends.
  open(driver, { driverAddress: at + 0x20000 - 518, deviceAddress: at + 0x10000 - 2056 });
  open(driver, { descriptorAddress: at + 0xf000 });
});

Deno.test("a window that begins at an odd place in memory: rings are refused, buffers are not", () => {
  using memory = new MockMemory([
    { at: 0x1000, size: 0x10000 },
    { at: 0x100000, size: 0x10000 },
  ], 2);
  const driver = new MockDriver(memory, { size: 8 });
  const refused = openDeviceQueue(memory.space, driver.config);
  assert(typeof refused === "string");
  assertStringIncludes(refused, "not aligned in the memory behind it");
});

Deno.test("the largest queue", () => {
  using s = setUp({ size: 32768, start: 40000 }, new MockMemory([{ at: 0, size: 2 << 20 }]));
  for (let i = 0; i < 32768; i++) {
    s.driver.desc(i, s.data, 1, 0);
    s.driver.offer(i);
  }
  s.driver.publish();
  assertEquals(s.queue.pending(), 32768);
  for (let i = 0; i < 32768; i++) {
    if (i % 1024 === 0) s.queue.noKicks();
    assertEquals(s.queue.next(chain), Pop.CHAIN);
    s.queue.complete(i, 0);
  }
  s.queue.publish();
  assertEquals([s.driver.usedIndex, s.queue.base], [(40000 + 32768) & 0xffff, 7232]);
  assertEquals(s.queue.next(chain), Pop.EMPTY);
});

Deno.test("a queue of one entry", () => {
  using s = setUp({ size: 1, start: 65535 });
  for (let i = 0; i < 5; i++) {
    s.driver.desc(0, s.data, 10, WRITE);
    s.driver.offer(0);
    s.driver.publish();
    assertEquals(s.queue.next(chain), Pop.CHAIN);
    s.queue.complete(0, 10);
    assert(s.queue.publish());
  }
  assertEquals(s.queue.base, 4);
});

Deno.test("buffers may lie over adjacent windows and high up", () => {
  const at = 2 ** 40;
  const windows = [{ at: 0x1000, size: 0x8000 }, { at, size: 4096 }, { at: at + 4096, size: 4096 }];
  using s = setUp({}, new MockMemory(windows));
  s.driver.desc(0, at + 4000, 200, WRITE);
  s.driver.offer(0);
  s.driver.publish();
  assertEquals(s.queue.next(chain), Pop.CHAIN);
  assertEquals(chain.writable.count, 2);
  assertEquals(s.memory.ranges(chain.writable), [{ address: at + 4000, length: 200 }]);
  s.queue.complete(0, 200);
});

Deno.test("descriptors of length zero are skipped, wherever they point", () => {
  using s = setUp();
  s.driver.desc(0, s.data, 10, NEXT, 1);
  s.driver.desc(1, 0xffff_ffff_ffff_ffffn, 0, NEXT, 2);
  s.driver.desc(2, s.data + 64, 0, NEXT | WRITE, 3);
  s.driver.desc(3, s.data + 64, 20, WRITE);
  s.driver.desc(4, s.data, 0, 0);
  s.driver.offer(0);
  s.driver.offer(4);
  s.driver.publish();
  assertEquals(s.queue.next(chain), Pop.CHAIN);
  assertEquals([chain.readable.count, chain.writable.count], [1, 1]);
  assertEquals(s.queue.next(chain), Pop.CHAIN);
  assertEquals([chain.readable.count, chain.writable.count], [0, 0]);
});

Deno.test("indirect: a table, direct descriptors before a table, WRITE on the naming one ignored", () => {
  using s = setUp({ indirect: true });
  const table = s.data, data = s.data + 4098;
  s.driver.table(table + 2, [{ address: data, length: 5 }], [{ address: data + 5, length: 6 }]);
  s.driver.desc(0, table + 2, 32, INDIRECT | WRITE); // tables need no alignment
  s.driver.offer(0);
  s.driver.desc(1, data + 100, 7, NEXT, 2);
  s.driver.desc(2, table + 2, 32, INDIRECT);
  s.driver.offer(1);
  s.driver.desc(3, data, 1, NEXT, 4);
  s.driver.desc(4, data + 1, 1, 0);
  s.driver.offer(3);
  s.driver.publish();
  assertEquals(s.queue.next(chain), Pop.CHAIN);
  assertEquals(s.memory.ranges(chain.readable), [{ address: data, length: 5 }]);
  assertEquals(s.memory.ranges(chain.writable), [{ address: data + 5, length: 6 }]);
  assertEquals(s.queue.next(chain), Pop.CHAIN);
  assertEquals(s.memory.ranges(chain.readable), [
    { address: data + 100, length: 7 },
    { address: data, length: 5 },
  ]);
  assertEquals(chain.head, 1);
  assertEquals(s.queue.next(chain), Pop.CHAIN);
  assertEquals(chain.readable.length, 2);
});

Deno.test("a chain of exactly as many descriptors as the queue has, direct and indirect", () => {
  using s = setUp({ indirect: true });
  const elements = Array.from(
    { length: 8 },
    (_, i) => ({ address: s.data + 4096 + 64 * i, length: 1 }),
  );
  s.driver.add(elements, []);
  s.driver.publish();
  assertEquals(s.queue.next(chain), Pop.CHAIN);
  assertEquals(chain.readable.count, 8);
  s.queue.complete(chain.head, 0);
  s.queue.publish();
  s.driver.takeUsed();
  s.driver.add(elements, [], s.data);
  s.driver.publish();
  assertEquals(s.queue.next(chain), Pop.CHAIN);
  assertEquals(chain.readable.count, 8);
});

Deno.test("pop appends buffers; one that does not fit stays available", () => {
  using s = setUp();
  const batch = new ChainBatch(8, 4);
  for (let i = 0; i < 3; i++) {
    s.driver.add([], [{ address: s.data + 256 * i, length: 10 }, {
      address: s.data + 256 * i + 128,
      length: 5,
    }]);
  }
  s.driver.publish();
  assertEquals([s.queue.pop(batch, 1), s.queue.outcome], [1, Pop.CHAIN]);
  assertEquals([s.queue.pop(batch, 9), s.queue.outcome], [1, Pop.FULL]);
  const before = s.memory.ranges(batch.segments);
  assertEquals([s.queue.pop(batch, 1), s.queue.outcome], [0, Pop.FULL]);
  assertEquals([batch.count, batch.segments.count, batch.segments.length], [2, 4, 30]);
  assertEquals(s.memory.ranges(batch.segments), before);
  assertEquals([s.queue.inFlight, s.queue.base], [2, 2]);
  batch.clear();
  assertEquals([s.queue.pop(batch, 9), s.queue.outcome], [1, Pop.EMPTY]);
});

Deno.test("a chain that alone does not fit breaks the queue", () => {
  using s = setUp();
  const small = new Chain(2);
  s.driver.add([1, 2, 3].map((i) => ({ address: s.data + 64 * i, length: 1 })), []);
  s.driver.publish();
  assertEquals(s.queue.next(small), Pop.BROKEN);
  assertStringIncludes(s.queue.broken!, "more segments than the device takes");
});

Deno.test("rewind takes back the buffers popped last", () => {
  using s = setUp({ start: 65534 });
  const heads = [0, 1, 2, 3].map((i) => s.driver.add([{ address: s.data + i, length: 1 }], []));
  s.driver.publish();
  for (let i = 0; i < 4; i++) s.queue.next(chain);
  s.queue.complete(heads[0]!, 0);
  s.queue.rewind(2);
  assertEquals([s.queue.base, s.queue.inFlight], [0, 1]);
  s.queue.complete(heads[1]!, 0);
  assertEquals(s.queue.next(chain), Pop.CHAIN);
  assertEquals(chain.head, heads[2]);
  assertThrows(() => s.queue.rewind(2), Error, "cannot take back 2 of 1");
  assertThrows(() => s.queue.rewind(-1));
});

Deno.test("stop publishes, takes back, and leaves memory alone afterwards", () => {
  using s = setUp({ eventIndex: true, start: 65533 });
  const heads = [0, 1, 2, 3, 4].map((i) => s.driver.add([], [{ address: s.data + i, length: 1 }]));
  s.driver.publish();
  for (let i = 0; i < 4; i++) s.queue.next(chain);
  s.queue.complete(heads[0]!, 1);
  s.queue.complete(heads[1]!, 0);
  assert(s.queue.stop(), "used_event is the first entry: the driver wants to hear of it");
  assertEquals([s.queue.base, s.queue.inFlight, s.driver.usedIndex], [65535, 0, 65535]);
  const before = s.memory.bytes(s.driver.descriptorAddress, 0x4000).slice();
  assertEquals(s.queue.next(chain), Pop.EMPTY);
  assertEquals([s.queue.pending(), s.queue.wantKicks(), s.queue.publish()], [0, false, false]);
  s.queue.noKicks();
  assert(!s.queue.stop());
  assertEquals(s.memory.bytes(s.driver.descriptorAddress, 0x4000), before);
  // A successor goes on exactly there.
  const successor = open(s.driver, { base: s.queue.base });
  assertEquals(successor.pending(), 3);
  assertEquals(successor.next(chain), Pop.CHAIN);
  assertEquals(chain.head, heads[2]);
  successor.complete(heads[2]!, 1);
  successor.publish();
  assertEquals(s.driver.usedElement(65535), { head: heads[2]!, length: 1 });
});

Deno.test("a used index that differs from the base", () => {
  using s = setUp({ start: 100 });
  s.memory.write16(s.driver.deviceAddress + 2, 98);
  const queue = open(s.driver, { used: 98 });
  s.driver.add([{ address: s.data, length: 1 }], []);
  s.driver.publish();
  assertEquals(queue.next(chain), Pop.CHAIN);
  queue.complete(chain.head, 0);
  queue.publish();
  assertEquals([s.driver.usedIndex, queue.base], [99, 101]);
});

Deno.test("complete asserts order and length", () => {
  using s = setUp();
  const a = s.driver.add([], [{ address: s.data, length: 10 }])!;
  const b = s.driver.add([], [{ address: s.data, length: 10 }])!;
  s.driver.publish();
  assertThrows(() => s.queue.complete(a, 0), Error, "in flight");
  s.queue.next(chain);
  s.queue.next(chain);
  // The driver rewriting its ring changes nothing.
  s.memory.bytes(s.driver.driverAddress + 4, 16).fill(0xff);
  assertThrows(() => s.queue.complete(b, 0), Error, "oldest");
  assertThrows(() => s.queue.complete(a, 11), Error, "11 bytes written to a buffer of 10");
  assertThrows(() => s.queue.complete(a, -1));
  assertThrows(() => s.queue.complete(a, NaN));
  s.queue.complete(a, 10);
  s.queue.complete(b, 0);
});

Deno.test("without EVENT_IDX: flags say who wants to hear", () => {
  using s = setUp();
  s.driver.setUsedEvent(0xffff); // not looked at
  const turn = () => {
    s.driver.add([{ address: s.data, length: 1 }], []);
    const kick = s.driver.publish();
    s.queue.next(chain);
    s.queue.complete(chain.head, 0);
    const call = s.queue.publish();
    s.driver.takeUsed();
    return [kick, call];
  };
  assertEquals(turn(), [true, true]);
  s.queue.noKicks();
  s.driver.setAvailFlags(1);
  assertEquals([s.driver.usedFlags, ...turn()], [1, false, false]);
  s.driver.setAvailFlags(0xfffe); // only bit 0 counts
  assert(!s.queue.wantKicks());
  assertEquals([s.driver.usedFlags, ...turn()], [0, true, true]);
  s.driver.add([{ address: s.data, length: 1 }], []);
  s.driver.publish();
  assert(s.queue.wantKicks(), "a buffer has come meanwhile");
});

Deno.test("with EVENT_IDX: one kick and one call when asked for, around the wrap", () => {
  using s = setUp({ eventIndex: true, start: 65530 });
  s.driver.setAvailFlags(1); // not looked at
  for (let i = 0; i < 20; i++) {
    assert(!s.queue.wantKicks());
    assertEquals(s.driver.availEvent, (65530 + 3 * i) & 0xffff);
    const kicks = [], calls = [];
    s.driver.setUsedEvent(s.driver.seen);
    for (let k = 0; k < 3; k++) {
      s.driver.add([{ address: s.data, length: 1 }], []);
      kicks.push(s.driver.publish());
      s.queue.noKicks();
      assertEquals(s.queue.next(chain), Pop.CHAIN);
      s.queue.complete(chain.head, 0);
      calls.push(s.queue.publish());
      s.driver.takeUsed();
    }
    assertEquals(kicks, [true, false, false]);
    assertEquals(calls, [true, false, false]);
    assertEquals(s.driver.usedFlags, 0, "2.7.10.2: must be 0");
  }
});

Deno.test("with EVENT_IDX: a batch that passes used_event is told once", () => {
  using s = setUp({ eventIndex: true, start: 65534 });
  s.driver.setUsedEvent(0);
  for (let i = 0; i < 4; i++) s.driver.add([{ address: s.data, length: 1 }], []);
  s.driver.publish();
  const complete = () => {
    s.queue.next(chain);
    s.queue.complete(chain.head, 0);
  };
  complete();
  complete();
  assert(!s.queue.publish(), "entries 65534 and 65535");
  complete();
  complete();
  assert(s.queue.publish(), "entries 0 and 1");
});

Deno.test("a broken queue still completes what was popped before, and nothing else", () => {
  using s = setUp();
  const head = s.driver.add([{ address: s.data, length: 1 }], [])!;
  s.driver.desc(7, 0, 1, 0);
  s.driver.offer(7);
  s.driver.publish();
  assertEquals(s.queue.next(chain), Pop.CHAIN);
  assertEquals(s.queue.next(chain), Pop.BROKEN);
  const reason = s.queue.broken;
  s.queue.complete(head, 0);
  assert(s.queue.publish());
  s.driver.desc(7, s.data, 1, 0);
  assertEquals([s.queue.next(chain), s.queue.pending(), s.queue.wantKicks()], [
    Pop.BROKEN,
    0,
    false,
  ]);
  assertEquals(s.queue.broken, reason);
  s.queue.refuse("another reason");
  assertEquals(s.queue.broken, reason, "the first reason is kept");
  s.queue.stop();
  assertEquals(s.queue.base, 1);
});

Deno.test("rewinding a broken queue does not open it again", () => {
  using s = setUp();
  s.driver.add([{ address: s.data, length: 1 }], []);
  s.driver.publish();
  s.queue.next(chain);
  s.queue.refuse("the device does not like it");
  s.queue.rewind(1);
  assertEquals(s.queue.next(chain), Pop.BROKEN);
});

Deno.test("the loop of the class's example", () => {
  using s = setUp({ eventIndex: true });
  const { queue } = s;
  for (let i = 0; i < 5; i++) s.driver.add([{ address: s.data, length: 100 + i }], []);
  s.driver.publish();
  let bytes = 0, calls = 0;
  do {
    queue.noKicks();
    while (queue.next(chain) === Pop.CHAIN) {
      bytes += chain.readable.length;
      queue.complete(chain.head, 0);
    }
    if (queue.publish()) calls++;
  } while (queue.wantKicks());
  assertEquals([bytes, calls, queue.broken], [510, 1, undefined]);
});
