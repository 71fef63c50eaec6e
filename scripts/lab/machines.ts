/** The guests that can be booted on this machine, and how to boot them. */

import { resolve } from "@std/path";

import { cacheDirectory } from "./cache.ts";
import { isStaticProgram } from "./elf.ts";
import type { Guest, GuestKind } from "./guest.ts";
import { buildInitramfs, type GuestFile } from "./initramfs.ts";
import { loadModules } from "./kernel_modules.ts";
import { findProgram } from "./libraries.ts";
import { type QemuInstallation, type QemuOptions, startQemu } from "./qemu.ts";
import { startUml, type UmlInstallation } from "./uml.ts";

export { DONE_LINE, Guest, type GuestKind, type GuestOptions, type QemuKind } from "./guest.ts";
export {
  type Accelerator,
  chooseAccelerator,
  type QemuInstallation,
  type QemuOptions,
  startQemu,
} from "./qemu.ts";
export { startUml, type UmlInstallation } from "./uml.ts";

/** The parts of one kind of guest. */
export type Installation = UmlInstallation | QemuInstallation;

/** Every kind of guest. */
export const GUEST_KINDS: readonly GuestKind[] = ["uml", "microvm", "q35", "arm64"];

/** What {@link findGuests} found: the parts of those kinds of guest that have all of theirs. */
export interface Guests extends Readonly<Partial<Record<GuestKind, Installation>>> {
  /** For each kind, one line for each part that is missing, which says how to get it. */
  readonly missing: Readonly<Record<GuestKind, readonly string[]>>;
}

/** A kernel that can be booted. */
export interface InstalledKernel {
  /** The image, a file. */
  readonly image: string;
  /** As in "6.12.117+deb12-cloud-amd64". */
  readonly release: string;
  /** Its modules directory. */
  readonly modules: string;
}

/** What a network card needs. af_packet is for DHCP; it is built in nearly everywhere. */
const MODULES: Readonly<Record<GuestKind, readonly string[]>> = {
  uml: ["virtio_net", "af_packet"],
  microvm: ["virtio_mmio", "virtio_net", "af_packet"],
  q35: ["virtio_pci", "virtio_net", "af_packet"],
  arm64: ["virtio_mmio", "virtio_net", "af_packet"],
};

/** Looks for the parts of guests: on PATH, in the system's kernels, in the cache directory. */
export async function findGuests(): Promise<Guests> {
  if (Deno.build.arch !== "x86_64") {
    const lines = [`guests need an x86-64 machine, this is ${Deno.build.arch}`];
    return { missing: { uml: lines, microvm: lines, q35: lines, arm64: lines } };
  }
  const busybox = await findBusybox();
  const pc = await findPc(busybox);
  const found: Record<GuestKind, Installation | string[]> = {
    uml: await findUml(busybox),
    microvm: Array.isArray(pc) ? pc : { ...pc, kind: "microvm" },
    q35: Array.isArray(pc) ? pc : { ...pc, kind: "q35" },
    arm64: await findArm64(),
  };
  const guests: Partial<Record<GuestKind, Installation>> = {};
  const missing: Record<GuestKind, string[]> = { uml: [], microvm: [], q35: [], arm64: [] };
  for (const kind of GUEST_KINDS) {
    const parts = found[kind];
    if (Array.isArray(parts)) missing[kind] = parts;
    else guests[kind] = parts;
  }
  return { ...guests, missing };
}

/** Options of {@link guestInitramfs}. */
export interface GuestInitramfsOptions {
  /** What the guest does; see `scripts.ts`. */
  readonly script: string;
  /** Modules besides those of a network card. */
  readonly modules?: readonly string[];
  /** Files besides busybox and the script. */
  readonly files?: readonly GuestFile[];
  /** The device of a disk with vmsg, see `initramfs.ts`. */
  readonly disk?: string;
}

/** Builds the initramfs of a guest from the parts found. */
export async function guestInitramfs(
  installation: Installation,
  options: GuestInitramfsOptions,
): Promise<Uint8Array<ArrayBuffer>> {
  const { script, files = [], disk } = options;
  const names = [...MODULES[installation.kind], ...options.modules ?? []];
  const [busybox, modules] = await Promise.all([
    Deno.readFile(installation.busybox),
    loadModules(installation.modules, names, { optional: ["af_packet"] }),
  ]);
  const parts = { busybox, modules, script, files };
  return buildInitramfs(disk === undefined ? parts : { ...parts, disk });
}

/**
 * Starts a guest of any kind.
 *
 * @param options those that User-Mode Linux has no use for are ignored there
 */
export function bootGuest(installation: Installation, options: QemuOptions): Promise<Guest> {
  return installation.kind === "uml"
    ? startUml(installation, options)
    : startQemu(installation, options);
}

async function findUml(busybox: string | undefined): Promise<UmlInstallation | string[]> {
  const missing: string[] = [];
  const kernel = await findProgram("linux.uml");
  if (kernel === undefined) {
    missing.push("User-Mode Linux (linux.uml) is missing: apt-get install user-mode-linux");
  }
  if (await findProgram("setarch") === undefined) {
    missing.push("the program setarch is missing: apt-get install util-linux");
  }
  if (busybox === undefined) missing.push(NO_BUSYBOX);
  if (kernel === undefined || busybox === undefined || missing.length > 0) return missing;

  const release = (await outputOf(kernel, ["--version"])).trim();
  const modules = resolve(kernel, "../../lib/uml/modules", release);
  if (release === "" || !await isDirectory(modules)) {
    return [`the modules of ${kernel} (${modules}) are missing: apt-get install user-mode-linux`];
  }
  return { kind: "uml", kernel, release, modules, busybox };
}

