/**
 * Rings read from outside, beside those who work on them: a driver's and a device's side of ours and the mock drivers, of both
 * formats, for many laps. What the two know and the ring says has to be the same after every step.
 */

import { assert, assertEquals } from "@std/assert";
import {
  Chain,
  type DeviceQueue,
  openDeviceQueue,
  openDriverRing,
  Pop,
} from "../../src/virtio/queue/mod.ts";
import { type ReadRing, readRing, type ReadTerms } from "../../src/virtio/queue/ring_reader.ts";
import { MockDriver, type MockElement, MockMemory, Random } from "../support/mock_driver.ts";
import { MockPackedDriver } from "../support/mock_packed_driver.ts";
import { readable } from "../support/readable_memory.ts";

const AT = 0x1_4000_0000, MEMORY = 0x40000, DATA = AT + 0x20000;
const chain = new Chain();

interface Setup {
  readonly size: number;
  readonly descriptorAddress: number;
  readonly driverAddress: number;
  readonly deviceAddress: number;
}

/** As somebody sees it who knows a device side of ours at the ring, unless told otherwise. */
function look(memory: MockMemory, setup: Setup, terms: Partial<ReadTerms> = {}, most = 64) {
  const all = { isPacked: false, eventIndex: false, isOurs: true, ...terms };
  const ring = readRing(readable(memory), setup, all, most);
  if (typeof ring === "string") throw new Error(ring);
  return ring;
}

const elementsOf = ({ buffers }: ReadRing) =>
  buffers.map(({ descriptors }) =>
    descriptors.map(({ address, length, writable }) => ({ address, length, writable }))
  );

for (const packed of [false, true]) {
  for (const eventIndex of [false, true]) {
    for (const inOrder of packed ? [false, true] : [false]) {
      const name = `${packed ? "packed" : "split"}${eventIndex ? ", EVENT_IDX" : ""}${
        inOrder ? ", IN_ORDER" : ""
      }`;
      Deno.test(`ring reader: what both sides do is what it says, lap after lap: ${name}`, () => {
        const random = new Random(Random.seed());
        console.log(`SEED=${random.seed}`);
        for (const indirect of [false, true]) {
          walk(random, { packed, eventIndex, inOrder, indirect });
        }
      });
    }
  }
}

function walk(
  random: Random,
  terms: { packed: boolean; eventIndex: boolean; inOrder: boolean; indirect: boolean },
): void {
  using memory = new MockMemory([{ at: AT, size: MEMORY }]);
  const size = random.pick([1, 4, 16]);
  const place = { memory: memory.memory, offset: memory.offset(AT), size: MEMORY, at: AT };
  const driver = openDriverRing({ place, size, ...terms });
  const opened = openDeviceQueue(memory.space, { ...setupOf(driver), ...terms, base: 0 });
  if (typeof opened === "string") throw new Error(opened);
  const device: DeviceQueue = opened;
  const isPacked = terms.packed, { eventIndex } = terms;
  // Buffers by token: [shown by the device | popped, completed or not | published | added].
  type Buffer = { address: number; length: number; writable: boolean }[];
  const buffers: Buffer[] = [];
  let [shown, completed, published, most] = [0, 0, 0, 0];
  const addresses = new Float64Array(3), lengths = new Uint32Array(3);
  const see = (isOurs = true) => look(memory, setupOf(driver), { isPacked, eventIndex, isOurs });
  for (let step = 0; step < 3000; step++) {
    const before = see();
    switch (random.below(6)) {
      case 0: {
        const count = 1 + random.below(Math.min(3, size));
        const reads = random.below(count + 1);
        for (let i = 0; i < count; i++) {
          addresses[i] = DATA + random.below(0x10000);
          lengths[i] = 1 + random.below(1000);
        }
        if (!driver.add(addresses, lengths, reads, count - reads, buffers.length)) break;
        buffers.push(Array.from({ length: count }, (_, i) => (
          { address: addresses[i]!, length: lengths[i]!, writable: i >= reads }
        )));
        break;
      }
      case 1: {
        const isNew = published < buffers.length;
        const kick = driver.publish();
        published = buffers.length;
        const { kicks } = see();
        if (kick) assert(kicks === "each" || kicks === "passed", kicks);
        else if (isNew && before.kicks === "ahead") assertEquals(kicks, "ahead");
        if (!eventIndex && isNew) assertEquals(kick, before.kicks === "each");
        break;
      }
      case 2:
        for (let n = random.below(4); n > 0 && device.next(chain) === Pop.CHAIN; n--) {
          device.complete(chain.head, random.below(chain.writable.length + 1));
          completed++;
        }
        break;
      case 3: {
        const call = device.publish();
        const { calls } = see();
        if (call) assert(calls === "each" || calls === "passed", calls);
        shown = completed;
        break;
      }
      case 4:
        while (driver.nextUsed());
        if (random.chance(0.5)) driver.wantCalls();
        else driver.noCalls();
        break;
      default:
        if (random.chance(0.5)) device.noKicks();
        else if (!device.wantKicks()) assert(!["none", "passed"].includes(see().kicks));
    }
    assertEquals([driver.broken, device.broken], [undefined, undefined]);
    const ring = see();
    const waiting = buffers.slice(shown, published);
    assertEquals([ring.pending, ring.isUpperBound, ring.isMoving, ring.problem], [
      waiting.length,
      false,
      false,
      undefined,
    ]);
    assertEquals(elementsOf(ring), waiting);
    assert(
      ring.buffers.every(({ descriptors, problem }) =>
        problem === undefined && descriptors.every(({ outside }) => !outside)
      ),
    );
    most = Math.max(most, waiting.length);
    // Of a device that leaves no place: never too few, but while a driver makes a buffer there is no telling.
    if (published < buffers.length) continue;
    const foreign = see(false);
    assert(foreign.pending >= waiting.length && foreign.pending <= size);
    assert(foreign.isUpperBound === (isPacked && foreign.pending > 0));
  }
  assert(published > 5 * size && most > 0, `${published} of ${size}, at most ${most}`);
}

