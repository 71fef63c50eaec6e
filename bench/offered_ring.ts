/**
 * A driver for benchmarks: a ring of the mock driver whose buffers are all offered once, so that its whole
 * work while something is measured is to move the available index. The C twins' driver does the same
 * (bench/c/split_ring.h).
 */

import { type DeviceQueue, openDeviceQueue, type QueueConfig } from "../src/virtio/queue/mod.ts";
import { MockDriver, MockMemory } from "../tests/support/mock_driver.ts";
import { MockPackedDriver } from "../tests/support/mock_packed_driver.ts";

const BUS_ADDRESS = 0x1_0000_0000;

/** What a ring is filled with. */
export interface OfferedRingOptions {
  /** Entries. */
  readonly size: number;
  /** The lengths of a buffer's elements, which follow one another in memory. */
  readonly lengths: readonly number[];
  /** From one buffer to the next, in bytes. */
  readonly stride: number;
  /** Whether each buffer has an indirect table of its own. */
  readonly indirect: boolean;
  /** Whether INDIRECT_DESC is negotiated. */
  readonly negotiated: boolean;
  /** Whether the device writes the buffers, or reads them. */
  readonly writable: boolean;
}

/** See the head of this file. */
export interface OfferedRing extends Disposable {
  readonly memory: MockMemory;
  /** Where the ring lies. */
  readonly config: QueueConfig;
  /** Opens the device's side. */
  open(): DeviceQueue;
  /** Makes the next `count` buffers available; the device must have used as many before. */
  offer(count: number): void;
}

/** Makes the ring and its memory. */
export function offeredRing(options: OfferedRingOptions): OfferedRing {
  const { size, lengths, stride, indirect, negotiated, writable } = options;
  const tables = indirect ? 16 * lengths.length * size : 0;
  const rings = 4 * 4096 + 32 * size;
  const memory = new MockMemory([{ at: BUS_ADDRESS, size: rings + tables + 4096 + stride * size }]);
  const driver = new MockDriver(memory, { size, eventIndex: true, indirect: negotiated });
  const data = Math.ceil((driver.end + tables) / 4096) * 4096;
  const last = lengths.length - 1;
  for (let i = 0; i < size; i++) {
    const head = indirect ? i : i * lengths.length % size;
    const table = driver.end + 16 * lengths.length * i;
    let address = data + stride * i;
    const elements = lengths.map((length) => {
      const element = { address, length };
      address += length;
      return element;
    });
    if (indirect) {
      driver.table(table, writable ? [] : elements, writable ? elements : []);
      driver.desc(head, table, 16 * lengths.length, 4);
    } else {
      elements.forEach(({ address, length }, k) => {
        const flags = (k < last ? 1 : 0) | (writable ? 2 : 0);
        driver.desc(head + k, address, length, flags, head + k + 1);
      });
    }
    memory.write16(driver.driverAddress + 4 + 2 * i, head);
  }
  driver.setUsedEvent(0x8000);
  const { config } = driver;
  const avail = new Uint16Array(memory.memory.buffer, memory.offset(driver.driverAddress), 2);
  return {
    memory,
    config,
    open() {
      const queue = openDeviceQueue(memory.space, config);
      if (typeof queue === "string") throw new Error(queue);
      return queue;
    },
    offer(count) {
      avail[1] += count;
    },
    [Symbol.dispose]: () => memory[Symbol.dispose](),
  };
}

/** The same of a packed ring. Its driver has to write descriptors anew, since the device writes over them; buffers are read. */
export function offeredPackedRing(
  options: Pick<OfferedRingOptions, "size" | "lengths" | "stride" | "indirect">,
): OfferedRing {
  const { size, lengths, stride, indirect } = options;
  const tables = indirect ? 16 * lengths.length * size : 0;
  const rings = 4 * 4096 + 16 * size;
  const memory = new MockMemory([{ at: BUS_ADDRESS, size: rings + tables + 4096 + stride * size }]);
  const driver = new MockPackedDriver(memory, { size, eventIndex: true, indirect });
  const data = Math.ceil((driver.end + tables) / 4096) * 4096;
  const last = lengths.length - 1;
  const elements = indirect ? 1 : lengths.length;
  for (let i = 0; i < size / elements; i++) {
    let address = data + stride * i;
    const table = driver.end + 16 * lengths.length * i;
    lengths.forEach((length, k) => {
      const at = indirect ? table + 16 * k : driver.slot(i * elements + k);
      driver.desc(at, address, length, i, !indirect && k < last ? 1 : 0);
      address += length;
    });
    if (indirect) driver.desc(driver.slot(i), table, 16 * lengths.length, i, 4);
  }
  memory.write32(driver.driverAddress, 1 << 16);
  const { config } = driver;
  const ring = new Uint32Array(memory.memory.buffer, memory.offset(BUS_ADDRESS), 4 * size);
  const copy = ring.slice();
  for (let i = 0; i < size; i++) ring[4 * i + 3] = 0;
  let position = 0;
  return {
    memory,
    config,
    open() {
      const queue = openDeviceQueue(memory.space, config);
      if (typeof queue === "string") throw new Error(queue);
      return queue;
    },
    offer(count) {
      for (let n = count * elements; n > 0; n--) {
        const at = (position & (size - 1)) << 2;
        ring[at] = copy[at]!;
        ring[at + 1] = copy[at + 1]!;
        ring[at + 2] = copy[at + 2]!;
        ring[at + 3] = copy[at + 3]! | ((position & size) === 0 ? 1 << 23 : 1 << 31);
        position = (position + 1) & (2 * size - 1);
      }
    },
    [Symbol.dispose]: () => memory[Symbol.dispose](),
  };
}
