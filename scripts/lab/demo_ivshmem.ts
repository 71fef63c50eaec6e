/**
 * `deno task demo:ivshmem`: two machines that share an ivshmem device, each a stock QEMU with a stock
 * kernel and vmsg. Machine B has no network card but the one whose device is in machine A; its pings
 * leave through A's own card to the user network of A's QEMU.
 *
 * The executable for the machines is compiled first, unless there is one of the same sources. What is
 * missing is fetched, once (prepare.ts).
 */

import { UsageError, VmsgError } from "../../src/linux/errors.ts";
import type { Command, Options } from "../../src/cli/command.ts";
import { untilInterrupted } from "../../src/cli/self.ts";
import { ConsoleFile, sayFile } from "./console_file.ts";
import { machineExecutable } from "./executable.ts";
import {
  MACHINE_KINDS,
  machineArchitecture,
  type MachineKind,
  type MachineOptions,
} from "./machine.ts";
import {
  type InnerGuest,
  type InnerGuestOptions,
  innerMicrovm,
  innerUml,
  innerVirt,
} from "./inner.ts";
import { findGuests } from "./machines.ts";
import { fetchMissing } from "./prepare.ts";
import { pingScript } from "./scripts.ts";
import {
  deviceScript,
  DRIVER_HUGE_PAGES,
  driverScript,
  innerScript,
  openPair,
  type PairOptions,
} from "./pair.ts";
import type { QemuInstallation } from "./qemu.ts";
import { runTask } from "./task.ts";

/** From power-on to the last ping, twenty times what it takes under emulation. */
const TIMEOUT_MS = 600_000;

/** Bytes of the file that an inner guest fetches through machine A's network card. */
const FILE_SIZE = 4 << 20;

function parseMachine(wanted: string): MachineKind {
  const kind = MACHINE_KINDS.find((name) => name === wanted);
  if (kind !== undefined) return kind;
  throw new UsageError(`--machine is one of ${MACHINE_KINDS.join(", ")}, not ${wanted}`);
}

async function findMachine(
  kind: MachineKind,
): Promise<QemuInstallation & { readonly kind: MachineKind }> {
  const guests = await findGuests();
  const found = guests[kind];
  if (found !== undefined) return { ...found as QemuInstallation, kind };
  throw new VmsgError("NO_GUEST", `no such machine here. ${guests.missing[kind].join("; ")}`);
}

/** In machine B, where it is in memory. */
const CAPTURE = "/tmp/capture.pcapng";
/** More than any of this says; it goes over the console. */
const CAPTURE_LIMIT = "1M";

/** Machine B's part. */
interface DriverSide {
  readonly script: string;
  readonly files: PairOptions["files"];
  readonly machine: Pick<MachineOptions, "extraArgs" | "modules" | "hugePages" | "kernelArgs">;
  /** MiB of machine B. */
  readonly memoryMiB: number;
  /** What B's console says when it worked. */
  readonly success: RegExp;
}

/** What B says at its end, if there is a capture. */
const sayCapture = (isCaptured: boolean) => isCaptured ? sayFile(CAPTURE) : "";
const captureOption = (isCaptured: boolean) => ({
  capture: isCaptured ? `${CAPTURE},limit=${CAPTURE_LIMIT}` : undefined,
});

/** B's own kernel has the network card. */
function ownKernel(confined: boolean, isCaptured: boolean): DriverSide {
  const then = `ping -c 3 10.0.2.2\nrc=$?\n${sayCapture(isCaptured)}echo "PING rc=$rc"`;
  const script = driverScript({ confined, then, ...captureOption(isCaptured) });
  const machine = { hugePages: confined ? 0 : DRIVER_HUGE_PAGES };
  return { script, files: [], machine, memoryMiB: 256, success: /^PING rc=0/ };
}

