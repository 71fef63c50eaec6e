/**
 * A stock kernel under a stock QEMU, machine type microvm: its network card is virtio-mmio, with
 * QEMU as the vhost-user front end.
 *
 * What it needs, and why: `force-legacy=false`, or the card is no virtio 1 device; `reboot=t`, as a
 * microvm cannot be powered off; `tsc_early_khz` under TCG, or the kernel hangs while it measures
 * its clock; shared memory, or a vhost-user back end cannot see the guest's.
 *
 * KVM is not trusted: on hosts that are virtual machines themselves a guest may hang or QEMU may
 * assert. Unless VMSG_ACCEL says `kvm` or `tcg`, the kernel is booted once without anything until
 * it misses its root file system; if it does not get there, TCG is used. The result is remembered
 * until the host boots again.
 */

import { UsageError, VmsgError } from "../../linux/errors.ts";
import { cacheDirectory } from "./cache.ts";
import { type Guest, type GuestOptions, startGuest } from "./guest.ts";
import { type Keeper, openKeeper } from "./keeper.ts";

/** What executes a guest's instructions. */
export type Accelerator = "kvm" | "tcg";

/** Where the parts of a microvm guest lie. */
export interface MicrovmInstallation {
  /** Tells it from the other kind. */
  readonly kind: "microvm";
  /** The program qemu-system-x86_64. */
  readonly qemu: string;
  /** Its version, as in "7.2.22". */
  readonly qemuVersion: string;
  /** The kernel's image. */
  readonly kernel: string;
  /** The kernel's release, as in "6.1.0-40-cloud-amd64". */
  readonly release: string;
  /** Its modules directory. */
  readonly modules: string;
  /** A static busybox. */
  readonly busybox: string;
}

/** What a microvm guest can be told. */
export interface MicrovmOptions extends GuestOptions {
  /** The card's address, 52:54:00:12:34:56 unless given; two guests on one network need two. */
  readonly mac?: string;
  /** QEMU connects again, every second, when the back end is gone; otherwise it gives up. */
  readonly reconnect?: boolean;
  /** False gives the guest private memory, which a vhost-user back end cannot map: an error test. */
  readonly sharedMemory?: boolean;
  /** Instead of what {@link chooseAccelerator} finds. */
  readonly accelerator?: Accelerator;
  /** More arguments for QEMU. */
  readonly extraArgs?: readonly string[];
}

/** A kernel under KVM takes 1 to 2 s to where it misses its root file system. */
const PROBE_TIMEOUT_MS = 8000;

/** Starts a microvm guest. It has 256 MiB unless told. */
export async function startMicrovm(
  installation: MicrovmInstallation,
  options: MicrovmOptions,
): Promise<Guest> {
  const accelerator = options.accelerator ?? await chooseAccelerator(installation);
  const keeper = await openKeeper();
  const initramfs = `${keeper.directory}/initramfs.cpio`;
  let args: string[];
  try {
    await Deno.writeFile(initramfs, options.initramfs);
    const tsc = accelerator === "tcg" ? await tscArguments() : [];
    const words = ["quiet", ...tsc, ...options.kernelArgs ?? []];
    args = [
      ...machineArguments(installation, accelerator, words),
      ...["-initrd", initramfs],
      ...memoryArguments(options),
      ...networkArguments(installation, options),
      ...options.extraArgs ?? [],
    ];
  } catch (error) {
    await keeper[Symbol.asyncDispose]();
    throw error;
  }
  return await startQemu(installation, args, keeper, options.onLine);
}

function startQemu(
  installation: MicrovmInstallation,
  args: readonly string[],
  keeper: Keeper,
  onLine?: (line: string) => void,
): Promise<Guest> {
  const env = { TMPDIR: keeper.directory };
  return startGuest({ kind: "microvm", program: installation.qemu, args, env }, keeper, onLine);
}

function machineArguments(
  installation: MicrovmInstallation,
  accelerator: Accelerator,
  words: readonly string[],
): string[] {
  return [
    ...["-accel", accelerator],
    ...["-cpu", accelerator === "kvm" ? "host" : "max"],
    ...["-display", "none"],
    "-nodefaults",
    "-no-reboot",
    ...["-serial", "stdio"],
    ...["-monitor", "none"],
    ...["-kernel", installation.kernel],
    ...["-append", ["console=ttyS0", "panic=-1", "reboot=t", ...words].join(" ")],
  ];
}

function memoryArguments(options: MicrovmOptions): string[] {
  const { memoryMiB = 256, sharedMemory = true } = options;
  if (!sharedMemory) return ["-M", "microvm", "-m", `${memoryMiB}`];
  return [
    ...["-object", `memory-backend-memfd,id=mem,size=${memoryMiB}M,share=on`],
    ...["-M", "microvm,memory-backend=mem", "-m", `${memoryMiB}`],
  ];
}

function networkArguments(installation: MicrovmInstallation, options: MicrovmOptions): string[] {
  const { socket, mac = "52:54:00:12:34:56", reconnect = false } = options;
  if (socket === undefined) return [];
  // In QEMU's options a comma is written twice.
  const path = socket.replaceAll(",", ",,");
  // "reconnect" in seconds is deprecated from 9.2 on, where its successor appears.
  const [major = 0, minor = 0] = installation.qemuVersion.split(".").map(Number);
  const again = major > 9 || (major === 9 && minor >= 2) ? "reconnect-ms=1000" : "reconnect=1";
  return [
    ...["-chardev", `socket,id=c0,path=${path}${reconnect ? `,${again}` : ""}`],
    ...["-netdev", "vhost-user,id=n0,chardev=c0"],
    ...["-global", "virtio-mmio.force-legacy=false"],
    ...["-device", `virtio-net-device,netdev=n0,mac=${mac}`],
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
export async function chooseAccelerator(installation: MicrovmInstallation): Promise<Accelerator> {
  const wanted = Deno.env.get("VMSG_ACCEL");
  if (wanted === "kvm" || wanted === "tcg") return wanted;
  if (wanted) throw new UsageError(`VMSG_ACCEL=${wanted}: give kvm or tcg`);
  if (!await canOpen("/dev/kvm")) return "tcg";

  const bootId = (await Deno.readTextFile("/proc/sys/kernel/random/boot_id")).trim();
  const trial = [bootId, installation.qemuVersion, installation.release].join(" ");
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

async function tryKvm(installation: MicrovmInstallation): Promise<boolean> {
  const keeper = await openKeeper();
  const args = [...machineArguments(installation, "kvm", []), "-M", "microvm", "-m", "256"];
  await using guest = await startQemu(installation, args, keeper);
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
