/**
 * Gets what runs an arm64 executable on another machine, on Debian: qemu-aarch64 and the few arm64
 * libraries that vmsg needs, unpacked in the cache directory.
 *
 *     deno run -A scripts/fetch_arm64.ts
 *
 * No root is needed and the system's packages stay as they are: apt works on lists of its own. What
 * is there already is left alone.
 */

import { cacheDirectory } from "./lab/cache.ts";
import { arm64LibraryRoot } from "./lab/libraries.ts";
import { VmsgError } from "../src/linux/errors.ts";
import { mustRun } from "./lab/run_command.ts";

const EMULATOR_PACKAGE = "qemu-user-static";
/** The packages that hold the libraries of an arm64 vmsg. */
export const LIBRARY_PACKAGES: readonly string[] = ["libc6", "libgcc-s1"];

/** Where the parts lie. */
export interface Arm64 {
  readonly emulator: string;
  /** A root directory with libraries. */
  readonly root: string;
}

/** The words before an arm64 executable that run it here. */
export function arm64Command({ emulator, root }: Arm64): string[] {
  return [emulator, "-L", root];
}

/** Looks in the cache directory. */
export async function findArm64(): Promise<Arm64 | undefined> {
  const [cache, root] = [cacheDirectory(), arm64LibraryRoot()];
  if (cache === undefined || root === undefined) return undefined;
  const found = { emulator: `${cache}/arm64/usr/bin/qemu-aarch64-static`, root };
  const isThere = await Deno.stat(found.emulator).then(({ isFile }) => isFile, () => false);
  return isThere ? found : undefined;
}

/** Downloads packages of this machine's architecture, or of another with `options` for apt-get. */
export async function download(
  directory: string,
  names: string[],
  options: string[],
): Promise<string[]> {
  await Deno.mkdir(directory);
  await mustRun(["apt-get", ...options, "download", ...names], { cwd: directory });
  return Array.from(Deno.readDirSync(directory), ({ name }) => `${directory}/${name}`);
}

/** Options that make apt-get and apt-cache another machine's, with a state of its own. */
export async function foreignApt(architecture: string, state: string): Promise<string[]> {
  await Deno.mkdir(`${state}/lists/partial`, { recursive: true });
  await Deno.mkdir(`${state}/cache/archives/partial`, { recursive: true });
  return [
    `APT::Architecture=${architecture}`,
    `APT::Architectures::=${architecture}`,
    `Dir::State::lists=${state}/lists`,
    `Dir::State::status=/dev/null`,
    `Dir::Cache=${state}/cache`,
    // This user's own files, also where apt would rather use _apt.
    "APT::Sandbox::User=",
  ].flatMap((setting) => ["-o", setting]);
}

async function fetch(cache: string): Promise<void> {
  await Deno.mkdir(cache, { recursive: true });
  const unfinished = await Deno.makeTempDir({ dir: cache, prefix: "unfinished-" });
  try {
    const apt = await foreignApt("arm64", `${unfinished}/apt`);
    await mustRun(["apt-get", ...apt, "update"]);
    const libraries = await download(`${unfinished}/libraries`, [...LIBRARY_PACKAGES], apt);
    const [emulator = ""] = await download(`${unfinished}/emulator`, [EMULATOR_PACKAGE], []);
    const target = `${unfinished}/arm64`;
    await Deno.mkdir(`${target}/root`, { recursive: true });
    for (const file of libraries) await mustRun(["dpkg-deb", "-x", file, `${target}/root`]);
    // It holds an emulator for every machine there is.
    await mustRun([
      "sh",
      "-c",
      'dpkg-deb --fsys-tarfile "$1" | tar -x -C "$2" ./usr/bin/qemu-aarch64-static',
      "sh",
      emulator,
      target,
    ]);
    await Deno.remove(`${cache}/arm64`, { recursive: true }).catch(() => {});
    await Deno.rename(target, `${cache}/arm64`);
  } finally {
    await Deno.remove(unfinished, { recursive: true });
  }
}

async function main(): Promise<void> {
  const cache = cacheDirectory();
  if (cache === undefined) {
    throw new VmsgError("NO_CACHE", "there is no cache directory: set XDG_CACHE_HOME or HOME");
  }
  if (await findArm64() === undefined) await fetch(cache);
  console.log(`qemu-aarch64 and arm64 libraries are in ${cache}/arm64`);
}

if (import.meta.main) {
  try {
    await main();
  } catch (error) {
    if (!(error instanceof VmsgError)) throw error;
    console.error(`fetch_arm64: ${error.message}`);
    Deno.exit(1);
  }
}
