/**
 * Frames of 64 bytes from DPDK's testpmd through vmsg, beside testpmd that is itself the back end.
 *
 *     deno task bench:testpmd [--quick] [--rounds=N] [--json] [--compare] [--exe=compiled]
 *
 * The front ends are testpmd with virtio-user, which polls; the back end is in turns testpmd with vhost, which polls
 * too, and `vmsg proxy` with `vmsg device`, which are woken:
 *
 *     out       one front end sends; the back end takes frames and drops them
 *     across    one front end sends, the back end hands each frame to another front end, which counts it
 *
 * Out also goes with two queue pairs, where each side has one thread for both of them: what a second pair costs. As root
 * it goes to a TAP too, by one pair and by two. Vmsg's second pair has a thread of its own there (devices/net/pair_line.ts),
 * which takes a third processor to gain something; testpmd has one, and drops what the TAP does not take.
 *
 * Each front end polls on a processor of its own, the back end has another one: `across` takes three, as two that poll on
 * the same would measure the scheduler. Of each 100 ms of a run the frames are counted. Out of vmsg itself come no
 * frames of 64 bytes at such a rate, so there is no `in`.
 */

import { has } from "../tests/network/support.ts";
import { isQuick, rounds } from "./options.ts";
import { Bench, HERE, type Running, sleep, THERE } from "./processes.ts";
import { Report, type RowOptions } from "./report.ts";

const WARM_UP_MS = isQuick ? 200 : 2000;
const SLICES = isQuick ? 3 : 30;
const SLICE_MS = 100;
const TAP = "vmsgbench0";
const BUS = ["--bus", "linux-user,socket=lu.sock"];
const RATE: RowOptions = { unit: "1000/s", more: true, target: 0.5 };
const SUBJECTS = ["testpmd vhost", "vmsg proxy, device"] as const;
type Subject = typeof SUBJECTS[number];

/** Starts a testpmd; without huge pages its memory is one memfd, which it can share. */
async function startTestpmd(
  bench: Bench,
  name: string,
  processor: number,
  vdevs: readonly string[],
  ...options: string[]
): Promise<Running> {
  const at = Math.max(0, processor);
  const run = await bench.start(
    [
      ...["stdbuf", "-oL", "dpdk-testpmd"],
      ...["--no-huge", "-m", "256", "--no-pci", "--no-telemetry", `--file-prefix=${name}`],
      // Both of its threads: the one that polls takes all it gets.
      ...["--lcores", `0@${at},1@${at}`],
      ...vdevs.flatMap((vdev) => ["--vdev", vdev]),
      ...["--", "-i", "--total-num-mbufs=4096", "--txpkts=64", ...options],
    ],
    -1,
    // It leaves files there.
    { RUNTIME_DIRECTORY: bench.directory },
  );
  await run.waitFor(/testpmd> /);
  return run;
}

