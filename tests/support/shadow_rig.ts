/**
 * Both ends of a shadow queue under a test's control: the mock driver as guest, and a device over the
 * shadow's rings, either ours or one written word by word from VIRTIO 1.2, section 2.7, which may do wrong.
 */

import { RingPool } from "../../src/sharing/pool.ts";
import { CopiedQueue, copiedRingsSize } from "../../src/sharing/copied_queue.ts";
import type { QueueSetup } from "../../src/virtio/device.ts";
import type { Place } from "../../src/virtio/place.ts";
import { Chain, type DeviceQueue, openDeviceQueue, Pop } from "../../src/virtio/queue/mod.ts";
import { type MockDriver, type MockElement, MockMemory } from "./mock_driver.ts";

/** Where the segment lies on the bus. */
export const SEGMENT_AT = 0x8_0000_0000;
/** Where the guest's memory lies; a second window follows the first. */
export const GUEST_AT = 0x4000_0000;

/** A buffer as a device sees it. */
export interface SeenBuffer {
  readonly head: number;
  readonly readable: readonly MockElement[];
  readonly writable: readonly MockElement[];
}

/** What the tests' devices have in common. */
export interface ShadowDevice {
  pop(): SeenBuffer | undefined;
  use(buffer: SeenBuffer, written: number): void;
  /** Whether the driver wants a call. */
  publish(): boolean;
  /** Whether there is more already. */
  wantKicks(): boolean;
  /** Stops in good order, if it can. */
  stop?(): void;
}

/** A segment with guards around it, and one part that is all of it. */
export function segmentOf(size: number): { memory: MockMemory; place: Place } {
  const memory = new MockMemory([{ at: SEGMENT_AT, size }]);
  const offset = memory.offset(SEGMENT_AT);
  const place = { memory: memory.memory, offset, size, at: SEGMENT_AT };
  return { memory, place };
}

/** How large a segment must be for a pool of so many bytes. */
export function segmentSize(entries: number, pool: number): number {
  return copiedRingsSize(entries) + new RingPool(pool).size;
}

/** A shadow of a mock driver's queue. */
export function shadowOf(driver: MockDriver, place: Place, base?: number): CopiedQueue {
  const config = { ...driver.config, base: base ?? driver.config.base };
  const queue = openDeviceQueue(driver.memory.space, config);
  if (typeof queue === "string") throw new Error(queue);
  return new CopiedQueue(queue, place, driver.eventIndex);
}

/** Our own device's queue over a shadow. */
export class InOrderDevice implements ShadowDevice {
  readonly queue: DeviceQueue;
  readonly #chain = chain;

  constructor(readonly memory: MockMemory, setup: QueueSetup, eventIndex: boolean) {
    const queue = openDeviceQueue(memory.space, { ...setup, eventIndex, indirect: false });
    if (typeof queue === "string") throw new Error(queue);
    this.queue = queue;
  }

  pop(): SeenBuffer | undefined {
    this.queue.noKicks();
    const outcome = this.queue.next(this.#chain);
    if (outcome === Pop.EMPTY) return undefined;
    if (outcome !== Pop.CHAIN) throw new Error(`the shadow is broken: ${this.queue.broken}`);
    const { head, readable, writable } = this.#chain;
    return {
      head,
      readable: this.memory.ranges(readable),
      writable: this.memory.ranges(writable),
    };
  }

  use({ head }: SeenBuffer, written: number): void {
    this.queue.complete(head, written);
  }

  publish(): boolean {
    return this.queue.publish();
  }

  wantKicks(): boolean {
    return this.queue.wantKicks();
  }

  stop(): void {
    this.queue.stop();
  }
}

const chain = new Chain();

/** A device that uses buffers in any order, and whatever else it is told to write. */
export class RawDevice implements ShadowDevice {
  #seen = 0;
  #used = 0;
  #published = 0;
  /** Buffers that came in an indirect table. */
  tables = 0;

  constructor(
    readonly memory: MockMemory,
    readonly setup: QueueSetup,
    readonly eventIndex: boolean,
  ) {}

  pop(): SeenBuffer | undefined {
    const { memory, setup: { size, descriptorAddress, driverAddress } } = this;
    if (memory.read16(driverAddress + 2) === this.#seen) return undefined;
    const head = memory.read16(driverAddress + 4 + 2 * (this.#seen % size));
    this.#seen = (this.#seen + 1) & 0xffff;
    const readable: MockElement[] = [], writable: MockElement[] = [];
    let table = descriptorAddress;
    for (let index = head;;) {
      const at = table + 16 * index;
      const flags = memory.read16(at + 12);
      const address = memory.read32(at) + memory.read32(at + 4) * 2 ** 32;
      if ((flags & 4) !== 0) {
        // An indirect table takes the whole buffer.
        if (table !== descriptorAddress || flags !== 4) throw new Error(`flags ${flags}`);
        this.tables++;
        [table, index] = [address, 0];
        continue;
      }
      ((flags & 2) !== 0 ? writable : readable).push({ address, length: memory.read32(at + 8) });
      if ((flags & 1) === 0) return { head, readable, writable };
      index = memory.read16(at + 14);
    }
  }

  use({ head }: { head: number }, written: number): void {
    const { memory, setup: { size, deviceAddress } } = this;
    memory.write32(deviceAddress + 4 + 8 * (this.#used % size), head);
    memory.write32(deviceAddress + 8 + 8 * (this.#used % size), written);
    this.#used = (this.#used + 1) & 0xffff;
  }

  /** Moves the used index, by more than what was used if wanted. */
  publish(extra = 0): boolean {
    const { memory, setup: { size, driverAddress, deviceAddress } } = this;
    const end = (this.#used + extra) & 0xffff;
    memory.write16(deviceAddress + 2, end);
    const event = memory.read16(driverAddress + 4 + 2 * size);
    let wanted = false;
    for (let i = this.#published; i !== end; i = (i + 1) & 0xffff) {
      if (this.eventIndex ? i === event : memory.read16(driverAddress) === 0) wanted = true;
    }
    this.#published = end;
    return wanted;
  }

  wantKicks(): boolean {
    const { memory, setup: { size, driverAddress, deviceAddress } } = this;
    memory.write16(deviceAddress + 4 + 8 * size, this.#seen);
    return memory.read16(driverAddress + 2) !== this.#seen;
  }
}

/** The bytes of elements, one after another. */
export function bytesAt(memory: MockMemory, elements: readonly MockElement[]): Uint8Array {
  const bytes = new Uint8Array(lengthOf(elements));
  let at = 0;
  for (const { address, length } of elements) {
    bytes.set(memory.bytes(address, length), at);
    at += length;
  }
  return bytes;
}

/** Writes bytes to elements, as far as they go. */
export function write(
  memory: MockMemory,
  elements: readonly MockElement[],
  bytes: Uint8Array,
): void {
  let at = 0;
  for (const { address, length } of elements) {
    const part = bytes.subarray(at, at + length);
    memory.bytes(address, part.length).set(part);
    at += length;
  }
}

/** How many bytes elements have. */
export function lengthOf(elements: readonly MockElement[]): number {
  return elements.reduce((sum, { length }) => sum + length, 0);
}
