/**
 * Where the guest's memory lies in this machine's RAM.
 *
 * The other machine reads and writes our RAM by physical address, so each page's place has to be known and
 * must not change. A region of the guest's is pinned as a whole (a DMA mapping of VFIO: neither mlock nor
 * a lock on the file keeps a page in its place), then /proc/self/pagemap tells the frame of each page, once.
 * From then on a lookup is two array accesses.
 *
 * Source: Linux Documentation/admin-guide/mm/pagemap.rst; vfio.rst.
 */

import type { Bus } from "../../bus/bus.ts";
import { VmsgError } from "../../linux/errors.ts";
import { PAGE_SIZE } from "../../linux/mapping.ts";
import { type PhysicalRun, physicalRuns } from "../../linux/page_map.ts";
import type { SegmentList } from "../../memory/mod.ts";
import type { MappedRegion } from "../vhost_user/memory_table.ts";

/** A region that is pinned. */
class PinnedRegion implements Disposable {
  readonly start: number;
  readonly end: number;
  /** The physical address of each page, in bytes. */
  readonly pages: Float64Array;
  readonly #pin: Disposable;

  constructor(
    readonly runs: readonly PhysicalRun[],
    address: bigint,
    size: number,
    pin: Disposable,
  ) {
    this.start = Number(address);
    this.end = this.start + size;
    this.pages = new Float64Array(size / PAGE_SIZE);
    for (const { offset, physical, length } of runs) {
      for (let at = 0; at < length; at += PAGE_SIZE) {
        this.pages[(offset + at) / PAGE_SIZE] = physical + at;
      }
    }
    this.#pin = pin;
  }

  [Symbol.dispose](): void {
    this.#pin[Symbol.dispose]();
  }
}

/** Pieces of buffers by physical address, as descriptors hold them; reused for every buffer. */
export class PhysicalPieces {
  /** How many there are. */
  count = 0;
  readonly addresses: Float64Array;
  readonly lengths: Uint32Array;

  /** @param capacity the most pieces */
  constructor(readonly capacity: number) {
    this.addresses = new Float64Array(capacity);
    this.lengths = new Uint32Array(capacity);
  }
}

/** See the head of this file. */
export class PhysicalMap {
  readonly #regions = new Map<MappedRegion, PinnedRegion>();
  #last: PinnedRegion | undefined;

  constructor(readonly bus: Bus) {}

  /**
   * Pins a region and learns where it lies.
   *
   * @throws VmsgError PIN where nothing can pin, or the limit of locked memory is reached
   */
  add(region: MappedRegion): void {
    if (this.#regions.has(region)) return;
    const { address } = region.mapping;
    const size = Math.ceil(region.mapping.size / PAGE_SIZE) * PAGE_SIZE;
    const pin = this.bus.pin(address, size);
    if (pin === undefined) {
      throw new VmsgError(
        "PIN",
        `${this.bus.description}: the guest's memory cannot be pinned without vfio and an IOMMU: ` +
          "give --confined",
      );
    }
    try {
      const runs = physicalRuns(address, size, PAGE_SIZE);
      this.#regions.set(region, new PinnedRegion(runs, address, size, pin));
    } catch (error) {
      pin[Symbol.dispose]();
      throw error;
    }
  }

  /** Lets a region go; the device side must have let go before. */
  remove(region: MappedRegion): void {
    this.#regions.get(region)?.[Symbol.dispose]();
    this.#regions.delete(region);
    this.#last = undefined;
  }

  /** How many pieces a region lies in. */
  runsOf(region: MappedRegion): readonly PhysicalRun[] {
    return this.#regions.get(region)?.runs ?? [];
  }

  /**
   * Appends where a buffer's segments lie.
   *
   * @returns false if `into` has no room for them
   */
  translate(list: SegmentList, into: PhysicalPieces): boolean {
    const first = into.count;
    for (let i = 0; i < list.count; i++) {
      let address = list.addressOf(i);
      for (let left = list.lengthOf(i), part; left > 0; left -= part) {
        const offset = address % PAGE_SIZE;
        part = Math.min(left, PAGE_SIZE - offset);
        if (!this.#append(this.#frame(address) + offset, part, into, first)) return false;
        address += part;
      }
    }
    return true;
  }

  #append(physical: number, length: number, into: PhysicalPieces, first: number): boolean {
    const last = into.count - 1;
    if (last >= first && into.addresses[last] + into.lengths[last] === physical) {
      into.lengths[last] += length;
      return true;
    }
    if (into.count === into.capacity) return false;
    into.addresses[into.count] = physical;
    into.lengths[into.count] = length;
    into.count++;
    return true;
  }

  /** The physical address of the page that holds an address of this process. */
  #frame(address: number): number {
    let region = this.#last;
    if (region === undefined || address < region.start || address >= region.end) {
      region = this.#last = this.#find(address);
    }
    return region.pages[Math.floor((address - region.start) / PAGE_SIZE)];
  }

  #find(address: number): PinnedRegion {
    for (const region of this.#regions.values()) {
      if (address >= region.start && address < region.end) return region;
    }
    // Segments come from the guest's memory table, whose regions are all here.
    throw new Error(`address 0x${address.toString(16)} is in no pinned region`);
  }
}
