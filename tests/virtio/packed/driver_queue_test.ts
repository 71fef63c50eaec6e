/** The driver's side of a packed ring, against a device written out by hand, and against our own. */

import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { PackedDriverQueue } from "../../../src/virtio/packed/driver_queue.ts";
import { Chain, openDeviceQueue, Pop } from "../../../src/virtio/queue/mod.ts";
import { MockMemory, Random } from "../../support/mock_driver.ts";

const AT = 0x1_4000_0000;
const [NEXT, WRITE, INDIRECT, AVAIL, USED] = [1, 2, 4, 1 << 7, 1 << 15];

/** A ring, and raw access to it from the device's side. */
function setUp({ size = 8, eventIndex = false, indirect = false, inOrder = false } = {}) {
  const memory = new MockMemory([{ at: AT, size: 1 << 18 }]);
  const place = { memory: memory.memory, offset: memory.offset(AT), size: 1 << 18, at: AT };
  const options = { place, size, eventIndex, indirect, inOrder };
  const queue = new PackedDriverQueue(options);
  const { descriptorAddress, driverAddress, deviceAddress } = queue;
  return {
    memory,
    queue,
    options,
    data: AT + 0x20000,
    desc: (i: number, table = descriptorAddress) => ({
      address: memory.read32(table + 16 * i + 4) * 2 ** 32 + memory.read32(table + 16 * i),
      length: memory.read32(table + 16 * i + 8),
      id: memory.read16(table + 16 * i + 12),
      flags: memory.read16(table + 16 * i + 14),
    }),
    /** Writes a used descriptor of the first lap, or of the second. */
    use: (slot: number, id: number, length: number, flags = WRITE, lap = 0) => {
      memory.write32(descriptorAddress + 16 * slot + 8, length);
      memory.write16(descriptorAddress + 16 * slot + 12, id);
      const word = flags | (lap === 0 ? AVAIL | USED : 0);
      memory.write16(descriptorAddress + 16 * slot + 14, word);
    },
    wish: () => [memory.read16(driverAddress), memory.read16(driverAddress + 2)],
    setDeviceWish: (event: number, flags: number) => {
      memory.write16(deviceAddress, event);
      memory.write16(deviceAddress + 2, flags);
    },
    [Symbol.dispose]: () => {
      memory.checkGuards();
      memory[Symbol.dispose]();
    },
  };
}

Deno.test("packed driver: descriptors as the specification says, and the first one's flags last", () => {
  using s = setUp();
  const addresses = new Float64Array([s.data + 16, s.data + 32, s.data + 48]);
  assert(s.queue.add(addresses, new Uint32Array([1, 2, 3]), 2, 1, 8));
  assert(s.queue.addOne(s.data, 100, true, 7));
  assertEquals([s.desc(0).flags, s.queue.free], [0, 4]);
  assert(s.queue.publish());
  const [first, other] = [s.desc(2).id, s.desc(3).id];
  assertEquals(s.desc(0), { address: s.data + 16, length: 1, id: first, flags: NEXT | AVAIL });
  assertEquals(s.desc(1), { address: s.data + 32, length: 2, id: first, flags: NEXT | AVAIL });
  assertEquals(s.desc(2), { address: s.data + 48, length: 3, id: first, flags: WRITE | AVAIL });
  assertEquals(s.desc(3), { address: s.data, length: 100, id: other, flags: WRITE | AVAIL });
  assert(first !== other && !s.queue.nextUsed());
  // Used out of order: where the next one must be, over as many slots as its buffer had.
  s.use(0, other, 50);
  assert(s.queue.nextUsed());
  assertEquals([s.queue.usedToken, s.queue.usedLength, s.queue.free], [7, 50, 5]);
  s.use(1, first, 3);
  assert(s.queue.nextUsed() && !s.queue.nextUsed());
  assertEquals([s.queue.usedToken, s.queue.usedLength, s.queue.free], [8, 3, 8]);
  // The second lap's flags are the other way round.
  for (let i = 0; i < 5; i++) assert(s.queue.addOne(s.data, 10, false, i));
  s.queue.publish();
  assertEquals([s.desc(7).flags, s.desc(0).flags], [AVAIL, USED]);
});

