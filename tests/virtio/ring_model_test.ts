/**
 * Property tests of the device's side: random steps of a driver (the mock) and a device (ours), compared
 * with a model that is a list. Both sides sleep only when they may; a sleeper who has work is a lost
 * notification. Indices begin near their wrap-around. The device completes in order, or any buffer it has.
 * The seed is printed; SEED=... repeats a run.
 */

import { assert, assertEquals } from "@std/assert";
import {
  Chain,
  ChainBatch,
  type DeviceQueue,
  openDeviceQueue,
  Pop,
} from "../../src/virtio/queue/mod.ts";
import {
  MockDriver,
  type MockElement,
  MockMemory,
  Random,
  type RingDriver,
} from "../support/mock_driver.ts";
import { MockPackedDriver } from "../support/mock_packed_driver.ts";

interface ModelBuffer {
  readonly head: number;
  readonly readable: MockElement[];
  readonly writable: MockElement[];
}

const STEPS = 4000;
const LOW = 0x4000_0000, HIGH = 0x2_0000_0000;
const chain = new Chain();
const batch = new ChainBatch(16, 512);

function join(elements: readonly MockElement[]): MockElement[] {
  const joined: { address: number; length: number }[] = [];
  for (const { address, length } of elements) {
    if (length === 0) continue;
    const last = joined.at(-1);
    if (last !== undefined && last.address + last.length === address) last.length += length;
    else joined.push({ address, length });
  }
  return joined;
}

function bytesOf(elements: readonly MockElement[]): number {
  return elements.reduce((sum, { length }) => sum + length, 0);
}

class Model {
  readonly #driver: RingDriver;
  readonly #random: Random;
  readonly #memory: MockMemory;
  #queue: DeviceQueue;
  // One list for the ring's whole life: [popped | available | not published].
  readonly #added: ModelBuffer[] = [];
  #popped = 0;
  #published = 0;
  /** Positions in `#added` of the buffers in flight, the oldest first. */
  readonly #open: number[] = [];
  // What was completed, in that order: [taken | shown | not published].
  readonly #used: { head: number; length: number }[] = [];
  #taken = 0;
  #shown = 0;
  #driverAsleep = false;
  #deviceAsleep = false;
  #nextTable = 0;
  kicks = 0;
  calls = 0;
  /** Of this queue: shown, and the driver did not want to hear of it. */
  #suppressed = 0;
  overtaken = 0;

  constructor(
    memory: MockMemory,
    driver: RingDriver,
    random: Random,
    readonly anyOrder: boolean,
  ) {
    this.#memory = memory;
    this.#driver = driver;
    this.#random = random;
    this.#queue = this.#openQueue(driver.config.base);
  }

  #openQueue(base: number): DeviceQueue {
    const { anyOrder } = this;
    const config = { ...this.#driver.config, base, anyOrder };
    const queue = openDeviceQueue(this.#memory.space, config);
    if (typeof queue === "string") throw new Error(queue);
    return queue;
  }

  step(): void {
    const random = this.#random;
    switch (random.below(11)) {
      case 0:
      case 1:
        return this.#add();
      case 2:
        return this.#driverPublish();
      case 3:
        return this.#next();
      case 4:
        return this.#pop();
      case 5:
      case 6:
        return this.#complete();
      case 7:
        return this.#devicePublish();
      case 8:
        return random.chance(0.5) ? this.#takeUsed() : this.#driverSleep();
      case 9:
        return random.chance(0.5) ? this.#rewind() : this.#noKicks();
      default:
        return random.chance(0.05) ? this.#restart() : this.#deviceSleep();
    }
  }

  #element(): MockElement {
    const random = this.#random;
    const length = random.chance(0.1) ? 0 : 1 + random.below(3000);
    // The high windows are neighbours: some elements lie over both.
    const address = random.chance(0.5)
      ? this.#driver.end + random.below(0x4000)
      : HIGH + random.below(0x2000 - 3000);
    return { address, length };
  }

