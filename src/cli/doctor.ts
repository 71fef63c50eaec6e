/**
 * The subcommand `vmsg doctor`: what this machine can do with vmsg, and how to get the rest; or, of captures and of processes,
 * where a link stands still (stuck_links.ts).
 *
 * Every check only looks: it opens, reads or asks for a version, and changes nothing. One line a check, or
 * one for each thing it found.
 */

import { BRIDGE_PATH } from "../bus/bridge_node.ts";
import { VFIO_DRIVER } from "../ivshmem/binding.ts";
import { hasDoorbell, ivshmemFunctions } from "../ivshmem/function.ts";
import { readOwnId } from "../ivshmem/sysfs_end.ts";
import { LinuxError } from "../linux/errors.ts";
import { openFile, openPath } from "../linux/fd.ts";
import { softLimit } from "../linux/limits.ts";
import { findProgram, PROGRAM_ENVIRONMENT } from "../linux/programs.ts";
import { directoryNames, type PciFunction, readText } from "../linux/sysfs.ts";
import {
  type DomainSurvey,
  ioreqProblem,
  isDom0,
  isUnderXen,
  surveyDomains,
  xenVersion,
} from "../xen/survey.ts";
import { temporaryDirectory } from "./keeper.ts";
import { limitsProblem, memoryLimit, MIN_MEMORY, NEEDS } from "./needs.ts";
import type { Command } from "./command.ts";
import { explainLinks } from "./stuck_links.ts";

export interface Finding {
  /** What was looked for, stable for programs. */
  readonly name: string;
  readonly state: "yes" | "no" | "partly";
  readonly detail: string;
  /** What it is good for, or how to get it, when it is not there. */
  readonly advice?: string;
}

/** What came of a check: is it there, what is there, and what to do about it. */
type Found = readonly [state: Finding["state"], detail: string, advice?: string];
/** One thing, or a list of them, which is empty where nobody would look for it. */
type Check = () => Found | readonly Found[] | Promise<Found | readonly Found[]>;

/** Opens a file for reading and writing; undefined if that works, otherwise why not. */
function cannotOpen(path: string): string | undefined {
  try {
    openFile(path)[Symbol.dispose]();
    return undefined;
  } catch (error) {
    if (!(error instanceof LinuxError)) throw error;
    if (error.code === "ENOENT") return `${path}: not there`;
    return `${path}: ${["EACCES", "EPERM"].includes(error.code) ? "no permission" : error.code}`;
  }
}

/** The lines that a program prints; none if there is no such program. */
async function linesOf(program: string, ...args: string[]): Promise<string[]> {
  const path = findProgram(program);
  if (path === undefined) return [];
  try {
    const options = { ...PROGRAM_ENVIRONMENT, args, stdin: "null", stderr: "null" } as const;
    const { stdout } = await new Deno.Command(path, options).output();
    return new TextDecoder().decode(stdout).trim().split("\n");
  } catch {
    return [];
  }
}

const program = (name: string, advice: string, prefix = ""): Check => async () => {
  const [version] = await linesOf(name, "--version");
  return version === undefined ? ["no", `no ${name}`, advice] : ["yes", `${prefix}${version}`];
};

function sizeText(bytes: number): string {
  return bytes >= 2 ** 20 ? `${bytes / 2 ** 20} MiB` : `${bytes / 2 ** 10} KiB`;
}

const IOMMU_OF_XEN = "the IOMMU is Xen's: ivshmem works with via=sysfs, by polling";
/** How long xenstored may take. */
const XENSTORE_MS = 2000;

function describeDomain({ id, name, backEnds }: DomainSurvey): Found {
  return ["yes", [`domain ${name} (${id})`, ...backEnds].join(", ")];
}

