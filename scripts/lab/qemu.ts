/**
 * A stock kernel under a stock QEMU, which is the vhost-user front end. Three machines:
 *
 *     microvm   x86-64, network card on virtio-mmio
 *     q35       x86-64, network card on PCI
 *     arm64     machine type virt, network card on virtio-mmio
 *
 * What they need, and why: shared memory, or a vhost-user back end cannot see the guest's;
 * `force-legacy=false` on virtio-mmio, or the card is no virtio 1 device; on a microvm `reboot=t`,
 * as it cannot be powered off, and under TCG `tsc_early_khz`, or the kernel hangs while it measures
 * its clock; on PCI `vectors=0`, as QEMU 7.2 crashes with MSI-X, vhost-user and TCG;
 * `pauth-impdef=on`, as the architecture's own pointer authentication is slow to emulate.
 *
 * KVM is not trusted: on hosts that are virtual machines themselves a guest may hang or QEMU may
 * assert. Unless VMSG_ACCEL says `kvm` or `tcg`, the kernel is booted once without anything until
 * it misses its root file system; if it does not get there, TCG is used. The result is remembered
 * until the host boots again. An arm64 guest runs under TCG.
 */

import { UsageError, VmsgError } from "../../src/linux/errors.ts";
import { cacheDirectory } from "./cache.ts";
import { type Guest, type GuestOptions, type QemuKind, startGuest } from "./guest.ts";
import { type Keeper, openKeeper } from "../../src/cli/keeper.ts";

/** What executes a guest's instructions. */
export type Accelerator = "kvm" | "tcg";

/** Where the parts of a QEMU guest lie. */
export interface QemuInstallation {
  /** The machine. */
  readonly kind: QemuKind;
  /** The program qemu-system-x86_64 or qemu-system-aarch64. */
  readonly qemu: string;
  /** Its version, as in "7.2.22". */
  readonly qemuVersion: string;
  /** The kernel's image. */
  readonly kernel: string;
  /** The kernel's release, as in "6.1.0-40-cloud-amd64". */
  readonly release: string;
  /** Its modules directory. */
  readonly modules: string;
  /** A static busybox of the guest's architecture. */
  readonly busybox: string;
}

/** What a QEMU guest can be told. */
export interface QemuOptions extends GuestOptions {
  /** The card's address, 52:54:00:12:34:56 unless given; two guests on one network need two. */
  readonly mac?: string;
  /** QEMU connects again, every second, when the back end is gone; otherwise it gives up. */
  readonly reconnect?: boolean;
  /** How many queue pairs its card has, and processors to use them; 1 unless given. */
  readonly queues?: number;
  /** Instead of a socket: a TAP that QEMU serves the card with by itself, for comparison. */
  readonly tap?: string;
  /** False gives it private memory, which a vhost-user back end cannot map: an error test. */
  readonly sharedMemory?: boolean;
  /** The file that holds its memory, for a device side that is given it by name; QEMU makes it. */
  readonly memoryFile?: string;
  /** A guest that reboots boots again; otherwise QEMU ends. */
  readonly reboots?: boolean;
  /** Instead of what {@link chooseAccelerator} finds. */
  readonly accelerator?: Accelerator;
  /** More arguments for QEMU. */
  readonly extraArgs?: readonly string[];
}

/** What differs between machines. */
interface MachineType {
  /** QEMU's name for it. */
  readonly type: string;
  /** The processor under TCG. */
  readonly cpu: string;
  /** The kernel's words for its console, and for what an emulation cannot promise. */
  readonly boot: readonly string[];
  /** The kernel's words that say how a guest ends. */
  readonly end: readonly string[];
  /** QEMU's network card. */
  readonly card: string;
}

/**
 * A PC's kernel counts timer interrupts for some milliseconds of its own clock and panics ("timer
 * doesn't work through IO-APIC") if few come, which happens where this host has no time to send them.
 */
const PC_BOOT = ["console=ttyS0", "no_timer_check"];

