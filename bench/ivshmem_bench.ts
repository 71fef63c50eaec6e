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
 * (executable.ts). They take minutes under emulation, so this is no part of `deno task bench`.
 */

import { compiledExecutable } from "../scripts/lab/executable.ts";
import { openKeeper } from "../scripts/lab/keeper.ts";
import { type InnerGuest, innerMicrovm } from "../scripts/lab/inner.ts";
import { findProgram, withLibraries } from "../scripts/lab/libraries.ts";
import {
  DOORBELL_ADDRESS,
  isMachineInstallation,
  type Machine,
  OTHER_MEMORY_ADDRESS,
} from "../scripts/lab/machine.ts";
import { findGuests } from "../scripts/lab/machines.ts";
import { DRIVER_HUGE_PAGES, DRIVER_INTERFACE, MEMORY_BASE, openPair } from "../scripts/lab/pair.ts";
import { chooseAccelerator, type QemuInstallation } from "../scripts/lab/qemu.ts";
import { eachLine, endChild } from "../src/cli/self.ts";
import type { PingResult } from "../src/drivers/net/pinger.ts";
import { isQuick, isSelected, loadLine, quantile } from "./harness.ts";

const SEGMENT_SIZE = "4M";
const NAME_WIDTH = 44;

function ascending(a: number, b: number): number {
  return a - b;
}

/** Right-aligned columns behind a name. */
function row(name: string, cells: readonly string[], widths: readonly number[]): string {
  const columns = cells.map((cell, i) => cell.padStart(widths[i]!));
  return [name.padEnd(NAME_WIDTH), ...columns].join(" | ");
}

