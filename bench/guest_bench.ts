/**
 * A guest's network card behind vmsg, beside the one that stock QEMU serves itself; both reach the same kernel
 * through a TAP.
 *
 *     deno task bench:guest [--quick] [--rounds=N] [--json] [--compare] [--exe=compiled] [free] [tied]
 *
 * The guest is a q35 with a stock kernel, under KVM where that works and TCG elsewhere (VMSG_ACCEL=kvm|tcg). It is
 * booted anew for each option, in turns: QEMU's virtio-net and tap, then `vmsg proxy`, `vmsg device` and tap, with
 * notifications in band (not with --quick) and out of band. In it run ping, every 2 ms and every 100 ms, and iperf3 out of it
 * and into it.
 *
 * `free`: nothing is tied to a processor, and how often QEMU's threads went to another one is counted. With two processors
 * that is what ours costs: a frame wakes a third thread, so that there is one too few and the guest's processor wanders, and
 * each time finds nothing in the caches. `tied`: the guest's processor has one to itself, QEMU's main loop and ours share the
 * other, and so does the stock card's.
 *
 * It needs root, QEMU, a kernel and iperf3 (scripts/fetch_guests.ts); with five rounds it takes half an hour.
 */

import {
  bootGuest,
  chooseAccelerator,
  findGuests,
  guestInitramfs,
} from "../scripts/lab/machines.ts";
import type { QemuInstallation } from "../scripts/lab/qemu.ts";
import type { GuestFile } from "../scripts/lab/initramfs.ts";
import { programFiles } from "../tests/guest/program_files.ts";
import { has, ip, Namespace } from "../tests/network/support.ts";
import { isQuick, isSelected, rounds, say } from "./options.ts";
import { Bench, HERE, moves, pin, processorTimeNs, type Running, THERE } from "./processes.ts";
import { Report, type RowOptions } from "./report.ts";

const HOST = "10.0.2.2";
const BUS = ["--bus", "linux-user,socket=lu.sock"];
const WARM_UP = isQuick ? 10 : 200;
/** How often and how many. */
const PINGS: readonly (readonly [intervalMs: number, count: number])[] = isQuick
  ? [[2, 50], [100, 5]]
  : [[2, 2000], [100, 50]];
const STREAM_SECONDS = isQuick ? 1 : 8;
/** Several times what the slowest emulation needs for its boot and its work. */
const TIMEOUT_MS = 300_000;

/** The network card that stock QEMU serves is the twin. */
const STOCK = "stock QEMU, tap", OURS = "vmsg proxy, device, tap";
/** What they cost that are messages through the proxy. */
const IN_BAND = "the same, --notify in-band";
type Card = typeof STOCK | typeof OURS | typeof IN_BAND;
const CARDS: readonly Card[] = isQuick ? [STOCK, OURS] : [STOCK, IN_BAND, OURS];
const PING: RowOptions = { unit: "ms", target: 1.1 };
const STREAM: RowOptions = { unit: "Mbit/s", more: true, target: 1 };
const QUOTED =
  "quoted, not measured here: the prototype pair under TCG had 0.511 ms (stock QEMU: 0.425), 4 of 2000 pings lost, " +
  "470 / 477 Mbit/s out / in (700 / 655) with 6764 retransmits";

/** Prints round trips as lines of numbers, so that a slow console has little to do. */
const script = `
tries=0
while [ ! -e /sys/class/net/eth0 ] && [ "$tries" -lt 50 ]; do sleep 0.1; tries=$((tries + 1)); done
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
ping -c ${WARM_UP} -i 0.02 -W 2 ${HOST} >/dev/null
${
  PINGS.map(([intervalMs, count], i) => `
echo "PINGS ${i}"
ping -c ${count} -i ${
    intervalMs / 1000
  } -W 2 ${HOST} | sed -n 's/.* time=\\(.*\\) ms/\\1/p' >/tmp/pings
echo "PINGED ${i}"
xargs -n 25 echo "PING ${i}" </tmp/pings
`).join("")
}
for way in "OUT " "IN -R"; do
  set -- $way
  iperf3 -c ${HOST} -t ${STREAM_SECONDS} -f m -i 0 $2 2>&1 | sed "s/^/$1 /"
  # The server has one client at a time, and resets who comes while it takes leave of the last one.
  sleep 1
done
echo MEASURED
`;

/** The thread that is the guest's processor. */
function guestProcessor(qemu: number): number {
  for (const { name } of Deno.readDirSync(`/proc/${qemu}/task`)) {
    const thread = Deno.readTextFileSync(`/proc/${qemu}/task/${name}/comm`);
    if (thread.startsWith("CPU ")) return Number(name);
  }
  throw new Error("QEMU has no thread for the guest's processor");
}

