/**
 * A frame's segments with another header in place of its virtio-net header: as iovecs for one system
 * call, so that the payload stays where it is.
 *
 *     the frame's segments   [virtio-net header 12 | frame ... ] [ ... ]
 *     what is made of them   [prefix] [0, or what follows byte 12] [ ... ] [suffix]
 *
 * The iovec array of the segments is copied behind the prefix's entry and its first 12 bytes are cut off;
 * segments that lie wholly in them become empty, which the kernel skips. The suffix, if wanted, is some
 * scratch memory of our own: a read that reaches it has met a frame longer than the room.
 */

import { NET_HEADER_SIZE } from "../virtio/net_header.ts";
import { allocate, type Block } from "../linux/arena.ts";
import { libc } from "../linux/libc.ts";
import type { IovecList } from "../memory/mod.ts";

const IOVEC_SIZE = 16;
/** IOV_MAX, of which the prefix and the suffix take two. */
const MAX_SEGMENTS = 1022;
const SUFFIX_SIZE = 64;

/** See the head of this file; reused for every frame. */
export class PrefixedSegments {
  readonly prefix: Block;
  readonly address: bigint;
  readonly #iovecs: DataView;
  readonly #suffix: Block;

  /**
   * Takes its arrays from the arena, for good.
   *
   * @param prefixSize bytes of the prefix
   * @param copied how many of them stand for the bytes behind the virtio-net header, which are then left out
   */
  constructor(prefixSize: number, private readonly copied = 0) {
    this.prefix = allocate(prefixSize);
    this.#suffix = allocate(SUFFIX_SIZE);
    const block = allocate(IOVEC_SIZE * (MAX_SEGMENTS + 2));
    this.address = block.address;
    this.#iovecs = block.view;
    this.#put(0, this.prefix.address, prefixSize);
  }

  #put(index: number, address: bigint, length: number): void {
    this.#iovecs.setBigUint64(index * IOVEC_SIZE, address, true);
    this.#iovecs.setUint32(index * IOVEC_SIZE + 8, length, true);
    this.#iovecs.setUint32(index * IOVEC_SIZE + 12, 0, true);
  }

  /**
   * Makes the array of a frame of at least 12 bytes that begins with segment `first`.
   *
   * @returns how many iovecs there are, or 0 for a frame in too many pieces
   */
  assemble(frame: IovecList, first: number): number {
    const count = frame.count - first;
    if (count > MAX_SEGMENTS) return 0;
    libc.memcpy(this.address + BigInt(IOVEC_SIZE), frame.addressFrom(first), count * IOVEC_SIZE);
    const iovecs = this.#iovecs;
    let skip = NET_HEADER_SIZE + this.copied;
    for (let i = 1; skip > 0 && i <= count; i++) {
      const at = i * IOVEC_SIZE;
      const length = iovecs.getUint32(at + 8, true);
      const part = length < skip ? length : skip;
      // Two halves with a carry: the address is a 64-bit number.
      const low = iovecs.getUint32(at, true) + part;
      iovecs.setUint32(at, low >>> 0, true);
      if (low > 0xffff_ffff) iovecs.setUint32(at + 4, iovecs.getUint32(at + 4, true) + 1, true);
      iovecs.setUint32(at + 8, length - part, true);
      skip -= part;
    }
    return count + 1;
  }

  assembleWithSuffix(frame: IovecList, first: number): number {
    const count = this.assemble(frame, first);
    if (count === 0) return 0;
    this.#put(count, this.#suffix.address, SUFFIX_SIZE);
    return count + 1;
  }
}
