/**
 * Fuzz of both sides of a split ring: the other side's memory holds random bytes, among them plausible ones.
 * Nothing may throw; every segment lies inside the windows; no byte outside the windows changes.
 * Two seconds each, or FUZZ_SECONDS; the seed is printed, SEED=... repeats a run.
 */

import { assert } from "@std/assert";
import { mapAnonymous } from "../../src/linux/mapping.ts";
import { Chain } from "../../src/virtio/split/chain.ts";
import { ChainSequence } from "../../src/virtio/split/chain_sequence.ts";
import { openDeviceQueue, Pop } from "../../src/virtio/split/device_queue.ts";
import { DriverQueue } from "../../src/virtio/split/driver_queue.ts";
import { MockDriver, MockMemory, Random } from "../support/mock_driver.ts";

const SECONDS = Number(Deno.env.get("FUZZ_SECONDS") ?? 2);
const LOW = 0x4000_0000, HIGH = 0x7_0000_0000;
const WINDOWS = [
  { at: LOW, size: 0x9000 },
  { at: HIGH, size: 0x1801 },
  { at: HIGH + 0x1801, size: 0x1000 },
];

function seeded(): Random {
  const seed = Random.seed();
  console.log(`SEED=${seed}`);
  return new Random(seed);
}

function randomU64(random: Random): bigint {
  return (BigInt(random.u32()) << 32n) | BigInt(random.u32());
}

/** An address, often a plausible one; at an edge or anywhere with probability `malice`. */
function address(random: Random, malice: number): bigint {
  const window = random.pick(WINDOWS);
  if (!random.chance(malice)) return BigInt(window.at + random.below(0x800));
  switch (random.below(4)) {
    case 0:
      return randomU64(random);
    case 1:
      return BigInt(random.pick([0, 2 ** 53, 2 ** 32, 2 ** 63])) + BigInt(random.below(64));
    case 2:
      return BigInt(window.at + window.size - random.below(64));
    default:
      return BigInt(window.at + window.size + random.below(16) - 8) & ~15n;
  }
}

function length(random: Random, malice: number): number {
  if (!random.chance(malice)) return random.chance(0.5) ? 16 * random.below(10) : random.below(500);
  return random.chance(0.5) ? random.u32() : (0xffff_ffff - random.below(64)) >>> 0;
}

function flags(random: Random, malice: number): number {
  if (random.chance(malice)) return random.u32() & 0xffff;
  return random.pick([0, 0, 2, 2, 2, 3, 3, 1, 4]);
}

Deno.test("fuzz: the device's side of a ring", () => {
  const random = seeded();
  const end = performance.now() + SECONDS * 1000;
  using memory = new MockMemory(WINDOWS);
  using stable = mapAnonymous(65536);
  const chain = new Chain(16);
  const sequence = new ChainSequence(8, 24);
  let rounds = 0, popped = 0, broken = 0;
  while (performance.now() < end) {
    rounds++;
    const size = random.pick([1, 2, 8, 64]);
    const eventIndex = random.chance(0.5), indirect = random.chance(0.6);
    const start = random.u32() & 0xffff;
    const driver = new MockDriver(memory, { size, eventIndex, indirect, start });
    const config = { ...driver.config, anyOrder: random.chance(0.3) };
    if (random.chance(0.2)) config.descriptorAddress = Number(address(random, 1));
    if (random.chance(0.1)) config.driverAddress = Number(address(random, 1));
    if (random.chance(0.1)) config.deviceAddress = Number(address(random, 1));
    if (random.chance(0.05)) config.size = random.below(70000);
    const malice = random.pick([0, 0.01, 0.1, 0.9]);
    const fill = (table: number, count: number) => {
      for (let i = 0; i < count; i++) {
        const next = random.chance(malice) ? random.u32() : (i + 1) % count;
        driver.tableDesc(
          table,
          i,
          address(random, malice),
          length(random, malice),
          flags(random, malice),
          next,
        );
      }
    };
    fill(driver.descriptorAddress, size);
    fill(LOW + 0x4000, 100); // what indirect descriptors may hit
    fill(HIGH, 100);
    if (random.chance(0.05)) {
      const bytes = memory.bytes(LOW, 0x3000);
      for (let i = 0; i < bytes.length; i += 1 + random.below(40)) bytes[i] = random.u32();
    }
    for (let i = 0; i < size; i++) {
      const head = random.chance(malice) ? random.u32() & 0xffff : random.below(size);
      memory.write16(driver.driverAddress + 4 + 2 * i, head);
    }
    const ahead = random.chance(malice / 4) ? random.u32() : random.below(size + 1);
    driver.setAvailableIndex(start + ahead);
    driver.setUsedEvent(random.u32());

    const queue = openDeviceQueue(memory.space, config);
    if (typeof queue === "string") continue;
    chain.clear();
    for (let step = 0; step < 20; step++) {
      switch (random.below(6)) {
        case 0:
          queue.wantKicks();
          break;
        case 1:
          queue.publish();
          break;
        case 2:
          queue.rewind(queue.inFlight);
          chain.clear();
          break;
        case 3:
          // All in flight is taken back first: a sequence works with the newest buffers.
          queue.rewind(queue.inFlight);
          sequence.clear();
          if (sequence.fill(queue, 1 + random.below(2000))) {
            memory.ranges(sequence.writable);
            sequence.writable.copyIn(0, stable.address, 65536);
            sequence.complete(queue, 1 + random.below(sequence.bytes));
          }
          if (queue.broken === undefined) sequence.release(queue);
          else queue.rewind(queue.inFlight);
          break;
        default: {
          queue.rewind(queue.inFlight);
          const outcome = queue.next(chain);
          if (outcome !== Pop.CHAIN) break;
          popped++;
          memory.ranges(chain.readable); // throws if a segment lies outside
          memory.ranges(chain.writable);
          chain.writable.copyIn(0, stable.address, 65536);
          chain.readable.copyOut(0, stable.address, 65536);
          chain.writable.setUint16(random.below(40), 0x1234);
          queue.complete(chain.head, random.below(chain.writable.length + 1));
        }
      }
      if (random.chance(malice / 4)) driver.setAvailableIndex(random.u32());
      if (queue.broken !== undefined) {
        assert(queue.broken.length > 10);
        broken++;
        break;
      }
    }
    queue.stop();
    if (rounds % 64 === 0) memory.checkGuards();
  }
  memory.checkGuards();
  console.log(`${rounds} rings, ${popped} buffers, ${broken} broken`);
  assert(popped > rounds / 10 && broken > rounds / 10, "the fuzz reaches both ends");
});

