/** The guests that can be booted on this machine, and how to boot them. */

import { resolve } from "@std/path";

import { cacheDirectory } from "./cache.ts";
import { isStaticProgram } from "./elf.ts";
import type { Guest, GuestKind } from "./guest.ts";
import { buildInitramfs, type GuestFile } from "./initramfs.ts";
import { loadModules } from "./kernel_modules.ts";
import { type MicrovmInstallation, type MicrovmOptions, startMicrovm } from "./microvm.ts";
import { startUml, type UmlInstallation } from "./uml.ts";

export { DONE_LINE, Guest, type GuestKind, type GuestOptions } from "./guest.ts";
export {
  type Accelerator,
  chooseAccelerator,
  type MicrovmInstallation,
  type MicrovmOptions,
  startMicrovm,
} from "./microvm.ts";
export { startUml, type UmlInstallation } from "./uml.ts";

/** The parts of one kind of guest. */
export type Installation = UmlInstallation | MicrovmInstallation;

/** What {@link findGuests} found. */
export interface Guests {
  /** A User-Mode Linux guest, if all its parts are there. */
  readonly uml?: UmlInstallation;
  /** A stock kernel under QEMU, if all its parts are there. */
  readonly microvm?: MicrovmInstallation;
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
};

/** Looks for the parts of guests: on PATH, in the system's kernels, in the cache directory. */
export async function findGuests(): Promise<Guests> {
  if (Deno.build.arch !== "x86_64") {
    const line = `guests need an x86-64 machine, this is ${Deno.build.arch}`;
    return { missing: { uml: [line], microvm: [line] } };
  }
  const busybox = await findBusybox();
  const uml = await findUml(busybox);
  const microvm = await findMicrovm(busybox);
  return {
    ...(Array.isArray(uml) ? {} : { uml }),
    ...(Array.isArray(microvm) ? {} : { microvm }),
    missing: {
      uml: Array.isArray(uml) ? uml : [],
      microvm: Array.isArray(microvm) ? microvm : [],
    },
  };
}

/** Options of {@link guestInitramfs}. */
export interface GuestInitramfsOptions {
  /** What the guest does; see `scripts.ts`. */
  readonly script: string;
  /** Modules besides those of a network card. */
  readonly modules?: readonly string[];
  /** Files besides busybox and the script. */
  readonly files?: readonly GuestFile[];
}

/** Builds the initramfs of a guest from the parts found. */
export async function guestInitramfs(
  installation: Installation,
  options: GuestInitramfsOptions,
): Promise<Uint8Array<ArrayBuffer>> {
  const { script, files = [] } = options;
  const names = [...MODULES[installation.kind], ...options.modules ?? []];
  const [busybox, modules] = await Promise.all([
    Deno.readFile(installation.busybox),
    loadModules(installation.modules, names, { optional: ["af_packet"] }),
  ]);
  return buildInitramfs({ busybox, modules, script, files });
}

/**
 * Starts a guest of either kind.
 *
 * @param options those of a microvm that User-Mode Linux has no use for are ignored there
 */
export function bootGuest(installation: Installation, options: MicrovmOptions): Promise<Guest> {
  return installation.kind === "uml"
    ? startUml(installation, options)
    : startMicrovm(installation, options);
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

async function findMicrovm(busybox: string | undefined): Promise<MicrovmInstallation | string[]> {
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

  const version = await outputOf(qemu, ["--version"]);
  return {
    kind: "microvm",
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
 * The newest amd64 kernel that has its modules, in a system's root or an unpacked package.
 *
 * @param root ends in "/"
 */
export async function findKernelBelow(root: string): Promise<InstalledKernel | undefined> {
  const releases: string[] = [];
  try {
    for await (const { name } of Deno.readDir(`${root}boot`)) {
      if (/^vmlinuz-.*-amd64$/.test(name)) releases.push(name.slice("vmlinuz-".length));
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

/** The path of a program, or undefined where PATH has none of that name. */
async function findProgram(name: string): Promise<string | undefined> {
  for (const directory of (Deno.env.get("PATH") ?? "").split(":")) {
    if (!directory.startsWith("/")) continue;
    const path = `${directory}/${name}`;
    try {
      const { isFile, mode } = await Deno.stat(path);
      if (isFile && ((mode ?? 0) & 0o111) !== 0) return path;
    } catch {
      // Not here.
    }
  }
  return undefined;
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
