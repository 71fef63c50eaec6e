/** Also the other thread of the last test: a Worker that echoes. */

import { assert, assertEquals, assertThrows } from "@std/assert";
import { mapAnonymous } from "../../src/linux/mapping.ts";
import type { MappedMemory } from "../../src/memory/mod.ts";
import { SLOT_SIZE, spscCapacity, SpscQueue, spscSize } from "../../src/bus/spsc_queue.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { Kind, Message } from "../../src/message/message.ts";
import { Random } from "../support/mock_driver.ts";

/**
 * Between two threads: 320 times round the queue. Some are written slowly, so that one that is announced before it
 * is whole is caught in every run.
 */
const MESSAGES = 20_000;
/** How often a thread looks in vain before it rests. */
const SPINS = 1000;
/** The other thread does something within this time, however busy the machine is. */
const TIMEOUT_MS = 60_000;

function memoryOf(size: number): MappedMemory {
  return { address: 0n, buffer: new ArrayBuffer(size), size };
}

/** Both ends of one queue over the same memory, and its two indices. */
function bothEnds(capacity: number, size = spscSize(capacity)) {
  const memory = memoryOf(size);
  const producer = new SpscQueue(memory, 0, size);
  const consumer = new SpscQueue(memory, 0, size);
  return { memory, producer, consumer, words: new Uint32Array(memory.buffer) };
}

const TAIL = 16;

/**
 * Sends a message whose 16 words are `value`; false when the queue is full.
 *
 * @param spins how long to wait in its middle
 */
function send(queue: SpscQueue, value: number, spins = 0): boolean {
  const at = queue.claim();
  if (at < 0) return false;
  for (let i = 0; i < SLOT_SIZE; i += 4) {
    queue.view.setUint32(at + i, value, true);
    for (let spin = i === SLOT_SIZE / 2 ? spins : 0; spin > 0; spin--);
  }
  queue.publish();
  return true;
}

const slot = new Uint32Array(SLOT_SIZE / 4);

/** The value of the next message, -1 when there is none; throws if it is torn. */
function receive(queue: SpscQueue): number {
  if (!queue.receive(slot)) return -1;
  if (slot.some((word) => word !== slot[0])) throw new Error("a torn message");
  return slot[0]!;
}

