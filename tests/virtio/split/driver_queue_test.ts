/** The driver's side of a split ring, against a device written out by hand, and against our own. */

import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { Chain } from "../../../src/virtio/queue/chain.ts";
import { openDeviceQueue } from "../../../src/virtio/queue/mod.ts";
import { Pop } from "../../../src/virtio/queue/pop.ts";
import type { Place } from "../../../src/virtio/place.ts";
import { DriverQueue } from "../../../src/virtio/split/driver_queue.ts";
import { MockMemory, Random } from "../../support/mock_driver.ts";

const AT = 0x1_4000_0000;

interface Options {
  readonly size?: number;
  readonly eventIndex?: boolean;
  readonly indirect?: boolean;
}

/** A driver queue and raw access to its ring from the device's side. */
function setUp({ size = 8, eventIndex = false, indirect = false }: Options = {}) {
  const memory = new MockMemory([{ at: AT, size: 1 << 18 }]);
  const place = { memory: memory.memory, offset: memory.offset(AT), size: 1 << 18, at: AT };
  const options = { place, size, eventIndex, indirect };
  const queue = new DriverQueue(options);
  const { descriptorAddress, driverAddress, deviceAddress } = queue;
  let usedIndex = 0;
  return {
    memory,
    queue,
    options,
    data: AT + 0x20000,
    availIndex: () => memory.read16(driverAddress + 2),
    availHead: (i: number) => memory.read16(driverAddress + 4 + 2 * (i % size)),
    desc: (i: number, table = descriptorAddress) => ({
      low: memory.read32(table + 16 * i),
      high: memory.read32(table + 16 * i + 4),
      length: memory.read32(table + 16 * i + 8),
      flags: memory.read16(table + 16 * i + 12),
      next: memory.read16(table + 16 * i + 14),
    }),
    use: (head: number, length: number) => {
      memory.write32(deviceAddress + 4 + 8 * (usedIndex % size), head);
      memory.write32(deviceAddress + 8 + 8 * (usedIndex % size), length);
      usedIndex = (usedIndex + 1) & 0xffff;
      memory.write16(deviceAddress + 2, usedIndex);
    },
    setUsedIndex: (index: number) => memory.write16(deviceAddress + 2, index),
    setAvailEvent: (index: number) => memory.write16(deviceAddress + 4 + 8 * size, index),
    setUsedFlags: (flags: number) => memory.write16(deviceAddress, flags),
    usedEvent: () => memory.read16(driverAddress + 4 + 2 * size),
    availFlags: () => memory.read16(driverAddress),
    [Symbol.dispose]: () => {
      memory.checkGuards();
      memory[Symbol.dispose]();
    },
  };
}

Deno.test("the driver writes descriptors and heads as the specification says", () => {
  using s = setUp();
  assert(s.queue.addOne(s.data, 100, true, 7));
  const addresses = new Float64Array([s.data + 16, s.data + 32, s.data + 48]);
  assert(s.queue.add(addresses, new Uint32Array([1, 2, 3]), 2, 1, 8));
  assertEquals([s.availIndex(), s.queue.free], [0, 4]);
  assert(s.queue.publish());
  assertEquals([s.availIndex(), s.availHead(0), s.availHead(1)], [2, 0, 1]);
  const low = s.data % 2 ** 32, high = 1;
  assertEquals(s.desc(0), { low, high, length: 100, flags: 2, next: s.desc(0).next });
  assertEquals(s.desc(1), { low: low + 16, high, length: 1, flags: 1, next: 2 });
  assertEquals(s.desc(2), { low: low + 32, high, length: 2, flags: 1, next: 3 });
  assertEquals(s.desc(3), { low: low + 48, high, length: 3, flags: 2, next: s.desc(3).next });

  assert(!s.queue.nextUsed());
  s.use(1, 3);
  assert(s.queue.nextUsed());
  assertEquals([s.queue.usedToken, s.queue.usedLength, s.queue.free], [8, 3, 7]);
  s.use(0, 50);
  assert(s.queue.nextUsed());
  assertEquals([s.queue.usedToken, s.queue.usedLength, s.queue.free], [7, 50, 8]);
});

Deno.test("the driver's indirect tables", () => {
  using s = setUp({ indirect: true });
  const addresses = Float64Array.from({ length: 8 }, (_, i) => s.data + 16 * i);
  const lengths = new Uint32Array(8).fill(16);
  for (let i = 0; i < 8; i++) assert(s.queue.add(addresses, lengths, 3, 5, i));
  assertEquals(s.queue.free, 0);
  assert(!s.queue.addOne(s.data, 1, false, 99), "full");
  s.queue.publish();
  const tables = new Set<number>();
  for (let i = 0; i < 8; i++) {
    const naming = s.desc(s.availHead(i));
    assertEquals([naming.length, naming.flags], [128, 4]);
    const table = naming.high * 2 ** 32 + naming.low;
    tables.add(table);
    for (let k = 0; k < 8; k++) {
      const { low, length, flags, next } = s.desc(k, table);
      assertEquals([low, length], [addresses[k] % 2 ** 32, 16]);
      assertEquals(flags, (k < 7 ? 1 : 0) | (k < 3 ? 0 : 2));
      if (k < 7) assertEquals(next, k + 1);
    }
  }
  assertEquals(tables.size, 8);
});

