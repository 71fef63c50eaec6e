/**
 * Puts vmsg into a root directory together with the few glibc files it needs.
 *
 *     deno run -A scripts/pack_root.ts DIR vmsg [--list]
 *
 * DIR is made if it is not there; what it holds besides is left alone. `--list` only prints. The
 * files come from this machine, so the executable must be for it. Besides them DIR gets what a
 * root has once it is booted, so that `chroot DIR /vmsg demo` works as it is: /tmp, an empty file
 * where /dev/null will be, and /proc/self/exe, by which the executable finds what it carries.
 */

import { parseArgs } from "@std/cli/parse-args";
import { type PlacedFile, withLibraries } from "./lab/libraries.ts";
import { UsageError, VmsgError } from "../src/linux/errors.ts";

async function pack(root: string, files: readonly PlacedFile[]): Promise<void> {
  for (const { from, to } of files) {
    const path = `${root}${to}`;
    await Deno.mkdir(path.slice(0, path.lastIndexOf("/")), { recursive: true });
    await Deno.copyFile(from, path);
  }
  await Deno.mkdir(`${root}/tmp`, { recursive: true });
  await Deno.chmod(`${root}/tmp`, 0o1777);
  await Deno.mkdir(`${root}/dev`, { recursive: true });
  await Deno.mkdir(`${root}/proc/self`, { recursive: true });
  await unlessThere(Deno.writeFile(`${root}/dev/null`, new Uint8Array(), { createNew: true }));
  await unlessThere(Deno.symlink("/vmsg", `${root}/proc/self/exe`));
}

async function unlessThere(made: Promise<void>): Promise<void> {
  try {
    await made;
  } catch (error) {
    if (!(error instanceof Deno.errors.AlreadyExists)) throw error;
  }
}

async function main(args: readonly string[]): Promise<void> {
  const { _: [root, program, ...rest], list } = parseArgs([...args], {
    boolean: ["list"],
    string: ["_"],
    unknown: (argument: string, key?: string) => {
      if (key !== undefined) throw new UsageError(`unknown option ${argument}`);
    },
  });
  if (root === undefined || program === undefined || rest.length > 0) {
    throw new UsageError("usage: scripts/pack_root.ts DIR VMSG [--list]");
  }
  const path = String(program);
  const isFile = await Deno.stat(path).then((info) => info.isFile, () => false);
  if (!isFile) throw new VmsgError("NO_FILE", `there is no executable ${path}`);
  const files = await withLibraries(path, "/vmsg");
  if (!list) await pack(String(root).replace(/\/+$/, ""), files);
  for (const { from, to } of files) {
    const { size } = await Deno.stat(from);
    console.log(`${to.padEnd(44)} ${(size / 1000).toFixed(0).padStart(7)} kB`);
  }
}

try {
  await main(Deno.args);
} catch (error) {
  if (!(error instanceof VmsgError)) throw error;
  console.error(`pack_root: ${error.message}`);
  Deno.exit(error instanceof UsageError ? 2 : 1);
}