function describeFunction(pci: PciFunction): Found {
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
  if (driver === VFIO_DRIVER || (driver === undefined && !doorbell)) return ["yes", detail];
  if (driver !== undefined) {
    const unbind = `echo ${pci.address} > ${pci.path}/driver/unbind`;
    return ["partly", detail, `to use it give the option bind, or ${unbind}`];
  }
  const advice = isUnderXen()
    ? IOMMU_OF_XEN
    : iommuGroup === undefined
    ? "works by polling; interrupts need vfio and an IOMMU: boot with intel_iommu=on or amd_iommu=on"
    : "for interrupts give the option bind, or bind it to vfio-pci; without, it works by polling";
  return ["partly", detail, advice];
}

/** The demos that boot kernels make images; MiB, an estimate. */
const DEMO_ROOM = 512;
const GIB = 2 ** 30;

/** What is looked for, in this order. */
const CHECKS: Readonly<Record<string, Check>> = {
  limits() {
    const [files, address] = [softLimit("open files"), softLimit("address space")];
    const memory = memoryLimit();
    const detail = [
      `${files} open files`,
      address === Infinity ? "all of the address space" : `${address / GIB} GiB of address space`,
      memory === Infinity ? "memory without a limit" : `${sizeText(memory)} of memory`,
    ].join(", ");
    const isEnough = limitsProblem() === undefined && memory >= MIN_MEMORY;
    return isEnough ? ["yes", detail] : ["no", detail, `a process needs ${NEEDS}`];
  },
  async room() {
    const directory = temporaryDirectory();
    const line = (await linesOf("df", "-P", "-m", directory)).at(-1) ?? "";
    const free = Number(/^\S+\s+\d+\s+\d+\s+(\d+)\s/.exec(line)?.[1] ?? NaN);
    if (Number.isNaN(free)) {
      return ["no", `${directory} cannot be used`, "set TMPDIR to a directory you may write to"];
    }
    const detail = `${free} MiB in ${directory}`;
    if (free >= DEMO_ROOM) return ["yes", detail];
    return ["partly", detail, `demos with kernels need ${DEMO_ROOM} MiB`];
  },
  kvm() {
    const problem = cannotOpen("/dev/kvm");
    if (problem === undefined) return ["yes", "/dev/kvm can be opened"];
    return ["no", problem, "guests run under emulation (TCG), slower"];
  },
  async qemu() {
    const [version] = await linesOf("qemu-system-x86_64", "--version");
    if (version === undefined) {
      return ["no", "no qemu-system-x86_64", "apt-get install qemu-system-x86"];
    }
    const major = Number(/version (\d+)\.\d+/.exec(version)?.[1] ?? 0);
    if (major < 7) return ["partly", version, "before 7.2 nothing was tried: use 7.2 or later"];
    if (major > 7) return ["yes", version];
    const advice = "7.2 crashes with virtio-net-pci, MSI-X and vhost-user under TCG: " +
      "give the device vectors=0";
    return ["yes", version, advice];
  },
  uml: program(
    "linux.uml",
    "apt-get install user-mode-linux (a guest without KVM)",
    "linux.uml ",
  ),
  tap() {
    const problem = cannotOpen("/dev/net/tun");
    if (problem !== undefined) return ["no", problem, "modprobe tun, and be root"];
    const capabilities = /CapEff:\s*([0-9a-f]+)/.exec(readText("/proc/self/status") ?? "");
    const netAdmin = (BigInt(`0x${capabilities?.[1] ?? 0}`) & (1n << 12n)) !== 0n;
    if (netAdmin) return ["yes", "/dev/net/tun and CAP_NET_ADMIN"];
    return ["partly", "no CAP_NET_ADMIN", "use an existing persistent TAP, or be root"];
  },
  passt: program("passt", "apt-get install passt (user-mode networking, no root)"),
  vfio() {
    if (isUnderXen()) return ["no", "not under Xen", IOMMU_OF_XEN];
    const groups = directoryNames("/sys/kernel/iommu_groups");
    const problem = cannotOpen("/dev/vfio/vfio");
    if (problem !== undefined) return ["no", problem, "modprobe vfio-pci (for ivshmem)"];
    if (groups.length > 0) return ["yes", `${groups.length} IOMMU groups`];
    const advice = "boot with intel_iommu=on or amd_iommu=on; under QEMU add -device intel-iommu";
    return ["partly", "no IOMMU group", advice];
  },
  ivshmem() {
    const found = ivshmemFunctions().map(describeFunction);
    const none: Found = ["no", "no ivshmem PCI function", "only virtual machines have one"];
    return found.length > 0 ? found : none;
  },
  bridge() {
    using node = openPath(BRIDGE_PATH);
    if (node !== undefined) return ["yes", `${BRIDGE_PATH} (vmsg device --bus bridge)`];
    // Other kernels have nothing of the kind.
    const modules = directoryNames("/sys/module").filter((name) => name.startsWith("virtio_msg"));
    const advice = "load the module of CONFIG_VIRTIO_MSG_BRIDGE for vmsg device --bus bridge";
    return modules.length === 0
      ? []
      : ["partly", `${modules.join(", ")}, no ${BRIDGE_PATH}`, advice];
  },
  xen() {
    if (!isUnderXen()) return [];
    const version = `Xen ${xenVersion()}`;
    if (!isDom0()) return ["no", `${version}, another domain`, "vmsg proxy --xen works in Dom0"];
    const problem = ioreqProblem();
    if (problem !== undefined) return ["no", `${version}, Dom0`, problem];
    return ["yes", `${version}, Dom0, with ioreq servers (vmsg proxy --xen)`];
  },
  async xenstore() {
    if (!isUnderXen() || !isDom0()) return [];
    try {
      const domains = await surveyDomains(XENSTORE_MS);
      return [["yes", `${domains.length} domains besides Dom0`], ...domains.map(describeDomain)];
    } catch (error) {
      return ["no", (error as Error).message, "start xenstored"];
    }
  },
  hugepages() {
    const sizes: string[] = [];
    for (const name of directoryNames("/sys/kernel/mm/hugepages")) {
      const total = Number(readText(`/sys/kernel/mm/hugepages/${name}/nr_hugepages`) ?? 0);
      if (total > 0) sizes.push(`${total} of ${name.replace("hugepages-", "")}`);
    }
    if (sizes.length > 0) return ["yes", sizes.join(", ")];
    return ["no", "none reserved", "only needed for memory at known addresses"];
  },
};

