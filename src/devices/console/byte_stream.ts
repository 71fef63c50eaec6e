/**
 * Bytes to and from a descriptor that may block (a terminal that others have too, whose mode is not ours to
 * change): it is asked before each call whether it is ready, and a write is no longer than what a pipe then has room for.
 */

import { allocate } from "../../linux/arena.ts";
import { EAGAIN, EINTR } from "../../linux/errors.ts";
import type { Fd } from "../../linux/fd.ts";
import { errno, libc } from "../../linux/libc.ts";
import { EPOLLIN, EPOLLOUT, type Reactor } from "../../linux/reactor.ts";
import type { IovecList } from "../../memory/mod.ts";

const POLLOUT = 0x004;
const POLLHUP = 0x010;
/** PIPE_BUF: a pipe that is ready takes as many. */
const piece = allocate(4096);
/** struct pollfd: s32 fd, s16 events @4, s16 revents @6 */
const pollBlock = allocate(8);

/** Is a descriptor ready for these events, or does it tell of them unasked? */
function isReady(fd: Fd, events: number): boolean {
  pollBlock.view.setInt32(0, fd.number, true);
  pollBlock.view.setInt16(4, events, true);
  return libc.poll(pollBlock.address, 1n, 0) > 0 &&
    (pollBlock.view.getInt16(6, true) & events) !== 0;
}

/** Has whoever is at the other end left? */
export function isHungUp(fd: Fd): boolean {
  return isReady(fd, POLLHUP);
}

/** What is told of a stream. */
export interface StreamEvents {
  /** {@link ByteStream.read} is worth a try. */
  readable(): void;
  /** {@link ByteStream.write} is. */
  writable(): void;
  /** Nothing comes any more. Whoever is told may dispose of the stream. */
  ended(): void;
}

/** See the head of this file. */
export class ByteStream implements Disposable {
  /** A file, or /dev/null, is always ready and cannot be watched; one that was hung up is, too. */
  #isWatched: boolean;
  #isReadable = false;
  #hasEnded = false;
  #awaitsRoom = false;

  /** Takes two descriptors, which must not be the same number. */
  constructor(
    readonly reactor: Reactor,
    readonly reader: Fd,
    readonly writer: Fd,
    readonly events: StreamEvents,
  ) {
    this.#isWatched = this.#watch(reader, EPOLLIN, () => {
      // Not told again before it was read: the guest may have no room. A hang-up is told all the same.
      if (this.#isReadable) this.#unwatch();
      else reactor.rewatch(reader, 0);
      this.#isReadable = true;
      events.readable();
    });
    this.#isReadable = !this.#isWatched;
    if (this.#isReadable) events.readable();
  }

  #watch(fd: Fd, events: number, ready: () => void): boolean {
    try {
      this.reactor.watch(fd, events, ready);
      return true;
    } catch {
      return false;
    }
  }

  #unwatch(): void {
    if (this.#isWatched) this.reactor.unwatch(this.reader);
    this.#isWatched = false;
  }

  /** Reads to the list; 0 if there is nothing yet, or any more. */
  read(list: IovecList): number {
    if (!this.#isReadable || this.#hasEnded) return 0;
    const count = libc.readv(this.reader.number, list.address, list.count);
    this.#isReadable = !this.#isWatched;
    if (count <= 0 && (count === 0 || errno() !== EAGAIN && errno() !== EINTR)) {
      this.#hasEnded = true;
      this.events.ended();
      return 0;
    }
    if (this.#isWatched) this.reactor.rewatch(this.reader, EPOLLIN);
    return Math.max(0, count);
  }

  /** Writes from the beginning of the list; how many bytes, 0 if there is no room at the moment. */
  write(list: IovecList): number {
    if (isReady(this.writer, POLLOUT)) {
      const length = list.copyOut(0, piece.address, piece.bytes.length);
      const count = libc.write(this.writer.number, piece.address, length);
      if (count > 0) return count;
      // Whoever reads is gone, which the reader's side tells: nobody misses what is written.
      if (errno() !== EAGAIN && errno() !== EINTR) return length;
    }
    this.#awaitRoom();
    return 0;
  }

  #awaitRoom(): void {
    if (this.#awaitsRoom) return;
    this.#awaitsRoom = this.#watch(this.writer, EPOLLOUT, () => {
      this.#stopAwaiting();
      this.events.writable();
    });
  }

  #stopAwaiting(): void {
    if (this.#awaitsRoom) this.reactor.unwatch(this.writer);
    this.#awaitsRoom = false;
  }

  [Symbol.dispose](): void {
    this.#hasEnded = true;
    this.#stopAwaiting();
    this.#unwatch();
    this.reader[Symbol.dispose]();
    this.writer[Symbol.dispose]();
  }
}
