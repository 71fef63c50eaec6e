/**
 * Property tests of a queue with physical addresses between a guest (the mock driver), whose pages are scattered,
 * and a device that knows no other addresses: random traffic as in shadow_queue_test.ts. The seed is printed;
 * SEED=... repeats a run.
 */

import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { PAGE_SIZE } from "../../src/linux/mapping.ts";
import type { TranslatedQueue } from "../../src/sharing/translated_queue.ts";
import { MockDriver, type MockElement, MockMemory, Random } from "../support/mock_driver.ts";
import { GUEST_AT, RawDevice, type SeenBuffer, segmentOf } from "../support/shadow_rig.ts";
import { LARGEST, type Setting, SLOT_SIZE, Traffic } from "../support/shadow_traffic.ts";
import { ScatteredMemory, translatedOf } from "../support/translated_rig.ts";

/** Room for the rings of any size here and their indirect tables. */
const RINGS_SIZE = 0x100000;

for (const eventIndex of [false, true]) {
  for (const indirect of [false, true]) {
    const name = `${eventIndex ? "EVENT_IDX" : "flags"}, ${indirect ? "" : "no "}indirect tables`;
    Deno.test(`direct: random traffic arrives whole, both ways: ${name}`, () => {
      const seed = Random.seed();
      console.log(`SEED=${seed}`);
      const random = new Random(seed);
      let full = 0, stops = 0, notifications = 0, pieces = 0, forwarded = 0, tables = 0;
      // More of them where a seed has it that something hardly happens.
      for (let round = 0; round < 10 || (round < 100 && (full <= 5 || stops <= 3)); round++) {
        const isTight = round % 3 === 1;
        const size = isTight ? 64 : random.pick([4, 64, 256]);
        const setting: Setting = {
          eventIndex,
          indirect,
          inOrder: random.chance(0.5),
          size,
          largest: isTight ? LARGEST : random.pick([1600, LARGEST]),
          start: random.pick([0, 65530, 32760]),
          hoards: isTight || random.chance(0.5),
          stops: round % 2 === 1,
        };
        // The smallest ring that takes the largest buffer of eight pieces each way; or one that is never full.
        const smallest = setting.largest === LARGEST ? 64 : 32;
        const maxSize = isTight ? smallest : random.pick([smallest, 1024]);
        using memory = new MockMemory([
          { at: GUEST_AT, size: 0x4000 },
          { at: GUEST_AT + 0x4000, size: SLOT_SIZE * size },
        ]);
        const scattered = new ScatteredMemory(
          memory,
          random,
          isTight ? 1 : random.pick([1, 4, 64]),
        );
        const rings = segmentOf(RINGS_SIZE);
        using _rings = rings.memory;
        const opened: { shadow: TranslatedQueue; device: RawDevice }[] = [];
        const traffic = new Traffic(memory, setting, random, {
          open(driver, base) {
            const shadow = translatedOf(driver, scattered.map, rings, maxSize, base);
            const device = new RawDevice(rings.memory, shadow.setup, eventIndex);
            opened.push({ shadow, device });
            return { shadow, device };
          },
          read: (elements) => scattered.read(elements),
          write: (elements, bytes) => scattered.write(elements, bytes),
        });
        traffic.run(600);
        memory.checkGuards();
        rings.memory.checkGuards();
        full += traffic.full;
        stops += traffic.stops;
        notifications += traffic.notifications;
        for (const { shadow, device } of opened) {
          pieces += shadow.pieces;
          forwarded += shadow.counters.forwarded;
          tables += device.tables;
        }
      }
      assert(full > 5 && stops > 3, `the test tests something: ${full} full, ${stops} stops`);
      assert(notifications > 0);
      assert(pieces > 2 * forwarded, `${pieces} pieces of ${forwarded} buffers`);
      assertEquals(tables > 100, indirect, `${tables} tables`);
    });
  }
}

const SIZE = 8;
const GUEST_SIZE = 0x200000;
const SECRET = 0x5e;
const NEXT = 1, WRITE = 2;