const MACHINES: Readonly<Record<QemuKind, MachineType>> = {
  microvm: {
    type: "microvm",
    cpu: "max",
    boot: PC_BOOT,
    end: ["reboot=t"],
    card: "virtio-net-device",
  },
  q35: {
    type: "q35",
    cpu: "max",
    boot: PC_BOOT,
    end: ["reboot=t"],
    // Its option ROM, for booting over the network, is in a package of its own.
    card: "virtio-net-pci,vectors=0,romfile=",
  },
  arm64: {
    type: "virt",
    cpu: "max,pauth-impdef=on",
    boot: ["console=ttyAMA0"],
    end: [],
    card: "virtio-net-device",
  },
};

/** A kernel under KVM takes 1 to 2 s to where it misses its root file system. */
const PROBE_TIMEOUT_MS = 8000;

/** Starts a guest under QEMU. It has 256 MiB unless told. */
export async function startQemu(
  installation: QemuInstallation,
  options: QemuOptions,
): Promise<Guest> {
  const accelerator = options.accelerator ?? await chooseAccelerator(installation);
  const keeper = await openKeeper();
  const initramfs = `${keeper.directory}/initramfs.cpio`;
  let args: string[];
  try {
    await Deno.writeFile(initramfs, options.initramfs);
    const measured = installation.kind === "microvm" && accelerator === "tcg";
    const tsc = measured ? await tscArguments() : [];
    const { end } = MACHINES[installation.kind];
    const words = [...end, "quiet", ...tsc, ...options.kernelArgs ?? []];
    args = [
      ...baseArguments(installation, accelerator, words),
      ...(options.reboots ? [] : ["-no-reboot"]),
      ...["-initrd", initramfs],
      ...memoryArguments(installation, options),
      ...networkArguments(installation, options),
      ...options.extraArgs ?? [],
    ];
  } catch (error) {
    await keeper[Symbol.asyncDispose]();
    throw error;
  }
  return await startQemuProcess(installation, args, keeper, options.onLine);
}

/**
 * Starts QEMU with the given arguments; used by `machine.ts`, too.
 *
 * @param keeper becomes the guest's, also when this fails
 */
export function startQemuProcess(
  installation: QemuInstallation,
  args: readonly string[],
  keeper: Keeper,
  onLine?: (line: string) => void,
): Promise<Guest> {
  const { kind, qemu } = installation;
  const env = { TMPDIR: keeper.directory };
  return startGuest({ kind, program: qemu, args, env }, keeper, onLine);
}

/**
 * What every machine is started with: its processor, kernel and console. Its type (-M) and memory
 * are not among it.
 *
 * @param words more for the kernel
 */
export function baseArguments(
  installation: QemuInstallation,
  accelerator: Accelerator,
  words: readonly string[],
): string[] {
  const machine = MACHINES[installation.kind];
  return [
    ...["-accel", accelerator],
    ...["-cpu", accelerator === "kvm" ? "host" : machine.cpu],
    ...["-display", "none"],
    "-nodefaults",
    ...["-serial", "stdio"],
    ...["-monitor", "none"],
    ...["-kernel", installation.kernel],
    ...["-append", [...machine.boot, "panic=-1", ...words].join(" ")],
  ];
}

function memoryArguments(
  installation: QemuInstallation,
  options: Pick<QemuOptions, "memoryMiB" | "sharedMemory" | "memoryFile">,
): string[] {
  const { type } = MACHINES[installation.kind];
  const { memoryMiB = 256, sharedMemory = true, memoryFile } = options;
  if (!sharedMemory) return ["-M", type, "-m", `${memoryMiB}`];
  const backend = memoryFile === undefined
    ? "memory-backend-memfd"
    : `memory-backend-file,mem-path=${memoryFile.replaceAll(",", ",,")}`;
  return [
    ...["-object", `${backend},id=mem,size=${memoryMiB}M,share=on`],
    ...["-M", `${type},memory-backend=mem`, "-m", `${memoryMiB}`],
  ];
}

function networkArguments(installation: QemuInstallation, options: QemuOptions): string[] {
  const { mac = "52:54:00:12:34:56", queues = 1 } = options;
  const backend = backendArguments(installation, options);
  if (backend.length === 0) return [];
  return [
    ...backend,
    ...["-global", "virtio-mmio.force-legacy=false"],
    ...[
      "-device",
      `${MACHINES[installation.kind].card},netdev=n0,mac=${mac}${queues > 1 ? ",mq=on" : ""}`,
    ],
    ...(queues > 1 ? ["-smp", `${queues}`] : []),
  ];
}

