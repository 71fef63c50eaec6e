/** The vmsg executable that is put into machines: this one, or one that was compiled before. */

import { VmsgError } from "../../src/linux/errors.ts";
import type { MachineArchitecture } from "./machine_image.ts";

/**
 * Where the executable for a machine lies.
 *
 * A compiled vmsg takes itself; Deno running the sources has no executable to give, and an
 * executable is for one architecture.
 *
 * @param option what the user gave with --executable
 */
export async function machineExecutable(
  option: string | undefined,
  architecture: MachineArchitecture = Deno.build.arch,
): Promise<string> {
  if (option !== undefined) {
    const isFile = await Deno.stat(option).then((info) => info.isFile, () => false);
    if (isFile) return option;
    throw new VmsgError("NO_EXECUTABLE", `--executable ${option}: there is no such file`);
  }
  if (architecture !== Deno.build.arch) {
    const target = `${architecture}-unknown-linux-gnu`;
    throw new VmsgError(
      "NO_EXECUTABLE",
      `the machine needs vmsg for ${architecture}: deno task compile --target ${target} ` +
        `--output vmsg-${architecture}, then --executable vmsg-${architecture}`,
    );
  }
  if (Deno.build.standalone) return Deno.execPath();
  throw new VmsgError(
    "NO_EXECUTABLE",
    "the machines need a compiled vmsg: deno task compile, then ./vmsg demo ivshmem, or give " +
      "--executable PATH",
  );
}
