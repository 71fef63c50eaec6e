/**
 * The ivshmem and shm buses: round trips, throughput, and what silence costs.
 *
 *     deno task bench:ivshmem [--quick] [processes] [machines] [inner]
 *
 * Two parts, each a table. Every figure has its twin beside it, measured in the same run, in turns:
 *
 *     processes   `vmsg driver` pings the responder of `vmsg device`, two processes of this host: as
 *                 peers of `vmsg ivshmem-server`, over a file that both poll (shm), and over the
 *                 linux-user bus as the twin. Pings come every 5 ms and every 100 ms; a bus that is
 *                 polled answers the later the longer it was silent. The processor time is that of
 *                 both, all their threads, while they are connected and nobody pings.
 *     machines    machine B pings the kernel of machine A and streams TCP with it: through `vmsg
 *                 driver --tap` and `vmsg device --net tap` over ivshmem, once with B's buffers in
 *                 huge pages that A sees in B's memory, once with them in the doorbell's own memory;
 *                 and through stock QEMU's virtio-net and a socket between the same two machines.
 *     inner       the same from a guest inside machine B (QEMU with KVM), its card served by `vmsg
 *                 proxy`, confined and by its own pages, and by stock QEMU through a bridge.
 *
 * The machines need QEMU, a kernel and iperf3 (scripts/fetch_guests.ts) and a compiled vmsg
 * (scripts/lab/executable.ts). What they do there is in scripts/lab/measured_pair.ts. They take minutes under emulation, so this is no part of `deno task bench`.
 */

import { compiledExecutable } from "../scripts/lab/executable.ts";
import { openKeeper } from "../src/cli/keeper.ts";
import {
  type Measured,
  measureInner,
  measureMachines,
  type Measurement,
} from "../scripts/lab/measured_pair.ts";
import { eachLine } from "../src/cli/self.ts";
import type { PingResult } from "../src/drivers/net/pinger.ts";
import { isQuick, isSelected, say } from "./options.ts";
import { processorTimeNs, sleep } from "./processes.ts";
import { ascending, loadLine, median, quantile, Report } from "./report.ts";

const SEGMENT_SIZE = "4M";
const report = new Report("ivshmem");
const RATE = { unit: "Mbit/s", more: true };
const NAME_WIDTH = 44;

/** Right-aligned columns behind a name. */
function row(name: string, cells: readonly string[], widths: readonly number[]): string {
  const columns = cells.map((cell, i) => cell.padStart(widths[i]!));
  return [name.padEnd(NAME_WIDTH), ...columns].join(" | ");
}

function head(title: string, columns: readonly string[]): readonly number[] {
  const widths = columns.map((column) => Math.max(8, column.length));
  say(row(title, columns, widths));
  say(["-".repeat(NAME_WIDTH), ...widths.map((width) => "-".repeat(width))].join("-|-"));
  return widths;
}

/** Smallest, median and p99 of round trips. */
function roundTripCells(timesMs: readonly number[]): string[] {
  const sorted = timesMs.toSorted(ascending);
  if (sorted.length === 0) return ["-", "-", "-"];
  return [sorted[0]!, quantile(sorted, 0.5), quantile(sorted, 0.99)].map((ms) => ms.toFixed(3));
}

// ---- two processes

/** A bus between two processes, in a directory of theirs. */
interface ProcessBus {
  readonly name: string;
  readonly option: string;
  /** Needs the ivshmem server. */
  readonly server?: boolean;
}

const BUSES: readonly ProcessBus[] = [
  { name: "linux-user", option: "linux-user,socket=lu.sock" },
  { name: "ivshmem, peers of the server", option: "ivshmem,server=iv.sock", server: true },
  { name: "shm, polled", option: `shm,file=shm,size=${SEGMENT_SIZE}` },
];
const PINGS: readonly (readonly [intervalMs: number, count: number])[] = isQuick
  ? [[5, 50], [100, 10]]
  : [[5, 400], [100, 40]];
const PROCESS_ROUNDS = isQuick ? 1 : 3;
const WARM_UP_COUNT = isQuick ? 50 : 400;
const THROUGHPUT_SECONDS = isQuick ? 0.5 : 1;
const IDLE_SECONDS = isQuick ? 1 : 4;
/** From the start of both to their first words, several times what it takes. */
const START_SECONDS = 2;

/** Percent of one processor, of each process, over some seconds. */
async function idleShares(pids: readonly number[]): Promise<number[]> {
  const startMs = performance.now();
  const before = pids.map(processorTimeNs);
  await sleep(IDLE_SECONDS * 1000);
  const elapsedNs = (performance.now() - startMs) * 1e6;
  return pids.map((pid, i) => (processorTimeNs(pid) - before[i]!) / elapsedNs * 100);
}

