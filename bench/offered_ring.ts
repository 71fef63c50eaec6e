/**
 * A driver for benchmarks: a ring of the mock driver whose buffers are all offered once, so that its whole
 * work while something is measured is to move the available index. The C twins' driver does the same
 * (bench/c/split_ring.h).
 */

import { type DeviceQueue, openDeviceQueue, type QueueConfig } from "../src/virtio/queue/mod.ts";
import { MockDriver, MockMemory } from "../tests/support/mock_driver.ts";

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
