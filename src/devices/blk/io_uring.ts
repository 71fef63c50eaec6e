/**
 * An {@link Engine} by io_uring(7), through system calls.
 *
 * Two rings are shared with the kernel: entries of the submission queue say what is to be done, those of the
 * completion queue what it came to. A batch of a virtqueue is one io_uring_enter, which does at once what does not
 * wait (a read from the page cache); the rest is done in threads of the kernel's, and the ring's descriptor
 * becomes readable when there is something to be told. Other devices of this process never wait for a disk.
 *
 * There are as many entries as tags, and the completion queue has room for twice as many, so neither is ever full.
 * The kernel looks at the submission queue during the call only, by this very thread; it fills the completion queue
 * from others, so that its tail is read with order.
 */

import { allocate } from "../../linux/arena.ts";
import { EAGAIN, EINTR, linuxErrno } from "../../linux/errors.ts";
import { Fd } from "../../linux/fd.ts";
import { errno, lastError, libc } from "../../linux/libc.ts";
import { type Mapping, mapShared } from "../../linux/mapping.ts";
import { EPOLLIN, type Reactor, type Timer } from "../../linux/reactor.ts";
import { loadAcquire32, storeRelease32 } from "../../memory/atomics.ts";
import type { IovecList } from "../../memory/mod.ts";
import { type Done, type Engine, Operation } from "./engine.ts";

/** The same on x86-64 and arm64. */
const SYS_IO_URING_SETUP = 425n;
const SYS_IO_URING_ENTER = 426n;
const IORING_ENTER_GETEVENTS = 1;
const IORING_OFF_SQES = 0x1000_0000;
/** Both rings in one mapping, nothing is lost, and (5.7) all operations used here. */
const FEATURES = 1 | 2 | 1 << 5;
/** In threads from the beginning: what would be copied at once for longer than others should wait. */
const IOSQE_ASYNC = 1 << 4;
const MOST_AT_ONCE = 256 << 10;
const IORING_FSYNC_DATASYNC = 1;
const EBUSY = linuxErrno("EBUSY");
/** The kernel has no memory for more at the moment. */
const RETRY_MS = 5;

/**
 * struct io_uring_params: u32 sq_entries, cq_entries @4, features @20, then where each ring's words are: sq_off @40
 * {u32 head, tail, mask, entries, flags, dropped, array}, cq_off @80 {u32 head, tail, mask, entries, overflow, cqes}
 */
const params = allocate(120);
const SQ = 40, CQ = 80;

/** In words: an entry of the submission queue, and one of the completion queue (u64 tag, s32 result, u32 flags). */
const SQE_WORDS = 16;
const CQE_WORDS = 4;

/** Opens one for a file; undefined where the kernel, or a filter, gives none. */
export function openIoUring(
  reactor: Reactor,
  file: Fd,
  tags: number,
  done: Done,
): IoUring | undefined {
  params.bytes.fill(0);
  const number = libc.syscall(SYS_IO_URING_SETUP, BigInt(tags), params.address);
  if (number < 0) return undefined;
  const ring = new Fd(number);
  if ((params.view.getUint32(20, true) & FEATURES) === FEATURES) {
    return new IoUring(reactor, ring, file, done);
  }
  ring[Symbol.dispose]();
  return undefined;
}

/** See the head of this file. */
export class IoUring implements Engine {
  readonly name = "io_uring";
  readonly #rings: Mapping;
  readonly #entries: Mapping;
  readonly #words: Uint32Array;
  readonly #results: Int32Array;
  readonly #sqe: Uint32Array;
  readonly #addresses: BigUint64Array;
  readonly #sqTail: number;
  readonly #sqMask: number;
  readonly #cqHead: number;
  readonly #cqTail: number;
  readonly #cqMask: number;
  readonly #cqes: number;
  readonly #retry: Timer;
  #begun = 0;
  #underWay = 0;

