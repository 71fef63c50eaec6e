/**
 * The file that a process's counters are in: made, removed, cleaned up after others.
 *
 * It is `SUBCOMMAND.PID` in `$XDG_RUNTIME_DIR/vmsg`, or else in `/run/vmsg`. A process that ends removes it,
 * one that crashes leaves it behind to be read. The next one that starts removes what dead processes
 * left, but for the newest {@link KEPT}. Where neither directory can be written there is no file, and counters
 * count in memory of their own.
 *
 * The directory has to be ours and nobody else's to write, so that no other user can put a symbolic link or a
 * file in our way; the file has mode 0600. It has all its room before it is mapped: a hole that a full
 * file system cannot fill would end the process at a `++`, with SIGBUS.
 */

import { dateMs } from "../linux/clock.ts";
import { LinuxError } from "../linux/errors.ts";
import { fileStatus, openPath, reserveFile, unlinkFile } from "../linux/fd.ts";
import { cString, libc } from "../linux/libc.ts";
import { mapShared } from "../linux/mapping.ts";
import { O_NOFOLLOW, openOwnFile } from "../linux/own_file.ts";
import { directoryNames, readText } from "../linux/sysfs.ts";
import { CounterMemory, countIn } from "./counters.ts";

/** Bytes of a file: about 150 groups. */
export const FILE_SIZE = 65536;
/** Files of dead processes that are left to be read. */
const KEPT = 8;
/** Entries of the directory that are looked at. */
const MAX_ENTRIES = 1024;
/** Workers of one process with the same subcommand. */
const MAX_SAME = 16;

/** A process's counters; dispose removes the file. */
interface CounterFile extends Disposable {
  /** Undefined if the counters are in no file. */
  readonly path: string | undefined;
}

/** Where the files may be, the first that can be written is used. */
export function counterDirectories(): string[] {
  const runtime = Deno.env.get("XDG_RUNTIME_DIR") ?? "";
  return runtime.startsWith("/") ? [`${runtime}/vmsg`, "/run/vmsg"] : ["/run/vmsg"];
}

/**
 * Makes the file, and counts in it from now on. To be called by the thread that moves data, before it makes
 * anything that counts; what it counts stays readable until the file is disposed.
 *
 * @param subcommand small letters and "-"
 */
export function openCounterFile(
  subcommand: string,
  directories: readonly string[] = counterDirectories(),
): CounterFile {
  for (const directory of directories) {
    if (!isOurs(directory)) continue;
    cleanUp(directory);
    const made = create(directory, subcommand);
    if (made !== undefined) return made;
  }
  return { path: undefined, [Symbol.dispose]: () => {} };
}

/** Makes the directory if there is none; false if it is not ours alone. */
export function isOurs(directory: string): boolean {
  // It is there, or it is not going to be: what is there counts.
  libc.mkdir(cString(directory), 0o700);
  using fd = openPath(directory, O_NOFOLLOW);
  if (fd === undefined) return false;
  const { kind, owner, mode } = fileStatus(fd);
  return kind === "directory" && owner === libc.geteuid() && (mode & 0o022) === 0;
}

function create(directory: string, subcommand: string): CounterFile | undefined {
  for (let n = 1; n <= MAX_SAME; n++) {
    const path = `${directory}/${subcommand}.${Deno.pid}${n > 1 ? `.${n}` : ""}`;
    try {
      using fd = openOwnFile(path, { what: "counter file", make: "always" }).fd;
      reserveFile(fd, `counter file ${path}`, FILE_SIZE);
      const mapping = mapShared(fd.number, FILE_SIZE);
      countIn(
        new CounterMemory(mapping.buffer, subcommand, Deno.pid, dateMs(), Number(mapping.address)),
      );
      const close = () => {
        countIn(undefined);
        mapping[Symbol.dispose]();
        unlinkFile(path);
      };
      return { path, [Symbol.dispose]: close };
    } catch (error) {
      if (error instanceof LinuxError && error.code === "EEXIST") continue;
      // A full file system, or no permission: nobody is to go without a network for want of counters.
      unlinkFile(path);
      return undefined;
    }
  }
  return undefined;
}

/** Removes what processes that are gone left behind, but for the newest. */
function cleanUp(directory: string): void {
  const dead: { path: string; at: number }[] = [];
  for (const { path, pid, isRunning } of filesIn(directory)) {
    // One with our number is of another that had it, as in containers that begin with 1, or of a Worker, and new.
    if (isRunning && pid !== Deno.pid) continue;
    using fd = openPath(path, O_NOFOLLOW);
    // Another one cleans up at the same time, which is as good.
    if (fd !== undefined) dead.push({ path, at: fileStatus(fd).modified });
  }
  dead.sort((a, b) => b.at - a.at);
  for (const { path } of dead.slice(KEPT)) unlinkFile(path);
}

/** A file that has the name of one of counters; what is in it nobody has looked at. */
export interface FoundFile {
  readonly path: string;
  /** Of the process. */
  readonly pid: number;
  /** There is a process of this number: it may be another one than that which wrote the file. */
  readonly isRunning: boolean;
}

function filesIn(directory: string): FoundFile[] {
  return directoryNames(directory).slice(0, MAX_ENTRIES).flatMap((name) => {
    const pid = /^[a-z-]+\.(\d+)(\.\d+)?$/.exec(name)?.[1];
    if (pid === undefined) return [];
    return [{ path: `${directory}/${name}`, pid: Number(pid), isRunning: isProcess(pid) }];
  });
}

/** All there are, of processes that run and of those that crashed; none where we may not look. */
export function findCounterFiles(directories: readonly string[]): FoundFile[] {
  return directories.flatMap((directory) => {
    try {
      return filesIn(directory);
    } catch (error) {
      if (error instanceof LinuxError) return [];
      throw error;
    }
  });
}

/** Is there a process of this number, that does more than wait for its parent to take note of its end? */
export function isProcess(pid: string | number): boolean {
  // pid (name) state ...; a name may hold anything.
  const state = /^.*\) (.)/s.exec(readText(`/proc/${pid}/stat`) ?? "")?.[1];
  return state !== undefined && !"ZX".includes(state);
}
