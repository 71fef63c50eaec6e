/**
 * The subcommand `vmsg doctor`: what this machine can do with vmsg, and how to get the rest.
 *
 * Every check only looks: it opens, reads or asks for a version, and changes nothing. One line a check, or
 * one for each thing it found.
 */

import { VFIO_DRIVER } from "../ivshmem/binding.ts";
import { hasDoorbell, ivshmemFunctions } from "../ivshmem/function.ts";
import { readOwnId } from "../ivshmem/sysfs_end.ts";
import { softLimit } from "../linux/limits.ts";
import { findProgram, PROGRAM_ENVIRONMENT } from "../linux/programs.ts";
import type { PciFunction } from "../linux/sysfs.ts";
import { limitsProblem, MIN_MEMORY, NEEDS } from "./needs.ts";
import type { Command } from "./command.ts";

/** What a check found. */
export interface Finding {
  /** What was looked for, stable for programs. */
  readonly name: string;
  readonly state: "yes" | "no" | "partly";
  /** What is there. */
  readonly detail: string;
  /** What it is good for, or how to get it, when it is not there. */
  readonly advice?: string;
}

type Check = () => Promise<Finding | Finding[]>;

async function readText(path: string): Promise<string | undefined> {
  try {
    return await Deno.readTextFile(path);
  } catch {
    return undefined;
  }
}

async function entries(path: string): Promise<string[]> {
  try {
    const names: string[] = [];
    for await (const entry of Deno.readDir(path)) names.push(entry.name);
    return names.sort();
  } catch {
    return [];
  }
}

/** Opens a file for reading and writing; undefined if that works, otherwise why not. */
async function cannotOpen(path: string): Promise<string | undefined> {
  try {
    (await Deno.open(path, { read: true, write: true })).close();
    return undefined;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return "not there";
    return error instanceof Deno.errors.PermissionDenied ? "no permission" : String(error);
  }
}

/** The first line of what a program prints about itself, undefined if there is no such program. */
async function versionOf(program: string, ...args: string[]): Promise<string | undefined> {
  return (await linesOf(program, args))?.[0];
}

async function lastLineOf(program: string, ...args: string[]): Promise<string | undefined> {
  return (await linesOf(program, args))?.at(-1);
}

async function linesOf(program: string, args: string[]): Promise<string[] | undefined> {
  const path = findProgram(program);
  if (path === undefined) return undefined;
  try {
    const { stdout } = await new Deno.Command(path, {
      ...PROGRAM_ENVIRONMENT,
      args,
      stdin: "null",
      stderr: "null",
    }).output();
    return new TextDecoder().decode(stdout).trim().split("\n");
  } catch {
    return undefined;
  }
}

function finding(
  name: string,
  state: Finding["state"],
  detail: string,
  advice?: string,
): Finding {
  return advice === undefined ? { name, state, detail } : { name, state, detail, advice };
}

const checkKvm: Check = async () => {
  const problem = await cannotOpen("/dev/kvm");
  if (problem !== undefined) {
    return finding("kvm", "no", `/dev/kvm: ${problem}`, "guests run under emulation (TCG), slower");
  }
  return finding("kvm", "yes", "/dev/kvm can be opened");
};

const checkTap: Check = async () => {
  const problem = await cannotOpen("/dev/net/tun");
  if (problem !== undefined) {
    return finding("tap", "no", `/dev/net/tun: ${problem}`, "modprobe tun, and be root");
  }
  const capabilities = /CapEff:\s*([0-9a-f]+)/.exec(await readText("/proc/self/status") ?? "");
  const netAdmin = capabilities !== null && (BigInt(`0x${capabilities[1]}`) & (1n << 12n)) !== 0n;
  return netAdmin
    ? finding("tap", "yes", "/dev/net/tun and CAP_NET_ADMIN")
    : finding("tap", "partly", "no CAP_NET_ADMIN", "use an existing persistent TAP, or be root");
};

const checkQemu: Check = async () => {
  const version = await versionOf("qemu-system-x86_64", "--version");
  if (version === undefined) {
    return finding("qemu", "no", "no qemu-system-x86_64", "apt-get install qemu-system-x86");
  }
  const number = /version (\d+)\.(\d+)/.exec(version);
  const major = number === null ? 0 : Number(number[1]);
  if (major < 7) {
    return finding("qemu", "partly", version, "before 7.2 nothing was tried: use 7.2 or later");
  }
  if (major === 7) {
    return finding(
      "qemu",
      "yes",
      version,
      "7.2 crashes with virtio-net-pci, MSI-X and vhost-user under TCG: give the device vectors=0",
    );
  }
  return finding("qemu", "yes", version);
};

const checkUml: Check = async () => {
  const release = await versionOf("linux.uml", "--version");
  return release === undefined
    ? finding("uml", "no", "no linux.uml", "apt-get install user-mode-linux (a guest without KVM)")
    : finding("uml", "yes", `linux.uml ${release}`);
};

const checkVfio: Check = async () => {
  const groups = await entries("/sys/kernel/iommu_groups");
  const problem = await cannotOpen("/dev/vfio/vfio");
  if (problem !== undefined) {
    return finding("vfio", "no", `/dev/vfio/vfio: ${problem}`, "modprobe vfio-pci (for ivshmem)");
  }
  if (groups.length === 0) {
    return finding(
      "vfio",
      "partly",
      "no IOMMU group",
      "boot with intel_iommu=on or amd_iommu=on; under QEMU add -device intel-iommu",
    );
  }
  return finding("vfio", "yes", `${groups.length} IOMMU groups`);
};

