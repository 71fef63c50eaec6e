/**
 * What a packet costs in the ring alone: pop, complete and one publish per batch, without touching its
 * bytes. Each iteration handles PACKETS packets, so a figure in microseconds is nanoseconds per packet.
 *
 *     deno bench -A bench/ring_bench.ts
 */

import { mapAnonymous } from "../src/linux/mapping.ts";
import { AddressSpace } from "../src/memory/address_space.ts";
import { ChainBatch } from "../src/virtio/queue/chain.ts";
import { ChainSequence } from "../src/virtio/queue/chain_sequence.ts";
import { type DeviceQueue, openDeviceQueue } from "../src/virtio/queue/mod.ts";
import { DriverQueue } from "../src/virtio/split/driver_queue.ts";
import { type OfferedRing, offeredRing } from "./offered_ring.ts";

const PACKETS = 1000, SIZE = 256;

/** A ring whose buffers are offered once, each with these elements. */
function makeRing(lengths: readonly number[], indirect: boolean, writable: boolean) {
  const options = { size: SIZE, lengths, stride: 2048, indirect, negotiated: indirect, writable };
  const ring = offeredRing(options);
  return { ring, queue: ring.open() };
}

const chains = new ChainBatch(64, 1024);

/** What a device does with a batch, but for the buffers' bytes. */
function complete(queue: DeviceQueue): void {
  queue.noKicks();
  chains.clear();
  queue.completeOldest(queue.pop(chains, 64));
  queue.publish();
}

function transmit(queue: DeviceQueue, ring: OfferedRing, batch: number): void {
  for (let done = 0; done < PACKETS; done += batch) {
    ring.offer(batch);
    complete(queue);
  }
  if (queue.broken !== undefined) throw new Error(queue.broken);
}

for (
  const [kind, lengths, indirect] of [
    ["direct, 1 descriptor", [1512], false],
    ["direct, 2 descriptors", [12, 1500], false],
    ["indirect, 2 descriptors", [12, 1500], true],
  ] as const
) {
  for (const batch of [1, 8, 32]) {
    const { queue, ring } = makeRing(lengths, indirect, false);
    Deno.bench(
      `pop, complete, publish; batch ${batch}`,
      { group: kind, baseline: batch === 1 },
      () => {
        transmit(queue, ring, batch);
      },
    );
  }
}

{
  const { queue, ring } = makeRing([1512], false, true);
  const sequence = new ChainSequence();
  ring.offer(SIZE - 1);
  Deno.bench("mergeable: 64 KiB collected, 1 buffer used", { group: "mergeable" }, () => {
    for (let done = 0; done < PACKETS; done++) {
      ring.offer(1);
      queue.noKicks();
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
  const place = { memory, offset: 0, size: memory.size, at: 0 };
  const driver = new DriverQueue({ place, size: SIZE, eventIndex: true, indirect: false });
  const queue = openDeviceQueue(space, { ...driver, base: 0, eventIndex: true, indirect: false });
  if (typeof queue === "string") throw new Error(queue);
  Deno.bench("both sides ours; batch 32", { group: "both sides" }, () => {
    for (let done = 0; done < PACKETS; done += 32) {
      for (let i = 0; i < 32; i++) driver.addOne(0x10000 + 2048 * i, 1512, false, i);
      driver.publish();
      complete(queue);
      while (driver.nextUsed());
    }
  });
}
