/**
 * Writes that another thread waits for: a disk that is slow, or a pipe that nobody reads, does not hold up whoever
 * writes. The C library's thread does it (aio_write(3)), which runs no JavaScript; nobody is told when it is done: the
 * writer looks. A C library that does not have it within libc.so.6 (before glibc 2.34) writes at once.
 *
 * The bytes must stay as they are, and where they are, until the write is over.
 */

import { allocate } from "./arena.ts";
import { linuxErrno } from "./errors.ts";
import type { Fd } from "./fd.ts";
import { errno, libc } from "./libc.ts";

const EINPROGRESS = linuxErrno("EINPROGRESS");
const SIGEV_NONE = 1n;

/** See the head of this file. One write at a time. */
export class BackgroundWrite {
  // struct aiocb of glibc, 64 bits, in words of 64: fd, priority, buffer, count; sigevent from 4 on, with s32 notify in
  // the upper half of 5; its own from 12 on; offset 16
  readonly #control = allocate(168);
  readonly #words = new BigUint64Array(
    this.#control.bytes.buffer,
    this.#control.bytes.byteOffset,
    21,
  );
  #result: number | undefined;
  /** Is one under way whose end was not taken? */
  isWriting = false;

  /** Starts a write at `offset`, which a pipe does not have. */
  start(fd: Fd, address: bigint, size: number, offset: number): void {
    if (this.isWriting) throw new Error("a write is under way");
    this.isWriting = true;
    this.#words.fill(0n);
    this.#words.set([BigInt(fd.number), 0n, address, BigInt(size), 0n, SIGEV_NONE << 32n]);
    this.#words[16] = BigInt(offset);
    this.#result = undefined;
    if (libc.aio_write?.(this.#control.address) === 0) return;
    // A file is where the last write has left it.
    const count = libc.write(fd.number, address, size);
    this.#result = count < 0 ? -errno() : count;
  }

  /** How it ended, once: bytes that were written, or -errno; undefined while it goes on, or if there is none. */
  take(): number | undefined {
    if (!this.isWriting) return undefined;
    if (this.#result === undefined) {
      const { address } = this.#control;
      const state = libc.aio_error!(address);
      if (state === EINPROGRESS) return undefined;
      const count = libc.aio_return!(address);
      this.#result = state !== 0 ? -state : count;
    }
    this.isWriting = false;
    return this.#result;
  }
}
