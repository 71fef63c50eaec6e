/**
 * Kernel modules for a guest: which files, in which order.
 *
 * A modules directory is what a kernel calls `lib/modules/RELEASE`. An installed system and a
 * package that was only unpacked have the same one, except that nobody has run depmod for the
 * latter; so dependencies come from the modules themselves (`depends=` in section .modinfo), and
 * names from the files. In names, "-" and "_" are the same letter.
 */

import { VmsgError } from "../../src/linux/errors.ts";
import { elfSection } from "./elf.ts";

/** A module ready for insmod. */
export interface ModuleFile {
  /** Its name with "_", as in "virtio_net". */
  readonly name: string;
  /** The .ko file, decompressed. */
  readonly bytes: Uint8Array;
}

/** Options of {@link loadModules}. */
export interface LoadModulesOptions {
  /**
   * Of the names asked for, those that may be missing from the directory: a kernel that has no
   * modules.builtin cannot tell what it has built in.
   */
  readonly optional?: readonly string[];
}

/** How a module file may end, and who decompresses it (from its path to standard output). */
const SUFFIXES: readonly { readonly suffix: string; readonly command?: readonly string[] }[] = [
  { suffix: ".ko" },
  { suffix: ".ko.xz", command: ["xz", "-dc"] },
  { suffix: ".ko.zst", command: ["zstd", "-dqc"] },
];

/** No module nests deeper than this below its directory. */
const MAX_DEPTH = 16;

/**
 * Reads the modules asked for and all that they depend on.
 *
 * @param directory `.../lib/modules/RELEASE`
 * @param names in the order wanted
 * @returns every module once, each after those it depends on; without what the kernel has built in
 * @throws VmsgError MODULE_NOT_FOUND for a name that is neither a file, nor built in, nor optional
 */
export async function loadModules(
  directory: string,
  names: readonly string[],
  options: LoadModulesOptions = {},
): Promise<ModuleFile[]> {
  const files = new Map<string, string>();
  await indexModules(directory, files);
  const builtIn = await readBuiltIn(directory);
  const optional = new Set(options.optional?.map(canonicalName));
  const ordered: ModuleFile[] = [];
  const visited = new Set<string>();

  async function visit(name: string, neededBy: string): Promise<void> {
    if (visited.has(name)) return;
    visited.add(name);
    const path = files.get(name);
    if (path === undefined) {
      if (builtIn.has(name) || optional.has(name)) return;
      throw new VmsgError(
        "MODULE_NOT_FOUND",
        `kernel module ${name}${neededBy} is not in ${directory}: use a kernel that has it`,
      );
    }
    const bytes = await readModule(path);
    for (const dependency of moduleDependencies(bytes)) {
      await visit(dependency, `, which ${name} needs,`);
    }
    ordered.push({ name, bytes });
  }

  for (const name of names) await visit(canonicalName(name), "");
  return ordered;
}

/** The names in a module's `depends=`, in its order. */
export function moduleDependencies(module: Uint8Array): string[] {
  const section = elfSection(module, ".modinfo");
  if (section === undefined) return [];
  for (const line of new TextDecoder().decode(section).split("\0")) {
    if (!line.startsWith("depends=")) continue;
    return line.slice("depends=".length).split(",").filter((name) => name !== "")
      .map(canonicalName);
  }
  return [];
}

function canonicalName(name: string): string {
  return name.replaceAll("-", "_");
}

async function indexModules(
  directory: string,
  files: Map<string, string>,
  depth = 0,
): Promise<void> {
  if (depth > MAX_DEPTH) return;
  for await (const entry of Deno.readDir(directory)) {
    const path = `${directory}/${entry.name}`;
    // Links are not followed: `build` and `source` lead to a whole kernel tree.
    if (entry.isDirectory) {
      await indexModules(path, files, depth + 1);
      continue;
    }
    const kind = SUFFIXES.find(({ suffix }) => entry.name.endsWith(suffix));
    if (kind === undefined) continue;
    files.set(canonicalName(entry.name.slice(0, -kind.suffix.length)), path);
  }
}

async function readBuiltIn(directory: string): Promise<Set<string>> {
  try {
    const text = await Deno.readTextFile(`${directory}/modules.builtin`);
    return new Set(
      text.split("\n").map((line) =>
        canonicalName(line.slice(line.lastIndexOf("/") + 1).replace(/\.ko$/, ""))
      ),
    );
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return new Set();
    throw error;
  }
}

async function readModule(path: string): Promise<Uint8Array> {
  const command = SUFFIXES.find(({ suffix }) => path.endsWith(suffix))?.command;
  if (command === undefined) return await Deno.readFile(path);
  const [program = "", ...args] = command;
  try {
    const { success, stdout, stderr } = await new Deno.Command(program, {
      args: [...args, path],
      stdin: "null",
    }).output();
    if (success) return stdout;
    const reason = new TextDecoder().decode(stderr).trim().split("\n").at(-1);
    throw new VmsgError("MODULE_UNREADABLE", `cannot decompress ${path}: ${reason}`);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    throw new VmsgError(
      "MODULE_UNREADABLE",
      `cannot decompress ${path}: there is no program ${program}, please install it`,
    );
  }
}
