/**
 * What starting up leaves behind: pages of the program that it has touched, half of what a process of Deno has resident,
 * and free memory in the heaps of the C library, one for each thread, V8's compilers among them. Both are hardly needed
 * again. The pages are the kernel's copy of the file, and what is touched again is mapped again, without reading
 * anything, many pages at a time.
 *
 * Source: proc_pid_smaps(5), madvise(2), malloc_trim(3).
 */

import { libc } from "./libc.ts";
import { readText } from "./sysfs.ts";

const MADV_DONTNEED = 4;
/** Of a process with as many mappings as one has by then. */
const MAX_SMAPS = 1 << 20;

/**
 * Unmaps the pages of files that run or are read only, until they are touched. A mapping with a single page of its own,
 * such as one that the loader has filled in and locked, is left alone: it would lose that.
 */
export function forgetProgramPages(): void {
  const mapping = /^([\da-f]+)-([\da-f]+) r-.p .* \/.*\n(?:[A-Z].*\n)*?Anonymous: +0 kB$/gm;
  for (const [, from, to] of (readText("/proc/self/smaps", MAX_SMAPS) ?? "").matchAll(mapping)) {
    const start = BigInt(`0x${from}`);
    libc.madvise(start, BigInt(`0x${to}`) - start, MADV_DONTNEED);
  }
}

/** Gives free memory of all heaps back; in another thread, as it goes through them and locks one after the other. */
export async function trimHeaps(): Promise<void> {
  await libc.malloc_trim?.(0n);
}