Deno.test("packed driver: tables, and who wants to be told when", () => {
  using s = setUp({ indirect: true, eventIndex: true });
  const addresses = Float64Array.from({ length: 3 }, (_, i) => s.data + 16 * i);
  assert(s.queue.add(addresses, new Uint32Array(3).fill(16), 1, 2, 0));
  s.setDeviceWish(1 | 0x8000, 2);
  assert(!s.queue.publish(), "descriptor 1 is not passed");
  assert(!s.queue.publish() && s.queue.suppressed === 1, "nothing to show saves no kick");
  const { address, length, flags } = s.desc(0);
  assertEquals([length, flags], [48, INDIRECT | AVAIL]);
  for (let i = 0; i < 3; i++) {
    const { address: at, flags } = s.desc(i, address);
    assertEquals([at, flags], [addresses[i], i === 0 ? 0 : WRITE]);
  }
  s.queue.addOne(s.data, 16, true, 1);
  assert(s.queue.publish() && s.queue.suppressed === 1);
  assert(!s.queue.wantCalls());
  assertEquals(s.wish(), [0x8000, 2]);
  s.use(0, s.desc(0).id, 5);
  assert(s.queue.wantCalls(), "look again");
});

Deno.test("packed driver: with IN_ORDER one used descriptor stands for those before it", () => {
  using s = setUp({ inOrder: true });
  for (let i = 0; i < 4; i++) s.queue.addOne(s.data, 10 + i, i !== 1, i);
  s.queue.publish();
  s.use(0, s.desc(2).id, 5);
  const taken = [];
  while (s.queue.nextUsed()) taken.push([s.queue.usedToken, s.queue.usedLength]);
  assertEquals([taken, s.queue.free], [[[0, 10], [1, 0], [2, 5]], 7]);
  s.use(3, s.desc(3).id, 0);
  assert(s.queue.nextUsed() && s.queue.usedToken === 3);
});

Deno.test("packed driver: the device keeps one buffer while more than the ring has come and go", () => {
  using s = setUp();
  const add = (token: number) => {
    s.queue.addOne(s.data, 10, true, token);
    s.queue.publish();
    return token % 8;
  };
  const kept = s.desc(add(0)).id;
  for (let n = 1; n <= 20; n++) {
    const { id } = s.desc(add(n));
    // Where the next used descriptor must be: one behind, as one is kept.
    s.use((n - 1) % 8, id, 1, WRITE, Math.floor((n - 1) / 8) % 2);
    assert(s.queue.nextUsed() && s.queue.usedToken === n, s.queue.broken);
  }
  s.use(20 % 8, kept, 3, WRITE, 0);
  assert(s.queue.nextUsed(), s.queue.broken);
  assertEquals([s.queue.usedToken, s.queue.usedLength, s.queue.free], [0, 3, 8]);
});

Deno.test("packed driver: its region is as large as bytesNeeded", () => {
  for (const size of [1, 2, 256]) {
    for (const indirect of [false, true]) {
      const needed = PackedDriverQueue.bytesNeeded(size, indirect);
      using memory = new MockMemory([{ at: 0, size: needed }]);
      const place = { memory: memory.memory, offset: memory.offset(0), size: needed, at: 0 };
      const make = (size: number, room: number) =>
        new PackedDriverQueue({
          place: { ...place, size: room },
          size,
          indirect,
          eventIndex: false,
        });
      make(size, needed);
      memory.checkGuards();
      assertThrows(() => make(size, needed - 1), Error, "in a place of");
      assertThrows(() => make(12, needed), Error, "queue size");
    }
  }
});