function spscTests(): void {
  Deno.test("SPSC 4.1: sizes and capacities of the table", () => {
    for (const [size, capacity] of [[4096, 62], [1024, 14], [262272, 4096], [192, 1], [256, 2]]) {
      assertEquals(spscCapacity(size!), capacity);
      assertEquals(spscCapacity(size! + 63), capacity, "a part of a slot is none");
    }
    for (const size of [0, 64, 127, 128, 191]) assertEquals(spscCapacity(size), 0);
    assertEquals([spscSize(62), spscSize(4096)], [4096, 262272]);
    for (const size of [0, 191, 192, 255]) {
      assertThrows(() => new SpscQueue(memoryOf(size), 0, size), Error, "no room");
    }
    assertEquals(new SpscQueue(memoryOf(256), 0, 256).capacity, 2);
  });

  Deno.test("SPSC 4.1: the example's bytes, EVENT_USED for queue 1 in slot 0 of 4096 bytes", () => {
    const { memory, producer } = bothEnds(62, 4096);
    producer.attachProducer();
    const message = new Message();
    message.reset(Kind.EVENT_USED, false);
    message.index = 1;
    codecFor("proto").encode(message, producer.view, producer.claim());
    producer.publish();
    const expected = new Uint8Array(4096);
    expected[0x00] = 0x01;
    expected.set([0x00, 0x12, 0x00, 0x00, 0x01], 0x80);
    assertEquals(new Uint8Array(memory.buffer), expected);
  });

  Deno.test("SPSC 4.1: each side writes its own index only, at 0 and at 64", () => {
    const { producer, consumer, words } = bothEnds(4);
    producer.attachProducer();
    consumer.attachConsumer(false);
    send(producer, 1);
    assertEquals([words[0], words[TAIL]], [1, 0]);
    receive(consumer);
    assertEquals([words[0], words[TAIL]], [1, 1]);
    for (let i = 0; i < 3; i++) {
      send(producer, 2);
      receive(consumer);
    }
    assertEquals([words[0], words[TAIL]], [0, 0], "after the last slot comes slot 0");
  });

  Deno.test("SPSC: full with capacity - 1 messages, room again after one is taken", () => {
    for (const capacity of [2, 3, 62]) {
      const { producer, consumer } = bothEnds(capacity);
      producer.attachProducer();
      consumer.attachConsumer(false);
      for (let round = 0; round < 3; round++) {
        for (let n = 0; n < capacity - 1; n++) {
          assertEquals(producer.free, capacity - 1 - n);
          assert(send(producer, n));
        }
        assertEquals([producer.free, producer.claim()], [0, -1]);
        assertEquals(receive(consumer), 0);
        assertEquals(producer.free, 1);
        assert(send(producer, capacity - 1));
        for (let n = 1; n < capacity; n++) assertEquals(receive(consumer), n);
        assertEquals(receive(consumer), -1);
      }
    }
  });

  Deno.test("SPSC: nothing is seen before it is published; claiming twice is one slot", () => {
    const { producer, consumer } = bothEnds(4);
    producer.attachProducer();
    consumer.attachConsumer(false);
    assertEquals(producer.claim(), producer.claim());
    assertEquals(receive(consumer), -1);
    producer.publish();
    assertEquals(receive(consumer), 0);
  });

  Deno.test("SPSC: a withheld message comes with the next one, in order", () => {
    const { producer, consumer } = bothEnds(4);
    producer.attachProducer();
    consumer.attachConsumer(false);
    const at = producer.claim();
    for (let i = 0; i < SLOT_SIZE; i += 4) producer.view.setUint32(at + i, 7, true);
    producer.withhold();
    assertEquals([receive(consumer), producer.free], [-1, 2]);
    send(producer, 8);
    assertEquals([receive(consumer), receive(consumer), receive(consumer)], [7, 8, -1]);
  });

  Deno.test("SPSC: a received message is a private copy", () => {
    const { memory, producer, consumer } = bothEnds(4);
    producer.attachProducer();
    consumer.attachConsumer(false);
    send(producer, 5);
    receive(consumer);
    new Uint8Array(memory.buffer).fill(0xff, 128);
    assertEquals([...slot], new Array(16).fill(5));
  });

  Deno.test("SPSC attach: continues where the memory says, or discards what is queued", () => {
    const { memory, producer, words } = bothEnds(8);
    producer.attachProducer();
    for (let n = 0; n < 5; n++) send(producer, n);
    words[TAIL] = 2;
    const kept = new SpscQueue(memory, 0, memory.size);
    kept.attachConsumer(false);
    assertEquals([receive(kept), receive(kept), receive(kept), receive(kept)], [2, 3, 4, -1]);
    words[TAIL] = 2;
    const discarding = new SpscQueue(memory, 0, memory.size);
    discarding.attachConsumer(true);
    assertEquals([receive(discarding), words[TAIL]], [-1, 5]);
    const next = new SpscQueue(memory, 0, memory.size);
    next.attachProducer();
    send(next, 9);
    assertEquals([receive(discarding), words[0]], [9, 6]);
  });

  Deno.test("SPSC attach: indices out of range are no places to continue at", () => {
    for (const bad of [8, 9, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff]) {
      for (const discard of [true, false]) {
        const { memory, words } = bothEnds(8);
        words[0] = bad;
        words[TAIL] = 3;
        const consumer = new SpscQueue(memory, 0, memory.size);
        consumer.attachConsumer(discard);
        assertEquals(receive(consumer), -1, "a bad head announces nothing");
        words[0] = 2;
        words[TAIL] = bad;
        consumer.attachConsumer(discard);
        assert(words[TAIL]! < 8);
        const producer = new SpscQueue(memory, 0, memory.size);
        words[0] = bad;
        producer.attachProducer();
        assert(words[0]! < 8);
        words[TAIL] = bad;
        producer.attachProducer();
        assertEquals(producer.free, 7);
        assertEquals(producer.claim(), 128 + 64 * words[0]!);
      }
    }
  });

  Deno.test("SPSC: a hostile head makes no endless loop and no read outside", () => {
    const { producer, consumer, words } = bothEnds(8);
    producer.attachProducer();
    consumer.attachConsumer(false);
    send(producer, 1);
    send(producer, 2);
    assertEquals(receive(consumer), 1);
    for (const bad of [8, 0x7fff_ffff, 0x8000_0000, 0xffff_fffe, 0xffff_ffff]) {
      words[0] = bad;
      // What was announced before is still there; then the queue stands still.
      if (bad === 8) assertEquals(receive(consumer), 2);
      assertEquals(receive(consumer), -1);
    }
    assertEquals(consumer.badIndices, 5);
    words[0] = 3;
    assertEquals(receive(consumer), 0, "and goes on when the head is right again");
    // Backwards: what lies between is taken for messages, once around at most.
    words[0] = 2;
    let taken = 0;
    while (consumer.receive(slot)) taken++;
    assertEquals([taken, words[TAIL]], [7, 2]);
  });

  Deno.test("SPSC: a hostile tail lets the producer write its own slots only", () => {
    const { producer, words, memory } = bothEnds(8);
    producer.attachProducer();
    for (let n = 0; n < 7; n++) assert(send(producer, n));
    for (const bad of [8, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff]) {
      words[TAIL] = bad;
      assertEquals([producer.claim(), producer.free], [-1, 0]);
    }
    assertEquals(producer.badIndices, 8);
    const random = new Random(3);
    for (let i = 0; i < 1000; i++) {
      words[TAIL] = random.chance(0.5) ? random.below(8) : random.below(0xffff_ffff);
      assert(producer.free >= 0 && producer.free < 8);
      const at = producer.claim();
      assert(at === -1 || (at >= 128 && at <= memory.size - 64 && (at - 128) % 64 === 0));
      if (at >= 0) producer.publish();
      assert(words[0]! < 8);
    }
  });

  Deno.test("SPSC: random bytes in the indices, receive stays in bounds and always ends", () => {
    const random = new Random(20261124);
    const { consumer, words } = bothEnds(8);
    for (let i = 0; i < 2000; i++) {
      words[0] = random.chance(0.7) ? random.below(10) : random.below(0xffff_ffff);
      words[TAIL] = random.below(0xffff_ffff);
      if (random.chance(0.1)) consumer.attachConsumer(random.chance(0.5));
      let taken = 0;
      while (consumer.receive(slot)) taken++;
      assert(taken < 8, `${taken} messages of 7`);
    }
  });
}

