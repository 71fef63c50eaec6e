/**
 * What the message queue costs. Run: deno bench -A bench/spsc_bench.ts
 *
 * Between two threads both spin, so the figures are those of cache lines, not of wake-ups; they need two
 * idle processors. Deno's bench does not measure across threads, so these are measured and printed first.
 */

import { SLOT_SIZE, SpscQueue, spscSize } from "../src/bus/spsc_queue.ts";
import { mapAnonymous } from "../src/linux/mapping.ts";
import type { MappedMemory } from "../src/memory/mod.ts";

const CAPACITY = 4096;
const ROUND_TRIPS = 100_000;
const ONE_WAY = 2_000_000;

interface Order {
  readonly address: bigint;
  readonly size: number;
}

/** A queue each way. */
function queuesOf(memory: MappedMemory): [SpscQueue, SpscQueue] {
  const size = spscSize(CAPACITY);
  return [new SpscQueue(memory, 0, size), new SpscQueue(memory, size, size)];
}

const slot = new Uint32Array(SLOT_SIZE / 4);

function send(queue: SpscQueue, value: number): boolean {
  const at = queue.claim();
  if (at < 0) return false;
  queue.view.setUint32(at, value, true);
  queue.publish();
  return true;
}

/** The other thread: an echo, then a sink that says when it has seen the last message. */
function otherThread({ address, size }: Order): void {
  const buffer = Deno.UnsafePointerView.getArrayBuffer(Deno.UnsafePointer.create(address)!, size);
  const [incoming, outgoing] = queuesOf({ address, buffer, size });
  incoming.attachConsumer(false);
  outgoing.attachProducer();
  for (let n = 0; n < ROUND_TRIPS; n++) {
    while (!incoming.receive(slot));
    while (!send(outgoing, slot[0]!));
  }
  for (let n = 0; n < ONE_WAY; n++) while (!incoming.receive(slot));
  while (!send(outgoing, 0));
}

async function twoThreads(): Promise<void> {
  using memory = mapAnonymous(2 * spscSize(CAPACITY));
  const thread = new Worker(import.meta.url, { type: "module" });
  await new Promise((resolve) => thread.onmessage = resolve);
  const [outgoing, incoming] = queuesOf(memory);
  outgoing.attachProducer();
  incoming.attachConsumer(false);
  const order: Order = { address: memory.address, size: memory.size };
  thread.postMessage(order);
  const times = new Float64Array(ROUND_TRIPS);
  for (let n = 0; n < ROUND_TRIPS; n++) {
    const startMs = performance.now();
    while (!send(outgoing, n));
    while (!incoming.receive(slot));
    times[n] = performance.now() - startMs;
  }
  const startMs = performance.now();
  for (let n = 0; n < ONE_WAY; n++) while (!send(outgoing, n));
  while (!incoming.receive(slot));
  const rate = ONE_WAY / (performance.now() - startMs) / 1000;
  times.sort();
  const ns = (part: number) => Math.round(times[Math.floor(part * ROUND_TRIPS)]! * 1e6);
  console.log(`two threads, round trip: p50 ${ns(0.5)} ns, p99 ${ns(0.99)} ns`);
  console.log(`two threads, one way, each message published: ${rate.toFixed(1)} M/s`);
  thread.terminate();
}

function oneThread(): void {
  const size = 2 * spscSize(CAPACITY);
  const memory = { address: 0n, buffer: new ArrayBuffer(size), size };
  const [there, back] = queuesOf(memory);
  const [thereEnd, backEnd] = queuesOf(memory);
  there.attachProducer();
  thereEnd.attachConsumer(false);
  backEnd.attachProducer();
  back.attachConsumer(false);
  Deno.bench("one thread: there and back", () => {
    send(there, 1);
    thereEnd.receive(slot);
    send(backEnd, slot[0]!);
    back.receive(slot);
  });
  Deno.bench("one thread: 1000 messages in, 1000 out", () => {
    for (let n = 0; n < 1000; n++) send(there, n);
    for (let n = 0; n < 1000; n++) thereEnd.receive(slot);
  });
}

if ("WorkerGlobalScope" in globalThis) {
  addEventListener("message", (event) => otherThread((event as MessageEvent<Order>).data));
  (globalThis as unknown as { postMessage(message: string): void }).postMessage("loaded");
} else {
  await twoThreads();
  oneThread();
}
