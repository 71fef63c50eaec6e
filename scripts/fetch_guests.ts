/**
 * Gets what the guest tests need on Debian: QEMU, User-Mode Linux, busybox and some tools as
 * packages; and unpacked in the cache directory (no root needed) a cloud kernel with its modules, and for
 * an arm64 guest another and its busybox.
 *
 *     deno run -A scripts/fetch_guests.ts
 *
 * What is there already is left alone.
 */

import { cacheDirectory } from "./lab/cache.ts";
import {
  arm64GuestRoot,
  compareVersions,
  findGuests,
  findKernelBelow,
  GUEST_KINDS,
} from "./lab/machines.ts";
import { loadModules } from "./lab/kernel_modules.ts";
import { VmsgError } from "../src/linux/errors.ts";
import { download, foreignApt } from "./fetch_arm64.ts";

const PACKAGES = [
  "busybox-static",
  "dpdk-dev",
  "e2fsprogs",
  "erofs-utils",
  "ethtool",
  "iperf3",
  "iproute2",
  "iputils-ping",
  "qemu-system-arm",
  "qemu-system-x86",
  "socat",
  "user-mode-linux",
  "xz-utils",
];

/** The kernel series whose cloud flavour is fetched: the first with VDUSE and virtio_vdpa. */
const KERNEL_PACKAGE = /^linux-image-6\.12\.\S*-cloud-(amd64|arm64)$/;

interface RunOptions {
  readonly directory?: string;
  readonly env?: Record<string, string>;
  /** Show what the program says, instead of returning it. */
  readonly show?: boolean;
}

/** Ends the programs that run, so that what is unfinished can be removed. */
const interrupted = new AbortController();

async function run(command: readonly string[], options: RunOptions = {}): Promise<string> {
  const [program = "", ...args] = command;
  const stdio = options.show ? "inherit" : "piped";
  const child = new Deno.Command(program, {
    args,
    ...(options.directory === undefined ? {} : { cwd: options.directory }),
    env: { LC_ALL: "C", ...options.env },
    stdin: "null",
    stdout: stdio,
    stderr: stdio,
    signal: interrupted.signal,
  }).spawn();
  const text = options.show ? undefined : await child.output();
  const { success } = text ?? await child.status;
  interrupted.signal.throwIfAborted();
  if (success) return new TextDecoder().decode(text?.stdout);
  const reason = new TextDecoder().decode(text?.stderr).trim().split("\n").at(-1) ||
    "see above; if a package is not found, run apt-get update first";
  throw new VmsgError("COMMAND_FAILED", `${command.join(" ")} failed: ${reason}`);
}

async function missingPackages(): Promise<string[]> {
  const missing = [];
  for (const name of PACKAGES) {
    const format = ["-W", "--showformat", "${db:Status-Status}"];
    const status = await run(["dpkg-query", ...format, name]).catch(() => "");
    if (status !== "installed") missing.push(name);
  }
  return missing;
}

async function installPackages(): Promise<void> {
  const missing = await missingPackages();
  if (missing.length === 0) return;
  const command = ["apt-get", "install", "-y", "--no-install-recommends", ...missing];
  if (Deno.uid() !== 0) {
    throw new VmsgError("PACKAGES_MISSING", `packages are missing, as root: ${command.join(" ")}`);
  }
  console.log(command.join(" "));
  await run(command, { show: true, env: { DEBIAN_FRONTEND: "noninteractive" } });
}

/** @param options for apt-cache: another architecture's, or none */
async function newestKernelPackage(options: readonly string[] = []): Promise<string> {
  const search = ["search", "--names-only", "^linux-image-6.12"];
  const found = await run(["apt-cache", ...options, ...search]);
  const names = found.split("\n").map((line) => line.split(" ")[0] ?? "");
  const newest = names.filter((name) => KERNEL_PACKAGE.test(name)).sort(compareVersions).at(-1);
  if (newest !== undefined) return newest;
  throw new VmsgError(
    "NO_KERNEL_PACKAGE",
    "apt knows no linux-image-6.12.*-cloud kernel: run apt-get update (on Debian 12 with its " +
      "security suite)",
  );
}

