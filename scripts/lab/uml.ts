/**
 * User-Mode Linux as a guest: a kernel that is an ordinary process. Its network card is virtio_uml,
 * a vhost-user front end inside the kernel; it connects once, when it boots, so the back end must
 * listen before.
 *
 * What it needs, and why: `setarch -R`, or its memory lies elsewhere each time; TMPDIR and uml_dir,
 * or it leaves files; SIGKILL for it and its helpers, as it ignores SIGTERM (`keeper.ts`).
 */

import { UsageError } from "../../src/linux/errors.ts";
import { type Guest, type GuestOptions, startGuest } from "./guest.ts";
import { openKeeper } from "../../src/cli/keeper.ts";

/** Where the parts of a User-Mode Linux guest lie. */
export interface UmlInstallation {
  /** Tells it from the other kind. */
  readonly kind: "uml";
  /** The kernel, a program. */
  readonly kernel: string;
  /** The kernel's release, as in "6.1.176". */
  readonly release: string;
  /** Its modules directory. */
  readonly modules: string;
  /** A static busybox. */
  readonly busybox: string;
}

/** virtio's device number of a network card. */
const NETWORK_CARD = 1;

/** Starts a User-Mode Linux guest; see {@link GuestOptions}. It has 128 MiB unless told. */
export async function startUml(
  installation: UmlInstallation,
  options: GuestOptions,
): Promise<Guest> {
  const { socket, memoryMiB = 128, kernelArgs = [] } = options;
  if (socket !== undefined && /[\s:"]/.test(socket)) {
    throw new UsageError(`socket ${socket}: User-Mode Linux takes no path with space, " or :`);
  }
  const keeper = await openKeeper();
  const { directory } = keeper;
  const initramfs = `${directory}/initramfs.cpio`;
  try {
    await Deno.writeFile(initramfs, options.initramfs);
  } catch (error) {
    await keeper[Symbol.asyncDispose]();
    throw error;
  }
  const command = {
    kind: "uml",
    program: "setarch",
    args: [
      "x86_64",
      "-R",
      installation.kernel,
      `mem=${memoryMiB}M`,
      `initrd=${initramfs}`,
      `uml_dir=${directory}/`,
      "con0=null,fd:1",
      "con=null",
      "ssl=null",
      "quiet",
      ...(socket === undefined ? [] : [`virtio_uml.device=${socket}:${NETWORK_CARD}`]),
      ...kernelArgs,
    ],
    env: { TMPDIR: directory, HOME: directory },
  } as const;
  return await startGuest(command, keeper, options.onLine);
}
