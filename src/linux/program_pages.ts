/**
 * The pages of the program that starting up has touched: half of what a process of Deno has resident, and hardly
 * needed again. They are the kernel's copy of the file, and what is touched again is mapped again, without reading
 * anything, many pages at a time.
 *
 * Source: proc_pid_smaps(5), madvise(2).
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
