/**
 * The vmsg executable that is put into machines, and that tests and benchmarks start: the one of the
 * present sources, or another that somebody names.
 *
 * It is compiled once and kept in the cache directory, under a name that the sources and
 * the toolchain decide; the oldest are removed, they are large.
 */

import { fromFileUrl } from "@std/path";
import { cacheDirectory } from "./cache.ts";
import { runCommand } from "./run_command.ts";
import { VmsgError } from "../../src/linux/errors.ts";
import type { MachineArchitecture } from "./machine_image.ts";
import { nativeTarget, type Target, TARGETS } from "../toolchain.ts";

const ROOT = fromFileUrl(new URL("../..", import.meta.url));
/** What decides the executable, besides the environment. */
const SOURCES = ["src", "deno.json", "deno.lock", "scripts/compile.ts", "scripts/toolchain.ts"];
const VARIABLES = ["VMSG_COMPILE_DENO", "DENORT_BIN", "VMSG_DENORT_DIR"];
const KEPT = 4;

/** The command that runs one of scripts/. */
export function scriptCommand(name: string, ...args: string[]): [string, ...string[]] {
  return [Deno.execPath(), "run", "--quiet", "--allow-all", `${ROOT}scripts/${name}`, ...args];
}

/**
 * The executable of the present sources; compiling it takes some seconds, the first time.
 *
 * @throws VmsgError where it cannot be compiled, with what compile.ts said
 */
export async function compiledExecutable(target: Target = nativeTarget()): Promise<string> {
  const cache = cacheDirectory();
  if (cache === undefined) {
    throw new VmsgError("NO_CACHE", "there is no cache directory: set XDG_CACHE_HOME or HOME");
  }
  const directory = `${cache}/executables`;
  const path = `${directory}/vmsg-${TARGETS[target]}-${await sourcesDigest()}`;
  try {
    await Deno.utime(path, new Date(), new Date());
    return path;
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
  await Deno.mkdir(directory, { recursive: true });
  const unfinished = `${directory}/unfinished-${crypto.randomUUID()}`;
  try {
    const command = scriptCommand("compile.ts", "--target", target, "--output", unfinished);
    const { success, stderr } = await runCommand(command);
    if (!success) throw new VmsgError("COMPILE", stderr.trim());
    await Deno.rename(unfinished, path);
  } catch (error) {
    await Deno.remove(unfinished).catch(() => {});
    throw error;
  }
  await removeOld(directory);
  return path;
}

/**
 * Where the executable for a machine lies: it is compiled, unless the user named one.
 *
 * @param option what the user gave with --executable
 */
export async function machineExecutable(
  option: string | undefined,
  architecture: MachineArchitecture,
): Promise<string> {
  if (option === undefined) return await compiledExecutable(`${architecture}-unknown-linux-gnu`);
  const isFile = await Deno.stat(option).then((info) => info.isFile, () => false);
  if (isFile) return option;
  throw new VmsgError("NO_EXECUTABLE", `--executable ${option}: there is no such file`);
}

async function sourcesDigest(): Promise<string> {
  const parts: string[] = [Deno.version.deno];
  for (const name of VARIABLES) parts.push(`${name}=${Deno.env.get(name) ?? ""}`);
  for (const name of SOURCES) {
    for (const path of filesBelow(`${ROOT}${name}`)) {
      parts.push(path.slice(ROOT.length), await Deno.readTextFile(path));
    }
  }
  const bytes = new TextEncoder().encode(parts.join("\0"));
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return digest.toHex().slice(0, 16);
}

function filesBelow(path: string): string[] {
  if (Deno.statSync(path).isFile) return [path];
  return Array.from(Deno.readDirSync(path), ({ name }) => filesBelow(`${path}/${name}`))
    .flat().sort();
}

async function removeOld(directory: string): Promise<void> {
  const files = Array.from(Deno.readDirSync(directory), ({ name }) => {
    const path = `${directory}/${name}`;
    return { path, changed: Deno.statSync(path).mtime?.getTime() ?? 0 };
  });
  files.sort((a, b) => b.changed - a.changed);
  // Somebody else may have been faster.
  for (const { path } of files.slice(KEPT)) await Deno.remove(path).catch(() => {});
}