  #add(): void {
    const random = this.#random;
    const readable = Array.from({ length: random.below(4) }, () => this.#element());
    const writable = Array.from(
      { length: random.below(4) + (readable.length === 0 ? 1 : 0) },
      () => this.#element(),
    );
    const count = readable.length + writable.length;
    const isPacked = this.#driver.config.packed === true;
    let head: number | undefined;
    if (this.#driver.indirect && random.chance(0.5) && count <= this.#driver.size) {
      // One table for each buffer that can be out, each of 8 descriptors.
      const table = LOW + 0x40000 + 128 * (this.#nextTable++ % 1024);
      head = this.#driver.add(readable, writable, table, isPacked ? 0 : random.below(count));
    } else {
      head = this.#driver.add(readable, writable);
    }
    if (head !== undefined) this.#added.push({ head, readable, writable });
  }

  #driverPublish(): void {
    if (this.#driver.publish()) {
      this.kicks++;
      this.#deviceAsleep = false;
    }
    this.#published = this.#added.length;
    assert(!(this.#deviceAsleep && this.#published > this.#popped), "a kick is lost");
  }

  #next(): void {
    const outcome = this.#queue.next(chain);
    if (this.#popped === this.#published) return assertEquals(outcome, Pop.EMPTY);
    assertEquals([outcome, this.#queue.broken], [Pop.CHAIN, undefined]);
    this.#expectPopped(chain);
  }

  /** Several at once, behind those that the batch holds. */
  #pop(): void {
    if (batch.count > batch.most / 2) batch.clear();
    const from = batch.count, most = 1 + this.#random.below(6);
    const there = Math.min(most, this.#published - this.#popped);
    const count = this.#queue.pop(batch, most);
    // What came since the ring was looked at last may stay for the next time.
    assert(count <= there && (count > 0 || there === 0), `${count} of ${there}`);
    assertEquals(this.#queue.outcome, count === most ? Pop.CHAIN : Pop.EMPTY);
    assertEquals(batch.count, from + count);
    for (let i = from; i < batch.count; i++) {
      batch.select(i);
      this.#expectPopped(batch);
    }
  }

  #expectPopped(popped: ChainBatch): void {
    this.#open.push(this.#popped);
    const expected = this.#added[this.#popped++];
    assertEquals(popped.head, expected.head);
    assertEquals(this.#memory.ranges(popped.readable), join(expected.readable));
    assertEquals(this.#memory.ranges(popped.writable), join(expected.writable));
    assertEquals(popped.readable.length, bytesOf(expected.readable));
    assertEquals(popped.writable.length, bytesOf(expected.writable));
  }

  #complete(): void {
    if (this.#open.length === 0) return;
    if (!this.anyOrder && this.#random.chance(0.3)) return this.#completeOldest();
    const which = this.anyOrder ? this.#random.below(this.#open.length) : 0;
    if (which > 0) this.overtaken++;
    this.#completeOpen(which);
  }

  #completeOldest(): void {
    const count = this.#random.below(this.#open.length + 1);
    for (const position of this.#open.splice(0, count)) {
      this.#used.push({ head: this.#added[position].head, length: 0 });
    }
    this.#queue.completeOldest(count);
  }

  #completeOpen(which: number): void {
    const [position] = this.#open.splice(which, 1);
    const { head, writable } = this.#added[position];
    const length = this.#random.below(bytesOf(writable) + 1);
    this.#used.push({ head, length });
    this.#queue.complete(head, length);
  }

  /** How many of the buffers popped last are in flight, up to the first that is not. */
  #newestOpen(): number {
    let count = 0;
    while (this.#open.at(-1 - count) === this.#popped - 1 - count) count++;
    return count;
  }

  #devicePublish(): void {
    this.#expectCall(this.#queue.publish());
  }

  #expectCall(called: boolean): void {
    const shown = this.#used.slice(this.#shown).map(({ head }) => head);
    const wanted = this.#driver.mustCall(shown);
    if (shown.length > 0 && !wanted) this.#suppressed++;
    assertEquals(this.#queue.suppressed, this.#suppressed);
    this.#shown = this.#used.length;
    assertEquals(called, wanted);
    if (called) {
      this.calls++;
      this.#driverAsleep = false;
    }
    assert(!(this.#driverAsleep && this.#shown > this.#taken), "a call is lost");
  }

  #takeUsed(): void {
    // A driver that is awake may mask calls while it works.
    if (this.#random.chance(0.3)) this.#driver.maskCalls();
    this.#driverAsleep = false;
    for (let n = this.#random.below(8); n > 0 && this.#taken < this.#shown; n--) {
      assertEquals(this.#driver.takeUsed(), this.#used[this.#taken++]);
    }
    if (this.#taken === this.#shown) assertEquals(this.#driver.takeUsed(), undefined);
  }

  #driverSleep(): void {
    this.#driver.wantCalls();
    this.#driverAsleep = this.#taken === this.#shown;
  }

  #deviceSleep(): void {
    const more = this.#queue.wantKicks();
    assertEquals(more, this.#published > this.#popped);
    this.#deviceAsleep = !more;
  }

  #noKicks(): void {
    this.#queue.noKicks();
    // Only a device that works on the ring may say so.
    this.#deviceAsleep = false;
  }

  #rewind(): void {
    const count = this.#random.below(this.#newestOpen() + 1);
    this.#queue.rewind(count);
    this.#forgetNewest(count);
    // A device that takes buffers back has work.
    this.#deviceAsleep = false;
    assertEquals(this.#queue.inFlight, this.#open.length);
  }

  #forgetNewest(count: number): void {
    this.#popped -= count;
    this.#open.length -= count;
  }

  /**
   * Stops the queue, whose device finishes what was overtaken first; a successor takes over at its base, and
   * looks at the ring when it starts.
   */
  #restart(): void {
    while (this.#open.length > this.#newestOpen()) this.#completeOpen(0);
    this.#expectCall(this.#queue.stop());
    assertEquals(this.#queue.inFlight, 0);
    this.#forgetNewest(this.#open.length);
    this.#deviceAsleep = false;
    this.#queue = this.#openQueue(this.#queue.base);
    this.#suppressed = 0;
  }

  /** Lets both sides finish: everything added comes back. */
  finish(): void {
    this.#driverPublish();
    while (this.#popped < this.#published) {
      this.#next();
      this.#complete();
    }
    while (this.#open.length > 0) this.#complete();
    this.#devicePublish();
    while (this.#taken < this.#shown) this.#takeUsed();
    assertEquals(this.#taken, this.#added.length);
    assertEquals(this.#driver.free, this.#driver.size);
  }
}

const FORMATS = ["split, in order", "split, any order", "packed", "packed, IN_ORDER"] as const;

for (const eventIndex of [false, true]) {
  for (const indirect of [false, true]) {
    for (const format of FORMATS) {
      const name = `${format}, ${eventIndex ? "EVENT_IDX" : "flags"}, ` +
        (indirect ? "indirect" : "direct");
      Deno.test(`random steps agree with the model: ${name}`, () => {
        runModel(eventIndex, indirect, format);
      });
    }
  }
}

function runModel(
  eventIndex: boolean,
  indirect: boolean,
  format: typeof FORMATS[number],
): void {
  const seed = Random.seed();
  console.log(`SEED=${seed}`);
  const random = new Random(seed);
  const anyOrder = format === "split, any order";
  let kicks = 0, calls = 0, overtaken = 0;
  for (let round = 0; round < 8; round++) {
    using memory = new MockMemory([
      { at: LOW, size: 0x80000 },
      { at: HIGH, size: 0x1000 },
      { at: HIGH + 0x1000, size: 0x1000 },
    ]);
    // By turns, so that no seed leaves a case out: with a large ring a driver may hardly ever be called.
    const size = [8, 16, 64, 256][round % 4]!;
    const options = { size, eventIndex, indirect };
    const driver = format.startsWith("split")
      ? new MockDriver(memory, { ...options, start: random.pick([0, 65530, 65535, 32760]) })
      : new MockPackedDriver(memory, {
        ...options,
        inOrder: format === "packed, IN_ORDER",
        start: { index: random.below(size), odd: random.chance(0.5) },
      });
    const model = new Model(memory, driver, random, anyOrder);
    for (let i = 0; i < STEPS; i++) model.step();
    model.finish();
    kicks += model.kicks;
    calls += model.calls;
    overtaken += model.overtaken;
    memory.checkGuards();
  }
  assert(kicks > 0 && calls > 0, "the test tests something");
  assertEquals(overtaken > 0, anyOrder);
}
