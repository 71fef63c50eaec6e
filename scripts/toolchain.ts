/**
 * Which Deno compiles vmsg, and with which base binary; used by compile.ts and its tests.
 *
 * `deno compile` puts the program behind a base binary (denort) of exactly its own version and of the
 * target's architecture. It downloads that itself; where it cannot, the environment says what to use:
 *
 *     VMSG_COMPILE_DENO   the deno that compiles; otherwise the one that runs the script
 *     DENORT_BIN          its base binary for the target
 *     VMSG_DENORT_DIR     a directory with both, packed: deno-x86_64.xz, denort-x86_64.xz,
 *                         denort-aarch64.xz; they are unpacked into the cache directory once
 */

import { cacheDirectory } from "./lab/cache.ts";
import { VmsgError } from "../src/linux/errors.ts";

/** The targets vmsg is compiled for, and the word for their architecture in file names. */
export const TARGETS = {
  "x86_64-unknown-linux-gnu": "x86_64",
  "aarch64-unknown-linux-gnu": "aarch64",
} as const;

/** One of {@link TARGETS}. */
export type Target = keyof typeof TARGETS;

/** What compiles. */
export interface Toolchain {
  readonly deno: string;
  /** The base binary; without it deno downloads one. */
  readonly denort?: string;
}

/** The target that is this machine. */
export function nativeTarget(): Target {
  const target = Object.keys(TARGETS).find((name) => name === Deno.build.target);
  if (target !== undefined) return target as Target;
  throw new VmsgError("TARGET", `vmsg is for ${Object.keys(TARGETS).join(" and ")}`);
}

/** Finds what compiles for a target, unpacking it if need be. */
export async function findToolchain(target: Target): Promise<Toolchain> {
  const packed = Deno.env.get("VMSG_DENORT_DIR");
  const find = async (variable: string, file: string) =>
    Deno.env.get(variable) || (packed ? await unpack(packed, file) : undefined);
  const deno = await find("VMSG_COMPILE_DENO", `deno-${Deno.build.arch}`) ?? Deno.execPath();
  const denort = await find("DENORT_BIN", `denort-${TARGETS[target]}`);
  return denort === undefined ? { deno } : { deno, denort };
}

/** Unpacks `directory/name.xz` into the cache, under a name that its contents decide. */
async function unpack(directory: string, name: string): Promise<string> {
  const source = `${directory}/${name}.xz`;
  let bytes: Uint8Array<ArrayBuffer>;
  try {
    bytes = await Deno.readFile(source);
  } catch {
    throw new VmsgError("NO_BASE_BINARY", `VMSG_DENORT_DIR: there is no ${source}`);
  }
  const cache = cacheDirectory();
  if (cache === undefined) {
    throw new VmsgError("NO_CACHE", "there is no cache directory: set XDG_CACHE_HOME or HOME");
  }
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).toHex();
  const target = `${cache}/denort/${digest.slice(0, 16)}/${name}`;
  if (await Deno.stat(target).then(() => true, () => false)) return target;
  await Deno.mkdir(target.slice(0, target.lastIndexOf("/")), { recursive: true });
  const unfinished = await Deno.makeTempFile({ dir: `${cache}/denort`, prefix: "unfinished-" });
  try {
    using file = await Deno.open(unfinished, { write: true });
    await unxz(bytes, file);
    await Deno.chmod(unfinished, 0o755);
    await Deno.rename(unfinished, target);
  } catch (error) {
    await Deno.remove(unfinished);
    throw new VmsgError("UNPACK", `cannot unpack ${source}: ${(error as Error).message}`);
  }
  return target;
}

async function unxz(bytes: Uint8Array<ArrayBuffer>, to: Deno.FsFile): Promise<void> {
  let child: Deno.ChildProcess;
  try {
    child = new Deno.Command("xz", { args: ["-dc"], stdin: "piped", stdout: "piped" }).spawn();
  } catch {
    throw new Error("xz is missing (Debian package xz-utils)");
  }
  const [, , { success }] = await Promise.all([
    new Blob([bytes]).stream().pipeTo(child.stdin),
    child.stdout.pipeTo(to.writable),
    child.status,
  ]);
  if (!success) throw new Error("xz failed");
}
