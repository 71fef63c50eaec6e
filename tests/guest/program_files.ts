/** Programs of the host's for a guest of the same architecture. */

import type { GuestFile } from "../../src/cli/guest/initramfs.ts";
import { mustRun } from "../../scripts/command.ts";

/** A program as `/bin/NAME`, with its libraries and its loader where it looks for them. */
export async function programFiles(name: string): Promise<GuestFile[]> {
  const path = await mustRun(["sh", "-c", 'command -v "$1"', "sh", name]);
  // `name => /path (0x...)`, and the loader alone.
  const libraries = (await mustRun(["ldd", path])).matchAll(/^\s*(?:\S+ => )?(\/\S+) \(0x/gm);
  const files = [{ from: path, path: `bin/${name}` }];
  for (const [, from] of libraries) files.push({ from: from!, path: from!.slice(1) });
  return await Promise.all(
    files.map(async ({ from, path }) => ({ path, bytes: await Deno.readFile(from) })),
  );
}