function setupOf({ size, descriptorAddress, driverAddress, deviceAddress }: Setup): Setup {
  return { size, descriptorAddress, driverAddress, deviceAddress };
}

const element = (n: number): MockElement => ({ address: DATA + 256 * n, length: 100 + n });

Deno.test("ring reader: a split ring's words are those at the places of the specification", () => {
  using memory = new MockMemory([{ at: AT, size: MEMORY }]);
  const driver = new MockDriver(memory, { size: 8, eventIndex: true, start: 0xfffe });
  const heads = [0, 1, 2].map((n) => driver.add([element(n)], [element(n + 8)]));
  driver.publish();
  memory.write16(driver.deviceAddress, 1);
  memory.write16(driver.deviceAddress + 2, 0xffff);
  memory.write32(driver.deviceAddress + 4 + 8 * 6, heads[0]!);
  memory.write32(driver.deviceAddress + 8 + 8 * 6, 44);
  driver.setUsedEvent(0xfffe);
  const ring = look(memory, driver.config, { eventIndex: true }, 1);
  assertEquals(ring.indices, {
    "avail.idx": 1,
    "used.idx": 0xffff,
    "avail.flags": 0,
    "used.flags": 1,
    used_event: 0xfffe,
    avail_event: 0xfffe,
    "last used id": heads[0]!,
    "last used length": 44,
  });
  assertEquals([ring.pending, ring.kicks, ring.calls], [2, "passed", "passed"]);
  // One is shown, of two.
  assertEquals(ring.buffers.map(({ head }) => head), [heads[1]!]);
  assertEquals(elementsOf(ring), [[
    { ...element(1), writable: false },
    { ...element(9), writable: true },
  ]]);
  driver.setUsedEvent(0xffff);
  assertEquals(look(memory, driver.config, { eventIndex: true }).calls, "ahead");
  const { kicks, calls } = look(memory, driver.config);
  assertEquals([kicks, calls], ["none", "each"]);
});