function sizeText(bytes: number): string {
  return bytes >= 2 ** 20 ? `${bytes / 2 ** 20} MiB` : `${bytes / 2 ** 10} KiB`;
}

function ivshmemFinding(pci: PciFunction): Finding {
  const { driver, iommuGroup } = pci;
  const doorbell = hasDoorbell(pci);
  const id = doorbell ? readOwnId(pci) : undefined;
  const detail = [
    `${pci.address} ${doorbell ? "doorbell" : "plain"}`,
    sizeText(pci.bars[2]?.size ?? 0),
    driver ?? "no driver",
    iommuGroup === undefined ? "no IOMMU group" : `IOMMU group ${iommuGroup}`,
    ...(id === undefined ? [] : [`id ${id}`]),
  ].join(", ");
  if (driver === VFIO_DRIVER || (driver === undefined && !doorbell)) {
    return finding("ivshmem", "yes", detail);
  }
  if (driver !== undefined) {
    const unbind = `echo ${pci.address} > ${pci.path}/driver/unbind`;
    return finding("ivshmem", "partly", detail, `to use it give the option bind, or ${unbind}`);
  }
  const advice = iommuGroup === undefined
    ? "works by polling; interrupts need vfio and an IOMMU: boot with intel_iommu=on or amd_iommu=on"
    : "for interrupts give the option bind, or bind it to vfio-pci; without, it works by polling";
  return finding("ivshmem", "partly", detail, advice);
}

const checkIvshmem: Check = () => {
  const functions = ivshmemFunctions();
  return Promise.resolve(
    functions.length > 0
      ? functions.map(ivshmemFinding)
      : finding("ivshmem", "no", "no ivshmem PCI function", "only virtual machines have one"),
  );
};

const checkHugePages: Check = async () => {
  const sizes: string[] = [];
  for (const name of await entries("/sys/kernel/mm/hugepages")) {
    const total = Number(await readText(`/sys/kernel/mm/hugepages/${name}/nr_hugepages`) ?? 0);
    if (total > 0) sizes.push(`${total} of ${name.replace("hugepages-", "")}`);
  }
  return sizes.length > 0
    ? finding("hugepages", "yes", sizes.join(", "))
    : finding("hugepages", "no", "none reserved", "only needed for memory at known addresses");
};

const checkPasst: Check = async () => {
  const version = await versionOf("passt", "--version");
  return version === undefined
    ? finding("passt", "no", "no passt", "apt-get install passt (user-mode networking, no root)")
    : finding("passt", "yes", version);
};

const GIB = 2 ** 30;

const checkLimits: Check = async () => {
  const [files, address] = [softLimit("open files"), softLimit("address space")];
  const group = /^0::(.*)$/m.exec(await readText("/proc/self/cgroup") ?? "")?.[1];
  const memory = Number(await readText(`/sys/fs/cgroup${group}/memory.max`) || NaN);
  const detail = [
    `${files} open files`,
    address === Infinity ? "all of the address space" : `${address / GIB} GiB of address space`,
    Number.isNaN(memory) ? "memory without a limit" : `${sizeText(memory)} of memory`,
  ].join(", ");
  return limitsProblem() === undefined && !(memory < MIN_MEMORY)
    ? finding("limits", "yes", detail)
    : finding("limits", "no", detail, `a process needs ${NEEDS}`);
};

/** The demos that boot kernels make images; MiB, an estimate. */
const DEMO_ROOM = 512;

const checkRoom: Check = async () => {
  let directory = "/tmp";
  try {
    directory = Deno.env.get("TMPDIR") || directory;
  } catch {
    // The environment may not be read.
  }
  const line = await lastLineOf("df", "-P", "-m", directory);
  const free = Number(/^\S+\s+\d+\s+\d+\s+(\d+)\s/.exec(line ?? "")?.[1] ?? NaN);
  if (Number.isNaN(free)) {
    return finding(
      "room",
      "no",
      `${directory} cannot be used`,
      "set TMPDIR to a directory you may write to",
    );
  }
  return free >= DEMO_ROOM ? finding("room", "yes", `${free} MiB in ${directory}`) : finding(
    "room",
    "partly",
    `${free} MiB in ${directory}`,
    `demos with kernels need ${DEMO_ROOM} MiB`,
  );
};

const CHECKS: readonly Check[] = [
  checkLimits,
  checkRoom,
  checkKvm,
  checkQemu,
  checkUml,
  checkTap,
  checkPasst,
  checkVfio,
  checkIvshmem,
  checkHugePages,
];

/** Runs all checks. */
export async function examine(): Promise<Finding[]> {
  return (await Promise.all(CHECKS.map((check) => check()))).flat();
}

/** See `vmsg doctor --help`. */
export const doctorCommand: Command = {
  name: "doctor",
  summary: "what this machine can do with vmsg, and how to get the rest",
  description: "Looks at what vmsg can use on this machine. One line each; nothing is changed.",
  options: [{ name: "json", help: "print a JSON array" }],
  examples: ["vmsg doctor", "vmsg doctor --json"],
  run: async (options) => {
    const findings = await examine();
    if (options.flag("json")) {
      console.log(JSON.stringify(findings, undefined, 2));
      return 0;
    }
    for (const { name, state, detail, advice } of findings) {
      const more = advice === undefined ? "" : `: ${advice}`;
      console.log(`${name.padEnd(10)} ${state.padEnd(7)} ${detail}${more}`);
    }
    return 0;
  },
};