/** A guest inside B has it, pings, and fetches a file. */
async function innerGuest(
  machineKind: MachineKind,
  kind: string | undefined,
  { direct, oneRange }: { readonly direct: boolean; readonly oneRange: boolean },
  server: FileServer,
  isCaptured: boolean,
): Promise<DriverSide> {
  const ping = pingScript({ address: "dhcp", peer: "10.0.2.2", count: 3 });
  const fetch = `
if wget -q -O - http://10.0.2.2:${server.port}/ | sha256sum | grep ${server.digest}; then
  echo "FETCHED ${FILE_SIZE} bytes, checksum right"
fi
`;
  const inner = await findInner(machineKind, kind, { script: ping + fetch, oneRange });
  const { memoryMiB = 256, ...machine } = inner.machine;
  const guest = (socket: string) => `${inner.boot(socket)}\n${sayCapture(isCaptured)}`;
  const mode = direct ? "" : "--confined";
  const script = innerScript({ guest, mode, ...captureOption(isCaptured) });
  const hugePages = direct ? 1 : 0;
  const success = /^FETCHED/;
  return { script, files: inner.files, machine: { ...machine, hugePages }, memoryMiB, success };
}

async function findInner(
  machineKind: MachineKind,
  wanted: string | undefined,
  options: InnerGuestOptions,
): Promise<InnerGuest> {
  if (options.oneRange && wanted !== "microvm") {
    throw new UsageError("--one-range goes with --guest microvm");
  }
  const { uml, microvm, arm64, missing } = await findGuests();
  if (machineKind === "arm64") {
    if (wanted !== undefined && wanted !== "virt") {
      throw new UsageError(`--guest is virt for a guest in an arm64 machine, not ${wanted}`);
    }
    if (arm64?.kind === "arm64") {
      return await innerVirt({ ...arm64, kind: arm64.kind }, options);
    }
    throw new VmsgError("NO_GUEST", `no inner guest. ${missing.arm64.join("; ")}`);
  }
  const kind = wanted ?? "uml";
  if (kind === "uml" && uml?.kind === "uml") return await innerUml(uml, options);
  if (kind === "microvm" && microvm !== undefined && microvm.kind !== "uml") {
    return await innerMicrovm(microvm, options);
  }
  if (kind === "uml" || kind === "microvm") {
    throw new VmsgError("NO_GUEST", `no inner guest. ${missing[kind].join("; ")}`);
  }
  throw new UsageError(`--guest is uml or microvm for an inner guest, not ${kind}`);
}

interface FileServer extends AsyncDisposable {
  readonly port: number;
  readonly digest: string;
}

/** A file on this host's loopback, which a user network reaches as 10.0.2.2. */
async function serveFile(): Promise<FileServer> {
  const bytes = new Uint8Array(FILE_SIZE);
  for (let at = 0; at < FILE_SIZE; at += 65536) {
    crypto.getRandomValues(bytes.subarray(at, at + 65536));
  }
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).toHex();
  const listening = { hostname: "127.0.0.1", port: 0, onListen: () => {} };
  const server = Deno.serve(listening, () => new Response(bytes));
  const { port } = server.addr;
  return { port, digest, [Symbol.asyncDispose]: () => server.shutdown() };
}