/** What both machines of a PC need. */
async function findPc(
  busybox: string | undefined,
): Promise<Omit<QemuInstallation, "kind"> | string[]> {
  const missing: string[] = [];
  const qemu = await findProgram("qemu-system-x86_64");
  if (qemu === undefined) {
    missing.push("QEMU (qemu-system-x86_64) is missing: apt-get install qemu-system-x86");
  }
  const kernel = await findKernel();
  if (kernel === undefined) {
    missing.push(
      "a kernel and its modules are missing: apt-get install linux-image-cloud-amd64, " +
        "or without root deno run -A scripts/fetch_guests.ts",
    );
  }
  if (busybox === undefined) missing.push(NO_BUSYBOX);
  if (qemu === undefined || kernel === undefined || busybox === undefined) return missing;
  return await qemuParts(qemu, kernel, busybox);
}

async function findArm64(): Promise<QemuInstallation | string[]> {
  const missing: string[] = [];
  const qemu = await findProgram("qemu-system-aarch64");
  if (qemu === undefined) {
    missing.push("QEMU (qemu-system-aarch64) is missing: apt-get install qemu-system-arm");
  }
  const root = arm64GuestRoot();
  const busybox = `${root}bin/busybox`;
  const kernel = root === undefined ? undefined : await findKernelBelow(root, "arm64");
  if (kernel === undefined || !await isReadable(busybox)) {
    missing.push("an arm64 kernel and busybox are missing: deno run -A scripts/fetch_guests.ts");
    return missing;
  }
  if (qemu === undefined) return missing;
  return { kind: "arm64", ...await qemuParts(qemu, kernel, busybox) };
}

/** Where in the cache directory the packages of an arm64 guest are unpacked; it ends in "/". */
export function arm64GuestRoot(): string | undefined {
  const cache = cacheDirectory();
  return cache === undefined ? undefined : `${cache}/guest-arm64/`;
}

async function qemuParts(
  qemu: string,
  kernel: InstalledKernel,
  busybox: string,
): Promise<Omit<QemuInstallation, "kind">> {
  const version = await outputOf(qemu, ["--version"]);
  return {
    qemu,
    qemuVersion: version.match(/version (\d+(\.\d+)*)/)?.[1] ?? "0",
    kernel: kernel.image,
    release: kernel.release,
    modules: kernel.modules,
    busybox,
  };
}

const NO_BUSYBOX = "a static busybox is missing: apt-get install busybox-static";

async function findBusybox(): Promise<string | undefined> {
  const path = await findProgram("busybox");
  if (path === undefined) return undefined;
  return isStaticProgram(await Deno.readFile(path)) ? path : undefined;
}

/** The kernel to boot: the newest that the system has installed, or the newest in the cache. */
async function findKernel(): Promise<InstalledKernel | undefined> {
  const cache = cacheDirectory();
  return await findKernelBelow("/") ??
    (cache === undefined ? undefined : await findKernelBelow(`${cache}/kernel/`));
}

/**
 * The newest kernel that has its modules, in a system's root or an unpacked package.
 *
 * @param root ends in "/"
 * @param architecture as Debian calls it
 */
export async function findKernelBelow(
  root: string,
  architecture: "amd64" | "arm64" = "amd64",
): Promise<InstalledKernel | undefined> {
  const releases: string[] = [];
  try {
    for await (const { name } of Deno.readDir(`${root}boot`)) {
      if (name.startsWith("vmlinuz-") && name.endsWith(`-${architecture}`)) {
        releases.push(name.slice("vmlinuz-".length));
      }
    }
  } catch {
    return undefined;
  }
  for (const release of releases.sort(compareVersions).reverse()) {
    const image = `${root}boot/vmlinuz-${release}`;
    if (!await isReadable(image)) continue;
    for (const library of ["lib", "usr/lib"]) {
      const modules = `${root}${library}/modules/${release}`;
      // Headers and leftovers have a directory as well, but no modules in it.
      if (await isDirectory(`${modules}/kernel`)) return { image, release, modules };
    }
  }
  return undefined;
}

/** Orders versions: runs of digits as numbers, the rest as text. */
export function compareVersions(a: string, b: string): number {
  const parts = (version: string) => version.match(/\d+|\D+/g) ?? [];
  const [left, right] = [parts(a), parts(b)];
  for (let i = 0; i < Math.min(left.length, right.length); i++) {
    const [l = "", r = ""] = [left[i], right[i]];
    if (l === r) continue;
    const difference = Number(l) - Number(r);
    if (Number.isNaN(difference)) return l < r ? -1 : 1;
    if (difference !== 0) return difference;
  }
  return left.length - right.length;
}

async function outputOf(program: string, args: string[]): Promise<string> {
  const { stdout } = await new Deno.Command(program, { args, stdin: "null", stderr: "null" })
    .output();
  return new TextDecoder().decode(stdout);
}

async function isDirectory(path: string): Promise<boolean> {
  try {
    return (await Deno.stat(path)).isDirectory;
  } catch {
    return false;
  }
}

async function isReadable(path: string): Promise<boolean> {
  try {
    using _file = await Deno.open(path);
    return true;
  } catch {
    return false;
  }
}
