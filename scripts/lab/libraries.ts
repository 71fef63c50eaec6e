/**
 * The shared libraries of a program that goes where there are none: into a guest or an empty root.
 *
 * On this machine's own architecture ldd says which they are. For arm64 they come from the packages
 * that scripts/fetch_arm64.ts unpacks in the cache directory; vmsg needs only glibc's, so the list
 * is fixed.
 */

import { VmsgError } from "../../src/linux/errors.ts";
import { cacheDirectory } from "./cache.ts";
import { runCommand } from "./run_command.ts";

/** A file of this machine and where it goes. */
export interface PlacedFile {
  /** Its path here. */
  readonly from: string;
  /** Where it goes, absolute. */
  readonly to: string;
}

/** The dynamic loader and the libraries of a program, by ldd: `name => /path (0x...)`. */
export async function librariesOf(program: string): Promise<string[]> {
  const { success, stdout, stderr } = await runCommand(["ldd", program]);
  const missing = stdout.match(/^\s*(\S+) => not found/m)?.[1];
  if (missing !== undefined) throw new VmsgError("LIBRARY", `${program} needs ${missing}`);
  if (!success) {
    throw new VmsgError("LIBRARY", `ldd ${program}: ${(stderr || stdout).split("\n")[0]}`);
  }
  return Array.from(stdout.matchAll(/^\s*(?:\S+ => )?(\/\S+) \(0x/gm), ([, path]) => path!);
}

/**
 * A program of this machine and what it needs, for a root of the same architecture.
 *
 * @param program its path
 * @param to where it goes, as in "/bin/iperf3"; libraries keep their places
 */
export async function withLibraries(program: string, to: string): Promise<PlacedFile[]> {
  const libraries = await librariesOf(program);
  return [{ from: program, to }, ...libraries.map((path) => ({ from: path, to: path }))];
}

/** The path of a program, or undefined where PATH has none of that name. */
export async function findProgram(name: string): Promise<string | undefined> {
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

/** Where in the cache directory arm64 libraries are unpacked, a root directory. */
export function arm64LibraryRoot(): string | undefined {
  const cache = cacheDirectory();
  return cache === undefined ? undefined : `${cache}/arm64/root`;
}

const ARM64_LOADER = "/lib/ld-linux-aarch64.so.1";
const ARM64_LIBRARIES: readonly string[] = [
  "libc.so.6",
  "libdl.so.2",
  "libgcc_s.so.1",
  "libm.so.6",
  "libpthread.so.0",
  "librt.so.1",
];

/** What an arm64 vmsg needs. */
export async function arm64Libraries(): Promise<PlacedFile[]> {
  const root = arm64LibraryRoot();
  const places = [
    ARM64_LOADER,
    ...ARM64_LIBRARIES.map((name) => `/lib/aarch64-linux-gnu/${name}`),
  ];
  return await Promise.all(places.map(async (to) => {
    // Newer packages keep them below /usr.
    for (const from of [`${root}${to}`, `${root}/usr${to}`]) {
      if (await Deno.stat(from).then(({ isFile }) => isFile, () => false)) return { from, to };
    }
    const advice = "deno run -A scripts/fetch_arm64.ts";
    throw new VmsgError("LIBRARY", `the arm64 library ${to} is missing: ${advice}`);
  }));
}