/** Fails unless a guest could boot what was unpacked. */
async function checkKernel(root: string): Promise<string> {
  const kernel = await findKernelBelow(root);
  if (kernel === undefined) {
    throw new VmsgError("NO_KERNEL", `there is no kernel with modules in ${root}`);
  }
  await loadModules(kernel.modules, ["virtio_mmio", "virtio_net"]);
  return kernel.release;
}

/** Fetches the kernel unless it is there; whoever comes first wins. */
async function fetchKernel(cache: string): Promise<void> {
  const target = `${cache}/kernel`;
  if (await findKernelBelow(`${target}/`) !== undefined) {
    console.log(`kernel ${await checkKernel(`${target}/`)} is in ${target}`);
    return;
  }
  const name = await newestKernelPackage();
  console.log(`fetching ${name}`);
  await Deno.mkdir(cache, { recursive: true });
  const unfinished = await Deno.makeTempDir({ dir: cache, prefix: "unfinished-" });
  try {
    await run(["apt-get", "download", name], { directory: unfinished, show: true });
    const files = Array.from(Deno.readDirSync(unfinished), (entry) => entry.name);
    const file = files.find((file) => file.endsWith(".deb"));
    if (file === undefined) throw new VmsgError("NO_KERNEL", `apt-get downloaded no ${name}`);
    await run(["dpkg-deb", "-x", `${unfinished}/${file}`, `${unfinished}/kernel`]);
    const release = await checkKernel(`${unfinished}/kernel/`);
    try {
      await Deno.rename(`${unfinished}/kernel`, target);
    } catch (error) {
      // Somebody else was faster, or the directory there is of no use.
      if (await findKernelBelow(`${target}/`) === undefined) {
        const message = `${target} holds no kernel that can be booted: remove it and try again`;
        throw new VmsgError("NO_KERNEL", message, { cause: error });
      }
    }
    console.log(`kernel ${release} is in ${target}`);
  } finally {
    await Deno.remove(unfinished, { recursive: true });
  }
}

/** Fetches what an arm64 guest is made of, unless it is there; whoever comes first wins. */
async function fetchArm64Guest(cache: string): Promise<void> {
  const target = arm64GuestRoot()!;
  const { missing: { arm64 } } = await findGuests();
  if (arm64.length === 0) {
    console.log(`an arm64 kernel and busybox are in ${target}`);
    return;
  }
  const unfinished = await Deno.makeTempDir({ dir: cache, prefix: "unfinished-" });
  try {
    const apt = await foreignApt("arm64", `${unfinished}/apt`);
    await run(["apt-get", ...apt, "update"]);
    const kernel = await newestKernelPackage(apt);
    console.log(`fetching ${kernel} and busybox-static for arm64`);
    const root = `${unfinished}/root`;
    for (const file of await download(`${unfinished}/packages`, [kernel, "busybox-static"], apt)) {
      await run(["dpkg-deb", "-x", file, root]);
    }
    // What is there is of no use.
    await Deno.remove(target, { recursive: true }).catch(() => {});
    await Deno.rename(root, target);
    console.log(`an arm64 kernel and busybox are in ${target}`);
  } finally {
    await Deno.remove(unfinished, { recursive: true });
  }
}

async function main(): Promise<number> {
  const cache = cacheDirectory();
  if (cache === undefined) {
    throw new VmsgError("NO_CACHE", "there is no cache directory: set XDG_CACHE_HOME or HOME");
  }
  await installPackages();
  await fetchKernel(cache);
  await fetchArm64Guest(cache);
  const { missing } = await findGuests();
  const lines = new Set(GUEST_KINDS.flatMap((kind) => missing[kind]));
  for (const line of lines) console.error(line);
  return lines.size === 0 ? 0 : 1;
}

for (const signal of ["SIGINT", "SIGTERM"] as const) {
  Deno.addSignalListener(signal, () => interrupted.abort());
}
try {
  Deno.exit(await main());
} catch (error) {
  if (interrupted.signal.aborted) Deno.exit(130);
  if (!(error instanceof VmsgError)) throw error;
  console.error(error.message);
  Deno.exit(1);
}
