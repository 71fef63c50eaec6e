/**
 * The programs that this process starts. They are found in the system's directories only, and are given an environment
 * that is all ours: what the caller set (PATH, LD_PRELOAD, ENV) may be another user's doing, and vmsg often runs
 * as root.
 */

import { isRegularFile, openPath } from "./fd.ts";

const DIRECTORIES = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/** Where every system has its shell. */
export const SHELL = "/bin/sh";

/** What a program is started with, for `Deno.Command`. */
export const PROGRAM_ENVIRONMENT = {
  clearEnv: true,
  env: { PATH: DIRECTORIES.join(":"), LC_ALL: "C" },
} as const;

let later = false;

/** Called by whoever may start a program while others are served: until then it is allowed. */
export function startProgramsLater(): void {
  later = true;
}

/** Whether that was called on this thread. */
export function startsProgramsLater(): boolean {
  return later;
}

/** A program's absolute path, or undefined if the system has none of that name. */
export function findProgram(name: string): string | undefined {
  return DIRECTORIES.map((directory) => `${directory}/${name}`).find((path) => {
    using fd = openPath(path);
    return fd !== undefined && isRegularFile(fd);
  });
}
