/**
 * The QEMU that runs inside an arm64 machine: scripts/fetch_arm64_qemu.ts puts it and the libraries
 * it needs into the cache directory, each where it goes on the machine's disk. The QEMU that is
 * installed here is this machine's own architecture's.
 */

import { VmsgError } from "../../src/linux/errors.ts";
import { cacheDirectory } from "./cache.ts";
import type { PlacedFile } from "./libraries.ts";

/** The program's place on the disk; its libraries lie in {@link ARM64_QEMU_LIBRARIES}. */
export const ARM64_QEMU = "/bin/qemu-system-aarch64";

/** See {@link ARM64_QEMU}. */
export const ARM64_QEMU_LIBRARIES = "/lib/aarch64-linux-gnu";

/** Where in the cache directory the disk's part is; there or not. */
export function arm64QemuRoot(): string | undefined {
  const cache = cacheDirectory();
  return cache === undefined ? undefined : `${cache}/guest-arm64-qemu`;
}

/**
 * For a machine's disk.
 *
 * @throws VmsgError where it was not fetched
 */
export async function arm64QemuFiles(): Promise<PlacedFile[]> {
  const root = arm64QemuRoot();
  try {
    const names = await Array.fromAsync(Deno.readDir(`${root}${ARM64_QEMU_LIBRARIES}`));
    const libraries = names.map(({ name }) => `${ARM64_QEMU_LIBRARIES}/${name}`);
    return [ARM64_QEMU, ...libraries].map((to) => ({ from: `${root}${to}`, to }));
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    const advice = "deno run -A scripts/fetch_arm64_qemu.ts";
    throw new VmsgError("NO_GUEST", `QEMU for arm64 machines is missing: ${advice}`);
  }
}
