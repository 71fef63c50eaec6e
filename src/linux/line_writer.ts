/**
 * Lines on standard error that never hold the data plane up.
 *
 * A pipe that nobody reads and a terminal that was stopped (Ctrl-S) would block whoever writes. The mark that
 * prevents it, O_NONBLOCK, belongs to the open file description, which other processes may share; so the pipe
 * or terminal is opened once more where that is allowed, and asked before each write in any case: what poll(2)
 * calls writable takes PIPE_BUF bytes at once. A socket, as that of systemd's journal, is told with each write. What
 * is not taken waits in a bounded buffer; beyond that, lines are dropped, and how many is said in their place.
 */

import { allocate } from "./arena.ts";
import { EAGAIN, EINTR } from "./errors.ts";
import { Fd, fileStatus, O_CLOEXEC } from "./fd.ts";
import { cString, errno, libc } from "./libc.ts";
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

/** See the head of this file. Dispose writes what is taken, soon. */
export class LineWriter implements Disposable {
  readonly #target: number;
  readonly #opened: Fd | undefined;
  readonly #isSocket: boolean;
  readonly #retry: Timer;
  readonly #piece = allocate(PIECE);
  readonly #pollfd = allocate(8);
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
  ) {
    // Not an owner: it is only asked what it is.
    const { kind } = fileStatus(new Fd(number));
    this.#isSocket = kind === "socket";
    // A file takes all at once, at a position of its own.
    this.#opened = kind === "file" ? undefined : openAgain(number);
    this.#target = this.#opened?.number ?? number;
    this.#pollfd.view.setInt32(0, this.#target, true);
    this.#pollfd.view.setInt16(4, POLLOUT, true);
    this.#retry = reactor.timer(() => this.#drain());
  }

  /** Writes a line, or keeps it for later. */
  write(line: string): void {
    // Once full it stays so until half is gone: one gap, not one in front of each line.
    const limit = this.#dropped > 0 ? MAX_WAITING / 2 : MAX_WAITING;
    if (this.#bytes > limit) {
      this.#dropped++;
      return;
    }
    this.#tellDropped();
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
    while (this.#waiting.length > 0 && this.#isWritable(waitMs)) {
      const first = this.#waiting[0]!;
      const piece = first.subarray(0, PIECE);
      this.#piece.bytes.set(piece);
      const { address } = this.#piece;
      const written = this.#isSocket
        ? libc.send(this.#target, address, piece.length, SEND_FLAGS)
        : libc.write(this.#target, address, piece.length);
      if (written < 0) {
        if (errno() === EAGAIN || errno() === EINTR) break;
        // Nobody will ever read it; what is said there is not worth ending for.
        this.#waiting.length = this.#bytes = 0;
        return;
      }
      this.#bytes -= written;
      if (written === first.length) this.#waiting.shift();
      else this.#waiting[0] = first.subarray(written);
    }
    if (this.#waiting.length > 0) this.#retry.arm(RETRY_MS);
    else if (this.#dropped > 0) {
      this.#tellDropped();
      this.#drain(waitMs);
    }
  }

  #isWritable(waitMs: number): boolean {
    return libc.poll(this.#pollfd.address, 1n, waitMs) > 0;
  }

  [Symbol.dispose](): void {
    this.#drain(LAST_WAIT_MS);
    this.reactor.dropTimer(this.#retry);
    this.#opened?.[Symbol.dispose]();
  }
}

/** Undefined where it is not allowed, and for a socket, which cannot be opened. */
function openAgain(number: number): Fd | undefined {
  const flags = O_WRONLY | O_NOCTTY | O_NONBLOCK | O_CLOEXEC;
  const opened = libc.open(cString(`/proc/self/fd/${number}`), flags, 0);
  return opened < 0 ? undefined : new Fd(opened);
}
