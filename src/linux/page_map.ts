/**
 * Where memory of this process lies physically, as /proc/self/pagemap tells: 64 bits a page, of which bit 63
 * says that it is present and bits 0 to 54 are its frame's number, shown to who has CAP_SYS_ADMIN only.
 *
 * Frames are worth knowing of pages that stay: huge pages, and pages that are pinned. A page that was never
 * touched has none; and a page of a file, pinned or not, loses its entry, not its frame, when memory is short, until
 * it is touched again.
 *
 * Source: Linux Documentation/admin-guide/mm/pagemap.rst.
 */

import { allocate } from "./arena.ts";
import { VmsgError } from "./errors.ts";
import { Fd, O_CLOEXEC } from "./fd.ts";
import { check, cString, lastError, libc } from "./libc.ts";
import { PAGE_SIZE } from "./mapping.ts";

const ENTRY_SIZE = 8;
/** Entries read at once. */
const ENTRIES = 512;
/** How often a page is touched that has no entry. */
const TOUCHES = 16;
/** In the upper half of an entry. */
const PRESENT_HIGH = 0x8000_0000;
const FRAME_HIGH = 0x007f_ffff;
const TWO_TO_32 = 0x1_0000_0000;

const entries = allocate(ENTRY_SIZE * ENTRIES);

/** A piece of memory that lies in one piece physically. */
export interface PhysicalRun {
  /** Of its first byte in the memory that was asked about. */
  readonly offset: number;
  /** The physical address of that byte. */
  readonly physical: number;
  /** In bytes. */
  readonly length: number;
}

/**
 * Where memory of this process lies, in the order of its addresses; neighbours are joined.
 *
 * @param address of the memory, a multiple of `step`
 * @param size in bytes, a multiple of `step`
 * @param step the size of its pages: each lies in one piece
 * @param touch touches the page at an offset, which has no entry; it is looked at again then
 * @throws VmsgError PAGEMAP if a page has no frame, or without the right to see it
 */
export function physicalRuns(
  address: bigint,
  size: number,
  step: number,
  touch?: (offset: number) => void,
): PhysicalRun[] {
  const number = libc.open(cString("/proc/self/pagemap"), O_CLOEXEC, 0);
  using pagemap = new Fd(check(number, "open /proc/self/pagemap"));
  const runs: { offset: number; physical: number; length: number }[] = [];
  // User-space addresses are below 2^47, so a Number holds them.
  const firstPage = Number(address) / PAGE_SIZE;
  let from = -ENTRIES;
  for (let offset = 0; offset < size; offset += step) {
    const page = offset / PAGE_SIZE;
    if (page >= from + ENTRIES) {
      from = page;
      readEntries(pagemap, firstPage + page);
    }
    for (let tries = 0; touch !== undefined && tries < TOUCHES; tries++) {
      if (isPresent(page - from)) break;
      touch(offset);
      from = page;
      readEntries(pagemap, firstPage + page);
    }
    const physical = frameAt(page - from) * PAGE_SIZE;
    const last = runs.at(-1);
    if (last !== undefined && last.physical + last.length === physical) last.length += step;
    else runs.push({ offset, physical, length: step });
  }
  return runs;
}

function readEntries(pagemap: Fd, page: number): void {
  entries.bytes.fill(0);
  const at = BigInt(page) * BigInt(ENTRY_SIZE);
  const read = libc.lseek(pagemap.number, at, 0) < 0n
    ? -1
    : libc.read(pagemap.number, entries.address, entries.bytes.length);
  if (read < 0) throw lastError("read /proc/self/pagemap");
}

function isPresent(index: number): boolean {
  return (entries.view.getUint32(index * ENTRY_SIZE + 4, true) & PRESENT_HIGH) !== 0;
}

function frameAt(index: number): number {
  const high = entries.view.getUint32(index * ENTRY_SIZE + 4, true);
  const low = entries.view.getUint32(index * ENTRY_SIZE, true);
  if (!isPresent(index)) {
    throw new VmsgError(
      "PAGEMAP",
      "a page of memory lies nowhere: it was never used, or is taken away",
    );
  }
  const frame = (high & FRAME_HIGH) * TWO_TO_32 + low;
  if (frame !== 0) return frame;
  throw new VmsgError(
    "PAGEMAP",
    "the kernel does not tell where pages lie: be root (CAP_SYS_ADMIN)",
  );
}
