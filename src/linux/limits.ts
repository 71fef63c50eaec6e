/** The limits that were set for this process, getrlimit(2). */

import { allocate } from "./arena.ts";
import { check, libc } from "./libc.ts";

/** asm-generic/resource.h, shared by x86-64 and arm64. */
const RESOURCES = { "file size": 1, "open files": 7, "address space": 9 } as const;

const rlimit = allocate(16);

/** What the kernel grants at present: bytes or a count; Infinity where there is no limit. */
export function softLimit(resource: keyof typeof RESOURCES): number {
  check(libc.getrlimit(RESOURCES[resource], rlimit.address), "getrlimit");
  const limit = rlimit.view.getBigUint64(0, true);
  return limit === 0xffff_ffff_ffff_ffffn ? Infinity : Number(limit);
}
