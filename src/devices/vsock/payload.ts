/** The payload of a packet as iovecs for one system call: a buffer's segments without the header, and no longer than wanted. */

import { IOVEC_WORDS, IovecArray, type IovecList, LENGTH_WORD } from "../../memory/iovec_list.ts";
import { VsockHeader } from "../../virtio/vsock.ts";

/** Segments of a packet: Linux has one for each page of its 64 KiB. */
const MOST_SEGMENTS = 512;
const TWO_TO_32 = 0x1_0000_0000;

/** See the head of this file; reused for every packet. The list's own segments stay as they are. */
export class Payload {
  /** For readv and writev. */
  readonly address: bigint;
  count = 0;
  /** In bytes. */
  length = 0;
  readonly #words: Uint32Array;

  /** Takes its array from the arena, for good. */
  constructor() {
    const array = new IovecArray(MOST_SEGMENTS);
    this.address = array.address;
    this.#words = array.words;
  }

  /** Becomes what follows the header in `list`, at most `most` bytes of it. */
  select(list: IovecList, most: number): void {
    const words = this.#words;
    let skip: number = VsockHeader.SIZE, count = 0, length = 0;
    const segments = Math.min(list.count, MOST_SEGMENTS);
    for (let i = 0; i < segments && length < most; i++) {
      const word = count * IOVEC_WORDS;
      list.copyIovec(i, words, word);
      const size = words[word + LENGTH_WORD];
      if (skip >= size) {
        skip -= size;
        continue;
      }
      const low = words[word] + skip;
      words[word] = low;
      if (low >= TWO_TO_32) words[word + 1]++;
      const part = Math.min(size - skip, most - length);
      words[word + LENGTH_WORD] = part;
      length += part;
      skip = 0;
      count++;
    }
    this.count = count;
    this.length = length;
  }
}