/** What was measured of one bus, of each round or ping. */
interface BusFigures {
  /** Round trips, for each of {@link PINGS}. */
  readonly timesMs: number[][];
  readonly lost: number[];
  readonly toDevice: number[];
  readonly fromDevice: number[];
  readonly idleDevice: number[];
  readonly idleDriver: number[];
}

/** One round of one bus: starts what it takes, measures, ends it. */
async function measureBus(
  executable: string,
  bus: ProcessBus,
  figures: BusFigures,
): Promise<void> {
  await using keeper = await openKeeper("/dev/shm");
  const cwd = keeper.directory;
  await using stack = new AsyncDisposableStack();
  const start = (...args: string[]) => {
    const quiet = [...args, "--log-level", "error"];
    const child = new Deno.Command(executable, {
      args: quiet,
      cwd,
      stdin: "null",
      stdout: "piped",
    }).spawn();
    stack.defer(() => endChild(child));
    return child;
  };
  const discard = (child: Deno.ChildProcess) => void eachLine(child.stdout, () => {});
  await Deno.writeFile(`${cwd}/shm`, new Uint8Array(4 << 20));
  if (bus.server) {
    discard(start("ivshmem-server", "--socket", "iv.sock", "--size", SEGMENT_SIZE));
    while (!await Deno.stat(`${cwd}/iv.sock`).then(() => true, () => false)) await sleep(20);
  }
  const busArgs = ["--bus", bus.option];
  const device = start("device", ...busArgs, "--net", "responder");
  discard(device);
  const ping = async (...args: string[]): Promise<PingResult> => {
    const child = start("driver", ...busArgs, "--json", ...args);
    let text = "";
    await eachLine(child.stdout, (line) => text = line);
    if (!(await child.status).success) throw new Error(`${bus.name}: no ping was answered`);
    return JSON.parse(text);
  };
  // Waits for the other, and compiles what is hot.
  await ping("--count", String(WARM_UP_COUNT), "--interval", "0.005");
  for (const [i, [intervalMs, count]] of PINGS.entries()) {
    const { sent, received, roundTripsUs } = await ping(
      ...["--count", String(count), "--interval", String(intervalMs / 1000)],
    );
    figures.timesMs[i]!.push(...roundTripsUs.map((us) => us / 1000));
    figures.lost[i]! += sent - received;
  }
  const driver = start("driver", ...busArgs, "--count", "2", "--interval", "3600");
  discard(driver);
  await sleep(START_SECONDS * 1000);
  const [idleDevice, idleDriver] = await idleShares([device.pid, driver.pid]);
  figures.idleDevice.push(idleDevice!);
  figures.idleDriver.push(idleDriver!);
  await endChild(driver);
  // Last: the responder goes on generating for a while, whoever is there then.
  const { toDevice, fromDevice } = await ping(
    ...["--count", "1", "--throughput", String(THROUGHPUT_SECONDS)],
  );
  figures.toDevice.push(toDevice!.megabitsPerSecond);
  figures.fromDevice.push(fromDevice!.megabitsPerSecond);
}

async function measureProcesses(executable: string): Promise<void> {
  const all = BUSES.map((): BusFigures => ({
    timesMs: PINGS.map(() => []),
    lost: PINGS.map(() => 0),
    toDevice: [],
    fromDevice: [],
    idleDevice: [],
    idleDriver: [],
  }));
  for (let round = 0; round < PROCESS_ROUNDS; round++) {
    for (const [i, bus] of BUSES.entries()) await measureBus(executable, bus, all[i]!);
  }
  say(`\ntwo processes of this host ${loadLine()}`);
  say(`${PROCESS_ROUNDS} rounds in turns; throughput and idle are their medians`);
  const columns = ["min ms", "p50 ms", "p99 ms", "lost", "to dev Mbit/s", "from dev Mbit/s"];
  const widths = head("ping to ping", [...columns, "idle dev %", "idle drv %"]);
  for (const [i, { name }] of BUSES.entries()) {
    const figures = all[i]!;
    const { toDevice, fromDevice, idleDevice, idleDriver } = figures;
    report.add("processes, to the device", RATE, name, toDevice);
    report.add("processes, from the device", RATE, name, fromDevice);
    for (const [j, [intervalMs, count]] of PINGS.entries()) {
      const others = j > 0 ? [] : [
        ...[toDevice, fromDevice].map((values) => median(values).toFixed(0)),
        ...[idleDevice, idleDriver].map((values) => median(values).toFixed(2)),
      ];
      const lost = `${figures.lost[j]} of ${PROCESS_ROUNDS * count}`;
      report.add(
        `processes, ping every ${intervalMs} ms`,
        { unit: "ms" },
        name,
        figures.timesMs[j]!,
      );
      const cells = [...roundTripCells(figures.timesMs[j]!), lost, ...others];
      say(row(`${name}, every ${intervalMs} ms`, cells, widths));
    }
  }
}

