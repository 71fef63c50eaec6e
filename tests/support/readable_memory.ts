/** The mock's memory for who reads from outside; a read outside of the windows is a test's failure. */

import type { ReadableMemory } from "../../src/virtio/queue/ring_reader.ts";
import type { MockMemory } from "./mock_driver.ts";

/** Copies what lies in one window. */
export function readable(memory: MockMemory): ReadableMemory {
  const contains = (address: number, length: number) =>
    memory.windows.some(({ at, size }) => address >= at && address + length <= at + size);
  return {
    contains,
    read: (address, length) =>
      contains(address, length)
        ? new DataView(memory.bytes(address, length).slice().buffer)
        : undefined,
  };
}
