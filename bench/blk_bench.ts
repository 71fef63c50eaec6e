/**
 * A guest's disk behind vmsg, beside the one that stock QEMU serves itself; both are the same file.
 *
 *     deno task bench:blk [--quick] [--rounds=N] [--json] [--compare] [--exe=compiled]
 *
 * The guest is a q35 with a stock kernel, booted anew for each, in turns: QEMU's virtio-blk with its cache as we have
 * it (writeback), ours by system calls of the host kernel's own choice, and QEMU's storage daemon as the same front
 * end's back end without virtio-msg. In it dd reads and writes past the guest's cache: 1 MiB at a time for throughput,
 * 4 KiB for latency, which is one request at a time. The file is in the host's page cache: what is measured is the way there.
 */

import {
  bootGuest,
  chooseAccelerator,
  findGuests,
  guestInitramfs,
} from "../scripts/lab/machines.ts";
import type { QemuInstallation } from "../scripts/lab/qemu.ts";
import { has } from "../tests/network/support.ts";
import { delay } from "../tests/support/processes.ts";
import { isQuick, rounds, say } from "./options.ts";
import { Bench } from "./processes.ts";
import { Report, type RowOptions } from "./report.ts";

const BUS = ["--bus", "linux-user,socket=lu.sock"];
const MEBIBYTES = isQuick ? 32 : 512;
const SMALL = isQuick ? 200 : 5000;
const TIMEOUT_MS = 300_000;
const STOCK = "stock QEMU", DAEMON = "qemu-storage-daemon", OURS = "vmsg proxy, device";
const SUBJECTS = [STOCK, DAEMON, OURS] as const;
const STREAM: RowOptions = { unit: "MiB/s", more: true, target: 0.9 };
const LATENCY: RowOptions = { unit: "us", target: 1.5 };

/** Seconds of each part, by the guest's clock. */
const script = `
measure() {
  name=$1; shift
  before=$(cut -d' ' -f1 /proc/uptime)
  dd "$@" 2>/dev/null || echo "dd failed"
  after=$(cut -d' ' -f1 /proc/uptime)
  echo "TOOK $name $before $after"
}
measure warm if=/dev/vda of=/dev/null bs=1M count=${MEBIBYTES} iflag=direct
measure read if=/dev/vda of=/dev/null bs=1M count=${MEBIBYTES} iflag=direct
measure write if=/dev/zero of=/dev/vda bs=1M count=${MEBIBYTES} oflag=direct
measure read4k if=/dev/vda of=/dev/null bs=4k count=${SMALL} iflag=direct
measure write4k if=/dev/zero of=/dev/vda bs=4k count=${SMALL} oflag=direct
echo MEASURED
`;

async function backEnd(bench: Bench, subject: typeof SUBJECTS[number]): Promise<string[]> {
  const disk = `${bench.directory}/disk.img`;
  await Deno.writeFile(disk, new Uint8Array());
  await Deno.truncate(disk, MEBIBYTES << 20);
  if (subject === STOCK) {
    return [
      ...["-drive", `file=${disk},format=raw,if=none,id=d,cache=writeback`],
      ...["-device", "virtio-blk-pci,drive=d"],
    ];
  }
  const socket = `${bench.directory}/vu.sock`;
  if (subject === DAEMON) {
    await bench.start([
      "qemu-storage-daemon",
      ...["--blockdev", `driver=file,node-name=d,filename=${disk}`],
      ...[
        "--export",
        `type=vhost-user-blk,id=e,node-name=d,writable=on,addr.type=unix,addr.path=${socket}`,
      ],
    ]);
    while (!await Deno.stat(socket).catch(() => undefined)) await delay(10);
  } else {
    const device = await bench.vmsg(["device", ...BUS, "--device", `blk,file=${disk}`]);
    await device.waitFor(/waiting for the driver side/);
    const proxy = await bench.vmsg(["proxy", ...BUS, "--vhost-user", `socket=${socket}`]);
    await proxy.waitFor(/waiting for a front end/);
  }
  return [
    ...["-chardev", `socket,id=c0,path=${socket}`],
    ...["-device", "vhost-user-blk-pci,chardev=c0,vectors=0,num-queues=1"],
  ];
}

async function measureDisk(
  report: Report,
  installation: QemuInstallation,
  subject: typeof SUBJECTS[number],
): Promise<void> {
  await using bench = await Bench.open();
  const extraArgs = await backEnd(bench, subject);
  const initramfs = await guestInitramfs(installation, { script, modules: ["virtio_blk"] });
  await using guest = await bootGuest(installation, { initramfs, extraArgs });
  await guest.waitFor(/^MEASURED/, TIMEOUT_MS);
  const text = guest.console();
  if (/dd failed/.test(text)) throw new Error(`dd failed:\n${text}`);
  for (const [, name, before, after] of text.matchAll(/^TOOK (\w+) ([\d.]+) ([\d.]+)/gm)) {
    const seconds = Number(after) - Number(before);
    if (name === "read" || name === "write") {
      report.add(`${name}, 1 MiB`, STREAM, subject, [MEBIBYTES / seconds]);
    } else if (name !== "warm") {
      report.add(`${name.slice(0, -2)}, 4 KiB`, LATENCY, subject, [1e6 * seconds / SMALL]);
    }
  }
}

async function measure(): Promise<void> {
  const { q35, missing } = await findGuests();
  const lacks = [...missing.q35];
  if (!has("qemu-storage-daemon")) lacks.push("qemu-storage-daemon is missing");
  if (lacks.length > 0 || q35 === undefined) {
    console.error(`bench:blk NOT RUN: ${lacks.join("; ")}`);
    Deno.exit(1);
  }
  const installation = q35 as QemuInstallation;
  const report = new Report("blk");
  const accelerator = await chooseAccelerator(installation);
  say(`q35, ${accelerator}, QEMU ${installation.qemuVersion}, Linux ${installation.release}`);
  for (let round = 0; round < rounds; round++) {
    for (const subject of SUBJECTS) await measureDisk(report, installation, subject);
  }
  report.finish();
}

if (import.meta.main) await measure();