function backendArguments(installation: QemuInstallation, options: QemuOptions): string[] {
  const { socket, tap, reconnect = false, queues = 1 } = options;
  if (tap !== undefined) {
    return ["-netdev", `tap,id=n0,ifname=${tap},script=no,downscript=no`];
  }
  if (socket === undefined) return [];
  // In QEMU's options a comma is written twice.
  const path = socket.replaceAll(",", ",,");
  // "reconnect" in seconds is deprecated from 9.2 on, where its successor appears.
  const [major = 0, minor = 0] = installation.qemuVersion.split(".").map(Number);
  const again = major > 9 || (major === 9 && minor >= 2) ? "reconnect-ms=1000" : "reconnect=1";
  return [
    ...["-chardev", `socket,id=c0,path=${path}${reconnect ? `,${again}` : ""}`],
    ...["-netdev", `vhost-user,id=n0,chardev=c0${queues > 1 ? `,queues=${queues}` : ""}`],
  ];
}

/** What the kernel would measure, which it cannot under TCG. */
async function tscArguments(): Promise<string[]> {
  const information = await Deno.readTextFile("/proc/cpuinfo");
  const mhz = Number(information.match(/^cpu MHz\s*:\s*([0-9.]+)/m)?.[1] ?? 1000);
  return [`tsc_early_khz=${Math.round(mhz * 1000)}`];
}

/**
 * Which accelerator stock kernels run under here: the environment's VMSG_ACCEL, or what is
 * remembered from a trial, or a trial of up to 8 s.
 */
export async function chooseAccelerator(installation: QemuInstallation): Promise<Accelerator> {
  if (installation.kind === "arm64") return "tcg";
  const wanted = Deno.env.get("VMSG_ACCEL");
  if (wanted === "kvm" || wanted === "tcg") return wanted;
  if (wanted) throw new UsageError(`VMSG_ACCEL=${wanted}: give kvm or tcg`);
  if (!await canOpen("/dev/kvm")) return "tcg";

  const bootId = (await Deno.readTextFile("/proc/sys/kernel/random/boot_id")).trim();
  const { kind, qemuVersion, release } = installation;
  const trial = [bootId, kind, qemuVersion, release].join(" ");
  const cache = cacheDirectory();
  const file = cache === undefined ? undefined : `${cache}/accelerator`;
  const remembered = file === undefined ? "" : await readIfThere(file);
  const known = remembered.split("\n").find((line) => line.startsWith(`${trial} `));
  if (known !== undefined) return known.endsWith(" kvm") ? "kvm" : "tcg";

  const accelerator = await tryKvm(installation) ? "kvm" : "tcg";
  if (file !== undefined) {
    // Only trials since the host booted are of use.
    const others = remembered.split("\n").filter((line) => line.startsWith(`${bootId} `));
    await writeWhole(file, [...others, `${trial} ${accelerator}`].join("\n") + "\n");
  }
  return accelerator;
}

async function tryKvm(installation: QemuInstallation): Promise<boolean> {
  const keeper = await openKeeper();
  const args = [
    ...baseArguments(installation, "kvm", MACHINES[installation.kind].end),
    "-no-reboot",
    ...memoryArguments(installation, { sharedMemory: false }),
  ];
  await using guest = await startQemuProcess(installation, args, keeper);
  try {
    await guest.waitFor(/Unable to mount root fs/, PROBE_TIMEOUT_MS);
    return true;
  } catch (error) {
    if (error instanceof VmsgError) return false;
    throw error;
  }
}

async function canOpen(path: string): Promise<boolean> {
  try {
    using _file = await Deno.open(path, { read: true, write: true });
    return true;
  } catch {
    return false;
  }
}

async function readIfThere(path: string): Promise<string> {
  try {
    return await Deno.readTextFile(path);
  } catch {
    return "";
  }
}

/** A memory that cannot be written is no reason not to boot. */
async function writeWhole(path: string, text: string): Promise<void> {
  const unfinished = `${path}.${crypto.randomUUID()}`;
  try {
    await Deno.mkdir(path.slice(0, path.lastIndexOf("/")), { recursive: true });
    await Deno.writeTextFile(unfinished, text);
    await Deno.rename(unfinished, path);
  } catch {
    await Deno.remove(unfinished).catch(() => {});
  }
}
