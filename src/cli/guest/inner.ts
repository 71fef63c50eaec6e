/**
 * A guest inside a machine: what has to be on the machine's disk for it, and how the machine boots it.
 *
 * User-Mode Linux is an ordinary process and boots in a small machine. Its memory is a file in the
 * machine's /dev/shm, and `setarch -R` keeps it where a vhost-user back end finds it (uml.ts).
 */

import { VmsgError } from "../../linux/errors.ts";
import type { GuestFile } from "./initramfs.ts";
import { findProgram, type PlacedFile, withLibraries } from "./libraries.ts";
import { guestInitramfs, type Installation } from "./machines.ts";

/** See the head of this file. */
export interface InnerGuest {
  /** For the machine's disk. */
  readonly files: readonly (PlacedFile | GuestFile)[];
  /** Shell: boots the guest on the console, until it has ended. */
  boot(socket: string): string;
}

/** What an inner guest is told. */
export interface InnerGuestOptions {
  /** What it does, see `scripts.ts`. */
  readonly script: string;
  /** MiB of memory; 64 unless given. */
  readonly memoryMiB?: number;
}

async function setarch(): Promise<string> {
  const path = await findProgram("setarch");
  if (path !== undefined) return path;
  throw new VmsgError("NO_SETARCH", "the program setarch is missing: apt-get install util-linux");
}

/** The kernel and the initial file system of an inner User-Mode Linux. */
export async function innerUml(
  installation: Installation & { readonly kind: "uml" },
  options: InnerGuestOptions,
): Promise<InnerGuest> {
  const { script, memoryMiB = 64 } = options;
  const initramfs = await guestInitramfs(installation, { script });
  return {
    files: [
      ...await withLibraries(installation.kernel, "/bin/linux.uml"),
      // busybox has none.
      ...await withLibraries(await setarch(), "/bin/setarch"),
      { path: "inner/initramfs.cpio", bytes: initramfs, mode: 0o644 },
    ],
    boot: (socket) => `
mkdir -p /tmp/uml
TMPDIR=/dev/shm HOME=/tmp setarch x86_64 -R linux.uml mem=${memoryMiB}M \\
  initrd=/mnt/inner/initramfs.cpio uml_dir=/tmp/uml/ con0=null,fd:1 con=null ssl=null quiet \\
  virtio_uml.device=${socket}:1 </dev/null
`,
  };
}
