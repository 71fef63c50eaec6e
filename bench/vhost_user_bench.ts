/**
 * Back ends that others have written, as devices of virtio-msg, beside the same back ends attached to the same guest
 * directly.
 *
 *     deno task bench:vhost-user [--quick] [--rounds=N] [--json] [--compare] [--exe=compiled] [fs|blk]
 *
 * The guest is a q35 with a stock kernel, booted anew for each, in turns; its front end is QEMU's in either case. Back ends
 * are Debian's virtiofsd and qemu-storage-daemon, their files in the host's page cache: what is measured is the way there.
 * In the guest a small C program (bench/c/requests.c) has one request after another go past the cache: 1 MiB for
 * throughput, 4 KiB for latency. Each request is a sample, so p99 is that of requests.
 */

import { fromFileUrl } from "@std/path";
import {
  type DeviceType,
  frontEndArguments,
  storageDaemonCommand,
  TAG,
  VIRTIOFSD,
  virtiofsdCommand,
} from "../scripts/lab/back_ends.ts";
import { mustRun } from "../scripts/lab/run_command.ts";
import {
  bootGuest,
  chooseAccelerator,
  findGuests,
  guestInitramfs,
} from "../scripts/lab/machines.ts";
import type { QemuInstallation } from "../scripts/lab/qemu.ts";
import { has } from "../tests/network/support.ts";
import { until } from "../tests/support/processes.ts";
import { isQuick, isSelected, rounds, say } from "./options.ts";
import { Bench } from "./processes.ts";
import { Report, type RowOptions } from "./report.ts";

const MEBIBYTES = isQuick ? 16 : 256;
const SMALL = isQuick ? 100 : 2000;
const TIMEOUT_MS = 300_000;
const DIRECT = "directly", OURS = "vmsg proxy, device";
const STREAM: RowOptions = { unit: "MiB/s", more: true, target: 0.9 };
const LATENCY: RowOptions = { unit: "us", target: 1.5 };

type Back = DeviceType & ("fs" | "blk");

const BACK_ENDS: Readonly<Record<Back, { name: string; prepare: string; file: string }>> = {
  fs: { name: "virtiofsd", prepare: `mkdir /fs; mount -t virtiofs ${TAG} /fs`, file: "/fs/file" },
  blk: { name: "qemu-storage-daemon", prepare: "", file: "/dev/vda" },
};

const script = ({ prepare, file }: (typeof BACK_ENDS)[Back]) => `
${prepare}
/requests warm write ${file} 1048576 ${MEBIBYTES} >/dev/null || echo "requests failed"
for what in read write; do
  /requests $what $what ${file} 1048576 ${MEBIBYTES} || echo "requests failed"
  /requests \${what}4k $what ${file} 4096 ${SMALL} || echo "requests failed"
done
echo MEASURED
`;

/** Starts what the guest's front end connects to; returns its socket. */
async function startDevice(bench: Bench, type: Back, subject: string): Promise<string> {
  const { directory } = bench;
  const socket = `${directory}/back.sock`;
  const path = `${directory}/${type}`;
  if (type === "blk") {
    await Deno.writeFile(path, new Uint8Array());
    await Deno.truncate(path, MEBIBYTES << 20);
  } else await Deno.mkdir(path);
  await bench.start((type === "fs" ? virtiofsdCommand : storageDaemonCommand)(socket, path));
  await until(() => Deno.stat(socket).then(() => true, () => false));
  if (subject === DIRECT) return socket;
  const bus = ["--bus", "linux-user,socket=lu.sock"];
  const kind = `vhost-user,socket=${socket},id=${type === "fs" ? 26 : 2}`;
  await bench.vmsg(["device", ...bus, "--device", kind]);
  const proxy = await bench.vmsg(["proxy", ...bus, "--vhost-user", "socket=vu.sock"]);
  await proxy.waitFor(/waiting for a front end/);
  return `${directory}/vu.sock`;
}

async function measureDevice(
  report: Report,
  installation: QemuInstallation,
  program: Uint8Array,
  type: Back,
  subject: string,
): Promise<void> {
  await using bench = await Bench.open();
  const { name } = BACK_ENDS[type];
  const extraArgs = frontEndArguments("q35", type, await startDevice(bench, type, subject));
  const initramfs = await guestInitramfs(installation, {
    script: script(BACK_ENDS[type]),
    modules: ["virtio_blk"],
    files: [{ path: "requests", bytes: program }],
  });
  await using guest = await bootGuest(installation, { initramfs, extraArgs });
  await guest.waitFor(/^MEASURED/, TIMEOUT_MS);
  const text = guest.console();
  if (/requests failed/.test(text)) throw new Error(`requests failed:\n${text}`);
  for (const [, row, samples] of text.matchAll(/^(\w+): ([\d ]+)/gm)) {
    const ns = samples!.split(" ").map(Number);
    if (row!.endsWith("4k")) {
      report.add(
        `${name}, ${row!.slice(0, -2)}, 4 KiB`,
        LATENCY,
        subject,
        ns.map((ns) => ns / 1e3),
      );
    } else report.add(`${name}, ${row}, 1 MiB`, STREAM, subject, ns.map((ns) => 1e9 / ns));
  }
}

/** The program for the guest, which has no libraries. */
async function compileProgram(): Promise<Uint8Array> {
  const directory = await Deno.makeTempDir({ prefix: "vmsg-bench-" });
  try {
    const source = fromFileUrl(new URL("c/requests.c", import.meta.url));
    const output = `${directory}/requests`;
    const compiler = Deno.env.get("CC") || "cc";
    await mustRun([compiler, "-static", "-O2", "-Wall", "-Wextra", "-o", output, source]);
    return await Deno.readFile(output);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

async function measure(): Promise<void> {
  const { q35, missing } = await findGuests();
  const lacks = [...missing.q35];
  for (const program of ["qemu-storage-daemon", VIRTIOFSD, Deno.env.get("CC") || "cc"]) {
    if (!has(program)) lacks.push(`${program} is missing`);
  }
  if (Deno.uid() !== 0) lacks.push("virtiofsd needs root");
  if (lacks.length > 0 || q35 === undefined) {
    console.error(`bench:vhost-user NOT RUN: ${lacks.join("; ")}`);
    Deno.exit(1);
  }
  const installation = q35 as QemuInstallation;
  const report = new Report("vhost_user");
  const program = await compileProgram();
  const accelerator = await chooseAccelerator(installation);
  say(`q35, ${accelerator}, QEMU ${installation.qemuVersion}, Linux ${installation.release}`);
  for (let round = 0; round < rounds; round++) {
    for (const type of ["fs", "blk"] as const) {
      if (!isSelected(type)) continue;
      for (const subject of [DIRECT, OURS]) {
        await measureDevice(report, installation, program, type, subject);
      }
    }
  }
  report.finish();
}

if (import.meta.main) await measure();
