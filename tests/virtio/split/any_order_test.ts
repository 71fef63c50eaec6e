/** A ring whose buffers are completed in any order: what is kept, what is refused, what a stop leaves. */

import { assert, assertEquals, assertThrows } from "@std/assert";
import { Chain, openDeviceQueue, Pop } from "../../../src/virtio/queue/mod.ts";
import { MockDriver, MockMemory, Random } from "../../support/mock_driver.ts";

const SIZE = 8;
const chain = new Chain();

/** A queue of which `offered` buffers of 100, 101, ... writable bytes are popped. */
function setUp(offered: number, start = 0) {
  const memory = new MockMemory();
  const driver = new MockDriver(memory, { size: SIZE, start });
  const open = (base: number) => {
    const queue = openDeviceQueue(memory.space, { ...driver.config, base, anyOrder: true });
    if (typeof queue === "string") throw new Error(queue);
    return queue;
  };
  const queue = open(start);
  const heads: number[] = [];
  const offer = () => {
    const element = { address: driver.end + 0x200 * heads.length, length: 100 + heads.length };
    const head = driver.add([], [element]);
    if (head === undefined) throw new Error("no descriptor is free");
    driver.publish();
    heads.push(head);
    assertEquals(queue.next(chain), Pop.CHAIN);
    assertEquals(chain.head, head);
  };
  for (let i = 0; i < offered; i++) offer();
  return {
    memory,
    driver,
    queue,
    heads,
    offer,
    open,
    [Symbol.dispose]() {
      memory.checkGuards();
      memory[Symbol.dispose]();
    },
  };
}

/** Everything the driver can take back. */
function taken(driver: MockDriver): { head: number; length: number }[] {
  const elements = [];
  for (let used = driver.takeUsed(); used !== undefined; used = driver.takeUsed()) {
    elements.push(used);
  }
  return elements;
}

Deno.test("any order: buffers come back as they are completed, each with its own length", () => {
  using s = setUp(4);
  const [a, b, c, d] = s.heads;
  for (const [head, length] of [[c, 102], [a, 0], [d, 7], [b, 101]]) {
    s.queue.complete(head, length);
  }
  assert(s.queue.publish());
  assertEquals(taken(s.driver), [
    { head: c, length: 102 },
    { head: a, length: 0 },
    { head: d, length: 7 },
    { head: b, length: 101 },
  ]);
  assertEquals(s.queue.inFlight, 0);
});

Deno.test("any order: a buffer stays open while the ring goes round many times", () => {
  using s = setUp(1, 65530);
  for (let i = 0; i < 5 * SIZE; i++) {
    s.offer();
    s.queue.complete(chain.head, 100);
    s.queue.publish();
    assertEquals(taken(s.driver), [{ head: chain.head, length: 100 }]);
    assertEquals(s.queue.inFlight, 1);
  }
  s.queue.complete(s.heads[0], 100);
  s.queue.publish();
  assertEquals(taken(s.driver), [{ head: s.heads[0], length: 100 }]);
});

Deno.test("any order: errors of our own are named", () => {
  using s = setUp(2);
  const [a] = s.heads;
  assertThrows(() => s.queue.complete(a, 101), Error, "101 bytes written to a buffer of 100");
  for (const head of [7, SIZE, -1, 1.5, NaN]) {
    assertThrows(() => s.queue.complete(head, 0), Error, `head ${head} is not in flight`);
  }
  s.queue.complete(a, 1);
  assertThrows(() => s.queue.complete(a, 1), Error, "is not in flight");
  assertThrows(() => s.queue.rewind(2), Error, "cannot take back 2 of 1");
});

Deno.test("any order: a head that is offered while the device has it breaks the queue", () => {
  using s = setUp(2);
  const [a, b] = s.heads;
  s.driver.offer(a);
  s.driver.publish();
  assertEquals(s.queue.next(chain), Pop.BROKEN);
  assertEquals(s.queue.broken, `head ${a} is offered again while the device has it`);
  assertEquals([chain.writable.count, s.queue.inFlight], [0, 2], "it was not popped");
  // A broken queue takes what was popped before.
  s.queue.complete(b, 5);
  s.queue.publish();
  assertEquals(taken(s.driver), [{ head: b, length: 5 }]);
});

