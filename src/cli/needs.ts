/**
 * What a process needs of the limits that it was given. Deno, of which V8 reserves address space for its heaps, fails
 * without a word of ours below that, so it is looked at before the Worker is started. (The least of all ends
 * Deno before any code of ours.)
 *
 * Measured with a device whose responder a driver pings and floods, by prlimit and a memory cgroup, for the executable
 * (Deno 2.6.10) and from source (2.9.6). It worked with 30 and 36 open files, passt takes 5 more, a guest some 10;
 * with 36 GiB of address space, but from source not always with 48; and it was killed in 40 and 48 MiB of memory, not
 * in 48 and 64.
 */

import { softLimit } from "../linux/limits.ts";
import { readText } from "../linux/sysfs.ts";

/** For a device or a proxy of one guest; more guests need more. */
export const MIN_FILES = 48;
/** V8 reserves about 48 GiB, or less where that fails, and then fails later now and then. */
const MIN_ADDRESS_SPACE = 64 * 2 ** 30;
const MIB = 2 ** 20;
/** Below this it would be killed. */
const LEAST_MEMORY = 64 * MIB;
/** In bytes: with some room for what a long life gathers. */
export const MIN_MEMORY: number = 96 * MIB;

/** All of it, for people. */
export const NEEDS =
  `${MIN_FILES} open files (ulimit -n), more than 64 GiB of address space (ulimit -v), 96 MiB of memory`;

/** What the control group of this process (version 2 or 1) lets it have, in bytes; Infinity without a limit. */
export function memoryLimit(): number {
  const groups = readText("/proc/self/cgroup") ?? "";
  const group = (pattern: RegExp) => pattern.exec(groups)?.[1];
  const read = (path: string) => parseInt(readText(`/sys/fs/cgroup/${path}`) ?? "");
  const limits = [
    read(`${group(/^0::(.*)$/m)}/memory.max`),
    read(`memory${group(/^\d+:memory:(.*)$/m)}/memory.limit_in_bytes`),
  ];
  // "max" is no number; version 1 says it by one that no machine has.
  return Math.min(...limits.map((limit) => limit < 2 ** 62 ? limit : Infinity));
}

/** What the Worker of a queue pair needs besides: it took 10 files and 8 to 14 MiB. */
const PAIR_FILES = 16;
const PAIR_MEMORY = 16 * MIB;
const MAX_PAIR_THREADS = 16;

/** How many of so many queue pairs get a Worker: one processor is the data plane's. */
export function pairThreadsFor(pairs: number): number {
  const files = (softLimit("open files") - MIN_FILES) / PAIR_FILES;
  const memory = (memoryLimit() - MIN_MEMORY) / PAIR_MEMORY;
  const most = Math.min(MAX_PAIR_THREADS, navigator.hardwareConcurrency - 1, files, memory);
  return Math.max(0, Math.min(pairs, Math.floor(most)));
}

export function limitsProblem(): string | undefined {
  const files = softLimit("open files");
  if (files < MIN_FILES) {
    return `${MIN_FILES} open files are needed at least, the limit is ${files}: ulimit -n 1024`;
  }
  const memory = memoryLimit();
  if (memory < LEAST_MEMORY) {
    const has = (memory / MIB).toFixed(0);
    return `64 MiB of memory are needed at least, the control group has ${has}: give it 96 or more`;
  }
  if (softLimit("address space") > MIN_ADDRESS_SPACE) return undefined;
  return "more than 64 GiB of address space are needed, the limit is lower: ulimit -v unlimited";
}
