/**
 * The message queue between two threads, and the device's side of a split ring, each beside its C twin.
 *
 *     deno run --allow-all bench/twins_bench.ts [--quick]
 */

import { SLOT_SIZE, type SpscQueue, spscSize } from "../src/bus/spsc_queue.ts";
import { mapAnonymous } from "../src/linux/mapping.ts";
import { ChainBatch } from "../src/virtio/queue/chain.ts";
import { measureCase, measureOwnRounds, printHead, report, startTwin } from "./harness.ts";
import { offeredPackedRing, offeredRing } from "./offered_ring.ts";
import { isQuick, isSelected } from "./options.ts";
import { CAPACITY, type Order, queuesIn, send } from "./spsc_echo.ts";

async function messageQueue(): Promise<void> {
  await using twin = await startTwin("spsc");
  using memory = mapAnonymous(2 * spscSize(CAPACITY));
  const thread = new Worker(new URL("./spsc_echo.ts", import.meta.url).href, { type: "module" });
  const slot = new Uint32Array(SLOT_SIZE / 4);

  /** Rounds of `work`, which gets a queue each way; the first is for warming up and not counted. */
  const rounds = (
    echo: boolean,
    work: (out: SpscQueue, back: SpscQueue, operations: number) => void,
  ) =>
  (operations: number, count: number): Promise<Float64Array> => {
    new Uint8Array(memory.buffer).fill(0);
    const [outgoing, incoming] = queuesIn(memory);
    outgoing.attachProducer();
    incoming.attachConsumer(false);
    const { address, size } = memory;
    const order: Order = { address, size, operations, rounds: count + 1, echo };
    thread.postMessage(order);
    while (!incoming.receive(slot));
    const ns = new Float64Array(count);
    for (let round = -1; round < count; round++) {
      const startMs = performance.now();
      work(outgoing, incoming, operations);
      if (round >= 0) ns[round] = (performance.now() - startMs) * 1e6 / operations;
    }
    return Promise.resolve(ns);
  };

  const roundTrips = rounds(true, (outgoing, incoming, operations) => {
    for (let n = 0; n < operations; n++) {
      while (!send(outgoing, n));
      while (!incoming.receive(slot));
    }
  });
  /** Messages one way; the index is published with every `batch`-th. */
  const oneWay = (batch: number) =>
    rounds(false, (outgoing, incoming, operations) => {
      for (let n = 1; n <= operations; n++) {
        let at = outgoing.claim();
        while (at < 0) at = outgoing.claim();
        outgoing.view.setUint32(at, n, true);
        if (n % batch === 0 || n === operations) outgoing.publish();
        else outgoing.withhold();
      }
      while (!incoming.receive(slot));
    });

  const name = "queue, 2 threads: ";
  const cases = [
    { name: `${name}round trip`, operations: 2000, measure: roundTrips, twin: "round-trip" },
    ...[1, 32].map((batch) => ({
      name: `${name}one way, published in ${batch}s`,
      operations: 50_000,
      measure: oneWay(batch),
      twin: `one-way ${batch}`,
    })),
  ];
  for (const subject of cases) {
    if (!isSelected(subject.name)) continue;
    // The compiler needs its time; the other thread starts with the first order.
    for (let i = 0; i < (isQuick ? 1 : 3); i++) await subject.measure(subject.operations, 10);
    await measureOwnRounds(subject, twin);
  }
  thread.terminate();
}

async function rings(): Promise<void> {
  await using twin = await startTwin("ring");
  const chains = new ChainBatch(64, 1024);
  for (
    const [kind, lengths, indirect] of [
      ["direct, 1 descriptor", [1512], false],
      ["direct, 2 descriptors", [12, 1500], false],
      ["indirect, 2 descriptors", [12, 1500], true],
    ] as const
  ) {
    const options = { size: 256, lengths, stride: 2048, indirect };
    const cases = ["ring", "packed"].flatMap((format) =>
      [1, 8, 32].map((n) => [format, n] as const)
    );
    for (const [format, batch] of cases) {
      using ring = format === "packed"
        ? offeredPackedRing(options)
        : offeredRing({ ...options, negotiated: indirect, writable: false });
      const queue = ring.open();
      await measureCase({
        name: `${format === "packed" ? "packed ring" : "ring"}, ${kind}, batch ${batch}`,
        granularity: batch,
        twin: `${format} ${lengths.length} ${Number(indirect)} ${batch}`,
        run: (operations) => {
          for (let done = 0; done < operations; done += batch) {
            ring.offer(batch);
            queue.noKicks();
            chains.clear();
            queue.completeOldest(queue.pop(chains, 64));
            queue.publish();
          }
          if (queue.broken !== undefined) throw new Error(queue.broken);
        },
      }, twin);
    }
  }
}

if (import.meta.main) {
  printHead("per message or buffer");
  await messageQueue();
  await rings();
  report.finish(false);
}
