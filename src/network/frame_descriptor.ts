/**
 * A descriptor that reads and writes whole frames, one a system call: a TAP or a packet socket.
 *
 * Theory of operation. It is watched edge-triggered for both directions, once. `readable` is true from
 * an edge until a read says EAGAIN, so a guest without buffers costs no wake-ups, and there is always
 * either a frame to read or an edge to come. A write that says EAGAIN sets `blocked`; the next edge that
 * has EPOLLOUT clears it and calls `writable`.
 *
 * What the kernel refuses is lost, as on a cable, and counted: a frame whose header makes no sense
 * (EINVAL), one longer than allowed (EMSGSIZE), a queue that is full (ENOBUFS), a link that is down
 * (ENETDOWN, EIO), guest memory that is gone (EFAULT). Nothing throws, nothing is allocated.
 */

import { allocate } from "../linux/arena.ts";
import { EAGAIN, linuxErrno } from "../linux/errors.ts";
import type { Fd } from "../linux/fd.ts";
import { errno, libc } from "../linux/libc.ts";
import { EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, type Reactor } from "../linux/reactor.ts";
import { counterShape } from "../observe/counters.ts";
import type { PortListener } from "./port.ts";

const EFAULT = linuxErrno("EFAULT");
const EPOLLET = 0x8000_0000;
/** Reads that fail in a row, before others get their turn. */
const MAX_FAILURES = 8;
/** More frames than any queue of a TAP or a socket is likely to hold. */
const MAX_STALE = 4096;
/** Room for the beginning of a frame; the kernel drops what does not fit. */
const SCRATCH_SIZE = 64;

const scratch = allocate(SCRATCH_SIZE);

const FrameCounters = counterShape("sent", "received", "sendErrors", "receiveErrors", "stale");

/** See the head of this file. It borrows the descriptor. */
export class FrameDescriptor implements Disposable {
  /** A frame may be there to read. */
  readable = false;
  readonly counters: InstanceType<typeof FrameCounters>;
  #blocked = false;
  #listener: Pick<PortListener, "readable" | "writable"> | undefined;

  /** Takes a non-blocking descriptor, which stays the caller's, and the port's name for the counters. */
  constructor(readonly fd: Fd, readonly reactor: Reactor, name = "") {
    this.counters = new FrameCounters("port", name);
  }

  /** Starts, also again after it was disposed of: the descriptor is not closed by that. */
  open(listener: Pick<PortListener, "readable" | "writable">): void {
    this.#listener = listener;
    const events = EPOLLIN | EPOLLOUT | EPOLLET;
    this.reactor.watch(this.fd, events, (ready) => this.#ready(ready));
  }

  #ready(events: number): void {
    if ((events & (EPOLLIN | EPOLLERR | EPOLLHUP)) !== 0) {
      this.readable = true;
      this.#listener!.readable();
    }
    if (this.#blocked && (events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) !== 0) {
      this.#blocked = false;
      this.#listener!.writable();
    }
  }

  /** Writes one frame of `count` iovecs; false if there is no room now: the listener is told when there is. */
  write(iovecs: bigint, count: number): boolean {
    if (libc.writev(this.fd.number, iovecs, count) >= 0) {
      this.counters.sent++;
      return true;
    }
    if (errno() === EAGAIN) {
      this.#blocked = true;
      return false;
    }
    this.counters.sendErrors++;
    return true;
  }

  /**
   * Reads the next frame into `count` iovecs; its length, 0 if there is none: {@link readable} is false then,
   * unless the listener was told to come again.
   */
  read(iovecs: bigint, count: number): number {
    for (let failures = 0; failures < MAX_FAILURES; failures++) {
      const length = libc.readv(this.fd.number, iovecs, count);
      if (length > 0) {
        this.counters.received++;
        return length;
      }
      if (length === 0 || errno() === EAGAIN) {
        this.readable = false;
        return 0;
      }
      this.counters.receiveErrors++;
    }
    // Each EFAULT took a frame, so that comes to an end; what else fails this often waits for an edge.
    this.readable = errno() === EFAULT;
    if (this.readable) this.#listener?.readable();
    return 0;
  }

  /** Takes the next frame and forgets it. */
  discard(): void {
    if (libc.read(this.fd.number, scratch.address, SCRATCH_SIZE) < 0 && errno() === EAGAIN) {
      this.readable = false;
    }
  }

  /** Forgets all frames that wait: they were made for other features. */
  drain(): void {
    for (let i = 0; i < MAX_STALE; i++) {
      if (libc.read(this.fd.number, scratch.address, SCRATCH_SIZE) < 0) return;
      this.counters.stale++;
    }
  }

  [Symbol.dispose](): void {
    if (this.#listener !== undefined) this.reactor.unwatch(this.fd);
    this.#listener = undefined;
    this.readable = this.#blocked = false;
  }
}
