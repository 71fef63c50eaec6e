/**
 * Property tests of a shadow queue between a guest (the mock driver) and a device: random traffic, and each
 * of the three acts only when it was notified, so that a lost notification ends the run early. What every
 * buffer holds is compared both ways with a model that is a list, also across stops. The seed is
 * printed; SEED=... repeats a run.
 */

import { assert, assertEquals } from "@std/assert";
import type { ShadowQueue } from "../../../src/proxy/confined/shadow_queue.ts";
import { MockDriver, type MockElement, MockMemory, Random } from "../../support/mock_driver.ts";
import {
  bytesAt,
  GUEST_AT,
  InOrderDevice,
  lengthOf,
  RawDevice,
  type SeenBuffer,
  segmentOf,
  segmentSize,
  type ShadowDevice,
  shadowOf,
  write,
} from "../../support/shadow_rig.ts";

/** Memory for one buffer: the largest frame in pieces, with gaps; behind it an indirect table. */
const SLOT_SIZE = 0x18000;
const TABLE_AT = SLOT_SIZE - 0x400;
const LARGEST = 0x11000;
/** What the guest's memory holds where the device has not written. */
const UNTOUCHED = 0xee;

interface Setting {
  readonly eventIndex: boolean;
  readonly indirect: boolean;
  readonly inOrder: boolean;
  readonly size: number;
  readonly pool: number;
  readonly largest: number;
  readonly start: number;
  /** Stops now and then. */
  readonly stops: boolean;
}

interface Buffer {
  readonly head: number;
  readonly slot: number;
  readonly readable: Uint8Array;
  readonly writable: readonly MockElement[];
  /** What the device wrote. */
  written: Uint8Array | undefined;
}

/** Bytes that tell where they belong. */
function pattern(length: number, random: Random): Uint8Array {
  const bytes = new Uint8Array(length);
  const start = random.u32(), step = random.u32() | 1;
  for (let i = 0; i < length; i++) bytes[i] = (start + i * step) >>> 5;
  return bytes;
}

/** As assertEquals, which is slow for so many. */
function assertSame(actual: Uint8Array, expected: Uint8Array): void {
  assertEquals(actual.length, expected.length);
  const different = actual.findIndex((byte, i) => byte !== expected[i]);
  assert(different < 0, `byte ${different} of ${actual.length} is another`);
}

/** A list [given back to the guest | used | with the device | to be forwarded], and who is awake. */
class Traffic {
  readonly #added: Buffer[] = [];
  #taken = 0;
  #popped = 0;
  readonly #held: { readonly buffer: Buffer; readonly seen: SeenBuffer }[] = [];
  readonly #freeSlots: number[] = [];
  readonly #driver: MockDriver;
  readonly #segment: ReturnType<typeof segmentOf>;
  readonly #data: number;
  #shadow: ShadowQueue;
  #device: ShadowDevice;
  /** There were too few descriptors for a buffer. */
  #ringFull = false;
  #guestCalled = false;
  #proxyWoken = true;
  #deviceKicked = true;
  full = 0;
  stops = 0;
  notifications = 0;

