/**
 * The disk of a machine that runs vmsg: a read-only erofs image with the executable, the libraries
 * it needs, and what else the caller gives.
 *
 *     /vmsg                            the executable
 *     /lib64/ld-linux-x86-64.so.2      its loader, where the executable says
 *     /lib/x86_64-linux-gnu/*.so       its libraries, where the loader looks
 *
 * The machine mounts it on /mnt and makes links, see `initramfs.ts`. In an initramfs the same files
 * would take their size in memory, and unpacking takes a while under emulation; from an image only
 * what is touched is read. It is not compressed, for the same reason.
 */

import { UsageError, VmsgError } from "../../src/linux/errors.ts";
import { elfMachine } from "./elf.ts";
import type { GuestFile } from "./initramfs.ts";
import { arm64Libraries, findProgram, librariesOf, type PlacedFile } from "./libraries.ts";
import { mustRun } from "./run_command.ts";

/** The architectures a machine may have, as Deno calls them. */
export type MachineArchitecture = "x86_64" | "aarch64";

/** What is put into an image. */
export interface MachineImageOptions {
  /** A directory to make the image in, as a keeper's. */
  readonly directory: string;
  /** The machine's. */
  readonly architecture: MachineArchitecture;
  /** The vmsg executable; see `executable.ts`. */
  readonly executable: string;
  /**
   * More files. Programs in /bin are on the machine's PATH; for one of this machine's with its
   * libraries see `withLibraries`. Where a place is named twice, the first counts.
   */
  readonly files?: readonly (PlacedFile | GuestFile)[];
  /** Where the machine's other programs need libraries of their own, those for all: instead of this host's. */
  readonly libraries?: readonly PlacedFile[];
}

/** e_machine of an ELF file. */
const ELF_MACHINES: Readonly<Record<MachineArchitecture, number>> = { x86_64: 62, aarch64: 183 };

/** The start of an ELF file, which names its machine. */
const ELF_HEADER_SIZE = 64;

/**
 * Builds an image.
 *
 * @returns its path, `machine-ARCHITECTURE.erofs` in the directory
 */
export async function buildMachineImage(options: MachineImageOptions): Promise<string> {
  const { directory, architecture, executable, files = [] } = options;
  await checkExecutable(executable, architecture);
  if (await findProgram("mkfs.erofs") === undefined) {
    const advice = "apt-get install erofs-utils";
    throw new VmsgError("NO_MKFS", `the program mkfs.erofs is missing: ${advice}`);
  }
  const libraries = options.libraries ??
    (architecture === "aarch64" ? await arm64Libraries() : placed(await librariesOf(executable)));
  const tree = await Deno.makeTempDir({ dir: directory, prefix: "image-" });
  const image = `${directory}/machine-${architecture}.erofs`;
  try {
    const done = new Set<string>();
    for (const file of [{ from: executable, to: "/vmsg" }, ...libraries, ...files]) {
      await addFile(tree, file, done);
    }
    await mustRun(["mkfs.erofs", "--quiet", "--all-root", "-T0", image, tree]);
  } finally {
    await Deno.remove(tree, { recursive: true });
  }
  return image;
}

function placed(paths: readonly string[]): PlacedFile[] {
  return paths.map((path) => ({ from: path, to: path }));
}

async function addFile(
  tree: string,
  file: PlacedFile | GuestFile,
  done: Set<string>,
): Promise<void> {
  const place = "to" in file ? file.to : file.path;
  const parts = place.split("/").filter((part) => part !== "");
  if (parts.length === 0 || parts.includes("..")) {
    throw new UsageError(`${place} is no place in an image`);
  }
  const path = `${tree}/${parts.join("/")}`;
  if (done.has(path)) return;
  done.add(path);
  await Deno.mkdir(path.slice(0, path.lastIndexOf("/")), { recursive: true });
  if ("to" in file) {
    await Deno.copyFile(file.from, path);
    const { mode } = await Deno.stat(file.from);
    await Deno.chmod(path, (mode ?? 0o755) & 0o777);
  } else {
    await Deno.writeFile(path, file.bytes);
    await Deno.chmod(path, file.mode ?? 0o755);
  }
}

/** Anything else fails in the machine, where it is hard to see. */
async function checkExecutable(path: string, architecture: MachineArchitecture): Promise<void> {
  const header = new Uint8Array(ELF_HEADER_SIZE);
  try {
    using file = await Deno.open(path);
    await file.read(header);
  } catch (error) {
    throw new VmsgError("NO_EXECUTABLE", `executable ${path}: ${(error as Error).message}`);
  }
  if (elfMachine(header) === ELF_MACHINES[architecture]) return;
  const advice = `deno task compile --target ${architecture}-unknown-linux-gnu`;
  throw new VmsgError("NO_EXECUTABLE", `${path} is no ${architecture} executable: ${advice}`);
}