export async function examine(): Promise<Finding[]> {
  const findings = Object.entries(CHECKS).map(async ([name, check]) => {
    const found = await check();
    const isOne = typeof found[0] === "string";
    const all = isOne ? [found as Found] : found as readonly Found[];
    return all.map(([state, detail, advice]) => ({
      ...{ name, state, detail },
      ...(advice === undefined ? {} : { advice }),
    }));
  });
  return (await Promise.all(findings)).flat();
}

/** See `vmsg doctor --help`. */
export const doctorCommand: Command = {
  name: "doctor",
  summary: "what this machine can do with vmsg; of captures or processes, where a link is stuck",
  description:
    "Looks at what vmsg can use on this machine. One line each; nothing is changed. Given captures (device, proxy and " +
    "driver --capture), or processes of vmsg (numbers, files of counters, directories of those), it says instead where " +
    "the link stands: the first step that did not happen, whose turn it is, and what is likely the reason. Then it " +
    "exits with 1 if something is stuck.",
  operands: "[FILE|PID|DIRECTORY...]",
  options: [
    { name: "link", help: "look at the links of all processes of vmsg that there are" },
    { name: "json", help: "print a JSON array" },
  ],
  examples: [
    "vmsg doctor",
    "vmsg doctor --json",
    "vmsg doctor c.pcapng",
    "vmsg doctor --link",
    "vmsg doctor 30702 30713",
  ],
  run: async (options) => {
    const isLink = options.flag("link");
    if (isLink || options.operands.length > 0) {
      return explainLinks(options.operands, isLink, options.flag("json"));
    }
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
