/** Mergeable receive: one read over several buffers, the rest kept for the next. */

import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { ChainSequence } from "../../../src/virtio/queue/chain_sequence.ts";
import { openDeviceQueue } from "../../../src/virtio/queue/mod.ts";
import { MockDriver, MockMemory, Random } from "../../support/mock_driver.ts";

const BUFFER = 100;

function setUp(start = 65500) {
  const memory = new MockMemory();
  const driver = new MockDriver(memory, { size: 64, start });
  const queue = openDeviceQueue(memory.space, driver.config);
  if (typeof queue === "string") throw new Error(queue);
  return { memory, driver, queue, [Symbol.dispose]: () => memory[Symbol.dispose]() };
}

/** Offers a buffer of two descriptors. */
function offer(driver: MockDriver): number | undefined {
  const address = driver.end + 256 * (driver.available % driver.size);
  return driver.add([], [{ address, length: 12 }, { address: address + 12, length: BUFFER - 12 }]);
}

Deno.test("a sequence gives a frame as many buffers as it needs and keeps the others", () => {
  using s = setUp();
  const sequence = new ChainSequence(8, 64);
  assert(!sequence.fill(s.queue, 1), "nothing offered");
  for (let i = 0; i < 5; i++) offer(s.driver);
  s.driver.publish();
  assert(sequence.fill(s.queue, 250));
  assertEquals([sequence.buffers, sequence.bytes, sequence.writable.count], [3, 300, 6]);
  assertEquals(s.queue.inFlight, 3);
  assert(sequence.writable.setUint16(10, 2, sequence.firstSegment));
  assertEquals(sequence.complete(s.queue, 150), 2);
  assertEquals([sequence.buffers, sequence.bytes, sequence.firstSegment], [1, 100, 4]);
  s.memory.bytes(s.driver.end, 4).set([1, 2, 3, 4]);
  const source = s.memory.memory.address + BigInt(s.memory.offset(s.driver.end));
  assertEquals(sequence.writable.copyIn(11, source, 4, sequence.firstSegment), 4);
  const third = s.driver.end + 256 * (65502 % 64);
  assertEquals([...s.memory.bytes(third + 11, 4)], [1, 2, 3, 4], "over two segments");
  assertEquals(s.driver.usedIndex, 65500, "not published");
  s.queue.publish();
  const first = s.driver.takeUsed()!, second = s.driver.takeUsed()!;
  assertEquals([first.length, second.length], [100, 50]);
  assertEquals(s.memory.read16(s.driver.end + 256 * (65500 % 64) + 10), 2);
  assert(!sequence.fill(s.queue, 350), "only 3 are left");
  assertEquals(sequence.bytes, 300);
  sequence.release(s.queue);
  assertEquals([sequence.bytes, s.queue.inFlight, s.queue.base], [0, 0, 65502]);
  assertThrows(() => sequence.complete(s.queue, 1));
});

Deno.test("a sequence begins anew when its array is full", () => {
  const seed = Random.seed();
  console.log(`SEED=${seed}`);
  const random = new Random(seed);
  for (const [maxBuffers, capacity] of [[7, 64], [64, 11]]) {
    using s = setUp();
    const sequence = new ChainSequence(maxBuffers, capacity);
    let offered = 0, used = 0;
    for (let i = 0; i < 3000; i++) {
      while (offer(s.driver) !== undefined) offered++;
      s.driver.publish();
      const wanted = 1 + random.below(500);
      s.queue.noKicks();
      assert(sequence.fill(s.queue, wanted), s.queue.broken);
      // What readv would get names exactly the oldest unused buffers.
      const start = (65500 + used) & 0xffff;
      assertEquals((s.queue.base - s.queue.inFlight) & 0xffff, start);
      const written = 1 + random.below(wanted);
      const buffers = sequence.complete(s.queue, written);
      assertEquals(buffers, Math.ceil(written / BUFFER));
      used += buffers;
      s.queue.publish();
      let sum = 0;
      for (let n = 0; n < buffers; n++) sum += s.driver.takeUsed()!.length;
      assertEquals(sum, written);
      assertEquals(s.driver.takeUsed(), undefined);
    }
    assert(used <= offered);
  }
});

Deno.test("a sequence whose array is too small for what is wanted says so", () => {
  using s = setUp();
  const sequence = new ChainSequence(2, 64);
  for (let i = 0; i < 5; i++) offer(s.driver);
  s.driver.publish();
  assert(!sequence.fill(s.queue, 201));
  assertEquals([sequence.bytes, s.queue.broken], [200, undefined]);
});

Deno.test("readable descriptors in a receive queue break it", () => {
  using s = setUp();
  const sequence = new ChainSequence(4, 64);
  s.driver.add([{ address: s.driver.end, length: 8 }], [{ address: s.driver.end, length: 8 }]);
  s.driver.publish();
  assert(!sequence.fill(s.queue, 1));
  assertStringIncludes(s.queue.broken!, "readable descriptors");
});