// ---- two machines

const MEASUREMENT: Omit<Measurement, "executable"> = {
  segmentSize: SEGMENT_SIZE,
  rounds: isQuick ? 1 : 3,
  pings: isQuick ? 50 : 100,
  warmUpPings: isQuick ? 10 : 30,
  intervalSeconds: 0.03,
  streamSeconds: isQuick ? 1 : 5,
};

/** What was measured of one link. */
interface LinkFigures {
  readonly timesMs: number[];
  readonly out: number[];
  readonly in: number[];
}

/** Reads what machine B has printed of so many links. */
function figuresOf(lines: readonly string[], count: number): LinkFigures[] {
  const figures = Array.from(
    { length: count },
    (): LinkFigures => ({ timesMs: [], out: [], in: [] }),
  );
  let current: LinkFigures | undefined;
  for (const line of lines) {
    const [, edge, index] = /^(BEGIN|END) (\d+)\r?$/.exec(line) ?? [];
    if (edge !== undefined) current = edge === "BEGIN" ? figures[Number(index)] : undefined;
    const timeMs = / time=([\d.]+) ms/.exec(line)?.[1];
    if (timeMs !== undefined) current?.timesMs.push(Number(timeMs));
    const [, stream, rate] = /^(OUT|IN) .* ([\d.]+) Mbits\/sec .*receiver/.exec(line) ?? [];
    if (stream !== undefined) (stream === "OUT" ? current?.out : current?.in)?.push(Number(rate));
  }
  return figures;
}

/** Prints what was measured, or that it could not be. */
function printMeasured(what: string, title: string, measured: Measured | string): void {
  if (typeof measured === "string") {
    say(`\n${what} NOT RUN: ${measured}; see scripts/fetch_guests.ts`);
    return;
  }
  const { names, lines, machines } = measured;
  const { rounds, pings, intervalSeconds } = MEASUREMENT;
  say(`\n${what}: ${machines} ${loadLine()}`);
  say(`${rounds} rounds in turns; pings every ${intervalSeconds * 1000} ms`);
  const columns = ["min ms", "p50 ms", "p99 ms", "lost", "to A Mbit/s", "from A Mbit/s"];
  const widths = head(title, columns);
  const figures = figuresOf(lines, names.length);
  names.forEach((name, i) => {
    const { timesMs, ...streams } = figures[i]!;
    const rates = [streams.out, streams.in].map((all) =>
      all.length === 0 ? "-" : median(all).toFixed(0)
    );
    report.add(`${what}, ping`, { unit: "ms", target: 1.4 }, name, timesMs);
    report.add(`${what}, to A`, { ...RATE, target: 0.9 }, name, streams.out);
    report.add(`${what}, from A`, { ...RATE, target: 0.9 }, name, streams.in);
    const sent = rounds * pings;
    const cells = [...roundTripCells(timesMs), `${sent - timesMs.length} of ${sent}`, ...rates];
    say(row(name, cells, widths));
  });
}

/** Ends a child that obeys SIGTERM; one that does not within `timeoutMs` is killed. */
async function endChild(child: Deno.ChildProcess, timeoutMs = 3000): Promise<void> {
  const signal = (name: Deno.Signal) => {
    try {
      child.kill(name);
    } catch {
      // It has ended already.
    }
  };
  signal("SIGTERM");
  const killer = setTimeout(() => signal("SIGKILL"), timeoutMs);
  await child.status;
  clearTimeout(killer);
}

if (import.meta.main) {
  const executable = await compiledExecutable();
  const plan = { ...MEASUREMENT, executable };
  if (isSelected("processes")) await measureProcesses(executable);
  if (isSelected("machines")) {
    const measured = await measureMachines(plan);
    printMeasured("two machines", "from machine B to the kernel of machine A", measured);
  }
  if (isSelected("inner")) {
    const measured = await measureInner(plan);
    const title = "from the inner guest to the kernel of machine A";
    printMeasured("a guest inside machine B", title, measured);
  }
  report.finish(false);
}