  /** Use {@link openIoUring}. */
  constructor(
    readonly reactor: Reactor,
    readonly ring: Fd,
    readonly file: Fd,
    readonly done: Done,
  ) {
    const word = (at: number) => params.view.getUint32(at, true);
    const [sqEntries, cqEntries] = [word(0), word(4)];
    const [array, cqes] = [word(SQ + 24), word(CQ + 20)];
    const size = Math.max(array + 4 * sqEntries, cqes + 4 * CQE_WORDS * cqEntries);
    this.#rings = mapShared(ring.number, size);
    this.#entries = mapShared(ring.number, 4 * SQE_WORDS * sqEntries, IORING_OFF_SQES);
    const words = this.#words = new Uint32Array(this.#rings.buffer, 0, size >> 2);
    this.#results = new Int32Array(this.#rings.buffer, 0, size >> 2);
    this.#sqe = new Uint32Array(this.#entries.buffer);
    this.#addresses = new BigUint64Array(this.#entries.buffer);
    this.#sqTail = word(SQ + 4) >> 2;
    this.#sqMask = words[word(SQ + 8) >> 2]!;
    this.#cqHead = word(CQ) >> 2;
    this.#cqTail = word(CQ + 4) >> 2;
    this.#cqMask = words[word(CQ + 8) >> 2]!;
    this.#cqes = cqes >> 2;
    // Entries are used in their order.
    for (let i = 0; i < sqEntries; i++) words[(array >> 2) + i] = i;
    this.#retry = reactor.timer(() => this.submit());
    reactor.watch(ring, EPOLLIN, () => {
      this.#reap();
      this.submit();
    });
  }

  transfer(tag: number, operation: number, list: IovecList, offset: number): void {
    const flags = list.length > MOST_AT_ONCE ? IOSQE_ASYNC : 0;
    this.#begin(tag, operation | flags << 8, offset, list.address, list.count, 0);
  }

  flush(tag: number): void {
    this.#begin(tag, Operation.FLUSH, 0, 0n, 0, IORING_FSYNC_DATASYNC);
  }

  allocate(tag: number, mode: number, offset: number, length: number): void {
    this.#begin(tag, Operation.ALLOCATE, offset, BigInt(length), mode, 0);
  }

  #begin(
    tag: number,
    operation: number,
    offset: number,
    address: bigint,
    length: number,
    flags: number,
  ): void {
    const tail = this.#words[this.#sqTail]!;
    const at = (tail & this.#sqMask) * SQE_WORDS;
    const sqe = this.#sqe;
    sqe[at] = operation;
    sqe[at + 1] = this.file.number;
    sqe[at + 2] = offset;
    sqe[at + 3] = offset / 0x1_0000_0000;
    this.#addresses[(at >> 1) + 2] = address;
    sqe[at + 6] = length;
    sqe[at + 7] = flags;
    sqe[at + 8] = tag;
    // The rest of an entry is 0 for good.
    storeRelease32(this.#words, this.#sqTail, tail + 1);
    this.#begun++;
  }

  submit(): void {
    while (this.#begun > 0) {
      const taken = this.#enter(this.#begun, 0);
      if (taken < 0) {
        const reason = errno();
        if (reason === EINTR) continue;
        if (reason !== EAGAIN && reason !== EBUSY) throw lastError("io_uring_enter");
        return this.#retry.arm(RETRY_MS);
      }
      this.#begun -= taken;
      this.#underWay += taken;
      this.#reap();
    }
  }

  #enter(begun: number, wanted: number): number {
    const flags = wanted > 0 ? IORING_ENTER_GETEVENTS : 0;
    return libc.io_uring_enter(
      SYS_IO_URING_ENTER,
      this.ring.number,
      begun,
      wanted,
      flags,
      0n,
      0n,
    );
  }

  /** Takes out what is done. Whoever is told may begin more. */
  #reap(): void {
    const words = this.#words, mask = this.#cqMask;
    let head = words[this.#cqHead]!;
    const tail = loadAcquire32(words, this.#cqTail);
    if (head === tail) return;
    while (head !== tail) {
      const at = this.#cqes + (head & mask) * CQE_WORDS;
      head = (head + 1) >>> 0;
      this.#underWay--;
      this.done(words[at]!, this.#results[at + 2]!);
    }
    storeRelease32(words, this.#cqHead, head);
  }

  drain(): void {
    while (this.#begun + this.#underWay > 0) {
      this.submit();
      if (this.#underWay > 0 && this.#enter(0, 1) < 0 && errno() !== EINTR) {
        throw lastError("io_uring_enter");
      }
      this.#reap();
    }
  }

  /** Closes it when nothing is under way. */
  [Symbol.dispose](): void {
    this.drain();
    this.reactor.dropTimer(this.#retry);
    this.reactor.unwatch(this.ring);
    this.#entries[Symbol.dispose]();
    this.#rings[Symbol.dispose]();
    this.ring[Symbol.dispose]();
  }
}
