/**
 * Gets the QEMU that runs inside an arm64 machine (scripts/lab/arm64_qemu.ts), on Debian:
 * qemu-system-aarch64 for arm64 and the libraries it needs, in the cache directory.
 *
 *     deno run -A scripts/fetch_arm64_qemu.ts
 *
 * apt finds and downloads the package and all that it depends on, a hundred of them, 40 MB. Kept is
 * only what the program names as needed, and what that needs, 53 MB; it lies in the directory where
 * it goes on the machine's disk. No root is needed, see fetch_arm64.ts. What is there already is
 * left alone.
 */

import { ARM64_QEMU, ARM64_QEMU_LIBRARIES, arm64QemuRoot } from "./lab/arm64_qemu.ts";
import { cacheDirectory } from "./lab/cache.ts";
import { elfNeeded } from "./lab/elf.ts";
import { mustRun } from "./lab/run_command.ts";
import { VmsgError } from "../src/linux/errors.ts";
import { foreignApt } from "./fetch_arm64.ts";

const PACKAGE = "qemu-system-arm";

/** Where packages have libraries. */
const LIBRARY_DIRECTORIES = [
  "usr/lib/aarch64-linux-gnu",
  "usr/lib",
  "lib",
  "lib/aarch64-linux-gnu",
];

/** Fetches it, unless it is there, and returns its directory. */
export async function fetchArm64Qemu(): Promise<string> {
  const [cache, target] = [cacheDirectory(), arm64QemuRoot()];
  if (cache === undefined || target === undefined) {
    throw new VmsgError("NO_CACHE", "there is no cache directory: set XDG_CACHE_HOME or HOME");
  }
  const isThere = await Deno.stat(`${target}${ARM64_QEMU}`).then(() => true, () => false);
  if (isThere) return target;
  console.log(`fetching ${PACKAGE} for arm64 and what it needs`);
  await Deno.mkdir(cache, { recursive: true });
  const unfinished = await Deno.makeTempDir({ dir: cache, prefix: "unfinished-" });
  try {
    const root = await unpack(unfinished);
    await keepNeeded(root, `${unfinished}/kept`);
    await Deno.rename(`${unfinished}/kept`, target);
  } finally {
    await Deno.remove(unfinished, { recursive: true });
  }
  return target;
}

/** Downloads all packages and unpacks them into one root directory. */
async function unpack(directory: string): Promise<string> {
  const apt = await foreignApt("arm64", `${directory}/apt`);
  await mustRun(["apt-get", ...apt, "update"]);
  // Nothing is installed, so there is nothing to lock.
  const install = ["--yes", "--no-install-recommends", "--download-only", "install", PACKAGE];
  await mustRun(["apt-get", ...apt, "-o", "Debug::NoLocking=1", ...install]);
  const archives = `${directory}/apt/cache/archives`;
  const root = `${directory}/root`;
  for (const { name } of Deno.readDirSync(archives)) {
    if (name.endsWith(".deb")) await mustRun(["dpkg-deb", "-x", `${archives}/${name}`, root]);
  }
  return root;
}

/** Copies the program and the libraries it needs, directly or not. */
async function keepNeeded(root: string, kept: string): Promise<void> {
  const libraries = `${kept}${ARM64_QEMU_LIBRARIES}`;
  await Deno.mkdir(`${kept}/bin`, { recursive: true });
  await Deno.mkdir(libraries, { recursive: true });
  const program = `${root}/usr/bin/qemu-system-aarch64`;
  await Deno.copyFile(program, `${kept}${ARM64_QEMU}`);
  const needed = new Set(elfNeeded(await Deno.readFile(program)));
  // A set takes what is added while it is walked.
  for (const name of needed) {
    const path = await findLibrary(root, name);
    for (const next of elfNeeded(await Deno.readFile(path))) needed.add(next);
    await Deno.copyFile(path, `${libraries}/${name}`);
  }
}

async function findLibrary(root: string, name: string): Promise<string> {
  for (const directory of LIBRARY_DIRECTORIES) {
    const path = `${root}/${directory}/${name}`;
    if (await Deno.stat(path).then(({ isFile }) => isFile, () => false)) return path;
  }
  throw new VmsgError("LIBRARY", `the packages of ${PACKAGE} for arm64 have no ${name}`);
}

if (import.meta.main) {
  try {
    console.log(`qemu-system-aarch64 for arm64 machines is in ${await fetchArm64Qemu()}`);
  } catch (error) {
    if (!(error instanceof VmsgError)) throw error;
    console.error(`fetch_arm64_qemu: ${error.message}`);
    Deno.exit(1);
  }
}