Deno.test("fuzz: the driver's side of a ring", () => {
  const random = seeded();
  const end = performance.now() + SECONDS * 1000;
  const size = 16;
  const needed = DriverQueue.bytesNeeded(size, true);
  using memory = new MockMemory([{ at: 0x10000, size: needed }]);
  const offset = memory.offset(0x10000);
  let rounds = 0, taken = 0, broken = 0;
  const queues = [false, true].flatMap((eventIndex) =>
    [false, true].map((indirect) =>
      new DriverQueue({
        place: { memory: memory.memory, offset, size: needed, at: 0x10000 },
        size,
        eventIndex,
        indirect,
      })
    )
  );
  const addresses = new Float64Array(4), lengths = new Uint32Array(4).fill(100);
  while (performance.now() < end) {
    rounds++;
    const queue = random.pick(queues);
    queue.reset();
    const bytes = memory.bytes(0x10000, needed);
    const { driverAddress: avail, deviceAddress: device } = queue;
    const lent = new Set<number>();
    const malice = random.pick([0, 0.01, 0.1, 0.9]);
    let token = 0, used = 0;
    for (let step = 0; step < 40 && queue.broken === undefined; step++) {
      if (
        random.chance(0.5) &&
        queue.add(addresses, lengths, random.below(2), 1 + random.below(2), token)
      ) {
        lent.add(token++);
      }
      if (random.chance(0.5)) queue.publish();
      if (random.chance(0.2)) queue.wantCalls();
      if (random.chance(0.2)) queue.noCalls();
      // The device: one word anywhere, and mostly plausible used elements.
      if (random.chance(malice)) bytes[random.below(bytes.length)] = random.u32();
      for (let n = random.below(4); n > 0 && used !== memory.read16(avail + 2); n--) {
        const offered = memory.read16(avail + 4 + 2 * (used % size));
        const at = device + 4 + 8 * (used % size);
        memory.write32(at, random.chance(malice) ? random.below(size + 1) : offered);
        memory.write32(at + 4, random.chance(malice) ? random.u32() : random.below(101));
        used = (used + 1) & 0xffff;
      }
      if (random.chance(malice / 4)) used = random.u32() & 0xffff;
      memory.write16(device + 2, used);
      while (queue.nextUsed()) {
        taken++;
        assert(lent.delete(queue.usedToken), "a buffer came back twice");
        assert(queue.usedLength <= 200);
      }
      assert(queue.free >= 0 && queue.free <= size);
    }
    if (queue.broken !== undefined) broken++;
    if (rounds % 64 === 0) memory.checkGuards();
  }
  memory.checkGuards();
  console.log(`${rounds} rings, ${taken} buffers, ${broken} broken`);
  assert(taken > rounds / 10 && broken > rounds / 10, "the fuzz reaches both ends");
});