/** Runs the demo; 0 if B's pings were answered. */
async function demoIvshmem(options: Options): Promise<number> {
  const [net, size, guest, capture] = ["net", "size", "guest", "capture"].map((name) =>
    options.text(name)
  );
  const [inner, direct, oneRange] = ["inner", "direct", "one-range"].map((name) =>
    options.flag(name)
  ) as [boolean, boolean, boolean];
  const innerOnly = ["direct", "guest", "one-range"].find((name) =>
    options.flag(name) || options.text(name) !== undefined
  );
  if (innerOnly !== undefined && !inner) throw new UsageError(`--${innerOnly} goes with --inner`);
  if (direct && options.flag("confined")) {
    throw new UsageError("--direct goes without --confined");
  }
  if (oneRange && !direct) throw new UsageError("--one-range goes with --direct");
  if (net !== "bridge" && net !== "packet") {
    throw new UsageError(`--net is bridge or packet, not ${net}`);
  }
  const confined = options.flag("confined") || (inner && !direct);
  const kind = parseMachine(options.text("machine")!);
  await fetchMissing({
    kinds: [kind],
    arm64Libraries: kind === "arm64",
    arm64Qemu: inner && kind === "arm64",
  });
  const installation = await findMachine(kind);
  const executable = await machineExecutable(
    options.text("executable"),
    machineArchitecture(kind),
  );
  using interrupted = untilInterrupted();
  await using server = await serveFile();
  const b = inner
    ? await innerGuest(kind, guest, { direct, oneRange }, server, capture !== undefined)
    : ownKernel(confined, capture !== undefined);
  const captured = new ConsoleFile();
  console.log("two machines, a shared memory and a doorbell between them; none of it is patched");
  await using pair = await openPair({
    installation,
    executable,
    confined,
    files: b.files ?? [],
    memoryMiB: b.memoryMiB,
    ...(size === undefined ? {} : { size }),
    onServerLine: (line) => console.log(`server| ${line}`),
  });
  await using machineA = await pair.startA({
    script: deviceScript({ kind, net, confined, memoryMiB: b.memoryMiB }),
    nics: [{ netdev: "user" }],
    onLine: (line) => console.log(`A| ${line}`),
  });
  await using machineB = await pair.startB({
    script: b.script,
    ...b.machine,
    onLine: (line) => {
      if (!captured.take(line)) console.log(`B| ${line}`);
    },
  });
  const passed = machineB.waitFor(b.success, TIMEOUT_MS).then(() => 0);
  const failed = Promise.race([
    machineA.waitFor(/^DEVICE rc=/, TIMEOUT_MS),
    machineB.waitFor(/^((PING|INNER) rc=[^0]|(DRIVER|PROXY) ended|GUEST-DONE)/, TIMEOUT_MS),
  ]).then(() => 1);
  for (const promise of [passed, failed]) promise.catch(() => {});
  const code = await Promise.race([interrupted, passed, failed]);
  // Most of all if it failed.
  if (code !== 130 && capture !== undefined) {
    const over = Promise.race([interrupted, machineB.waitFor(/^GUEST-DONE/, TIMEOUT_MS)]);
    await captured.save(capture, over);
  }
  if (code !== 130) console.log(code === 0 ? "\nTEST PASSED" : `\nTEST FAILED (${code})`);
  return code;
}

/** See `deno task demo:ivshmem --help`. */
export const demoIvshmemTask: Command = {
  name: "demo:ivshmem",
  call: "deno task demo:ivshmem",
  summary: "two machines that share an ivshmem device, one has its network card in the other",
  description:
    "Two machines under QEMU that share an ivshmem device: `vmsg device` in one and `vmsg driver` in the\n" +
    "other, or with --inner `vmsg proxy` and an unmodified guest.",
  options: [
    {
      name: "machine",
      value: MACHINE_KINDS.join("|"),
      default: "q35",
      help: "which machines to boot",
    },
    {
      name: "net",
      value: "bridge|packet",
      default: "bridge",
      help: "how frames leave machine A: a bridge with a TAP, or a raw socket",
    },
    { name: "size", value: "SIZE", help: "of the shared memory (default 1M)" },
    { name: "confined", help: "machine A does not see B's memory, but for the shared memory" },
    { name: "inner", help: "machine B has a guest, whose network card it is; confined" },
    { name: "direct", help: "with --inner: machine A uses the guest's own memory, no copies" },
    {
      name: "guest",
      value: "uml|microvm|virt",
      help: "with --inner: which guest (virt: inside an arm64 machine)",
    },
    {
      name: "one-range",
      help: "with --direct --guest microvm: its memory is one page of 1 GiB",
    },
    {
      name: "capture",
      value: "FILE",
      help: "keep what machine B's vmsg says and hears in a file, for `vmsg trace`",
    },
    {
      name: "executable",
      value: "PATH",
      help: "vmsg for the machines, instead of one compiled from these sources",
    },
  ],
  examples: ["deno task demo:ivshmem", "deno task demo:ivshmem --inner --direct"],
  run: demoIvshmem,
};

if (import.meta.main) await runTask(demoIvshmemTask);