// --- two threads -------------------------------------------------------------------------------

const CAPACITY = 62;

interface Order {
  readonly address: bigint;
  readonly size: number;
}

const nobody = new Int32Array(new SharedArrayBuffer(4));

/** What a thread does when it has looked in vain. */
class Patience {
  #spins = 0;
  #count = -1;
  #endMs = 0;

  /** Looks again soon; else it gives the processor away, which the other thread may be waiting for. */
  inVain(count: number): void {
    if (++this.#spins < SPINS) return;
    this.#spins = 0;
    if (count !== this.#count) {
      this.#count = count;
      this.#endMs = performance.now() + TIMEOUT_MS;
    }
    if (performance.now() > this.#endMs) throw new Error(`only ${count} messages came`);
    Atomics.wait(nobody, 0, 0, 0.05);
  }
}

/** Every twentieth message takes a fraction of a millisecond to write. */
function spinsOf(number: number): number {
  return number % 20 === 0 ? 100_000 : 0;
}

/** Two queues in one area: the first from main to the Worker, the second back. */
function queuesOf(memory: MappedMemory): [SpscQueue, SpscQueue] {
  const size = spscSize(CAPACITY);
  return [new SpscQueue(memory, 0, size), new SpscQueue(memory, size, size)];
}

/** The other thread: sends every message back with all words + 1. */
function echo({ address, size }: Order): void {
  const buffer = Deno.UnsafePointerView.getArrayBuffer(Deno.UnsafePointer.create(address)!, size);
  const [incoming, outgoing] = queuesOf({ address, buffer, size });
  incoming.attachConsumer(false);
  outgoing.attachProducer();
  const patience = new Patience();
  for (let count = 0; count < MESSAGES;) {
    const value = receive(incoming);
    if (value < 0) {
      patience.inVain(count);
      continue;
    }
    while (!send(outgoing, value + 1, spinsOf(count))) patience.inVain(count);
    count++;
  }
}

if ("WorkerGlobalScope" in globalThis) {
  const scope = globalThis as unknown as {
    onmessage: (event: MessageEvent<Order>) => void;
    postMessage(message: string): void;
  };
  scope.onmessage = ({ data }) => {
    echo(data);
    scope.postMessage("done");
  };
  scope.postMessage("loaded");
} else {
  spscTests();

  Deno.test(`SPSC: ${MESSAGES} messages to another thread and back, each whole and in order`, async () => {
    // Unmapped only when all is well: a thread that is terminated may still use it for a moment.
    const memory = mapAnonymous(2 * spscSize(CAPACITY));
    const thread = new Worker(import.meta.url, { type: "module" });
    try {
      const waiting: PromiseWithResolvers<string>[] = [];
      const next = () => {
        const wanted = Promise.withResolvers<string>();
        waiting.push(wanted);
        return wanted.promise;
      };
      thread.onmessage = ({ data }) => waiting.shift()?.resolve(data);
      thread.onerror = (event) => {
        event.preventDefault();
        waiting.shift()?.reject(new Error(event.message));
      };
      assertEquals(await next(), "loaded");
      const [outgoing, incoming] = queuesOf(memory);
      outgoing.attachProducer();
      incoming.attachConsumer(false);
      const done = next();
      const order: Order = { address: memory.address, size: memory.size };
      thread.postMessage(order);
      const patience = new Patience();
      let sent = 0, received = 0;
      while (received < MESSAGES) {
        while (sent < MESSAGES && send(outgoing, sent, spinsOf(sent))) sent++;
        let value = receive(incoming);
        if (value < 0) patience.inVain(received);
        for (; value >= 0; value = receive(incoming)) {
          if (value !== received + 1) throw new Error(`message ${received} is ${value}`);
          received++;
        }
      }
      assertEquals(await done, "done");
      assertEquals([outgoing.badIndices, incoming.badIndices], [0, 0]);
      memory[Symbol.dispose]();
    } finally {
      thread.terminate();
    }
  });
}
