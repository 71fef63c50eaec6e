/**
 * Both sides of a split ring, and a ring that is carried over into another: the other side's memory holds random
 * words, among them plausible ones, and changes while the ring is worked on. Nothing may throw; every segment lies
 * inside the windows; no byte outside of them changes, and none of a guest's but those it lent for writing.
 */

import { assert } from "@std/assert";
import { mapAnonymous } from "../../src/linux/mapping.ts";
import { Chain } from "../../src/virtio/queue/chain.ts";
import { ChainSequence } from "../../src/virtio/queue/chain_sequence.ts";
import { openDeviceQueue, type QueueConfig } from "../../src/virtio/queue/mod.ts";
import { Pop } from "../../src/virtio/queue/pop.ts";
import { PackedDriverQueue } from "../../src/virtio/packed/driver_queue.ts";
import { DriverQueue } from "../../src/virtio/split/driver_queue.ts";
import { MockDriver, MockMemory, type Random } from "../support/mock_driver.ts";
import { segmentOf, segmentSize, shadowOf } from "../support/shadow_rig.ts";
import { ScatteredMemory, translatedOf } from "../support/translated_rig.ts";
import { MockPackedDriver } from "../support/mock_packed_driver.ts";
import type { Fuzzer } from "./fuzzer.ts";

type Writable<T> = { -readonly [K in keyof T]: T[K] };

const LOW = 0x4000_0000, HIGH = 0x7_0000_0000;
const WINDOWS = [
  { at: LOW, size: 0x9000 },
  { at: HIGH, size: 0x1801 },
  { at: HIGH + 0x1801, size: 0x1000 },
];

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

/** The rounds of {@link deviceRing} and {@link driverRing} until the guards are looked at. */
const GUARD_ROUNDS = 64;

const deviceRing = (isPacked: boolean): Fuzzer["open"] => async (use) => {
  using memory = new MockMemory(WINDOWS);
  using stable = mapAnonymous(65536);
  const chain = new Chain(16);
  const sequence = new ChainSequence(8, 24);
  let done = 0, popped = 0, broken = 0;
  const round = (random: Random) => {
    const size = random.pick([1, 2, 8, 64]);
    const eventIndex = random.chance(0.5), indirect = random.chance(0.6);
    const start = random.u32() & 0xffff;
    const options = { size, eventIndex, indirect };
    const driver = new MockDriver(memory, { ...options, start });
    const position = { index: random.below(size), odd: random.chance(0.5) };
    const packed = new MockPackedDriver(memory, {
      ...options,
      inOrder: random.chance(0.5),
      start: position,
    });
    const config: Writable<QueueConfig> = isPacked
      ? { ...packed.config }
      : { ...driver.config, anyOrder: random.chance(0.3) };
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

    // Each slot in this lap or the last one, mostly; the ring is written last, as the split one's words lie there too.
    const offerPacked = (slot: number) => {
      const isAhead = (slot >= position.index) !== random.chance(malice);
      const available = isAhead !== position.odd ? 1 << 7 : 1 << 15;
      const words = flags(random, malice) ^ (random.chance(malice) ? random.u32() & 0xffff : 0);
      const to = packed.slot(slot);
      packed.desc(
        to,
        address(random, malice),
        length(random, malice),
        random.u32(),
        available | words,
      );
    };
    if (isPacked) {
      for (let i = random.below(size + 1); i > 0; i--) offerPacked((position.index + i - 1) % size);
      memory.write32(packed.driverAddress, random.u32());
    }

    const queue = openDeviceQueue(memory.space, config);
    if (typeof queue === "string") return;
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
      if (isPacked) {
        if (random.chance(malice)) offerPacked(random.below(size));
      } else if (random.chance(malice / 4)) driver.setAvailableIndex(random.u32());
      if (random.chance(malice)) scribble(memory, random, 0x3000);
      if (queue.broken !== undefined) {
        assert(queue.broken.length > 10);
        broken++;
        break;
      }
    }
    queue.stop();
    if (++done % GUARD_ROUNDS === 0) memory.checkGuards();
  };
  const finish = (rounds: number) => {
    memory.checkGuards();
    assert(rounds < 1000 || popped > rounds / 10 && broken > rounds / 10, "both ends are reached");
    return `${popped} buffers, ${broken} broken rings`;
  };
  await use({ round, finish });
};

/** One word of the first bytes of the memory becomes another. */
function scribble(memory: MockMemory, random: Random, size: number): void {
  const { at } = memory.windows[0];
  memory.write16(at + 2 * random.below(size / 2), random.u32() & 0xffff);
}