Deno.test("ring reader: chains of direct and indirect descriptors, and what is wrong with one", () => {
  using memory = new MockMemory([{ at: AT, size: MEMORY }]);
  const driver = new MockDriver(memory, { size: 8, indirect: true });
  const table = DATA + 0x8000;
  driver.add([element(0), element(1)], [element(2)], table, 1);
  driver.publish();
  const only = () => look(memory, driver.config).buffers[0]!;
  assertEquals(only().descriptors.map(({ indirect }) => indirect), [false, true, true]);
  const head = only().head;
  const problemOf = (...desc: Parameters<MockDriver["desc"]>) => {
    driver.desc(...desc);
    return only().problem;
  };
  assertEquals(problemOf(head, DATA, 1, 1, 8), "there is no descriptor 8, of 8");
  assertEquals(problemOf(head, DATA, 1, 1, head), "it has more descriptors than the queue");
  assertEquals(only().descriptors.length, 8);
  assertEquals(problemOf(head, 0x10, 32, 4), "no indirect table of 32 bytes is at 0x10");
  assertEquals(
    problemOf(head, table, 31, 4),
    `no indirect table of 31 bytes is at 0x${table.toString(16)}`,
  );
  assertEquals(problemOf(head, table, 16 * 9, 4)?.startsWith("no indirect table of 144"), true);
  // An indirect one in a table.
  driver.tableDesc(table, 0, table, 16, 4);
  assertEquals(problemOf(head, table, 16, 4)?.startsWith("no indirect table of 16"), true);
  assertEquals(problemOf(head, AT + MEMORY - 8, 9, 0), undefined);
  assertEquals(only().descriptors.map(({ outside }) => outside), [true]);
  driver.setAvailableIndex(9);
  assertEquals(
    look(memory, driver.config).problem,
    "avail.idx 9 is 9 ahead of used.idx 0, the size is 8",
  );
  const setup = driver.config;
  const terms = { isPacked: false, eventIndex: false, isOurs: true };
  const refused = (wrong: Partial<Setup>) =>
    readRing(readable(memory), { ...setup, ...wrong }, terms, 8);
  assertEquals(refused({ size: 6 }), "the size 6 is none");
  for (const name of ["descriptorAddress", "driverAddress", "deviceAddress"]) {
    assertEquals(
      refused({ [name]: AT + MEMORY - 16 }),
      "not all of it lies in memory that can be read",
    );
  }
});

Deno.test("ring reader: a packed ring of a device that leaves no place has at most so many", () => {
  using memory = new MockMemory([{ at: AT, size: MEMORY }]);
  const driver = new MockPackedDriver(memory, {
    size: 8,
    start: { index: 6, odd: true },
    indirect: true,
  });
  const terms = { isPacked: true, isOurs: false };
  assertEquals(look(memory, driver.config, terms).pending, 0);
  driver.add([element(0), element(1)], [element(2)]);
  const id = driver.add([element(3)], [element(4)], DATA + 0x8000);
  driver.publish();
  const ring = look(memory, driver.config, terms);
  assertEquals(elementsOf(ring).map((one) => one.length), [3, 2]);
  assertEquals(ring.buffers[1]!.head, id!);
  assertEquals([ring.pending, ring.isUpperBound, ring.problem], [2, true, undefined]);
  assertEquals([ring.indices["driver's slot"], ring.indices["driver's wrap counter"]], [2, 1]);
  // Used: the first descriptor of the first chain, of the lap that has wrap counter 0.
  driver.desc(driver.slot(6), 0, 0, ring.buffers[0]!.head, 0);
  const after = look(memory, driver.config, terms);
  assertEquals([after.pending, after.isUpperBound], [2, true]);
  driver.desc(driver.slot(7), 0, 0, 0, 0);
  driver.desc(driver.slot(0), 0, 0, 0, 1 << 7 | 1 << 15);
  assertEquals(elementsOf(look(memory, driver.config, terms)).map((one) => one.length), [2]);
  // A device side of ours would have left its place.
  assertEquals(
    look(memory, driver.config, { isPacked: true }).problem,
    "the device's place in it cannot be right",
  );
});

Deno.test("ring reader: a packed chain of which the first descriptor is written last is none so far", () => {
  using memory = new MockMemory([{ at: AT, size: MEMORY }]);
  for (const index of [0, 3]) {
    const driver = new MockPackedDriver(memory, { size: 8, start: { index, odd: false } });
    driver.add([element(0), element(1)], [element(2)]);
    const terms = { isPacked: true, isOurs: false };
    const ring = look(memory, driver.config, terms);
    assertEquals([ring.pending, ring.indices["driver's slot"]], [0, index]);
    driver.publish();
    assertEquals(look(memory, driver.config, terms).pending, 1);
  }
});

Deno.test("ring reader: a ring that is never twice the same says so", () => {
  using memory = new MockMemory([{ at: AT, size: MEMORY }]);
  const driver = new MockDriver(memory, { size: 8 });
  const still = readable(memory);
  let reads = 0;
  const moving = {
    ...still,
    read(address: number, length: number) {
      if (address === driver.driverAddress) driver.setAvailableIndex(++reads);
      return still.read(address, length);
    },
  };
  const terms = { isPacked: false, eventIndex: false, isOurs: true };
  const ring = readRing(moving, driver.config, terms, 8);
  if (typeof ring === "string") throw new Error(ring);
  assertEquals([ring.isMoving, ring.pending, reads], [true, 4, 4]);
});
