/**
 * Lines on standard error that never hold the data plane up.
 *
 * A pipe that nobody reads and a terminal that was stopped (Ctrl-S) would block whoever writes. The mark that
 * prevents it, O_NONBLOCK, belongs to the open file description, which other processes may share; so the pipe
 * or terminal is opened once more where that is allowed, and asked before each write in any case: what poll(2)
 * calls writable takes PIPE_BUF bytes at once. A socket, as that of systemd's journal, is told with each write. A file
 * is always writable and yet may stand on a disk that is full, slow or gone: a thread of the C library writes it
 * (line_file.ts).
 *
 * What is not taken waits in a bounded buffer; beyond that, lines are dropped, and how many is said in their place.
 */

import { allocate } from "./arena.ts";
import { EAGAIN, EINTR } from "./errors.ts";
import { Fd, fileStatus, O_CLOEXEC } from "./fd.ts";
import { cString, errno, libc } from "./libc.ts";
import { LineFile, type LineOutlet } from "./line_file.ts";
import type { Reactor, Timer } from "./reactor.ts";
import { SEND_FLAGS } from "./unix_socket.ts";

const O_WRONLY = 1;
const O_NOCTTY = 0o400;
const O_NONBLOCK = 0o4000;
const POLLOUT = 4;
/** Written at once; Linux's PIPE_BUF. */
const PIECE = 4096;
/** Bytes that wait at most: a thousand lines. */
const MAX_WAITING = 1 << 16;
const RETRY_MS = 20;
/** How long the last lines are waited for, at the end. */
const LAST_WAIT_MS = 100;

const encoder = new TextEncoder();

/** What is counted of lines. */
export interface LineCounters {
  written: number;
  dropped: number;
}

/** See the head of this file. Dispose writes what is taken, soon. */
export class LineWriter implements Disposable {
  readonly #outlet: LineOutlet;
  readonly #retry: Timer;
  /** Lines, the first without what is written of it. */
  readonly #waiting: Uint8Array[] = [];
  #bytes = 0;
  #dropped = 0;

  /**
   * @param number the descriptor to write to; it stays the caller's
   * @param gap the line that says how many were dropped in its place
   */
  constructor(
    private readonly reactor: Reactor,
    number: number,
    private readonly gap = (count: number) =>
      `vmsg: ${count} lines were dropped here: nobody read what was written`,
    private readonly counters: LineCounters = { written: 0, dropped: 0 },
  ) {
    // Not an owner: it is only asked what it is.
    const { kind } = fileStatus(new Fd(number));
    this.#outlet = kind === "file"
      ? new LineFile(reactor, number)
      : new Stream(number, kind === "socket");
    this.#retry = reactor.timer(() => this.#drain());
  }

  /** Writes a line, or keeps it for later. */
  write(line: string): void {
    // Once full it stays so until half is gone: one gap, not one in front of each line.
    const limit = this.#dropped > 0 ? MAX_WAITING / 2 : MAX_WAITING;
    if (this.#bytes > limit) {
      this.#dropped++;
      this.counters.dropped++;
      return;
    }
    this.#tellDropped();
    this.counters.written++;
    this.#push(line);
    this.#drain();
  }

  #tellDropped(): void {
    if (this.#dropped === 0) return;
    this.#push(this.gap(this.#dropped));
    this.#dropped = 0;
  }

  #push(line: string): void {
    const bytes = encoder.encode(line + "\n");
    this.#waiting.push(bytes);
    this.#bytes += bytes.length;
  }

  #drain(waitMs = 0): void {
    while (this.#waiting.length > 0) {
      const first = this.#waiting[0]!;
      const taken = this.#outlet.take(first, waitMs);
      if (taken === 0) break;
      if (taken < 0) {
        // Nobody will ever read it; what is said there is not worth ending for.
        this.#waiting.length = this.#bytes = 0;
        return;
      }
      this.#bytes -= taken;
      if (taken === first.length) this.#waiting.shift();
      else this.#waiting[0] = first.subarray(taken);
    }
    if (this.#waiting.length === 0 && this.#dropped > 0) {
      this.#tellDropped();
      return this.#drain(waitMs);
    }
    const againMs = this.#outlet.goOn?.() ?? (this.#waiting.length > 0 ? RETRY_MS : undefined);
    if (againMs !== undefined && !this.#retry.armed) this.#retry.arm(againMs);
  }

  [Symbol.dispose](): void {
    this.#drain(LAST_WAIT_MS);
    this.reactor.dropTimer(this.#retry);
    this.#outlet[Symbol.dispose]();
  }
}

/** A pipe, a terminal or a socket. */
class Stream implements LineOutlet {
  readonly #target: number;
  readonly #opened: Fd | undefined;
  readonly #piece = allocate(PIECE);
  readonly #pollfd = allocate(8);

  constructor(number: number, readonly isSocket: boolean) {
    this.#opened = openAgain(number);
    this.#target = this.#opened?.number ?? number;
    this.#pollfd.view.setInt32(0, this.#target, true);
    this.#pollfd.view.setInt16(4, POLLOUT, true);
  }

  take(bytes: Uint8Array, waitMs: number): number {
    if (libc.poll(this.#pollfd.address, 1n, waitMs) <= 0) return 0;
    const piece = bytes.subarray(0, PIECE);
    this.#piece.bytes.set(piece);
    const { address } = this.#piece;
    const written = this.isSocket
      ? libc.send(this.#target, address, piece.length, SEND_FLAGS)
      : libc.write(this.#target, address, piece.length);
    if (written >= 0) return written;
    return errno() === EAGAIN || errno() === EINTR ? 0 : -1;
  }

  [Symbol.dispose](): void {
    this.#opened?.[Symbol.dispose]();
  }
}

/** Undefined where it is not allowed, and for a socket, which cannot be opened. */
function openAgain(number: number): Fd | undefined {
  const flags = O_WRONLY | O_NOCTTY | O_NONBLOCK | O_CLOEXEC;
  const opened = libc.open(cString(`/proc/self/fd/${number}`), flags, 0);
  return opened < 0 ? undefined : new Fd(opened);
}
