/** Programs of the host's for a guest of the same architecture. */

import type { GuestFile } from "../../scripts/lab/initramfs.ts";
import { findProgram, withLibraries } from "../../scripts/lab/libraries.ts";

/** A program as `/bin/NAME`, with its libraries and its loader where it looks for them. */
export async function programFiles(name: string): Promise<GuestFile[]> {
  const program = await findProgram(name);
  if (program === undefined) throw new Error(`there is no program ${name}`);
  const files = await withLibraries(program, `/bin/${name}`);
  return await Promise.all(
    files.map(async ({ from, to }) => ({ path: to.slice(1), bytes: await Deno.readFile(from) })),
  );
}
