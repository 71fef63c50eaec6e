/**
 * Writes that another thread waits for: a disk that is slow, or a pipe that nobody reads, does not hold up whoever
 * writes. The C library's thread does it (aio_write(3)), which runs no JavaScript; so it costs little, and nobody is
 * told when it is done: the writer looks. A C library that does not have it within libc.so.6 (before glibc 2.34) writes
 * at once.
 *
 * The bytes must stay as they are, and where they are, until the write is over.
 */

import { allocate } from "./arena.ts";
import { linuxErrno } from "./errors.ts";
import type { Fd } from "./fd.ts";
import { errno, libc } from "./libc.ts";

const EINPROGRESS = linuxErrno("EINPROGRESS");

// struct aiocb of glibc, 64 bits: s32 fd, s32 opcode, s32 priority, void *buffer @16, size_t count @24, struct sigevent
// @32 with s32 notify @44, its own @96, off_t offset @128
const AIOCB_SIZE = 168;
const SIGEV_NONE = 1;

/** How a write ended: bytes that were written, or an errno. */
export type Written = { readonly count: number } | { readonly errno: number };

/** See the head of this file. One write at a time. */
export class BackgroundWrite {
  readonly #control = allocate(AIOCB_SIZE);
  #result: Written | undefined;
  #isWriting = false;

  /** Starts a write at `offset`, which a pipe does not have. */
  start(fd: Fd, address: bigint, size: number, offset: number): void {
    if (this.#isWriting) throw new Error("a write is under way");
    this.#isWriting = true;
    this.#result = undefined;
    const { bytes, view } = this.#control;
    bytes.fill(0);
    view.setInt32(0, fd.number, true);
    view.setBigUint64(16, address, true);
    view.setBigUint64(24, BigInt(size), true);
    view.setInt32(44, SIGEV_NONE, true);
    view.setBigInt64(128, BigInt(offset), true);
    if (libc.aio_write !== null && libc.aio_write(this.#control.address) === 0) return;
    // Nobody has seeked: a file is where the last write has left it.
    const count = libc.write(fd.number, address, size);
    this.#result = count < 0 ? { errno: errno() } : { count };
  }

  /** How it ended, once; undefined while it goes on, or if there is none. */
  take(): Written | undefined {
    if (!this.#isWriting) return undefined;
    const { address } = this.#control;
    if (this.#result === undefined) {
      const state = libc.aio_error!(address);
      if (state === EINPROGRESS) return undefined;
      const count = libc.aio_return!(address);
      this.#result = state !== 0 ? { errno: state } : { count };
    }
    this.#isWriting = false;
    return this.#result;
  }

  /** Is one under way whose end was not taken? */
  get isWriting(): boolean {
    return this.#isWriting;
  }
}
