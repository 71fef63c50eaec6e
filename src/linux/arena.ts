/**
 * Memory for the structures that are handed to the kernel: iovec, msghdr, sockaddr, epoll events.
 *
 * A JavaScript typed array may move or be collected while the kernel still holds its address; the
 * arena is one anonymous mapping per thread that never moves. Blocks are never freed: each module
 * takes what it needs once, when it loads or when a long-lived object is made.
 */

import { mapAnonymous } from "./mapping.ts";

/** Only what is used takes memory. */
const ARENA_SIZE = 16 << 20;
const arena = mapAnonymous(ARENA_SIZE);
let used = 0;

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
  const offset = used;
  used += (size + 15) & ~15;
  if (used > ARENA_SIZE) throw new Error(`the arena of ${ARENA_SIZE} bytes is full`);
  return {
    address: arena.address + BigInt(offset),
    bytes: new Uint8Array(arena.buffer, offset, size),
    view: new DataView(arena.buffer, offset, size),
  };
}
