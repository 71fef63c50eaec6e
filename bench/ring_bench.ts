/**
 * What a packet costs in the ring alone: pop, complete and one publish per batch, without touching its
 * bytes. Each iteration handles PACKETS packets, so a figure in microseconds is nanoseconds per packet.
 *
 *     deno bench -A bench/ring_bench.ts
 */

import { mapAnonymous } from "../src/linux/mapping.ts";
import { AddressSpace } from "../src/memory/address_space.ts";
import { Chain } from "../src/virtqueue/chain.ts";
import { ChainSequence } from "../src/virtqueue/chain_sequence.ts";
import { type DeviceQueue, openDeviceQueue, Pop } from "../src/virtqueue/device_queue.ts";
import { DriverQueue } from "../src/virtqueue/driver_queue.ts";
import { MockDriver, MockMemory } from "../tests/support/mock_driver.ts";

const PACKETS = 1000, SIZE = 256, MASK = SIZE - 1;

/**
 * A ring whose heads are all offered once; the driver's whole work is to move the available index.
 *
 * @param elements per buffer; with 2 a header and a payload
 */
function makeRing(elements: number, indirect: boolean, writable: boolean) {
  const memory = new MockMemory([{ at: 0x1_0000_0000, size: 4 << 20 }]);
  const driver = new MockDriver(memory, { size: SIZE, eventIndex: true, indirect });
  const data = driver.end + 0x10000;
  for (let i = 0; i < SIZE; i++) {
    const buffer = Array.from({ length: elements }, (_, k) => ({
      address: data + 2048 * i + (k === 0 ? 0 : 12),
      length: k < elements - 1 ? 12 : 1512,
    }));
    const table = driver.end + 64 * i;
    const head = i * elements & MASK;
    if (indirect) {
      driver.table(table, writable ? [] : buffer, writable ? buffer : []);
      driver.desc(head, table, 16 * elements, 4);
    } else {
      buffer.forEach(({ address, length }, k) => {
        const flags = (k < elements - 1 ? 1 : 0) | (writable ? 2 : 0);
        driver.desc(head + k, address, length, flags, head + k + 1);
      });
    }
    memory.write16(driver.driverAddress + 4 + 2 * i, head);
  }
  driver.setUsedEvent(0x8000);
  const queue = openDeviceQueue(memory.space, driver.config);
  if (typeof queue === "string") throw new Error(queue);
  const avail = new Uint16Array(memory.memory.buffer, memory.offset(driver.driverAddress), 2);
  return { queue, avail };
}

const chain = new Chain();

function transmit(queue: DeviceQueue, avail: Uint16Array, batch: number): void {
  for (let done = 0; done < PACKETS; done += batch) {
    avail[1] += batch;
    while (queue.next(chain) === Pop.CHAIN) queue.complete(chain.head, 0);
    queue.publish();
  }
  if (queue.broken !== undefined) throw new Error(queue.broken);
}

for (
  const [kind, elements, indirect] of [
    ["direct, 1 descriptor", 1, false],
    ["direct, 2 descriptors", 2, false],
    ["indirect, 2 descriptors", 2, true],
  ] as const
) {
  for (const batch of [1, 8, 32]) {
    const { queue, avail } = makeRing(elements, indirect, false);
    Deno.bench(
      `pop, complete, publish; batch ${batch}`,
      { group: kind, baseline: batch === 1 },
      () => {
        transmit(queue, avail, batch);
      },
    );
  }
}

{
  const { queue, avail } = makeRing(1, false, true);
  const sequence = new ChainSequence();
  Deno.bench("mergeable: 64 KiB collected, 1 buffer used", { group: "mergeable" }, () => {
    for (let done = 0; done < PACKETS; done++) {
      avail[1] = queue.base - queue.inFlight + SIZE;
      if (!sequence.fill(queue, 65550)) throw new Error(queue.broken);
      sequence.complete(queue, 1000);
      queue.publish();
    }
  });
}

{
  const memory = mapAnonymous(1 << 20);
  const space = new AddressSpace();
  space.add(0, memory.size, memory);
  const options = {
    memory,
    offset: 0,
    size: SIZE,
    busAddress: 0,
    eventIndex: true,
    indirect: false,
  };
  const driver = new DriverQueue(options);
  const queue = openDeviceQueue(space, { ...driver, base: 0, eventIndex: true, indirect: false });
  if (typeof queue === "string") throw new Error(queue);
  Deno.bench("both sides ours; batch 32", { group: "both sides" }, () => {
    for (let done = 0; done < PACKETS; done += 32) {
      for (let i = 0; i < 32; i++) driver.addOne(0x10000 + 2048 * i, 1512, false, i);
      driver.publish();
      while (queue.next(chain) === Pop.CHAIN) queue.complete(chain.head, 0);
      queue.publish();
      while (driver.nextUsed());
    }
  });
}
