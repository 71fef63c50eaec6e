/**
 * What processes cost that have nothing to do: processor time and memory.
 *
 *     deno task bench:idle [--quick] [--rounds=N] [--json] [--compare] [--exe=compiled]
 *
 * `vmsg device` with 1 and with 64 network cards, and a `vmsg proxy` with as many sockets; at each a front end has started
 * both rings of its card, and says no more. The twin is a bare Deno that does as little: a Worker that sleeps, and a main
 * thread that waits for a signal. Resident memory (VmRSS) has the program's own pages in it, which all its processes
 * share; --exe=compiled measures the executable, which is how vmsg is meant to run.
 */

import { untilListening } from "../scripts/lab/listening.ts";
import { DriverQueue } from "../src/virtio/queue/mod.ts";
import { FEATURE_PROTOCOL_FEATURES, Request } from "../src/vhost_user/protocol.ts";
import { RingFeature } from "../src/virtio/features.ts";
import { createEventFd } from "../src/linux/eventfd.ts";
import { createSealedMemory } from "../src/linux/fd.ts";
import { mapShared } from "../src/linux/mapping.ts";
import { Reactor } from "../src/linux/reactor.ts";
import { RawFrontEnd, regionBytes, u32s, USER_ADDRESS } from "../tests/support/front_end.ts";
import { isQuick, rounds } from "./options.ts";
import { Bench, processorTimeNs, sleep } from "./processes.ts";
import { Report, type RowOptions } from "./report.ts";

const CARDS = [1, 64];
const WINDOW_MS = isQuick ? 500 : 10_000;
/** Until what was started is done with starting. */
const SETTLE_MS = isQuick ? 500 : 3000;
const PATIENCE_MS = 60_000;
const BUS = ["--bus", "linux-user,socket=lu.sock"];
const SHARE: RowOptions = { unit: "% of a processor" };
const MEMORY: RowOptions = { unit: "MB" };
const TWIN = `
  const code = "Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)";
  const url = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  new Worker(url, { type: "module" });
  Deno.addSignalListener("SIGUSR2", () => {});
`;

const MEMORY_SIZE = 1 << 20;
const GUEST_AT = 0x4000_0000;
const RING_SIZE = 16;

/** Front ends that have started their cards, on memory that they share. */
async function startCards(sockets: readonly string[], stack: DisposableStack): Promise<void> {
  const fd = stack.use(createSealedMemory("vmsg-bench-idle", MEMORY_SIZE));
  const memory = stack.use(mapShared(fd.number, MEMORY_SIZE));
  const reactor = stack.use(new Reactor());
  const patience = reactor.timer(() => reactor.fail(new Error("no card is started")));
  patience.arm(PATIENCE_MS);
  const region = regionBytes(GUEST_AT, MEMORY_SIZE, USER_ADDRESS, 0);
  let offset = 0;
  const start = async (path: string) => {
    const front = stack.use(new RawFrontEnd(reactor, path, PATIENCE_MS));
    await front.ask(Request.GET_FEATURES);
    const high = 1 << (RingFeature.VERSION_1 - 32);
    front.send(Request.SET_PROTOCOL_FEATURES, u32s(0, 0));
    front.send(Request.SET_FEATURES, u32s(1 << FEATURE_PROTOCOL_FEATURES, high));
    front.send(Request.SET_MEM_TABLE, new Uint8Array([...u32s(1, 0), ...region]), [fd]);
    for (const index of [0, 1]) {
      const size = MEMORY_SIZE - offset;
      const place = { memory, offset, size, at: GUEST_AT + offset };
      offset += DriverQueue.bytesNeeded(RING_SIZE, false);
      const ring = { place, size: RING_SIZE, eventIndex: false, indirect: false };
      const queue = new DriverQueue(ring);
      const addresses = new DataView(new ArrayBuffer(40));
      addresses.setUint32(0, index, true);
      [queue.descriptorAddress, queue.deviceAddress, queue.driverAddress].forEach((at, i) =>
        addresses.setBigUint64(8 + 8 * i, BigInt(USER_ADDRESS + at - GUEST_AT), true)
      );
      front.send(Request.SET_VRING_NUM, u32s(index, RING_SIZE));
      front.send(Request.SET_VRING_BASE, u32s(index, 0));
      front.send(Request.SET_VRING_ADDR, new Uint8Array(addresses.buffer));
      for (const request of [Request.SET_VRING_KICK, Request.SET_VRING_CALL]) {
        front.send(request, u32s(index, 0), [stack.use(createEventFd())]);
      }
      front.send(Request.SET_VRING_ENABLE, u32s(index, 1));
    }
    await front.barrier();
  };
  await reactor.until((async () => {
    for (const socket of sockets) await start(socket);
  })());
  patience.cancel();
}

/** VmRSS of a process, in MB. */
function residentMemory(pid: number): number {
  const kib = Deno.readTextFileSync(`/proc/${pid}/status`).match(/^VmRSS:\s+(\d+) kB/m)![1];
  return Number(kib) * 1024 / 1e6;
}

/** Looks at processes for a while. */
async function watch(report: Report, subjects: readonly [string, number][]): Promise<void> {
  await sleep(SETTLE_MS);
  const startMs = performance.now();
  const before = subjects.map(([, pid]) => processorTimeNs(pid));
  await sleep(WINDOW_MS);
  const elapsedNs = (performance.now() - startMs) * 1e6;
  for (const [i, [subject, pid]] of subjects.entries()) {
    report.add("idle", SHARE, subject, [(processorTimeNs(pid) - before[i]!) / elapsedNs * 100]);
    report.add("resident memory", MEMORY, subject, [residentMemory(pid)]);
  }
}

async function measureTwin(report: Report): Promise<void> {
  await using bench = await Bench.open();
  const twin = await bench.start([Deno.execPath(), "eval", TWIN]);
  await watch(report, [["bare Deno with a Worker", twin.child.pid]]);
}

async function measure(report: Report, count: number): Promise<void> {
  await using bench = await Bench.open();
  const nets = Array.from({ length: count }, () => ["--net", "responder"]).flat();
  const device = await bench.vmsg(["device", ...BUS, ...nets]);
  await device.waitFor(/waiting for the driver side/);
  const sockets = Array.from({ length: count }, (_, i) => `${bench.directory}/vu${i}.sock`);
  const users = sockets.flatMap((socket) => ["--vhost-user", `socket=${socket}`]);
  const proxy = await bench.vmsg(["proxy", ...BUS, ...users]);
  for (const socket of sockets) {
    if (!await untilListening(socket, PATIENCE_MS)) {
      throw new Error(`the proxy makes no ${socket}: ${proxy.text}`);
    }
  }
  using stack = new DisposableStack();
  await startCards(sockets, stack);
  const cards = count === 1 ? "1 card" : `${count} cards`;
  await watch(report, [
    [`device, ${cards}`, device.child.pid],
    [`proxy, ${cards}`, proxy.child.pid],
  ]);
}

if (import.meta.main) {
  const report = new Report("idle");
  for (let round = 0; round < rounds; round++) {
    await measureTwin(report);
    for (const count of CARDS) await measure(report, count);
  }
  report.note("wanted of the executable: under 1 % with 64 cards, a device process under 70 MB");
  report.finish();
}
