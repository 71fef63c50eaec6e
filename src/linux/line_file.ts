/**
 * Lines in a file that another thread writes (background_write.ts): a disk that is slow, full or gone holds nobody up.
 *
 * A line is copied into a buffer. It is given to be written at once if nothing was for {@link GATHER_MS}, else with those that
 * come until then, while the other buffer is filled. A write that fails, as on a full disk, is tried again, from where it
 * ended: there may be room later, and no line is cut off.
 *
 * The thread writes at an offset, and not where the open file is, which other threads and processes may move on. So the open file
 * is told to append (O_APPEND), which holds for them too, as after `2>>`: none overwrites what another wrote.
 */

import { BackgroundWrite } from "./background_write.ts";
import { pause } from "./clock.ts";
import { Fd } from "./fd.ts";
import { libc } from "./libc.ts";
import { mapAnonymous } from "./mapping.ts";
import type { Reactor } from "./reactor.ts";

const F_GETFL = 3;
const F_SETFL = 4;
const O_APPEND = 0o2000;
/** Of each of two; only what is used takes memory. */
const BUFFER_SIZE = 512 << 10;
/** As soon as that much waits it is given to be written. */
const EAGER_SIZE = 64 << 10;
const GATHER_MS = 5;
/** What failed is tried again after so long. */
const FAILED_MS = 200;
/** How long the last lines are waited for, at the end. */
const LAST_WAIT_MS = 1000;

/** Where lines go. */
export interface LineOutlet extends Disposable {
  /** How many bytes of these are taken, 0 for none at the moment; -1 if none ever will be. */
  take(bytes: Uint8Array, waitMs: number): number;
  /** Goes on with what was taken; how long until it is to be asked again, undefined if nothing is left. */
  goOn?(): number | undefined;
}

/** See the head of this file. */
export class LineFile implements LineOutlet {
  readonly #fd: Fd;
  readonly #buffers = [mapAnonymous(BUFFER_SIZE), mapAnonymous(BUFFER_SIZE)];
  readonly #bytes = this.#buffers.map(({ buffer }) => new Uint8Array(buffer));
  readonly #write = new BackgroundWrite();
  /** Which buffer is filled, and how far. */
  #filled = 0;
  #used = 0;
  /** Bytes of the other one, and those of it that are written. */
  #writing = 0;
  #done = 0;
  /** No write begins before. */
  #nextMs = -Infinity;
  #hasFailed = false;

  /** @param number an open file, the caller's */
  constructor(readonly reactor: Reactor, number: number) {
    this.#fd = new Fd(number);
    const flags = libc.fcntl(number, F_GETFL, 0n);
    libc.fcntl(number, F_SETFL, BigInt(flags | O_APPEND));
  }

  take(bytes: Uint8Array, waitMs: number): number {
    for (; this.#used === BUFFER_SIZE && waitMs > 0; waitMs -= GATHER_MS) {
      pause(GATHER_MS);
      this.goOn();
    }
    const count = Math.min(bytes.length, BUFFER_SIZE - this.#used);
    this.#bytes[this.#filled]!.set(bytes.subarray(0, count), this.#used);
    this.#used += count;
    return count;
  }

  goOn(): number | undefined {
    const count = this.#write.take() ?? 0;
    if (count < 0) {
      this.#hasFailed = true;
      this.#nextMs = this.reactor.now() + FAILED_MS;
    } else if (count > 0) {
      this.#hasFailed = false;
      this.#done += count;
      if (this.#done === this.#writing) this.#writing = this.#done = 0;
    }
    if (!this.#write.isWriting) this.#begin();
    if (this.#writing + this.#used === 0) return undefined;
    return this.#hasFailed ? FAILED_MS : GATHER_MS;
  }

  /** Begins a write, if there is something to be written and it is time. */
  #begin(): void {
    const isEager = !this.#hasFailed && (this.#writing > 0 || this.#used >= EAGER_SIZE);
    if (!isEager && this.reactor.now() < this.#nextMs) return;
    if (this.#writing === 0) {
      this.#writing = this.#used;
      this.#filled = 1 - this.#filled;
      this.#used = 0;
    }
    if (this.#writing === 0) return;
    const address = this.#buffers[1 - this.#filled]!.address + BigInt(this.#done);
    this.#nextMs = this.reactor.now() + GATHER_MS;
    this.#write.start(this.#fd, address, this.#writing - this.#done, 0);
  }

  [Symbol.dispose](): void {
    for (let waitedMs = 0; waitedMs < LAST_WAIT_MS; waitedMs += GATHER_MS) {
      // A write that failed before is tried once more, and no longer.
      const hadFailed = this.#hasFailed;
      if (waitedMs === 0) this.#nextMs = -Infinity;
      if (this.goOn() === undefined || (hadFailed && waitedMs > 0 && !this.#write.isWriting)) break;
      pause(GATHER_MS);
    }
    // What a thread still reads stays where it is.
    if (this.#write.isWriting) return;
    for (const buffer of this.#buffers) buffer[Symbol.dispose]();
  }
}
