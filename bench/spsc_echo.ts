/**
 * The other thread of the message queue's figures: echoes or swallows messages, by order.
 *
 * Between orders it sleeps in its event loop, so that it takes no processor from what is measured then.
 */

/// <reference lib="deno.worker" />

import { SLOT_SIZE, SpscQueue, spscSize } from "../src/bus/spsc_queue.ts";
import type { MappedMemory } from "../src/memory/mod.ts";

/** Slots of each of the two queues; both buses of the prototype have as many. */
export const CAPACITY = 4096;

/** What the other thread is to do. */
export interface Order {
  /** Memory that holds both queues. */
  readonly address: bigint;
  readonly size: number;
  readonly operations: number;
  readonly rounds: number;
  /** Echo each message, or acknowledge each round. */
  readonly echo: boolean;
}

/** The queue there and the queue back. */
export function queuesIn(memory: MappedMemory): [SpscQueue, SpscQueue] {
  const size = spscSize(CAPACITY);
  return [new SpscQueue(memory, 0, size), new SpscQueue(memory, size, size)];
}

/** Puts one message into a queue; false if it is full. */
export function send(queue: SpscQueue, value: number): boolean {
  const at = queue.claim();
  if (at < 0) return false;
  queue.view.setUint32(at, value, true);
  queue.publish();
  return true;
}

function obey({ address, size, operations, rounds, echo }: Order): void {
  const buffer = Deno.UnsafePointerView.getArrayBuffer(Deno.UnsafePointer.create(address)!, size);
  const [incoming, outgoing] = queuesIn({ address, buffer, size });
  const slot = new Uint32Array(SLOT_SIZE / 4);
  incoming.attachConsumer(false);
  outgoing.attachProducer();
  while (!send(outgoing, 0));
  for (let round = 0; round < rounds; round++) {
    for (let n = 0; n < operations; n++) {
      while (!incoming.receive(slot));
      if (echo) { while (!send(outgoing, slot[0])); }
    }
    if (!echo) { while (!send(outgoing, 0)); }
  }
}

if ("WorkerGlobalScope" in globalThis) {
  self.onmessage = ({ data }: MessageEvent<Order>) => obey(data);
}