interface Rig {
  readonly guest: MockMemory;
  readonly scattered: ScatteredMemory;
  readonly driver: MockDriver;
  readonly queue: TranslatedQueue;
  readonly device: RawDevice;
  /** The guest's memory behind its rings, a page's beginning. */
  readonly data: number;
  /** One more queue for the same guest. */
  readonly next: (base: number) => { queue: TranslatedQueue; device: RawDevice };
}

/** A guest of secrets, every page of it by itself. */
function withRig(body: (rig: Rig) => void, maxSize = 256, size = SIZE): void {
  using guest = new MockMemory([{ at: GUEST_AT, size: GUEST_SIZE }]);
  const rings = segmentOf(RINGS_SIZE);
  using _rings = rings.memory;
  const driver = new MockDriver(guest, { size, eventIndex: true, indirect: true });
  const data = driver.end;
  guest.bytes(data, GUEST_AT + GUEST_SIZE - data).fill(SECRET);
  const scattered = new ScatteredMemory(guest, new Random(1), 1);
  const next = (base: number) => {
    const queue = translatedOf(driver, scattered.map, rings, maxSize, base);
    return { queue, device: new RawDevice(rings.memory, queue.setup, true) };
  };
  body({ guest, scattered, driver, data, next, ...next(0) });
  guest.checkGuards();
  rings.memory.checkGuards();
}

/** As ShadowDevice moves a queue. */
function move(queue: TranslatedQueue): void {
  queue.giveBack();
  queue.forward();
}

function popAll(device: RawDevice): SeenBuffer[] {
  const seen: SeenBuffer[] = [];
  for (let buffer; (buffer = device.pop()) !== undefined;) seen.push(buffer);
  return seen;
}

Deno.test("direct: a buffer of 17 pages takes 17 descriptors, one of 16 a table", () =>
  withRig(({ scattered, driver, queue, device, data, guest }) => {
    const contents = Uint8Array.from({ length: 17 * PAGE_SIZE }, (_, i) => i * 7 + (i >> 8));
    guest.bytes(data, contents.length).set(contents);
    for (const pages of [16, 17]) driver.add([{ address: data, length: pages * PAGE_SIZE }], []);
    driver.publish();
    move(queue);
    const [first, second] = popAll(device);
    assertEquals([first.readable.length, second.readable.length], [16, 17]);
    assertEquals(device.tables, 1);
    assertEquals(scattered.read(second.readable), contents);
    assertEquals(scattered.read(first.readable), contents.subarray(0, 16 * PAGE_SIZE));
    // The table's descriptor and the seventeen are free again, all of them.
    for (const buffer of [second, first]) device.use(buffer, 0);
    device.publish();
    move(queue);
    assertEquals([queue.shadow.free, driver.usedIndex], [queue.shadow.size, 2]);
  }));

Deno.test("direct: elements are joined where pages lie so, but never what is read with what is written", () => {
  using guest = new MockMemory([{ at: GUEST_AT, size: GUEST_SIZE }]);
  const rings = segmentOf(RINGS_SIZE);
  using _rings = rings.memory;
  const driver = new MockDriver(guest, { size: SIZE });
  const { map } = new ScatteredMemory(guest, new Random(1), 1 << 20);
  const queue = translatedOf(driver, map, rings, 256);
  const device = new RawDevice(rings.memory, queue.setup, false);
  const at = driver.end;
  driver.add([{ address: at, length: 100 }, { address: at + 100, length: 8000 }], [
    { address: at + 8100, length: 50 },
    { address: at + 8150, length: 5000 },
  ]);
  driver.publish();
  move(queue);
  const [{ readable, writable }] = popAll(device);
  assertEquals([readable, writable].map((list) => list.map(({ length }) => length)), [
    [8100],
    [5050],
  ]);
});

