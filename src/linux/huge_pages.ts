/**
 * Memory of this machine that another one can see: huge pages, and where they lie.
 *
 * The other machine reads and writes by physical address (an ivshmem function that shows our RAM), so
 * pages must not move and their addresses must be known. Huge pages of hugetlbfs are neither swapped nor
 * moved by compaction. A DMA mapping pins them besides, where there is vfio.
 *
 * Source: Linux Documentation/admin-guide/mm/hugetlbpage.rst; memfd_create(2).
 */

import { VmsgError } from "./errors.ts";
import { Fd, resizeFile } from "./fd.ts";
import { check, cString, libc } from "./libc.ts";
import { type Mapping, mapShared } from "./mapping.ts";
import { type PhysicalRun, physicalRuns } from "./page_map.ts";

/** The size of a huge page that is used. */
export const HUGE_PAGE_SIZE: number = 2 << 20;

const MFD_CLOEXEC = 1;
const MFD_HUGETLB = 4;
const MFD_HUGE_2MB = 21 << 26;

/** Mapped huge pages and their places. */
export interface HugePages extends Disposable {
  /** All of them. */
  readonly mapping: Mapping;
  /** In the order of the mapping; neighbours are joined. */
  readonly runs: readonly PhysicalRun[];
}

/**
 * Takes huge pages from the kernel's pool.
 *
 * @param size in bytes; rounded up to whole huge pages
 * @throws VmsgError HUGE_PAGES if the pool is too small, PAGEMAP without the right to see frames
 */
export function allocateHugePages(size: number): HugePages {
  const whole = Math.ceil(size / HUGE_PAGE_SIZE) * HUGE_PAGE_SIZE;
  using stack = new DisposableStack();
  const name = cString("vmsg-driver");
  const number = libc.memfd_create(name, MFD_CLOEXEC | MFD_HUGETLB | MFD_HUGE_2MB);
  using fd = new Fd(check(number, "memfd_create of huge pages"));
  resizeFile(fd, whole);
  const mapping = stack.use(mapHuge(fd, whole));
  // A page that was never touched has no frame. (The pool was reserved by mmap, so this is no SIGBUS.)
  const bytes = new DataView(mapping.buffer);
  for (let at = 0; at < whole; at += HUGE_PAGE_SIZE) bytes.setUint32(at, 0, true);
  const runs = physicalRuns(mapping.address, whole, HUGE_PAGE_SIZE);
  const owner = stack.move();
  return { mapping, runs, [Symbol.dispose]: () => owner.dispose() };
}

function mapHuge(fd: Fd, size: number): Mapping {
  try {
    return mapShared(fd.number, size);
  } catch (error) {
    if (!(error instanceof VmsgError) || error.code !== "ENOMEM") throw error;
    const pages = size / HUGE_PAGE_SIZE;
    throw new VmsgError(
      "HUGE_PAGES",
      `${pages} free huge pages of 2 MiB are needed: echo ${pages} > /proc/sys/vm/nr_hugepages, ` +
        `or boot with hugepages=${pages}`,
    );
  }
}
