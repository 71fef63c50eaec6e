/**
 * Where the guest's memory lies in this machine's RAM.
 *
 * The other machine reads and writes our RAM by physical address, so each page's place has to be known and
 * must not change. A region of the guest's is pinned as a whole (a DMA mapping of VFIO: neither mlock nor
 * a lock on the file keeps a page in its place), then /proc/self/pagemap tells the frame of each page, once.
 * From then on a lookup is two array accesses, or in another region than the last one a search by halving.
 *
 * A region that goes is let go when the device side touches it no more. It said so if its queues were stopped; if
 * it did not answer, or is silent, or is gone as far as we know, it may still write, until its lease has run out,
 * and how long that takes by its own clock nobody knows: a machine that is paused goes on later. So from
 * {@link PhysicalMap.doubt} on regions that go stay pinned, until a device side introduces itself anew
 * ({@link PhysicalMap.trust}): one that is new has nothing yet, one that starts over has forgotten what it had.
 * Meanwhile no front end gets as far as its memory, so what is kept is one guest's.
 *
 * A proxy that is killed is survived by its pins, see src/linux/pin_holder.ts.
 *
 * Source: Linux Documentation/admin-guide/mm/pagemap.rst; vfio.rst.
 */

import type { Bus } from "../bus/bus.ts";
import { VmsgError } from "../linux/errors.ts";
import { fileIdentity } from "../linux/fd.ts";
import { PAGE_SIZE } from "../linux/mapping.ts";
import { type PhysicalRun, physicalRuns } from "../linux/page_map.ts";
import { firstBehind, type IovecList, loadAcquire16, memoryLimits } from "../memory/mod.ts";
import type { SharedRegion } from "./sharing.ts";

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
    /** The bytes of a file that it shows, the same for all who show them. */
    readonly file: unknown,
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

  /** Lets it go. */
  [Symbol.dispose](): void {
    this.#pin[Symbol.dispose]();
  }
}

/** Pieces of buffers by physical address, as descriptors hold them; reused for every buffer. */
export class PhysicalPieces {
  /** How many there are. */
  count = 0;
  /** Where each is. */
  readonly addresses: Float64Array;
  /** How long each is. */
  readonly lengths: Uint32Array;

  /**
   * Room for pieces.
   *
   * @param capacity the most pieces
   */
  constructor(readonly capacity: number) {
    this.addresses = new Float64Array(capacity);
    this.lengths = new Uint32Array(capacity);
  }
}

/** What a map needs of a bus. */
export type PinningBus = Pick<Bus, "pin" | "description">;

/** See the head of this file. */
export class PhysicalMap implements Disposable {
  readonly #regions = new Map<SharedRegion, PinnedRegion>();
  /** The same in ascending order. */
  #ascending: readonly PinnedRegion[] = [];
  /** Regions that went in doubt. */
  readonly #kept = new Set<PinnedRegion>();
  #inDoubt = false;
  #last: PinnedRegion | undefined;

  /**
   * Makes an empty map.
   *
   * @param bus what pins
   * @param locate tells where memory lies; the kernel, except in tests
   * @param limit bytes that may be pinned: a pinned page of a hole is allocated
   */
  constructor(
    readonly bus: PinningBus,
    readonly locate: typeof physicalRuns = physicalRuns,
    readonly limit: number = memoryLimits().pinned,
  ) {}

  /** Bytes that are pinned, also those that are only kept. A guest's cards show the same memory: it counts once. */
  get pinned(): number {
    let sum = 0;
    for (const { start, end } of this.#files.values()) sum += end - start;
    return sum;
  }

  get #files(): ReadonlyMap<unknown, PinnedRegion> {
    return new Map([...this.#regions.values(), ...this.#kept].map((one) => [one.file, one]));
  }

  /**
   * Pins all of the memory that a region lies in, and learns where it lies.
   *
   * @throws VmsgError PIN where nothing can pin, or ours or the limit of locked memory is reached
   */
  add(region: SharedRegion): void {
    if (this.#regions.has(region)) return;
    const { address } = region.memory;
    const size = Math.ceil(region.memory.size / PAGE_SIZE) * PAGE_SIZE;
    const { pinned, limit } = this;
    const file = bytesOfFile(region);
    if (!(pinned + size <= limit) && !this.#files.has(file)) {
      throw new VmsgError(
        "PIN",
        `direct mode would pin ${size} bytes of the guest's memory besides ${pinned}, at most ${limit} are: give ` +
          "--memory-limit pinned=, or --confined",
      );
    }
    const pin = this.bus.pin(address, size);
    if (pin === undefined) {
      throw new VmsgError(
        "PIN",
        `${this.bus.description}: the guest's memory cannot be pinned without vfio and an IOMMU: ` +
          "give --confined",
      );
    }
    try {
      // Pinned pages stay where they are, but when memory is short the kernel forgets that we had mapped them.
      const halves = new Uint16Array(region.memory.buffer, 0, region.memory.size >> 1);
      // A plain load whose value nobody uses may be optimized away.
      const touch = (offset: number) => void loadAcquire16(halves, offset / 2);
      const runs = this.locate(address, size, PAGE_SIZE, touch);
      this.#regions.set(region, new PinnedRegion(runs, address, size, pin, file));
      this.#sort();
    } catch (error) {
      pin[Symbol.dispose]();
      throw error;
    }
  }

  /** A region is used no more: lets it go, or keeps it while the device side may write to it. */
  remove(region: SharedRegion): void {
    const pinned = this.#regions.get(region);
    this.#regions.delete(region);
    this.#sort();
    if (pinned === undefined) return;
    if (this.#inDoubt) this.#kept.add(pinned);
    else pinned[Symbol.dispose]();
  }

  /** The device side may write to what is pinned now, although nothing is heard of it. */
  doubt(): void {
    this.#inDoubt = true;
  }

  /** A device side is there that knows of no memory of ours yet. */
  trust(): void {
    this.#inDoubt = false;
    for (const region of this.#kept) region[Symbol.dispose]();
    this.#kept.clear();
  }

  /** Whether the device side may write to something that is pinned, for all we know. */
  get inDoubt(): boolean {
    return this.#inDoubt && this.#kept.size + this.#regions.size > 0;
  }

  /** Lets everything go. */
  [Symbol.dispose](): void {
    this.trust();
    for (const region of this.#regions.values()) region[Symbol.dispose]();
    this.#regions.clear();
    this.#sort();
  }

  #sort(): void {
    this.#ascending = [...this.#regions.values()].sort((a, b) => a.start - b.start);
    this.#last = undefined;
  }

  /** The pieces that a region lies in; none if it is not here. */
  runsOf(region: SharedRegion): readonly PhysicalRun[] {
    return this.#regions.get(region)?.runs ?? [];
  }

  /**
   * Appends where a buffer's segments lie.
   *
   * @returns false if `into` has no room for them
   */
  translate(list: IovecList, into: PhysicalPieces): boolean {
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
    const region = this.#ascending[firstBehind(this.#ascending, address)];
    if (region !== undefined && address >= region.start) return region;
    // Segments come from the guest's memory table, whose regions are all here.
    throw new Error(`address 0x${address.toString(16)} is in no pinned region`);
  }
}

/** Equal for regions that lie in the same bytes of the same file, as all that lie in one huge page do. */
function bytesOfFile(region: SharedRegion): unknown {
  const { fd, fileOffset = 0, offset, memory } = region;
  return fd === undefined ? region : `${fileIdentity(fd)}:${fileOffset - offset}:${memory.size}`;
}
