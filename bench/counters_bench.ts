/**
 * What counting costs: a plain object beside counters in a mapped file, as the data path uses them, once a
 * frame. Twelve shapes are in use at once, as in a process with a few devices and ports, so that none of
 * them is favoured. Run: deno run -A bench/counters_bench.ts
 */

import { openCounterFile } from "../src/observe/counter_file.ts";
import { type Counters, counterShape } from "../src/observe/counters.ts";

const FRAMES = 1_000_000;
const ROUNDS = 60;

type Device = (counters: Counters<"received" | "bytes">, frames: number) => void;

// The same code three times: each sees one kind of counters only, as a device's does.
const DEVICES: readonly Device[] = [
  (counters, frames) => {
    for (let n = 0; n < frames; n++) {
      counters.received++;
      counters.bytes += 60 + (n & 63);
    }
  },
  (counters, frames) => {
    for (let n = 0; n < frames; n++) {
      counters.received++;
      counters.bytes += 60 + (n & 63);
    }
  },
  (counters, frames) => {
    for (let n = 0; n < frames; n++) {
      counters.received++;
      counters.bytes += 60 + (n & 63);
    }
  },
];

/** Nanoseconds a frame in the best round. */
function measure(device: Device, counters: Counters<"received" | "bytes">): number {
  let best = Infinity;
  for (let round = 0; round < ROUNDS; round++) {
    const start = performance.now();
    device(counters, FRAMES);
    best = Math.min(best, performance.now() - start);
  }
  return best / FRAMES * 1e6;
}

/** Bytes that the heap grew by while a device counted; an allocation per frame would be megabytes. */
function allocated(device: Device, counters: Counters<"received" | "bytes">): number {
  const before = Deno.memoryUsage().heapUsed;
  device(counters, FRAMES);
  return Deno.memoryUsage().heapUsed - before;
}

const directory = Deno.makeTempDirSync({ dir: "/dev/shm" });
try {
  using file = openCounterFile("bench", [directory]);
  if (file.path === undefined) throw new Error(`no file in ${directory}`);
  const shapes = Array.from({ length: 12 }, (_, n) => counterShape("received", `x${n}`, "bytes"));
  const groups = shapes.map((Shape, n) => new Shape("device", `${n}`));
  for (const counters of groups) {
    for (let n = 0; n < 10_000; n++) counters.received += counters.bytes++ & 1;
  }
  const far = groups[11]!;
  // Where a value no longer fits in 31 or 32 bits.
  far.received = 2 ** 31;
  far.bytes = 2 ** 40;
  const rows: [string, Counters<"received" | "bytes">][] = [
    ["plain object", { received: 0, bytes: 0 }],
    ["counters in the file", groups[10]!],
    ["counters in the file, above 2^32", far],
  ];
  console.log("two counters a frame                 ns a frame   heap bytes for 1,000,000 frames");
  rows.forEach(([name, counters], n) => {
    const ns = measure(DEVICES[n]!, counters).toFixed(2);
    console.log(`${name.padEnd(36)} ${ns.padStart(10)}   ${allocated(DEVICES[n]!, counters)}`);
  });
} finally {
  Deno.removeSync(directory, { recursive: true });
}
