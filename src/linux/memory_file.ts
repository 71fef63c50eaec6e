/**
 * Memory that a peer sends as a file: which files are taken, and how they are mapped.
 *
 *     sealed    only what can no longer shrink: memfds of QEMU's memory-backend-memfd
 *     memory    the default: any memfd, and files on tmpfs, hugetlbfs and disks. Should one be cut off,
 *               memory_guard.ts has this process live on
 *     any       other files too. A page of theirs is read when it is touched, from another machine or a FUSE process
 *               that may never answer, and everything in this process waits meanwhile
 *
 * A mapping of huge pages begins and ends with one, whatever piece of it is wanted, or munmap refuses.
 */

import { allocate } from "./arena.ts";
import { VmsgError } from "./errors.ts";
import { F_SEAL_SHRINK, type Fd, fileSeals, fileSize } from "./fd.ts";
import { check, libc } from "./libc.ts";
import { type Mapping, mapShared, PAGE_SIZE } from "./mapping.ts";
import { describeFd, kindOf } from "./received_fd.ts";

/** Which files are taken, see the head of this file. */
export type MemoryFiles = "sealed" | "memory" | "any";
/** All there are. */
export const MEMORY_FILES: readonly MemoryFiles[] = ["sealed", "memory", "any"];

let taken: MemoryFiles = "memory";
let whenUnsealed: (() => void) | undefined;

/**
 * Says what this thread takes from here on.
 *
 * @param unsealed called the first time that a file comes which can be cut off
 */
export function takeMemoryFiles(which: MemoryFiles, unsealed?: () => void): void {
  taken = which;
  whenUnsealed = unsealed;
}

/** A mapped part of a file. */
export interface MappedPart {
  readonly memory: Mapping;
  /** Where in it the part begins. */
  readonly offset: number;
  /** Bytes of the part. */
  readonly size: number;
}

/**
 * Maps part of a file, or all of it.
 *
 * @throws VmsgError MEMORY_KIND, LinuxError, RangeError in words
 */
export function mapMemoryFile(fd: Fd, from = 0, length?: number): MappedPart {
  assertMemoryFile(fd);
  const whole = fileSize(fd);
  const size = length ?? whole - from;
  // Beyond the end of the file every access would be a SIGBUS.
  if (!(from >= 0 && size > 0 && from + size <= whole)) {
    throw new RangeError("region larger than its file");
  }
  const huge = hugePageSize(fd);
  const offset = from % (huge ?? PAGE_SIZE);
  const room = huge === undefined ? offset + size : Math.ceil((offset + size) / huge) * huge;
  return { memory: mapShared(fd.number, room, from - offset), offset, size };
}

/** Looks at a file that may not even answer what size it has; throws VmsgError MEMORY_KIND if it is not taken. */
export function assertMemoryFile(fd: Fd): void {
  if (taken !== "any" && kindOf(fd) !== "memory") {
    throw new VmsgError(
      "MEMORY_KIND",
      `the memory is no memfd and no file on tmpfs, hugetlbfs or a disk, but ${describeFd(fd)} ` +
        "(--memory-files any takes it)",
    );
  }
  if (taken !== "sealed" && whenUnsealed === undefined) return;
  if (((fileSeals(fd) ?? 0) & F_SEAL_SHRINK) !== 0) return;
  if (taken === "sealed") {
    throw new VmsgError(
      "MEMORY_KIND",
      "the memory can be cut off: --memory-files sealed wants seals",
    );
  }
  whenUnsealed?.();
  whenUnsealed = undefined;
}

const HUGETLBFS_MAGIC = 0x958458f6n;
// struct statfs: s64 type, s64 block size; 120 bytes
const statfs = allocate(128);

/** Of a file on hugetlbfs. */
function hugePageSize(fd: Fd): number | undefined {
  check(libc.fstatfs(fd.number, statfs.address), `fstatfs fd ${fd.number}`);
  const isHuge = statfs.view.getBigUint64(0, true) === HUGETLBFS_MAGIC;
  return isHuge ? Number(statfs.view.getBigInt64(8, true)) : undefined;
}