Deno.test("the driver's region: bytesNeeded is enough and is needed", () => {
  for (const size of [1, 2, 8, 256, 1024]) {
    for (const indirect of [false, true]) {
      const needed = DriverQueue.bytesNeeded(size, indirect);
      using memory = new MockMemory([{ at: 0, size: needed }]);
      const place = { memory: memory.memory, offset: memory.offset(0), size: needed, at: 0 };
      const make = (change: Partial<Place>) =>
        new DriverQueue({ place: { ...place, ...change }, size, indirect, eventIndex: false });
      make({});
      memory.checkGuards();
      assertThrows(() => make({ size: needed - 1 }), Error, "in a place of");
      const late = memory.memory.size - needed + 16;
      assertThrows(() => make({ offset: late - late % 16 }), Error, "in a place of");
    }
  }
  using s = setUp();
  for (const wrong of [{ offset: 8 }, { at: AT + 8 }]) {
    const place = { ...s.options.place, ...wrong };
    assertThrows(() => new DriverQueue({ ...s.options, place }), Error, "not aligned");
  }
  assertThrows(() => new DriverQueue({ ...s.options, size: 12 }), Error, "queue size");
  const one = new Float64Array(20), lengths = new Uint32Array(20);
  assertThrows(() => s.queue.add(one, lengths, 0, 0, 0), Error, "0 elements");
  assertThrows(() => s.queue.add(one, lengths, 9, 0, 0), Error, "9 elements");
});

Deno.test("kicks and calls without EVENT_IDX", () => {
  using s = setUp();
  s.queue.addOne(s.data, 1, false, 0);
  assert(s.queue.publish());
  assert(!s.queue.publish(), "nothing new");
  s.setUsedFlags(1);
  s.queue.addOne(s.data, 1, false, 1);
  assert(!s.queue.publish());
  s.queue.noCalls();
  assertEquals(s.availFlags(), 1);
  assert(!s.queue.wantCalls());
  assertEquals(s.availFlags(), 0);
  s.use(0, 0);
  assert(s.queue.wantCalls(), "look again");
});

Deno.test("kicks and calls with EVENT_IDX", () => {
  using s = setUp({ eventIndex: true });
  s.setUsedFlags(1); // not looked at
  s.setAvailEvent(1);
  s.queue.addOne(s.data, 1, false, 0);
  assert(!s.queue.publish(), "entry 0");
  assert(!s.queue.publish() && s.queue.suppressed === 1, "nothing to show saves no kick");
  s.queue.addOne(s.data, 1, false, 1);
  s.queue.addOne(s.data, 1, false, 2);
  assert(s.queue.publish(), "entries 1 and 2");
  s.queue.noCalls();
  assertEquals(s.availFlags(), 0, "2.7.7.1: must be 0");
  s.use(0, 0);
  assert(s.queue.nextUsed());
  assert(!s.queue.wantCalls());
  assertEquals(s.usedEvent(), 1);
});

const hostile: [string, string, (s: ReturnType<typeof setUp>) => void][] = [
  ["a head that is not in the table", "buffer 8,", (s) => s.use(8, 0)],
  ["a head of 2^32 - 1", "buffer 4294967295,", (s) => s.use(0xffffffff, 0)],
  ["a head that was not lent", "buffer 5,", (s) => s.use(5, 0)],
  ["a head that is added but not published", "buffer 2,", (s) => {
    s.queue.addOne(s.data, 10, true, 3);
    s.use(2, 0);
  }],
  ["more bytes than the buffer has", "wrote 11 bytes to 10", (s) => s.use(0, 11)],
  ["bytes in a readable buffer", "wrote 1 bytes to 0", (s) => s.use(1, 1)],
  ["a used index too far ahead", "used 3 of 2", (s) => s.setUsedIndex(3)],
  ["a used index that goes back", "used 65535 of 2", (s) => s.setUsedIndex(65535)],
];
for (const [name, reason, act] of hostile) {
  Deno.test(`hostile device: ${name}`, () => {
    using s = setUp();
    s.queue.addOne(s.data, 10, true, 1);
    s.queue.addOne(s.data, 10, false, 2);
    s.queue.publish();
    act(s);
    assert(!s.queue.nextUsed());
    assertStringIncludes(s.queue.broken!, reason);
    assert(!s.queue.nextUsed() && !s.queue.wantCalls());
    assert(!s.queue.addOne(s.data, 1, false, 3));
    s.queue.reset();
    assertEquals([s.queue.broken, s.queue.free, s.availIndex()], [undefined, 8, 0]);
    s.queue.addOne(s.data, 10, true, 1);
    assert(s.queue.publish());
  });
}

