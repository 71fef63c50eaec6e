/** Where a packed ring goes on is found in it, whenever its device died. */

import { assertEquals } from "@std/assert";
import { Chain, type DeviceQueue, openDeviceQueue, Pop } from "../../../src/virtio/queue/mod.ts";
import { ringPosition } from "../../../src/drivers/ring_position.ts";
import { MockMemory, Random } from "../../support/mock_driver.ts";
import { MockPackedDriver } from "../../support/mock_packed_driver.ts";

const AT = 0x4000_0000, MEMORY = 0x20000;
const chain = new Chain();

function found(memory: MockMemory, { config }: MockPackedDriver): number | undefined {
  const region = { at: AT, size: MEMORY, memory: memory.memory, offset: memory.offset(AT) };
  return ringPosition([region], config, true);
}

function open(memory: MockMemory, driver: MockPackedDriver, base: number): DeviceQueue {
  const queue = openDeviceQueue(memory.space, { ...driver.config, base });
  if (typeof queue === "string") throw new Error(queue);
  return queue;
}

for (const eventIndex of [false, true]) {
  for (const inOrder of [false, true]) {
    const name = `${eventIndex ? "EVENT_IDX" : "flags"}, IN_ORDER ${inOrder}`;
    Deno.test(`packed ring: devices die at any time, and none of the buffers is lost: ${name}`, () => {
      const random = new Random(Random.seed());
      console.log(`SEED=${random.seed}`);
      using memory = new MockMemory([{ at: AT, size: MEMORY }]);
      const size = 16;
      const driver = new MockPackedDriver(memory, { size, eventIndex, inOrder, indirect: true });
      let queue = open(memory, driver, found(memory, driver)!);
      let added = 0, taken = 0, deaths = 0, halves = 0;
      for (let step = 0; step < 20_000; step++) {
        switch (random.below(7)) {
          case 0:
          case 1: {
            // Chains of some descriptors, or a table; the ring is often full.
            const elements = Array.from(
              { length: 1 + random.below(4) },
              () => ({ address: driver.end, length: 64 }),
            );
            const reads = random.below(elements.length + 1);
            // A table of its own for each that can be out.
            const table = random.chance(0.3) ? driver.end + 4096 + 64 * (added % 32) : undefined;
            const id = driver.add(elements.slice(0, reads), elements.slice(reads), table);
            if (id !== undefined) added++;
            driver.publish();
            break;
          }
          case 2:
            for (let n = random.below(6); n > 0 && driver.takeUsed() !== undefined; n--) taken++;
            break;
          case 3:
            queue.noKicks();
            break;
          case 4:
            queue.wantKicks();
            break;
          case 5:
            for (let n = random.below(6); n > 0 && queue.next(chain) === Pop.CHAIN; n--) {
              queue.complete(chain.head, chain.writable.length);
            }
            if (random.chance(0.8)) queue.publish();
            break;
          default:
            if (random.chance(0.5)) break;
            // As it is: popped, completed and not shown, shown and not taken. Or while it shows: all but the first
            // descriptor of the batch, and the word behind it, are written.
            if (random.chance(0.5)) {
              const slot = driver.slot(found(memory, driver)! & (size - 1));
              const before = [memory.bytes(slot, 16), memory.bytes(driver.deviceAddress, 4)]
                .map((bytes) => bytes.slice());
              queue.publish();
              memory.bytes(slot, 16).set(before[0]!);
              memory.bytes(driver.deviceAddress, 4).set(before[1]!);
              halves++;
            }
            queue = open(memory, driver, found(memory, driver)!);
            deaths++;
        }
        assertEquals(queue.broken, undefined);
      }
      while (queue.next(chain) === Pop.CHAIN) queue.complete(chain.head, 0);
      queue.publish();
      while (driver.takeUsed() !== undefined) taken++;
      assertEquals([taken, driver.free], [added, size]);
      assertEquals([deaths > 100, halves > 50], [true, true]);
    });
  }
}

Deno.test("packed ring: a device that died between the ring and the word beside it", () => {
  using memory = new MockMemory([{ at: AT, size: MEMORY }]);
  const driver = new MockPackedDriver(memory, { size: 8 });
  const queue = open(memory, driver, 0);
  for (let i = 0; i < 3; i++) driver.add([{ address: driver.end, length: 1 }], []);
  driver.publish();
  const word = memory.read32(driver.deviceAddress);
  for (let i = 0; i < 2; i++) queue.next(chain), queue.complete(chain.head, 0);
  queue.publish();
  assertEquals(found(memory, driver), 2);
  memory.write32(driver.deviceAddress, word);
  assertEquals(found(memory, driver), 2);
  // What is in no ring is no position, and one that used descriptors contradict neither.
  memory.write32(driver.slot(0) + 4, 0);
  assertEquals(found(memory, driver), undefined);
  memory.write32(driver.deviceAddress, 8);
  assertEquals(found(memory, driver), undefined);
});
