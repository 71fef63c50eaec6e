/** What this process may have: the limits that were set for it, getrlimit(2), and the memory that is left. */

import { allocate } from "./arena.ts";
import { check, cString, libc } from "./libc.ts";

/** asm-generic/resource.h, shared by x86-64 and arm64. */
const RESOURCES = { "file size": 1, "open files": 7, "address space": 9 } as const;

const rlimit = allocate(16);

/** What the kernel grants at present: bytes or a count; Infinity where there is no limit. */
export function softLimit(resource: keyof typeof RESOURCES): number {
  check(libc.getrlimit(RESOURCES[resource], rlimit.address), "getrlimit");
  const limit = rlimit.view.getBigUint64(0, true);
  return limit === 0xffff_ffff_ffff_ffffn ? Infinity : Number(limit);
}

const O_CLOEXEC = 0o2000000;
const text = allocate(1024);

/** Bytes that the kernel can still give without ending a process for it, by its own estimate; Infinity if unknown. */
export function availableMemory(): number {
  return bytesOf("MemAvailable");
}

/** Bytes of memory that this machine has; Infinity if unknown. */
export function totalMemory(): number {
  return bytesOf("MemTotal");
}

function bytesOf(what: string): number {
  const file = libc.open(cString("/proc/meminfo"), O_CLOEXEC, 0);
  if (file < 0) return Infinity;
  const length = libc.read(file, text.address, text.bytes.length);
  libc.close(file);
  const words = new TextDecoder().decode(text.bytes.slice(0, Math.max(0, length)));
  const kilobytes = new RegExp(`^${what}: +(\\d+) kB$`, "m").exec(words)?.[1];
  return kilobytes === undefined ? Infinity : Number(kilobytes) * 1024;
}