/** One boot of one card, and what its guest measured. */
async function measureCard(
  report: Report,
  installation: QemuInstallation,
  files: readonly GuestFile[],
  card: Card,
  isTied: boolean,
): Promise<void> {
  const add = (row: string, options: RowOptions, samples: readonly number[]) =>
    report.add(isTied ? `tied: ${row}` : row, options, card, samples);
  using _namespace = new Namespace();
  await using bench = await Bench.open();
  let device: Running | undefined, proxy: Running | undefined;
  if (card === STOCK) {
    ip("tuntap add dev tap0 mode tap");
    ip(`addr add ${HOST}/24 dev tap0`);
    ip("link set tap0 up");
  } else {
    device = await bench.vmsg(["device", ...BUS, "--net", `tap=tap0,address=${HOST}/24`]);
    await device.waitFor(/waiting for the driver side/);
    const way = card === IN_BAND ? ["--notify", "in-band"] : [];
    proxy = await bench.vmsg(["proxy", ...BUS, "--vhost-user", "socket=vu.sock", ...way]);
    await proxy.waitFor(/waiting for a front end/);
  }
  await bench.start(["iperf3", "--server", "--bind", HOST]);
  const initramfs = await guestInitramfs(installation, { script, files });
  const back = card === STOCK ? { tap: "tap0" } : { socket: `${bench.directory}/vu.sock` };
  const pidFile = `${bench.directory}/qemu.pid`;
  const extraArgs = ["-pidfile", pidFile, "-name", "bench,debug-threads=on"];
  await using guest = await bootGuest(installation, { initramfs, ...back, extraArgs });
  await guest.waitFor(/^PINGS 0/, TIMEOUT_MS);
  const qemu = Number(Deno.readTextFileSync(pidFile));
  if (isTied) {
    const others = [device, proxy].flatMap((one) => one?.child.pid ?? []);
    for (const pid of [qemu, ...others]) pin(pid, THERE);
    pin(guestProcessor(qemu), HERE, "thread");
  }
  const movesBefore = moves(qemu);
  const beforeNs = proxy && processorTimeNs(proxy.child.pid);
  await guest.waitFor(/^PINGED 0/, TIMEOUT_MS);
  const perPing = (moves(qemu) - movesBefore) / PINGS[0]![1];
  const unit = "times a ping every 2 ms";
  if (!isNaN(perPing)) add("threads of QEMU moved", { unit }, [perPing]);
  await guest.waitFor(/^MEASURED/, TIMEOUT_MS);
  if (proxy !== undefined) {
    const ms = (processorTimeNs(proxy.child.pid) - beforeNs!) / 1e6;
    add("the proxy's processor time", { unit: "ms" }, [ms]);
  }
  const lines = guest.console().split("\n");

  for (const [i, [intervalMs, count]] of PINGS.entries()) {
    const prefix = `PING ${i} `;
    const times = lines.filter((line) => line.startsWith(prefix))
      .flatMap((line) => line.slice(prefix.length).split(" ").map(Number));
    add(`ping every ${intervalMs} ms`, PING, times);
    add(`pings lost of ${count}`, { unit: "of each round" }, [count - times.length]);
  }
  for (const way of ["OUT", "IN"]) {
    const summary = lines.find((line) => line.startsWith(way) && /\d+\s+sender/.test(line)) ?? "";
    const [, rate, retransmits] = /([\d.]+) Mbits\/sec\s+(\d+)\s+sender/.exec(summary) ?? [];
    if (rate === undefined) throw new Error(`iperf3 printed no summary:\n${guest.console()}`);
    const name = `iperf3 ${way.toLowerCase()}`;
    add(name, STREAM, [Number(rate)]);
    add(`${name}, retransmits`, { unit: "segments" }, [Number(retransmits)]);
  }
}

async function measure(): Promise<void> {
  const { q35, missing } = await findGuests();
  const lacks = [...missing.q35];
  if (Deno.uid() !== 0) lacks.push("it needs root");
  if (!has("iperf3")) lacks.push("iperf3 is missing: apt-get install iperf3");
  if (lacks.length > 0 || q35 === undefined) {
    console.error(`bench:guest NOT RUN: ${lacks.join("; ")}`);
    Deno.exit(1);
  }
  const installation = q35 as QemuInstallation;
  const report = new Report("guest");
  const files = await programFiles("iperf3");
  const accelerator = await chooseAccelerator(installation);
  say(`q35, ${accelerator}, QEMU ${installation.qemuVersion}, Linux ${installation.release}`);
  for (let round = 0; round < rounds; round++) {
    for (const way of ["free", "tied"]) {
      if (!isSelected(way)) continue;
      for (const card of CARDS) {
        await measureCard(report, installation, files, card, way === "tied");
      }
    }
  }
  report.note(QUOTED);
  report.finish();
}

if (import.meta.main) await measure();