const driverRing: Fuzzer["open"] = async (use) => {
  const size = 16;
  const needed = DriverQueue.bytesNeeded(size, true);
  using memory = new MockMemory([{ at: 0x10000, size: needed }]);
  const offset = memory.offset(0x10000);
  let done = 0, taken = 0, broken = 0;
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
  const round = (random: Random) => {
    const queue = random.pick(queues);
    queue.reset();
    const bytes = memory.bytes(0x10000, needed);
    const { driverAddress: avail, deviceAddress: device } = queue;
    // By token, and whether the device could see it when it came back.
    const lent = new Map<number, "added" | "published">();
    const malice = random.pick([0, 0.01, 0.1, 0.9]);
    let token = 0, used = 0;
    for (let step = 0; step < 40 && queue.broken === undefined; step++) {
      if (
        random.chance(0.5) &&
        queue.add(addresses, lengths, random.below(2), 1 + random.below(2), token)
      ) {
        lent.set(token++, "added");
      }
      if (random.chance(0.5)) {
        queue.publish();
        for (const added of lent.keys()) lent.set(added, "published");
      }
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
        assert(lent.get(queue.usedToken) === "published", "a buffer that the device did not have");
        lent.delete(queue.usedToken);
        assert(queue.usedLength <= 200);
      }
      assert(queue.free >= 0 && queue.free <= size);
    }
    if (queue.broken !== undefined) broken++;
    if (++done % GUARD_ROUNDS === 0) memory.checkGuards();
  };
  const finish = (rounds: number) => {
    memory.checkGuards();
    assert(rounds < 1000 || taken > rounds / 10 && broken > rounds / 10, "both ends are reached");
    return `${taken} buffers, ${broken} broken rings`;
  };
  await use({ round, finish });
};

/** The same of a packed ring, whose device gives back what it likes, in order and not. */
const packedDriverRing: Fuzzer["open"] = async (use) => {
  const size = 16;
  const needed = PackedDriverQueue.bytesNeeded(size, true);
  using memory = new MockMemory([{ at: 0x10000, size: needed }]);
  const place = {
    memory: memory.memory,
    offset: memory.offset(0x10000),
    size: needed,
    at: 0x10000,
  };
  let done = 0, taken = 0, broken = 0;
  const addresses = new Float64Array(4), lengths = new Uint32Array(4).fill(100);
  const [AVAIL, USED, WRITE] = [1 << 7, 1 << 15, 2];
  const round = (random: Random) => {
    const [eventIndex, indirect, inOrder] = [0, 1, 2].map(() => random.chance(0.5));
    const terms = { eventIndex: eventIndex!, indirect: indirect!, inOrder: inOrder! };
    const queue = new PackedDriverQueue({ place, size, ...terms });
    const bytes = memory.bytes(0x10000, needed);
    const lent = new Map<number, "added" | "published">();
    const malice = random.pick([0, 0.01, 0.1, 0.9]);
    let token = 0;
    // The device's: the slot and lap where it looks next, what it has seen there, and where it gives back.
    let look = 0, give = 0;
    const out: { id: number; count: number }[] = [];
    const slot = (at: number) => 0x10000 + 16 * (at % size);
    const lap = (at: number) => Math.floor(at / size) % 2 === 0;
    const isAvailable = (at: number) => {
      const flags = memory.read16(slot(at) + 14);
      return (flags & AVAIL) !== 0 === lap(at) && (flags & USED) !== 0 !== lap(at);
    };
    for (let step = 0; step < 40 && queue.broken === undefined; step++) {
      const [readable, writable] = [random.below(2), 1 + random.below(2)];
      if (random.chance(0.5) && queue.add(addresses, lengths, readable, writable, token)) {
        lent.set(token++, "added");
      }
      if (random.chance(0.5)) {
        queue.publish();
        for (const added of lent.keys()) lent.set(added, "published");
      }
      if (random.chance(0.2)) queue.wantCalls();
      if (random.chance(0.2)) queue.noCalls();
      if (random.chance(malice)) bytes[random.below(bytes.length)] = random.u32();
      while (look < give + size && isAvailable(look)) {
        const start = look;
        while (look < start + size && (memory.read16(slot(look) + 14) & 1) !== 0) look++;
        out.push({ id: memory.read16(slot(look) + 12), count: ++look - start });
      }
      for (let n = random.below(4); n > 0 && out.length > 0; n--) {
        const i = random.below(out.length);
        const gone = terms.inOrder ? out.splice(0, i + 1) : out.splice(i, 1);
        const { id } = gone.at(-1)!;
        memory.write16(slot(give) + 12, random.chance(malice) ? random.below(size + 1) : id);
        memory.write32(slot(give) + 8, random.chance(malice) ? random.u32() : random.below(101));
        memory.write16(slot(give) + 14, (lap(give) ? AVAIL | USED : 0) | WRITE);
        give += gone.reduce((sum, { count }) => sum + count, 0);
      }
      while (queue.nextUsed()) {
        taken++;
        assert(lent.get(queue.usedToken) === "published", "a buffer that the device did not have");
        lent.delete(queue.usedToken);
        assert(queue.usedLength <= 200);
      }
      assert(malice > 0 || queue.broken === undefined, queue.broken);
      assert(queue.free >= 0 && queue.free <= size);
    }
    if (queue.broken !== undefined) broken++;
    if (++done % GUARD_ROUNDS === 0) memory.checkGuards();
  };
  const finish = (rounds: number) => {
    memory.checkGuards();
    assert(rounds < 1000 || taken > rounds / 10 && broken > rounds / 10, "both ends are reached");
    return `${taken} buffers, ${broken} broken rings`;
  };
  await use({ round, finish });
};