Deno.test("direct: long buffers make a batch shorter, for each of their pages is looked up", () => {
  using guest = new MockMemory([{ at: GUEST_AT, size: 4 * GUEST_SIZE }]);
  const rings = segmentOf(RINGS_SIZE);
  using _rings = rings.memory;
  const driver = new MockDriver(guest, { size: SIZE });
  const { map } = new ScatteredMemory(guest, new Random(1), 1 << 20);
  const queue = translatedOf(driver, map, rings, 256);
  // 1024 pages each, all in one piece.
  for (let i = 0; i < SIZE; i++) {
    driver.add([{ address: driver.end, length: 1024 * PAGE_SIZE }], []);
  }
  driver.publish();
  for (let forwarded = 1; forwarded <= SIZE; forwarded++) {
    move(queue);
    assertEquals([queue.counters.forwarded, queue.more], [forwarded, true]);
  }
  move(queue);
  assertEquals(queue.more, false);
});

Deno.test("direct: a ring that is too small delays, and the first buffer used moves on", () =>
  withRig(
    ({ driver, queue, device, data }) => {
      // Twenty pieces each: one table does not take them, and of 32 descriptors one buffer does.
      for (let i = 0; i < SIZE; i++) {
        driver.add([{ address: data + 20 * PAGE_SIZE * i, length: 20 * PAGE_SIZE }], []);
      }
      driver.publish();
      for (let i = 0; i < SIZE; i++) {
        move(queue);
        const seen = popAll(device);
        assertEquals([seen.length, queue.counters.forwarded], [1, i + 1]);
        device.use(seen[0], 0);
        assert(device.publish(), "the proxy is called for the room that has come free");
      }
      move(queue);
      assertEquals([driver.usedIndex, queue.broken], [SIZE, undefined]);
      assert(queue.counters.full >= SIZE - 1);
    },
    32,
  ));

Deno.test("direct: a guest of few entries may have buffers of many pieces", () =>
  withRig(
    ({ driver, queue, device, data }) => {
      driver.add([{ address: data, length: 64 }], [{ address: data, length: 40 * PAGE_SIZE }]);
      driver.publish();
      move(queue);
      assertEquals(queue.broken, undefined);
      assertEquals(popAll(device)[0].writable.length, 40);
    },
    256,
    2,
  ));

Deno.test("direct: a stop in mid-flight gives back what was used, the next device gets the rest", () =>
  withRig(({ scattered, driver, guest, queue, device, data, next }) => {
    for (let i = 0; i < 4; i++) driver.add([], [{ address: data + 8192 * i + 4000, length: 200 }]);
    driver.publish();
    move(queue);
    const seen = popAll(device);
    assertEquals(seen.map(({ writable }) => writable.length), [2, 2, 2, 2]);
    // Out of order: the third is forgotten by the stop, and used once more.
    for (const i of [0, 2]) {
      scattered.write(seen[i].writable, new Uint8Array(200).fill(0x70 + i));
      device.use(seen[i], 200);
    }
    device.publish();
    assertEquals(queue.stop(), 1);
    assertEquals(driver.usedIndex, 1);
    const { queue: second, device: secondDevice } = next(1);
    move(second);
    const again = popAll(secondDevice);
    assertEquals(
      again.map(({ writable }) => writable),
      seen.slice(1).map(({ writable }) => writable),
    );
    for (const buffer of again) {
      scattered.write(buffer.writable, new Uint8Array(200).fill(0x77));
      secondDevice.use(buffer, 200);
    }
    secondDevice.publish();
    move(second);
    assertEquals([driver.usedIndex, second.broken], [4, undefined]);
    for (let i = 0; i < 4; i++) {
      const expected = new Uint8Array(8192).fill(SECRET);
      expected.fill(i === 0 ? 0x70 : 0x77, 4000, 4200);
      assertEquals(guest.bytes(data + 8192 * i, 8192), expected);
    }
  }));

const DEVICES: Readonly<Record<string, [string, (rig: Rig, heads: number[]) => void]>> = {
  "uses a buffer that it was never given": ["which it does not have", ({ device }, heads) => {
    device.use({ head: [...Array(256).keys()].find((head) => !heads.includes(head))! }, 0);
    device.publish();
  }],
  "uses a buffer twice": ["which it does not have", ({ device }, [head]) => {
    device.use({ head }, 0);
    device.use({ head }, 0);
    device.publish();
  }],
  "says that it wrote one byte more than there was room": ["wrote 5001 bytes to 5000", (
    { device },
    [head],
  ) => {
    device.use({ head }, 5001);
    device.publish();
  }],
  "moves the used index too far": ["has used 5 of 4 buffers", ({ device }) => device.publish(5)],
};