Deno.test("hostile device: the same buffer twice", () => {
  using s = setUp();
  s.queue.addOne(s.data, 10, true, 1);
  s.queue.addOne(s.data, 10, true, 2);
  s.queue.publish();
  s.use(1, 0);
  s.use(1, 0);
  assert(s.queue.nextUsed());
  assert(!s.queue.nextUsed());
  assertStringIncludes(s.queue.broken!, "buffer 1,");
});

Deno.test("hostile device: what it writes into the driver's areas changes nothing", () => {
  using s = setUp();
  const addresses = new Float64Array([s.data, s.data + 100, s.data + 200]);
  const lengths = new Uint32Array([10, 10, 10]);
  s.queue.add(addresses, lengths, 1, 2, 1);
  s.queue.add(addresses, lengths, 1, 2, 2);
  s.queue.publish();
  s.memory.bytes(s.queue.descriptorAddress, 16 * 8 + 6 + 16).fill(0xff);
  s.use(3, 20);
  s.use(0, 20);
  assert(s.queue.nextUsed() && s.queue.usedToken === 2);
  assert(s.queue.nextUsed() && s.queue.usedToken === 1);
  for (let i = 0; i < 8; i++) assert(s.queue.addOne(s.data, 1, false, i));
  assertEquals(new Set([0, 1, 2, 3, 4, 5, 6, 7].map((i) => s.availHead(2 + i))).size, 8);
});

for (const eventIndex of [false, true]) {
  for (const indirect of [false, true]) {
    const name = `${eventIndex ? "EVENT_IDX" : "flags"}, ${indirect ? "indirect" : "direct"}`;
    Deno.test(`our driver and our device, end to end: ${name}`, () => {
      const seed = Random.seed();
      console.log(`SEED=${seed}`);
      const random = new Random(seed);
      using s = setUp({ size: 32, eventIndex, indirect });
      const device = openDeviceQueue(s.memory.space, { ...s.queue, base: 0, eventIndex, indirect });
      if (typeof device === "string") throw new Error(device);
      const chain = new Chain();
      const addresses = new Float64Array(20), lengths = new Uint32Array(20);
      const expected: { token: number; readable: number; writable: number; length: number }[] = [];
      let added = 0, popped = 0, taken = 0;
      let deviceAsleep = false, driverAsleep = false;
      // 70000 buffers: more than once around.
      while (taken < 70000) {
        const batch = random.below(12);
        for (let n = 0; n < batch; n++) {
          const readableCount = random.below(3),
            writableCount = random.below(3) + (readableCount ? 0 : 1);
          let readable = 0, writable = 0;
          for (let i = 0; i < readableCount + writableCount; i++) {
            addresses[i] = s.data + random.below(0x10000);
            lengths[i] = 1 + random.below(1000);
            if (i < readableCount) readable += lengths[i];
            else writable += lengths[i];
          }
          if (!s.queue.add(addresses, lengths, readableCount, writableCount, added)) break;
          expected.push({ token: added++, readable, writable, length: 0 });
        }
        if (s.queue.publish()) deviceAsleep = false;
        if (deviceAsleep) assertEquals(device.pending(), 0, "a kick is lost");
        if (!deviceAsleep) {
          for (let n = random.below(20); n > 0 && device.next(chain) === Pop.CHAIN; n--) {
            const buffer = expected[popped++ - taken];
            assertEquals(chain.readable.length, buffer.readable);
            assertEquals(chain.writable.length, buffer.writable);
            buffer.length = random.below(buffer.writable + 1);
            device.complete(chain.head, buffer.length);
          }
          if (device.publish()) driverAsleep = false;
          if (random.chance(0.5)) deviceAsleep = !device.wantKicks();
          else device.noKicks();
        }
        if (!driverAsleep) {
          for (let n = random.below(20); n > 0 && s.queue.nextUsed(); n--) {
            const buffer = expected.shift()!;
            taken++;
            assertEquals([s.queue.usedToken, s.queue.usedLength], [buffer.token, buffer.length]);
          }
          if (random.chance(0.5)) driverAsleep = !s.queue.wantCalls();
          else s.queue.noCalls();
        } else {
          assert(!s.queue.nextUsed(), "a call is lost");
        }
        assertEquals([device.broken, s.queue.broken], [undefined, undefined]);
      }
    });
  }
}
