/**
 * How much memory others may have this process map.
 *
 * Whoever shows us memory says how large it is, and a file with holes costs its owner nothing. Us it costs address
 * space, which all share who are served here; and a page of a hole becomes memory when we are the first to touch it
 * (a buffer that a device fills or reads), which the kernel counts as ours. So there are limits, for each device
 * number and for the process, and they are looked at before anything is mapped. By default a guest may have as much
 * as this machine has: a real one has no more. What one that shows more than it has can make us allocate is bounded
 * by `size` alone.
 */

import { softLimit, totalMemory } from "../linux/limits.ts";

/** See the head of this file; in bytes but for the regions. */
export interface MemoryLimits {
  /** Of one device number. */
  readonly size: number;
  /** Of one device number: each is a descriptor and a mapping. */
  readonly regions: number;
  /** Of all device numbers together. */
  readonly total: number;
  /** In direct mode: of all device numbers, what is pinned, and so allocated whole. */
  readonly pinned: number;
}

/** A machine may lend its guests memory that it does not count as its own. */
const LEAST = 4 * 2 ** 30;

/** What is not given is by default. */
export function memoryLimits(given: Partial<MemoryLimits> = {}): MemoryLimits {
  const machine = totalMemory();
  const { size = Math.max(machine, LEAST) } = given;
  const total = Math.max(4 * machine, size);
  return { size, regions: 64, total, pinned: Math.floor(0.75 * machine), ...given };
}

/** What one process has mapped for others. */
export class MemoryQuota {
  #mapped = 0;
  #regions = 0;
  /** Of all device numbers: each keeps a descriptor open, and half of them are for all else. */
  readonly #maxRegions = softLimit("open files") / 2;

  /** Nothing is mapped yet. */
  constructor(readonly limits: MemoryLimits = memoryLimits()) {}

  /**
   * Why a device number cannot have regions of these sizes; undefined if it can.
   *
   * @param fresh those of them that are to be mapped
   */
  refusal(sizes: readonly number[], fresh: readonly number[]): string | undefined {
    const { size, regions, total } = this.limits;
    const sum = sumOf(sizes);
    if (sizes.length > regions) {
      return `${sizes.length} regions of memory, at most ${regions} are taken`;
    }
    if (!(sum <= size)) return `${sum} bytes of memory, at most ${size} are taken of one device`;
    const more = sumOf(fresh);
    if (!(this.#mapped + more <= total)) {
      return `${more} bytes of memory besides ${this.#mapped} of all devices, at most ${total} are taken`;
    }
    if (this.#regions + fresh.length <= this.#maxRegions) return undefined;
    return `more regions of memory than half of the open files that this process may have (ulimit -n)`;
  }

  /** A region of so many bytes was mapped. */
  mapped(bytes: number): void {
    this.#mapped += bytes;
    this.#regions++;
  }

  /** It was unmapped. */
  unmapped(bytes: number): void {
    this.#mapped -= bytes;
    this.#regions--;
  }
}

function sumOf(sizes: readonly number[]): number {
  return sizes.reduce((sum, size) => sum + size, 0);
}
