/**
 * Memory for the structures that are handed to the kernel: iovec, msghdr, sockaddr, epoll events.
 *
 * A JavaScript typed array may move or be collected while the kernel still holds its address; the
 * arena is one anonymous mapping per thread that never moves. Each module takes what it needs once, when it loads or when
 * a long-lived object is made, and keeps it. What ends before its thread, a device that is removed, gives
 * back what was taken while it was made ({@link noteBlocks}).
 */

import { mapAnonymous } from "./mapping.ts";

/** Only what is used takes memory. */
const ARENA_SIZE = 16 << 20;
const arena = mapAnonymous(ARENA_SIZE);
let used = 0;
/** Offsets of blocks that were given back, by size: whoever comes next is mostly of the same kind. */
const freed = new Map<number, number[]>();
let noted: TakenBlock[] | undefined;

/** Offset and size. */
export type TakenBlock = readonly [offset: number, size: number];

/** A block of the arena with the views its user needs. */
export interface Block {
  /** The address to hand to the kernel. */
  readonly address: bigint;
  /** The bytes. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** The same, for larger values. */
  readonly view: DataView<ArrayBuffer>;
}

/** Takes a zeroed block of `size` bytes, aligned to 16, for the life of the thread. */
export function allocate(size: number): Block {
  const room = (size + 15) & ~15;
  const offset = freed.get(room)?.pop() ?? used;
  if (offset === used) used += room;
  if (used > ARENA_SIZE) throw new Error(`the arena of ${ARENA_SIZE} bytes is full`);
  noted?.push([offset, room]);
  return {
    address: arena.address + BigInt(offset),
    bytes: new Uint8Array(arena.buffer, offset, size),
    view: new DataView(arena.buffer, offset, size),
  };
}

/** Notes the blocks that are taken while `work` runs; undefined for what outlives whatever else is being made. */
export function noteBlocks<T>(blocks: TakenBlock[] | undefined, work: () => T): T {
  const outer = noted;
  noted = blocks;
  try {
    return work();
  } finally {
    noted = outer;
  }
}

/** Gives blocks back that nobody uses any more. */
export function giveBack(blocks: readonly TakenBlock[]): void {
  for (const [offset, size] of blocks) {
    new Uint8Array(arena.buffer, offset, size).fill(0);
    const places = freed.get(size);
    if (places === undefined) freed.set(size, [offset]);
    else places.push(offset);
  }
}
