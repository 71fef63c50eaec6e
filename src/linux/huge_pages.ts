/**
 * Memory of this machine that another one can see: huge pages, and where they lie.
 *
 * The other machine reads and writes by physical address (an ivshmem function that shows our RAM), so
 * pages must not move and their addresses must be known. Huge pages of hugetlbfs are neither swapped nor
 * moved by compaction, and /proc/self/pagemap tells the frame of each (which takes CAP_SYS_ADMIN). A DMA
 * mapping pins them besides, where there is vfio.
 *
 * Source: Linux Documentation/admin-guide/mm/pagemap.rst, hugetlbpage.rst; memfd_create(2).
 */

import { allocate } from "./arena.ts";
import { VmsgError } from "./errors.ts";
import { Fd, O_CLOEXEC, resizeFile } from "./fd.ts";
import { check, cString, lastError, libc } from "./libc.ts";
import { type Mapping, mapShared, PAGE_SIZE } from "./mapping.ts";

/** The size of a huge page that is used. */
export const HUGE_PAGE_SIZE: number = 2 << 20;

const MFD_CLOEXEC = 1;
const MFD_HUGETLB = 4;
const MFD_HUGE_2MB = 21 << 26;

/** Bits of a pagemap entry, of its upper 32 bits: present is bit 63, the frame number bits 0 to 54. */
const PRESENT_HIGH = 0x8000_0000;
const FRAME_HIGH = 0x007f_ffff;

const entry = allocate(8);

/** A piece of memory that lies in one piece physically. */
export interface PhysicalRun {
  /** Of its first byte in the mapping. */
  readonly offset: number;
  /** The physical address of that byte. */
  readonly physical: number;
  /** In bytes. */
  readonly length: number;
}

/** Mapped huge pages and their places. */
export interface HugePages extends Disposable {
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
  const runs = physicalRuns(mapping.address, whole);
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

/** Where memory of this process lies, huge page by huge page. */
function physicalRuns(address: bigint, size: number): PhysicalRun[] {
  const number = libc.open(cString("/proc/self/pagemap"), O_CLOEXEC, 0);
  using pagemap = new Fd(check(number, "open /proc/self/pagemap"));
  const runs: { offset: number; physical: number; length: number }[] = [];
  for (let offset = 0; offset < size; offset += HUGE_PAGE_SIZE) {
    const physical = frameOf(pagemap, Number(address) + offset) * PAGE_SIZE;
    const last = runs.at(-1);
    if (last !== undefined && last.physical + last.length === physical) {
      last.length += HUGE_PAGE_SIZE;
    } else {
      runs.push({ offset, physical, length: HUGE_PAGE_SIZE });
    }
  }
  return runs;
}

/** User-space addresses are below 2^47, so a Number holds them. */
function frameOf(pagemap: Fd, address: number): number {
  const at = BigInt(address / PAGE_SIZE) * 8n;
  if (libc.lseek(pagemap.number, at, 0) < 0n || libc.read(pagemap.number, entry.address, 8) !== 8) {
    throw lastError("read /proc/self/pagemap");
  }
  const high = entry.view.getUint32(4, true);
  const frame = (high & FRAME_HIGH) * 0x1_0000_0000 + entry.view.getUint32(0, true);
  if ((high & PRESENT_HIGH) === 0 || frame === 0) {
    throw new VmsgError(
      "PAGEMAP",
      "the kernel does not tell where pages lie: CAP_SYS_ADMIN is needed",
    );
  }
  return frame;
}