/** Frames that port 0 has sent or received since testpmd started. */
async function packets(testpmd: Running, way: "RX" | "TX"): Promise<number> {
  const text = await testpmd.ask("show port stats 0", /Tx-pps.*\n.*####/);
  return Number(text.match(new RegExp(`${way}-packets:\\s+(\\d+)`))![1]);
}

async function forward(testpmd: Running, mode: "txonly" | "rxonly" | "io"): Promise<void> {
  await testpmd.ask(`set fwd ${mode}`, new RegExp(`Set ${mode}`));
  await testpmd.ask("start", new RegExp(`${mode} packet forwarding`));
}

/** Options of a testpmd whose ports have so many queue pairs. */
const pairs = (queues: number) => [`--rxq=${queues}`, `--txq=${queues}`];

/** Starts the back end: so many sockets, whose frames it drops (one), gives to a TAP (one) or exchanges (two). */
async function startBackEnd(
  bench: Bench,
  subject: Subject,
  sockets: string[],
  queues: number,
  tap: boolean,
): Promise<void> {
  if (subject === "testpmd vhost") {
    const vdevs = sockets.map((path, i) => `net_vhost${i},iface=${path},queues=${queues}`);
    if (tap) vdevs.push(`net_tap0,iface=${TAP}`);
    const vhost = await startTestpmd(bench, "back", THERE, vdevs, ...pairs(queues));
    await forward(vhost, vdevs.length === 1 ? "rxonly" : "io");
    return;
  }
  const port = tap ? `tap=${TAP}` : sockets.length === 1 ? "responder" : "hub=link";
  const nets = sockets.flatMap(() => ["--net", `${port},queues=${queues}`]);
  // All processors but the front end's, if they are more than one.
  const there = tap && navigator.hardwareConcurrency > 2 ? -1 : THERE;
  const device = await bench.vmsg(["device", ...BUS, ...nets], there);
  await device.waitFor(/waiting for the driver side/);
  const users = sockets.flatMap((path) => ["--vhost-user", `socket=${path}`]);
  const proxy = await bench.vmsg(["proxy", ...BUS, ...users]);
  for (const _ of sockets) await proxy.waitFor(/waiting for a front end/);
}

async function measure(
  report: Report,
  subject: Subject,
  count: 1 | 2,
  queues = 1,
  tap = false,
): Promise<void> {
  await using bench = await Bench.open();
  const sockets = Array.from({ length: count }, (_, i) => `${bench.directory}/vu${i}.sock`);
  await startBackEnd(bench, subject, sockets, queues, tap);
  const fronts: Running[] = [];
  for (const [i, path] of sockets.entries()) {
    const mac = `52:54:00:00:00:0${i}`;
    const vdev = `net_virtio_user0,path=${path},queues=${queues},mac=${mac}`;
    const peer = ["--eth-peer=0,52:54:00:00:00:01", "--tx-ip=10.0.2.15,10.0.2.2", "--tx-udp=9,9"];
    const options = [...peer, ...pairs(queues)];
    fronts.push(await startTestpmd(bench, `front${i}`, i === 0 ? HERE : 2, [vdev], ...options));
  }
  if (tap) await (await bench.start(["ip", "link", "set", TAP, "up"])).success();
  const [one, two] = fronts;
  if (two !== undefined) await forward(two, "rxonly");
  await forward(one!, "txonly");
  await sleep(WARM_UP_MS);
  const taken = () => two === undefined ? packets(one!, "TX") : packets(two, "RX");
  const rates: number[] = [];
  let before = await taken(), beforeMs = performance.now();
  for (let slice = 0; slice < SLICES; slice++) {
    await sleep(SLICE_MS);
    const now = await taken(), nowMs = performance.now();
    rates.push((now - before) / (nowMs - beforeMs));
    [before, beforeMs] = [now, nowMs];
  }
  const way = tap ? "to a TAP" : count === 1 ? "out" : "across";
  report.add(`64 B, ${way}${queues === 1 ? "" : `, ${queues} queue pairs`}`, RATE, subject, rates);
}

if (import.meta.main) {
  if (!has("dpdk-testpmd") || !has("stdbuf")) {
    console.error("bench:testpmd NOT RUN: dpdk-testpmd is missing: apt-get install dpdk-dev");
    Deno.exit(1);
  }
  const report = new Report("testpmd");
  const counts = navigator.hardwareConcurrency < 3 ? [1] as const : [1, 2] as const;
  if (counts.length === 1) report.note("across NOT RUN: it needs three processors");
  const isRoot = Deno.uid() === 0;
  if (!isRoot) report.note("to a TAP NOT RUN: it needs root");
  if (navigator.hardwareConcurrency < 3) {
    report.note(
      "2 queue pairs: threads for both, beside the front end's, need 3 processors or more",
    );
  }
  for (let round = 0; round < rounds; round++) {
    for (const count of counts) {
      for (const subject of SUBJECTS) await measure(report, subject, count);
    }
    for (const subject of SUBJECTS) await measure(report, subject, 1, 2);
    for (const queues of isRoot ? [1, 2] : []) {
      for (const subject of SUBJECTS) await measure(report, subject, 1, queues, true);
    }
  }
  report.finish();
}