const hostile: [string, string, (s: ReturnType<typeof setUp>) => void][] = [
  ["an id that is none", "buffer 8,", (s) => s.use(0, 8, 0)],
  ["an id of 65535", "buffer 65535,", (s) => s.use(0, 0xffff, 0)],
  ["an id that is not with it", "buffer 5,", (s) => s.use(0, 5, 0)],
  ["one that is added and not published", "buffer 2,", (s) => {
    s.queue.addOne(s.data, 10, true, 3);
    s.use(0, 2, 0);
  }],
  ["more bytes than the buffer has", "wrote 11 bytes to 10", (s) => s.use(0, 0, 11)],
  ["bytes in a readable buffer", "wrote 1 bytes to 0", (s) => s.use(0, 1, 1)],
];
for (const [name, reason, act] of hostile) {
  for (const inOrder of [false, true]) {
    Deno.test(`packed driver, hostile device: ${name}${inOrder ? ", in order" : ""}`, () => {
      using s = setUp({ inOrder });
      s.queue.addOne(s.data, 10, true, 1);
      s.queue.addOne(s.data, 10, false, 2);
      s.queue.publish();
      assertEquals([s.desc(0).id, s.desc(1).id], [0, 1]);
      act(s);
      assert(!s.queue.nextUsed());
      assertStringIncludes(s.queue.broken!, reason);
      assert(!s.queue.nextUsed() && !s.queue.wantCalls());
      assert(!s.queue.addOne(s.data, 1, false, 3));
    });
  }
}

Deno.test("packed driver, hostile device: the same buffer twice", () => {
  using s = setUp();
  for (const token of [1, 2]) s.queue.addOne(s.data, 10, true, token);
  s.queue.publish();
  s.use(0, 0, 0);
  s.use(1, 0, 0);
  assert(s.queue.nextUsed() && !s.queue.nextUsed());
  assertStringIncludes(s.queue.broken!, "buffer 0,");
});

for (let bits = 0; bits < 8; bits++) {
  const terms = { eventIndex: (bits & 1) > 0, indirect: (bits & 2) > 0, inOrder: (bits & 4) > 0 };
  const name = Object.entries(terms).filter(([, on]) => on).map(([term]) => term).join(", ");
  Deno.test(`packed driver and our device, end to end: ${name || "nothing else"}`, () => {
    const seed = Random.seed();
    console.log(`SEED=${seed}`);
    const random = new Random(seed);
    using s = setUp({ size: 32, ...terms });
    const areas = { ...s.queue, base: 0, packed: true };
    const device = openDeviceQueue(s.memory.space, { ...areas, ...terms });
    if (typeof device === "string") throw new Error(device);
    const chain = new Chain();
    const addresses = new Float64Array(5), lengths = new Uint32Array(5);
    const expected: { token: number; writable: number; length: number }[] = [];
    let added = 0, popped = 0, taken = 0, deviceAsleep = false, driverAsleep = false;
    while (taken < 20_000) {
      for (let n = random.below(12); n > 0; n--) {
        const readable = random.below(3), writable = random.below(3) + (readable > 0 ? 0 : 1);
        let bytes = 0;
        for (let i = 0; i < readable + writable; i++) {
          addresses[i] = s.data + random.below(0x10000);
          lengths[i] = 1 + random.below(1000);
          if (i >= readable) bytes += lengths[i]!;
        }
        if (!s.queue.add(addresses, lengths, readable, writable, added)) break;
        expected.push({ token: added++, writable: bytes, length: 0 });
      }
      if (s.queue.publish()) deviceAsleep = false;
      if (deviceAsleep) assertEquals(device.pending(), 0, "a kick is lost");
      else {
        for (let n = random.below(20); n > 0 && device.next(chain) === Pop.CHAIN; n--) {
          const buffer = expected[popped++ - taken]!;
          assertEquals(chain.writable.length, buffer.writable);
          device.complete(chain.head, buffer.length = random.below(buffer.writable + 1));
        }
        if (device.publish()) driverAsleep = false;
        if (random.chance(0.5)) deviceAsleep = !device.wantKicks();
        else device.noKicks();
      }
      if (driverAsleep) assert(!s.queue.nextUsed(), "a call is lost");
      else {
        for (let n = random.below(20); n > 0 && s.queue.nextUsed(); n--) {
          const { token, length } = expected.shift()!;
          taken++;
          assertEquals([s.queue.usedToken, s.queue.usedLength], [token, length]);
        }
        if (random.chance(0.5)) driverAsleep = !s.queue.wantCalls();
        else s.queue.noCalls();
      }
      assertEquals([device.broken, s.queue.broken], [undefined, undefined]);
    }
  });
}
