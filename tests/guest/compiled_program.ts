/** A program of the tests, compiled for a guest of this machine's architecture. */

import { fromFileUrl } from "@std/path";
import type { GuestFile } from "../../scripts/lab/initramfs.ts";
import { withLibraries } from "../../scripts/lab/libraries.ts";
import { mustRun } from "../../scripts/lab/run_command.ts";
import { findToolchain, nativeTarget } from "../../scripts/toolchain.ts";

/** Compiles a script of the tests; `path` is where it lies in the guest, beside its libraries. */
export async function compiledFiles(
  source: URL,
  path: string,
  directory: string,
): Promise<GuestFile[]> {
  const { deno, denort } = await findToolchain(nativeTarget());
  const output = `${directory}/${path.slice(path.lastIndexOf("/") + 1)}`;
  const config = fromFileUrl(new URL("../../deno.json", import.meta.url));
  const flags = ["--quiet", "--allow-all", "--no-code-cache", "--no-check", "--config", config];
  await mustRun([deno, "compile", ...flags, "--output", output, fromFileUrl(source)], {
    env: denort === undefined ? {} : { DENORT_BIN: denort },
  });
  const files = await withLibraries(output, `/${path}`);
  return await Promise.all(
    files.map(async ({ from, to }) => ({ path: to.slice(1), bytes: await Deno.readFile(from) })),
  );
}
