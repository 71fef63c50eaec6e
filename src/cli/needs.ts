/**
 * What a process needs of the limits that it was given. Deno, of which V8 reserves address space for its heaps, fails
 * without a word of ours below that, so it is looked at before the Worker is started. (The least of all ends
 * Deno before any code of ours.)
 */

import { softLimit } from "../linux/limits.ts";

/** Two threads, a bus, a port, a listener; a front end or a hub needs more. */
export const MIN_FILES = 48;
/** V8 reserves heaps of 32 GiB and more; below this it was seen to fail, but not each time. */
const MIN_ADDRESS_SPACE = 64 * 2 ** 30;
/** In bytes: processes were seen to be killed below 90 MB, and this is a little more. It was not measured further. */
export const MIN_MEMORY: number = 96 * 2 ** 20;

/** All of it, for people. */
export const NEEDS =
  `${MIN_FILES} open files (ulimit -n), more than 64 GiB of address space (ulimit -v), 96 MiB of memory`;

/** What the limits of this process do not grant, or undefined. */
export function limitsProblem(): string | undefined {
  const files = softLimit("open files");
  if (files < MIN_FILES) {
    return `${MIN_FILES} open files are needed at least, the limit is ${files}: ulimit -n 1024`;
  }
  if (softLimit("address space") > MIN_ADDRESS_SPACE) return undefined;
  return "more than 64 GiB of address space are needed, the limit is lower: ulimit -v unlimited";
}