  constructor(
    readonly memory: MockMemory,
    readonly setting: Setting,
    readonly random: Random,
    segment: ReturnType<typeof segmentOf>,
  ) {
    const { size, eventIndex, indirect, start } = setting;
    this.#driver = new MockDriver(memory, { size, eventIndex, indirect, start });
    this.#data = memory.windows[1].at;
    this.#segment = segment;
    for (let i = 0; i < size; i++) this.#freeSlots.push(i);
    [this.#shadow, this.#device] = this.#open();
  }

  #open(base?: number): [ShadowQueue, ShadowDevice] {
    const { eventIndex, inOrder } = this.setting;
    const shadow = shadowOf(this.#driver, this.#segment.place, base);
    const { memory } = this.#segment;
    const device = inOrder
      ? new InOrderDevice(memory, shadow.setup, eventIndex)
      : new RawDevice(memory, shadow.setup, eventIndex);
    return [shadow, device];
  }

  run(buffers: number): void {
    for (;;) {
      const steps: (() => void)[] = [];
      if (this.#added.length < buffers && !this.#ringFull && this.#freeSlots.length > 0) {
        steps.push(() => this.#add(), () => this.#add());
      }
      if (this.#driver.available !== this.#driver.published) steps.push(() => this.#publish());
      if (this.#guestCalled) steps.push(() => this.#guest());
      if (this.#proxyWoken) steps.push(() => this.#proxy());
      if (this.#deviceKicked) steps.push(() => this.#pop());
      if (this.#held.length > 0) steps.push(() => this.#use());
      if (steps.length === 0) break;
      if (this.setting.stops && this.random.chance(0.002)) this.#stop();
      else this.random.pick(steps)();
    }
    assertEquals(this.#taken, buffers, "everybody sleeps and buffers are out: a lost notification");
    assertEquals(this.#driver.free, this.#driver.size);
    this.full += this.#shadow.counters.full;
  }

  #elements(at: number, count: number, length: number): MockElement[] {
    const elements: MockElement[] = [];
    for (let i = 0; i < count; i++) {
      const part = i === count - 1 ? length : this.random.below(Math.floor(length / 2) + 1);
      elements.push({ address: at, length: part });
      at += part + this.random.below(64);
      length -= part;
    }
    return elements;
  }

  #add(): void {
    const { random } = this;
    const { largest, indirect, size } = this.setting;
    const slot = this.#freeSlots[0];
    const at = this.#data + SLOT_SIZE * slot;
    const length = 1 + random.below(random.pick([200, 1600, Math.min(4096, largest), largest]));
    const reads = random.pick([0, length, random.below(length + 1)]);
    const count = () => 1 + random.below(Math.max(1, Math.min(8, size / 2)));
    const readable = reads > 0 ? this.#elements(at, count(), reads) : [];
    const writable = reads < length
      ? this.#elements(at + reads + 1024, count(), length - reads)
      : [];
    const contents = pattern(reads, random);
    write(this.memory, readable, contents);
    for (const { address, length } of writable) {
      this.memory.bytes(address, length).fill(UNTOUCHED);
    }
    const table = indirect && random.chance(0.5) ? at + TABLE_AT : undefined;
    const head = this.#driver.add(readable, writable, table);
    this.#ringFull = head === undefined;
    if (head !== undefined) {
      this.#freeSlots.shift();
      this.#added.push({ head, slot, readable: contents, writable, written: undefined });
    }
  }

  #publish(): void {
    if (this.#driver.publish()) this.#wakeProxy();
  }

  #wakeProxy(): void {
    this.notifications++;
    this.#proxyWoken = true;
  }

  /** As ShadowDevice has it. */
  #proxy(): void {
    if (this.#shadow.giveBack()) this.#guestCalled = true;
    if (this.#shadow.forward()) this.#deviceKicked = true;
    assertEquals(this.#shadow.broken, undefined);
    this.#proxyWoken = this.#shadow.more;
  }

  #pop(): void {
    for (let count = 1 + this.random.below(8); count > 0; count--) {
      const seen = this.#device.pop();
      if (seen === undefined) {
        this.#deviceKicked = this.#device.wantKicks();
        return;
      }
      const buffer = this.#added[this.#popped++];
      const { memory } = this.#segment;
      assertSame(bytesAt(memory, seen.readable), buffer.readable);
      assertEquals(lengthOf(seen.writable), lengthOf(buffer.writable));
      this.#held.push({ buffer, seen });
    }
  }

  #use(): void {
    const { random } = this;
    for (let count = 1 + random.below(8); count > 0 && this.#held.length > 0; count--) {
      const which = this.setting.inOrder ? 0 : random.below(this.#held.length);
      const [{ buffer, seen }] = this.#held.splice(which, 1);
      const length = random.pick([0, 1, random.u32(), lengthOf(seen.writable)]) %
        (lengthOf(seen.writable) + 1);
      buffer.written = pattern(length, random);
      write(this.#segment.memory, seen.writable, buffer.written);
      this.#device.use(seen, length);
    }
    if (this.#device.publish()) this.#wakeProxy();
  }

  #guest(): void {
    for (let used; (used = this.#driver.takeUsed()) !== undefined;) {
      const { head, slot, writable, written } = this.#added[this.#taken++];
      assertEquals(used, { head, length: written!.length });
      const expected = new Uint8Array(lengthOf(writable)).fill(UNTOUCHED);
      expected.set(written!);
      assertSame(bytesAt(this.memory, writable), expected);
      this.#freeSlots.push(slot);
      this.#ringFull = false;
    }
    this.#driver.setUsedEvent(this.#driver.seen);
    this.#guestCalled = false;
  }

  /** The device is stopped, or dies, and a new one comes. */
  #stop(): void {
    if (this.#device instanceof InOrderDevice && this.random.chance(0.5)) this.#device.queue.stop();
    this.stops++;
    this.full += this.#shadow.counters.full;
    const base = this.#shadow.stop();
    // Both ends look once, as the state machine has it.
    this.#guestCalled = this.#proxyWoken = this.#deviceKicked = true;
    this.#guest();
    assertEquals(base, this.#driver.seen);
    this.#popped = this.#taken;
    this.#held.length = 0;
    [this.#shadow, this.#device] = this.#open(base);
  }
}

for (const eventIndex of [false, true]) {
  for (const inOrder of [false, true]) {
    const name = `${eventIndex ? "EVENT_IDX" : "flags"}, device ${inOrder ? "in" : "out of"} order`;
    Deno.test(`shadow: random traffic arrives whole, both ways: ${name}`, () => {
      const seed = Random.seed();
      console.log(`SEED=${seed}`);
      const random = new Random(seed);
      let full = 0, stops = 0, notifications = 0;
      for (let round = 0; round < 10; round++) {
        const size = random.pick([4, 16, 256]);
        const largest = random.pick([1600, LARGEST]);
        const setting: Setting = {
          eventIndex,
          inOrder,
          indirect: random.chance(0.5),
          size,
          largest,
          // As small as can be, so that the pool is full nearly always; or never.
          pool: random.pick([largest + 64, 2 * largest, 0x100000]) & ~63,
          start: random.pick([0, 65530, 32760]),
          stops: round % 2 === 1,
        };
        using memory = new MockMemory([
          { at: GUEST_AT, size: 0x4000 },
          { at: GUEST_AT + 0x4000, size: SLOT_SIZE * size },
        ]);
        const segment = segmentOf(segmentSize(size, setting.pool));
        using _memory = segment.memory;
        const traffic = new Traffic(memory, setting, random, segment);
        traffic.run(600);
        memory.checkGuards();
        segment.memory.checkGuards();
        full += traffic.full;
        stops += traffic.stops;
        notifications += traffic.notifications;
      }
      assert(full > 100 && stops > 3, `the test tests something: ${full} full, ${stops} stops`);
      assert(notifications > 0);
    });
  }
}

Deno.test("shadow: a full ring is forwarded whole, in batches, with one kick and one call", () => {
  const size = 256;
  using memory = new MockMemory([{ at: GUEST_AT, size: 0x100000 }]);
  const { memory: segment, place } = segmentOf(segmentSize(size, 0x100000));
  using _segment = segment;
  const driver = new MockDriver(memory, { size, eventIndex: true });
  const shadow = shadowOf(driver, place);
  const device = new RawDevice(segment, shadow.setup, true);
  for (let i = 0; i < size; i++) driver.add([{ address: driver.end + 64 * i, length: 64 }], []);
  let kicks = Number(driver.publish()), calls = 0, batches = 0;
  do {
    if (shadow.giveBack()) calls++;
    // The device is awake since the first kick and says nothing while it works.
    if (shadow.forward()) kicks++;
    batches++;
  } while (shadow.more);
  assertEquals([shadow.counters.forwarded, kicks, calls], [size, 2, 0]);
  assert(batches > 2, `${batches} batches`);
  for (let seen; (seen = device.pop()) !== undefined;) {
    device.use(seen, 0);
    if (device.publish()) calls++;
  }
  assertEquals(calls, 1);
  assert(shadow.giveBack(), "the guest is called");
  assertEquals(driver.usedIndex, size);
});