/** A guest's bytes that it lent for reading, lent for writing, and kept. */
const SHOWN = 0x11, LENT = 0x22, SECRET = 0x5e;
const SECRET_WORD = 0x5e5e_5e5e_5e5e_5e5en;
const POOL = 4096;
/** Buffers of the guest's lie behind its rings, a page each: the first half is read, some of the second written. */
const LENT_AT = 2048;

/**
 * A ring that is carried over, with a guest and a device that both write what they like: into the segment (confined)
 * or a page of rings that name the guest's own (direct).
 */
const carriedRing: Fuzzer["open"] = async (use) => {
  let forwarded = 0, broken = 0;
  const round = (random: Random) => {
    const size = random.pick([2, 8, 64]);
    using guest = new MockMemory([{ at: LOW, size: 0x28000 }]);
    const { memory, place } = segmentOf(Math.max(segmentSize(size, POOL), 0x20000));
    using segment = memory;
    const driver = new MockDriver(guest, { size, eventIndex: random.chance(0.5), indirect: true });
    const isConfined = random.chance(0.5);
    const all = guest.bytes(driver.end, LOW + 0x28000 - driver.end);
    all.fill(SECRET);
    const shadow = isConfined ? shadowOf(driver, place) : translatedOf(
      driver,
      new ScatteredMemory(guest, random, 4).map,
      { memory: segment, place },
      256,
    );
    const malice = random.pick([0, 0.01, 0.1, 0.5]);
    const lent: { at: number; length: number }[] = [];
    let buffers = 0, used = 0;
    for (let step = 0; step < 60; step++) {
      const at = driver.end + 4096 * (buffers % 24);
      if (random.chance(0.5) && buffers < 24 && driver.free >= 2) {
        const length = 1 + random.below(1000);
        const read = 1 + random.below(500);
        guest.bytes(at, read).fill(SHOWN);
        guest.bytes(at + LENT_AT, length).fill(LENT);
        lent.push({ at: at + LENT_AT, length });
        driver.add([{ address: at, length: read }], [{ address: at + LENT_AT, length }]);
        driver.publish();
        buffers++;
      }
      const { driverAddress, deviceAddress, size: entries } = shadow.setup;
      // The device: used elements of plausible heads, and any word of the segment.
      if (random.chance(0.5) && used !== segment.read16(driverAddress + 2)) {
        const head = segment.read16(driverAddress + 4 + 2 * (used % entries));
        const element = deviceAddress + 4 + 8 * (used % entries);
        segment.write32(element, random.chance(malice) ? random.below(entries + 1) : head);
        segment.write32(element + 4, random.chance(malice) ? random.u32() : random.below(2));
        used = (used + 1) & 0xffff;
      }
      if (random.chance(malice / 4)) used = random.u32() & 0xffff;
      segment.write16(deviceAddress + 2, used);
      if (random.chance(malice)) scribble(segment, random, place.size);
      // The guest: any word of its rings. What it lends so is its own affair, but its secrets are not asked for.
      const harmless = driver.driverAddress - LOW + random.below(0x1000);
      if (random.chance(malice / 2)) guest.write16((LOW + harmless) & ~1, random.u32() & 0xffff);
      shadow.giveBack();
      shadow.forward();
    }
    forwarded += shadow.counters.forwarded;
    if (shadow.broken !== undefined) broken++;
    shadow.stop();
    guest.checkGuards();
    segment.checkGuards();
    // Of the guest's memory only what it lent was written.
    for (const { at, length } of lent) guest.bytes(at, length).fill(LENT);
    const others = all.findIndex((byte) => byte !== SECRET && byte !== SHOWN && byte !== LENT);
    assert(others < 0, `byte ${others} behind the guest's rings was not lent`);
    if (!isConfined) return;
    const words = new BigUint64Array(segment.bytes(place.at, place.size).slice().buffer);
    assert(!words.includes(SECRET_WORD), "what the guest kept is in the segment");
  };
  const finish = (rounds: number) => {
    assert(rounds < 1000 || forwarded > rounds && broken > rounds / 20, "both ends are reached");
    return `${forwarded} buffers, ${broken} broken rings`;
  };
  await use({ round, finish });
};

/** See the head of this file. */
export const RING_FUZZERS: readonly Fuzzer[] = [
  {
    name: "device-ring",
    what: "any words under the device's side of a ring",
    open: deviceRing(false),
  },
  { name: "packed-ring", what: "the same of a packed ring", open: deviceRing(true) },
  { name: "driver-ring", what: "any words under the driver's side of a ring", open: driverRing },
  { name: "packed-driver", what: "the same of a packed ring", open: packedDriverRing },
  { name: "carried-ring", what: "a hostile guest and device around a shadow", open: carriedRing },
];
