/**
 * Random traffic through a queue that stands between a guest (the mock driver) and a device: each of the three acts
 * only when it was notified, so that a lost notification ends the run early. What every buffer holds is compared
 * both ways with a model that is a list, also across stops.
 */

import { assert, assertEquals } from "@std/assert";
import type { ForwardingQueue } from "../../src/sharing/forwarding_queue.ts";
import { MockDriver, type MockElement, type MockMemory, type Random } from "./mock_driver.ts";
import { bytesAt, lengthOf, type SeenBuffer, type ShadowDevice, write } from "./shadow_rig.ts";

/** Memory for one buffer: the largest frame in pieces, with gaps; behind it an indirect table. */
export const SLOT_SIZE = 0x18000;
const TABLE_AT = SLOT_SIZE - 0x400;
/** The largest buffer. */
export const LARGEST = 0x11000;
/** What the guest's memory holds where the device has not written. */
const UNTOUCHED = 0xee;

/** What kind of traffic. */
export interface Setting {
  readonly eventIndex: boolean;
  /** Of the guest. */
  readonly indirect: boolean;
  readonly inOrder: boolean;
  readonly size: number;
  readonly largest: number;
  readonly start: number;
  /** The device keeps buffers as long as others have something to do, nearly always. */
  readonly hoards?: boolean;
  /** Stops now and then. */
  readonly stops: boolean;
}

/** The queue under test, and what a device sees behind it. */
export interface Between {
  /** Makes a queue and a device for it. */
  open(driver: MockDriver, base?: number): { shadow: ForwardingQueue; device: ShadowDevice };
  /** The bytes of elements as the device sees them, one after another. */
  read(elements: readonly MockElement[]): Uint8Array;
  /** Writes bytes to elements, as far as they go. */
  write(elements: readonly MockElement[], bytes: Uint8Array): void;
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
export class Traffic {
  readonly #added: Buffer[] = [];
  #taken = 0;
  #popped = 0;
  readonly #held: { readonly buffer: Buffer; readonly seen: SeenBuffer }[] = [];
  readonly #freeSlots: number[] = [];
  readonly #driver: MockDriver;
  readonly #data: number;
  #shadow: ForwardingQueue;
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
    readonly between: Between,
  ) {
    const { size, eventIndex, indirect, start } = setting;
    this.#driver = new MockDriver(memory, { size, eventIndex, indirect, start });
    this.#data = memory.windows[1].at;
    for (let i = 0; i < size; i++) this.#freeSlots.push(i);
    ({ shadow: this.#shadow, device: this.#device } = between.open(this.#driver));
  }

  /** Moves so many buffers; throws if one is lost or changed. */
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
      const holdsOn = this.setting.hoards === true && steps.length > 0 && this.random.chance(0.95);
      if (this.#held.length > 0 && !holdsOn) steps.push(() => this.#use());
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
      assertSame(this.between.read(seen.readable), buffer.readable);
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
      this.between.write(seen.writable, buffer.written);
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
    if (this.random.chance(0.5)) this.#device.stop?.();
    this.stops++;
    this.full += this.#shadow.counters.full;
    const base = this.#shadow.stop();
    // Both ends look once, as the state machine has it.
    this.#guestCalled = this.#proxyWoken = this.#deviceKicked = true;
    this.#guest();
    assertEquals(base, this.#driver.seen);
    this.#popped = this.#taken;
    // A device that wrote to the guest itself may have used buffers that are given once more.
    for (const { writable } of this.#added.slice(this.#taken)) {
      for (const { address, length } of writable) {
        this.memory.bytes(address, length).fill(UNTOUCHED);
      }
    }
    this.#held.length = 0;
    ({ shadow: this.#shadow, device: this.#device } = this.between.open(this.#driver, base));
  }
}