for (const [name, [reason, act]] of Object.entries(DEVICES)) {
  Deno.test(`direct: a device that ${name}`, () =>
    withRig((rig) => {
      const { driver, queue, device, data, next } = rig;
      for (let i = 0; i < 4; i++) driver.add([], [{ address: data + 8192 * i, length: 5000 }]);
      driver.publish();
      move(queue);
      act(rig, popAll(device).map(({ head }) => head));
      queue.giveBack();
      assertStringIncludes(queue.broken ?? "not broken", reason);
      assertEquals([queue.forward(), queue.giveBack()], [false, false]);
      const base = queue.stop();
      assertEquals(base, driver.usedIndex);
      const second = next(base).queue;
      move(second);
      assertEquals([second.counters.forwarded, second.broken], [4 - base, undefined]);
    }));
}

const elsewhere: MockElement = { address: GUEST_AT + GUEST_SIZE, length: 64 };

const GUESTS: Readonly<Record<string, [string, (driver: MockDriver, data: number) => void]>> = {
  "reads from outside its memory": ["outside of memory", (driver) => driver.add([elsewhere], [])],
  "has the device write outside its memory": [
    "outside of memory",
    (driver) => driver.add([], [{ address: GUEST_AT + GUEST_SIZE - 63, length: 64 }]),
  ],
  "offers a buffer of no bytes": [
    "a buffer in 0 pieces",
    (driver, data) => driver.add([{ address: data, length: 0 }], []),
  ],
  "offers a buffer in more pieces than any ring takes": [
    "too many pieces",
    (driver, data) => driver.add([{ address: data, length: 257 * PAGE_SIZE }], []),
  ],
  "loops its descriptors": ["more descriptors", (driver, data) => {
    driver.desc(0, data, 1, NEXT, 0);
    driver.offer(0);
  }],
};

for (const [name, [reason, act]] of Object.entries(GUESTS)) {
  Deno.test(`direct: a guest that ${name}`, () =>
    withRig(({ driver, queue, device, data }) => {
      act(driver, data);
      driver.publish();
      move(queue);
      assertStringIncludes(queue.broken ?? "not broken", reason);
      assertEquals(device.pop(), undefined);
    }));
}

Deno.test("direct: a guest that offers more pieces than the device's ring has", () =>
  withRig(
    ({ driver, queue, device, data }) => {
      driver.add([{ address: data, length: 33 * PAGE_SIZE }], []);
      driver.publish();
      move(queue);
      assertStringIncludes(queue.broken ?? "not broken", "a buffer in 33 pieces, 1 to 32");
      assertEquals(device.pop(), undefined);
    },
    32,
  ));

Deno.test("direct: a guest that offers a buffer that takes too long to look up", () =>
  withRig(
    ({ driver, queue, device, data }) => {
      driver.add(Array(17).fill({ address: data, length: 1 << 20 }), []);
      driver.publish();
      move(queue);
      assertStringIncludes(queue.broken ?? "not broken", "at most 16777216 are taken");
      assertEquals(device.pop(), undefined);
    },
    256,
    32,
  ));

Deno.test("direct: a guest that rewrites a buffer in flight moves nothing", () =>
  withRig(({ scattered, driver, guest, queue, device, data }) => {
    const head = driver.add([], [{ address: data, length: 200 }])!;
    driver.publish();
    move(queue);
    driver.desc(head, data + 0x2000, 200, WRITE);
    const [seen] = popAll(device);
    scattered.write(seen.writable, new Uint8Array(200).fill(0x77));
    device.use(seen, 200);
    device.publish();
    move(queue);
    assertEquals([queue.broken, driver.usedElement(0)], [undefined, { head, length: 200 }]);
    const expected = new Uint8Array(0x4000).fill(SECRET);
    expected.fill(0x77, 0, 200);
    assertEquals(guest.bytes(data, 0x4000), expected);
  }));