function head(title: string, columns: readonly string[]): readonly number[] {
  const widths = columns.map((column) => Math.max(8, column.length));
  console.log(row(title, columns, widths));
  console.log(["-".repeat(NAME_WIDTH), ...widths.map((width) => "-".repeat(width))].join("-|-"));
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
  { name: "ivshmem, peers of the server", option: "ivshmem,server=iv.sock", server: true },
  { name: "shm, polled", option: `shm,file=shm,size=${SEGMENT_SIZE}` },
  { name: "linux-user", option: "linux-user,socket=lu.sock" },
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

/** Nanoseconds that all threads of a process have run. */
function processorTimeNs(pid: number): number {
  let sum = 0;
  for (const { name } of Deno.readDirSync(`/proc/${pid}/task`)) {
    sum += Number(Deno.readTextFileSync(`/proc/${pid}/task/${name}/schedstat`).split(" ")[0]);
  }
  return sum;
}

const sleep = (seconds: number) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

/** Percent of one processor, of each process, over some seconds. */
async function idleShares(pids: readonly number[]): Promise<number[]> {
  const startMs = performance.now();
  const before = pids.map(processorTimeNs);
  await sleep(IDLE_SECONDS);
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
    while (!await Deno.stat(`${cwd}/iv.sock`).then(() => true, () => false)) await sleep(0.02);
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
  await sleep(START_SECONDS);
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

function median(values: readonly number[]): number {
  return quantile(values.toSorted(ascending), 0.5);
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
  console.log(`\ntwo processes of this host ${loadLine()}`);
  console.log(`${PROCESS_ROUNDS} rounds in turns; throughput and idle are their medians`);
  const columns = ["min ms", "p50 ms", "p99 ms", "lost", "to dev Mbit/s", "from dev Mbit/s"];
  const widths = head("ping to ping", [...columns, "idle dev %", "idle drv %"]);
  for (const [i, { name }] of BUSES.entries()) {
    const figures = all[i]!;
    const { toDevice, fromDevice, idleDevice, idleDriver } = figures;
    for (const [j, [intervalMs, count]] of PINGS.entries()) {
      const others = j > 0 ? [] : [
        ...[toDevice, fromDevice].map((values) => median(values).toFixed(0)),
        ...[idleDevice, idleDriver].map((values) => median(values).toFixed(2)),
      ];
      const lost = `${figures.lost[j]} of ${PROCESS_ROUNDS * count}`;
      const cells = [...roundTripCells(figures.timesMs[j]!), lost, ...others];
      console.log(row(`${name}, every ${intervalMs} ms`, cells, widths));
    }
  }
}

// ---- two machines

const ROUNDS = isQuick ? 1 : 3;
const ROUND_PINGS = isQuick ? 50 : 100;
const WARM_UP_PINGS = isQuick ? 10 : 30;
/** Longer than a round trip under emulation, so that pings do not wait for one another. */
const INTERVAL_SECONDS = 0.03;
const STREAM_SECONDS = isQuick ? 1 : 5;
const BOOT_TIMEOUT_MS = 120_000;
const ROUND_TIMEOUT_MS = 60_000 + STREAM_SECONDS * 4000 + ROUND_PINGS * 200;

/** A network between the two machines: how B gets it, and where A is on it. */
interface Link {
  readonly name: string;
  /** `--memory` of `vmsg driver`; the stock card without. */
  readonly memory?: string;
  readonly address: string;
}

const LINKS: readonly Link[] = [
  { name: "stock QEMU: virtio-net and a socket", address: "10.0.3.2" },
  { name: "vmsg, huge pages (A sees B's memory)", memory: "hugepages=10M", address: "10.0.2.2" },
  {
    name: `vmsg, segment (${SEGMENT_SIZE} of the doorbell)`,
    memory: "segment",
    address: "10.0.2.2",
  },
];

const SCRIPT_A = `
ip link set eth0 up
ip addr add 10.0.3.2/24 dev eth0
iperf3 -s >/dev/null 2>&1 &
vmsg device --bus ivshmem,pci=${DOORBELL_ADDRESS},bind \\
  --memory pci=${OTHER_MEMORY_ADDRESS},at=${MEMORY_BASE.q35} --net tap=tap0,address=10.0.2.2/24
echo "DEVICE rc=$?"
`;

/** Shell: one link's part of a round, between two lines that name it. */
function roundScript({ memory, address }: Link, index: number): string {
  const start = `
vmsg driver --bus ivshmem,pci=${DOORBELL_ADDRESS},bind --memory ${memory} \\
  --tap ${DRIVER_INTERFACE},address=10.0.2.15/24 >/tmp/driver.log 2>&1 &
until grep -q "connected;" /tmp/driver.log; do sleep 0.1; done
ip link set ${DRIVER_INTERFACE} up
`;
  return `
${memory === undefined ? "" : start}
ping -c ${WARM_UP_PINGS} -i ${INTERVAL_SECONDS} -W 2 ${address} >/dev/null
iperf3 -c ${address} -t 1 -i 0 >/dev/null 2>&1
sleep 1
ping -c ${ROUND_PINGS} -i ${INTERVAL_SECONDS} -W 2 ${address} >/tmp/pings
iperf3 -c ${address} -t ${STREAM_SECONDS} -f m -i 0 >/tmp/out 2>&1
iperf3 -c ${address} -t ${STREAM_SECONDS} -f m -i 0 -R >/tmp/in 2>&1
${memory === undefined ? "" : "kill %1; wait"}
echo "BEGIN ${index}"
grep time= /tmp/pings
sed "s/^/OUT /" /tmp/out
sed "s/^/IN /" /tmp/in
echo "END ${index}"
`;
}

const SCRIPT_B = `
ip link set eth0 up
ip addr add 10.0.3.15/24 dev eth0
until ping -c 1 -W 1 10.0.3.2 >/dev/null; do :; done
for round in $(seq ${ROUNDS}); do
${LINKS.map(roundScript).join("\n")}
done
echo MEASURED
`;

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

function freePort(): number {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  return listener.addr.port;
}

/** Waits for what B says after its last round, however often it is heard of. */
async function measured(machineA: Machine, machineB: Machine, links: number): Promise<void> {
  const timeoutMs = BOOT_TIMEOUT_MS + ROUNDS * links * ROUND_TIMEOUT_MS;
  const deviceEnded = machineA.waitFor(/^DEVICE rc=/, timeoutMs);
  const done = machineB.waitFor(/^MEASURED/, timeoutMs);
  for (const promise of [deviceEnded, done]) promise.catch(() => {});
  await Promise.race([
    done,
    deviceEnded.then((line) => {
      throw new Error(line);
    }),
    machineB.status.then(() => done),
  ]);
}

async function findMachine(): Promise<QemuInstallation & { readonly kind: "q35" } | string> {
  const guests = await findGuests();
  const { q35 } = guests;
  if (q35 === undefined) return guests.missing.q35.join("; ");
  if (!isMachineInstallation(q35)) return "no machine";
  return { ...q35, kind: "q35" };
}

async function measureMachines(executable: string): Promise<void> {
  const installation = await findMachine();
  const [iperf3, mkfs] = await Promise.all(["iperf3", "mkfs.erofs"].map(findProgram));
  if (typeof installation === "string" || iperf3 === undefined || mkfs === undefined) {
    const missing = typeof installation === "string" ? installation : "iperf3 or mkfs.erofs";
    console.log(`\ntwo machines NOT RUN: ${missing}; see scripts/fetch_guests.ts`);
    return;
  }
  const accelerator = await chooseAccelerator(installation);
  const { qemuVersion, release } = installation;
  await using pair = await openPair({
    installation,
    executable,
    size: SEGMENT_SIZE,
    files: await withLibraries(iperf3, "/bin/iperf3"),
  });
  const cable = `127.0.0.1:${freePort()}`;
  await using machineA = await pair.startA({
    script: SCRIPT_A,
    nics: [{ netdev: `socket,listen=${cable}` }],
  });
  await using machineB = await pair.startB({
    script: SCRIPT_B,
    hugePages: DRIVER_HUGE_PAGES,
    nics: [{ netdev: `socket,connect=${cable}`, mac: "52:54:00:12:34:66" }],
  });
  await finished(machineA, machineB, LINKS.length);
  const machines = `QEMU ${qemuVersion} q35, ${accelerator}, one processor and 256 MiB each`;
  console.log(`\ntwo machines: ${machines}, kernel ${release} ${loadLine()}`);
  printLinks("from machine B to the kernel of machine A", LINKS.map(({ name }) => name), machineB);
}

async function finished(machineA: Machine, machineB: Machine, links: number): Promise<void> {
  try {
    await measured(machineA, machineB, links);
  } catch (error) {
    console.error(`--- machine A ---\n${machineA.console()}--- machine B ---`);
    console.error(machineB.console());
    throw error;
  }
}

function printLinks(title: string, names: readonly string[], machineB: Machine): void {
  const figures = figuresOf(machineB.console().split("\n"), names.length);
  console.log(`${ROUNDS} rounds in turns; pings every ${INTERVAL_SECONDS * 1000} ms`);
  const columns = ["min ms", "p50 ms", "p99 ms", "lost", "to A Mbit/s", "from A Mbit/s"];
  const widths = head(title, columns);
  names.forEach((name, i) => {
    const { timesMs, ...streams } = figures[i]!;
    const rates = [streams.out, streams.in].map((all) =>
      all.length === 0 ? "-" : median(all).toFixed(0)
    );
    const sent = ROUNDS * ROUND_PINGS;
    const cells = [...roundTripCells(timesMs), `${sent - timesMs.length} of ${sent}`, ...rates];
    console.log(row(name, cells, widths));
  });
}

// ---- a guest inside machine B

const INNER_LINKS = [
  "stock QEMU: tap, bridge, virtio-net and a socket",
  "vmsg proxy --confined",
  "vmsg proxy, the guest's own pages",
] as const;
const INNER_SOCKET = "/tmp/inner.sock";

/** What the inner guest does: whichever of the two networks it is in answers. */
const INNER_SCRIPT = `
until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done
ip link set eth0 up
ip addr add 10.0.2.16/24 dev eth0
ip addr add 10.0.3.16/24 dev eth0
peer=
while [ -z "$peer" ]; do
  for address in 10.0.2.2 10.0.3.2; do
    ping -c 1 -W 1 $address >/dev/null && peer=$address && break
  done
done
ping -c ${WARM_UP_PINGS} -i ${INTERVAL_SECONDS} -W 2 $peer >/dev/null
ping -c ${ROUND_PINGS} -i ${INTERVAL_SECONDS} -W 2 $peer | grep time=
iperf3 -c $peer -t ${STREAM_SECONDS} -f m -i 0 | sed "s/^/OUT /"
iperf3 -c $peer -t ${STREAM_SECONDS} -f m -i 0 -R | sed "s/^/IN /"
`;

function innerScriptB(inner: InnerGuest): string {
  const vmsg = (index: number, mode: string) => `
vmsg proxy --bus ivshmem,pci=${DOORBELL_ADDRESS},bind --vhost-user socket=${INNER_SOCKET} ${mode} &
until [ -S ${INNER_SOCKET} ]; do sleep 0.1; done
echo "BEGIN ${index}"
${inner.boot(INNER_SOCKET)}
echo "END ${index}"
kill %1; wait
`;
  return `
tunctl -t tap1
ip link add br0 type bridge
for card in eth0 tap1; do ip link set $card master br0; ip link set $card up; done
ip link set br0 up
for round in $(seq ${ROUNDS}); do
echo "BEGIN 0"
${inner.bootOnTap?.("tap1")}
echo "END 0"
${vmsg(1, "--confined")}
${vmsg(2, "")}
done
echo MEASURED
`;
}

async function measureInner(executable: string): Promise<void> {
  const installation = await findMachine();
  const iperf3 = await findProgram("iperf3");
  if (typeof installation === "string" || iperf3 === undefined) {
    console.log(`\na guest inside machine B NOT RUN: see scripts/fetch_guests.ts`);
    return;
  }
  const placed = await withLibraries(iperf3, "/bin/iperf3");
  const files = await Promise.all(
    placed.map(async ({ from, to }) => ({ path: to.slice(1), bytes: await Deno.readFile(from) })),
  );
  const inner = await innerMicrovm(installation, { script: INNER_SCRIPT, files, memoryMiB: 192 });
  const accelerator = await chooseAccelerator(installation);
  const { memoryMiB = 512, ...machine } = inner.machine;
  await using pair = await openPair({
    installation,
    executable,
    size: SEGMENT_SIZE,
    memoryMiB,
    files: [...placed, ...inner.files],
  });
  const cable = `127.0.0.1:${freePort()}`;
  await using machineA = await pair.startA({
    script: SCRIPT_A,
    nics: [{ netdev: `socket,listen=${cable}` }],
  });
  await using machineB = await pair.startB({
    ...machine,
    script: innerScriptB(inner),
    hugePages: 1,
    nics: [{ netdev: `socket,connect=${cable}`, mac: "52:54:00:12:34:66" }],
  });
  await finished(machineA, machineB, INNER_LINKS.length);
  const { qemuVersion, release } = installation;
  const what = `QEMU ${qemuVersion} q35, ${accelerator}; in B a microvm with KVM`;
  console.log(`\na guest inside machine B: ${what}, kernel ${release} ${loadLine()}`);
  printLinks("from the inner guest to the kernel of machine A", INNER_LINKS, machineB);
}

if (import.meta.main) {
  const executable = await compiledExecutable();
  if (isSelected("processes")) await measureProcesses(executable);
  if (isSelected("machines")) await measureMachines(executable);
  if (isSelected("inner")) await measureInner(executable);
}
