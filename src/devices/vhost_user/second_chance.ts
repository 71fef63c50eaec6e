/**
 * The buffers that a back end had when it died, as an available ring of ours for the next one.
 *
 * A back end takes buffers from where the used ring ends. If the dead one completed out of order, what is there in the
 * driver's available ring is not what is still to be done. So its successor is first given the driver's descriptors and used
 * ring with this available ring, in which just those buffers stand; when all of them have come back, it goes on with the
 * driver's own. (A request may be done a second time that was done and not told of: of a disk's that changes nothing.)
 */

import { createSealedMemory, type Fd } from "../../linux/fd.ts";
import { type Mapping, mapShared, PAGE_SIZE } from "../../linux/mapping.ts";
import type { MemoryRegion } from "../../memory/mod.ts";
import {
  AVAIL_HEADS,
  driverAreaSize,
  RING_INDEX,
  usedEventIndex,
} from "../../virtio/split/layout.ts";
import type { BackEnd } from "./back_end.ts";
import type { Ring } from "./ring.ts";

/** Bus addresses for such rings, far above all memory that there is; enough for each of the largest size. */
const FIRST = 2 ** 46;
const ROOM = 1 << 20;

/** One ring. */
class SecondChance implements Disposable {
  /** What the back end is shown besides the driver's memory; it begins with the ring. */
  readonly region: MemoryRegion;
  /** The used index when all have come back. */
  readonly end: number;
  readonly #fd: Fd;
  readonly #memory: Mapping;

  /**
   * Writes the ring.
   *
   * @param at a bus address where nothing of the driver's is
   */
  constructor(ring: Ring, heads: readonly number[], at: number) {
    const { setup: { size }, usedIndex } = ring;
    const bytes = Math.ceil(driverAreaSize(size) / PAGE_SIZE) * PAGE_SIZE;
    this.#fd = createSealedMemory("vmsg-ring", bytes);
    this.#memory = mapShared(this.#fd.number, bytes);
    const avail = new Uint16Array(this.#memory.buffer);
    heads.forEach((head, i) => avail[AVAIL_HEADS + ((usedIndex + i) & (size - 1))] = head);
    this.end = avail[RING_INDEX] = (usedIndex + heads.length) & 0xffff;
    // Calls when the last one is back.
    avail[usedEventIndex(size)] = (this.end - 1) & 0xffff;
    this.region = { at, size: bytes, memory: this.#memory, offset: 0, fd: this.#fd, fileOffset: 0 };
  }

  [Symbol.dispose](): void {
    this.#memory[Symbol.dispose]();
    this.#fd[Symbol.dispose]();
  }
}

/** Those of all rings of a device; what the back end that is there has been shown. */
export class SecondChances {
  readonly #all = new Map<number, SecondChance>();

  /** Of a queue. */
  get(index: number): SecondChance | undefined {
    return this.#all.get(index);
  }

  /** What a back end has to be shown of them. */
  get regions(): MemoryRegion[] {
    return [...this.#all.values()].map(({ region }) => region);
  }

  /**
   * Makes one for a ring that needs it.
   *
   * @param regions what a back end is shown besides
   * @param most how many regions it can be shown
   * @returns how many buffers are in it; undefined if it would be needed and cannot be made
   */
  find(ring: Ring, regions: readonly MemoryRegion[], most: number): number | undefined {
    const heads = ring.heldBack();
    if (heads === undefined) return undefined;
    if (ring.hasAsLast(heads)) return 0;
    const at = FIRST + ring.index * ROOM;
    const isTaken = regions.some((region) => region.at < at + ROOM && region.at + region.size > at);
    if (isTaken || regions.length >= most) return undefined;
    this.#all.set(ring.index, new SecondChance(ring, heads, at));
    return heads.length;
  }

  /** It has been taken. A back end that takes no single regions keeps it until it is shown all memory anew. */
  async forget(backEnd: BackEnd, index: number): Promise<void> {
    const chance = this.#all.get(index);
    if (chance === undefined) return;
    this.#all.delete(index);
    using _chance = chance;
    if (backEnd.takesRegions) await backEnd.removeRegion(chance.region);
  }

  /** There is no back end that has them. */
  clear(): void {
    for (const chance of this.#all.values()) chance[Symbol.dispose]();
    this.#all.clear();
  }
}
