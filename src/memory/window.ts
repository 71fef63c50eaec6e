/**
 * Mapped memory, and a window onto it: the bytes that a range of bus addresses stands for.
 *
 * A window is made once per mapping and keeps everything that the data path needs of it, in the forms in
 * which it is needed: whole addresses, and halves of 32 bits, which compiled code keeps in registers.
 */

import type { OpenFile } from "../linux/mapping.ts";

/** The first number that needs more than 32 bits. */
const TWO_TO_32 = 0x1_0000_0000;

/** Something mapped, as src/linux makes it: an address and a buffer over the same bytes. */
export interface MappedMemory {
  /** The virtual address of byte 0, for system calls. */
  readonly address: bigint;
  /** The bytes, from byte 0 on. */
  readonly buffer: ArrayBuffer;
  /** How many bytes there are. */
  readonly size: number;
  /** What is mapped, where that is kept open to have pieces mapped again. */
  readonly file?: OpenFile | undefined;
}

/** The bus addresses [at, at + size) and the mapped bytes behind them. */
export class MemoryWindow {
  /** The end of the window, not part of it. */
  readonly end: number;
  /** This process's address of the first byte, for system calls. */
  readonly address: bigint;
  /** The same as a Number: user-space addresses are below 2^47. */
  readonly addressNumber: number;
  /** The upper 32 bits of it, for iovecs. */
  readonly addressHigh: number;
  /** The lower 32 bits of it. */
  readonly addressLow: number;
  /** The upper half of {@link at}, everything from bit 32 on. */
  readonly atHigh: number;
  /** The lower 32 bits of {@link at}. */
  readonly atLow: number;
  /** How many bytes, less than 2^32, have that upper half: from the first one on. */
  readonly lowSize: number;
  /** {@link end} counted from the 4 GiB in which the window begins; may be more than 2^32. */
  readonly endLow: number;
  /** The mapping's buffer. */
  readonly buffer: ArrayBuffer;
  /** Where the window starts in {@link buffer}. */
  readonly byteOffset: number;
  /** The window's bytes; DataView stays fast beyond 2 GiB where typed arrays do not. */
  readonly view: DataView;
  #words: Uint32Array | undefined;

  /**
   * Makes a window; {@link AddressSpace.add} checks its arguments first.
   *
   * @param at first bus address
   * @param size in bytes
   * @param memory what the window shows
   * @param offset of the window's first byte in `memory`
   */
  constructor(readonly at: number, readonly size: number, memory: MappedMemory, offset: number) {
    this.end = at + size;
    this.address = memory.address + BigInt(offset);
    this.addressNumber = Number(this.address);
    this.addressHigh = Math.floor(this.addressNumber / TWO_TO_32);
    this.addressLow = this.addressNumber % TWO_TO_32;
    this.atHigh = Math.floor(at / TWO_TO_32);
    this.atLow = at % TWO_TO_32;
    this.lowSize = Math.min(size, TWO_TO_32 - this.atLow, TWO_TO_32 - 1);
    this.endLow = this.end - this.atHigh * TWO_TO_32;
    this.buffer = memory.buffer;
    this.byteOffset = offset;
    this.view = new DataView(memory.buffer, offset, size);
  }

  /** The first {@link lowSize} of them in words, where the mapping's bytes are aligned so; made when first wanted. */
  get words(): Uint32Array | undefined {
    if (this.byteOffset % 4 !== 0) return undefined;
    return this.#words ??= new Uint32Array(this.buffer, this.byteOffset, this.lowSize >>> 2);
  }
}