Deno.test("any order: a head may be offered again as soon as it was completed", () => {
  using s = setUp(1);
  s.queue.complete(s.heads[0], 0);
  s.queue.publish();
  s.driver.offer(s.heads[0]);
  s.driver.publish();
  assertEquals([s.queue.next(chain), chain.head], [Pop.CHAIN, s.heads[0]]);
});

Deno.test("any order: only what nothing overtook can be taken back", () => {
  using s = setUp(6, 65533);
  for (const i of [0, 2, 3]) s.queue.complete(s.heads[i], 0);
  // The one popped last can be taken back and popped again.
  s.queue.rewind(1);
  assertEquals([s.queue.next(chain), chain.head], [Pop.CHAIN, s.heads[5]]);
  assertThrows(() => s.queue.rewind(3), Error, "it was completed");
});

Deno.test("any order: what was overtaken is finished before the stop, then a successor goes on", () => {
  using s = setUp(6, 65533);
  for (const i of [0, 2, 3]) s.queue.complete(s.heads[i], 0);
  s.queue.complete(s.heads[1], 0);
  s.queue.stop();
  assertEquals([s.queue.base, s.queue.inFlight], [(65533 + 4) & 0xffff, 0]);
  assertEquals(taken(s.driver).length, 4);
  const successor = s.open(s.queue.base);
  for (const i of [4, 5]) {
    assertEquals([successor.next(chain), chain.head], [Pop.CHAIN, s.heads[i]]);
  }
  successor.complete(s.heads[5], 0);
  successor.complete(s.heads[4], 0);
  successor.publish();
  assertEquals(taken(s.driver).length, 2);
});

Deno.test("any order: what was overtaken and not finished stays with the device", () => {
  using s = setUp(6);
  for (const i of [0, 2, 3]) s.queue.complete(s.heads[i], 0);
  s.queue.stop();
  assertEquals([s.queue.base, s.queue.inFlight], [4, 1]);
});

Deno.test("any order: a head's old position does not stand for the buffer it names now", () => {
  using s = setUp(2);
  const a = s.heads[1];
  s.queue.complete(a, 0);
  s.queue.publish();
  s.driver.offer(a);
  s.driver.publish();
  assertEquals([s.queue.next(chain), chain.head], [Pop.CHAIN, a]);
  // Popped: heads[0], a (done), a (open). Only the last one can be taken back.
  s.queue.stop();
  assertEquals([s.queue.base, s.queue.inFlight], [2, 1]);
});

Deno.test("any order: a driver that offers heads at random breaks the queue or gets each once", () => {
  const seed = Random.seed();
  console.log(`SEED=${seed}`);
  const random = new Random(seed);
  let broken = 0, used = 0;
  for (let round = 0; round < 200; round++) {
    using s = setUp(0, random.u32() & 0xffff);
    const open = new Set<number>();
    for (let i = 0; i < SIZE; i++) s.driver.desc(i, s.driver.end, 64, 2);
    for (let step = 0; step < 40 && s.queue.broken === undefined; step++) {
      const out = (s.driver.available - s.driver.usedIndex) & 0xffff;
      if (out < SIZE) s.driver.offer(random.below(SIZE));
      s.driver.publish();
      if (s.queue.next(chain) === Pop.CHAIN) {
        assert(!open.has(chain.head), "one head, two open buffers");
        open.add(chain.head);
      }
      if (open.size > 0 && random.chance(0.7)) {
        const head = random.pick([...open]);
        open.delete(head);
        s.queue.complete(head, 64);
        s.queue.publish();
        used++;
      }
      assertEquals(s.queue.inFlight, open.size);
    }
    if (s.queue.broken !== undefined) broken++;
    s.queue.stop();
  }
  assert(broken > 50 && used > 200, `${broken} broken, ${used} used: the test reaches both`);
});
