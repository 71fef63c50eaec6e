/**
 * User-mode networking by the program passt (https://passt.top), which needs no privilege: the guest's
 * connections become sockets of this user on the host.
 *
 * Theory of operation. passt speaks Ethernet frames on a Unix stream socket, each preceded by its length
 * as a 32-bit big-endian number, without a virtio-net header; so there are no offloads. The headers of a frame
 * that is sent are copied and judged (loopback_frame.ts), so that the guest cannot change them afterwards; the rest
 * goes from the guest's pages by the same sendmsg; what the socket did not take is copied and goes first next time.
 * Received bytes are collected in a buffer, from which whole frames are copied; the buffer is filled only while the
 * guest takes frames, so passt feels it when it does not.
 *
 *     connected --end of file, or a length no frame has--> down --attached by path: every second--> connected
 *               --end of file, started here--> down, until it is started again: after 1 s, then 2, ... 30 s
 *
 * passt is attached to where it listens, or started here (passt_process.ts). By itself it gives the guest the host's
 * loopback at the gateway's address; one that is started here does so only where it is wanted.
 */

import { NET_HEADER_SIZE, NUM_BUFFERS_OFFSET } from "../virtio/net_header.ts";
import { allocate } from "../linux/arena.ts";
import { UsageError, VmsgError } from "../linux/errors.ts";
import { libc } from "../linux/libc.ts";
import { mapAnonymous, type Mapping } from "../linux/mapping.ts";
import { startProgramsLater } from "../linux/programs.ts";
import {
  EPOLLERR,
  EPOLLHUP,
  EPOLLIN,
  EPOLLOUT,
  type Reactor,
  type Timer,
} from "../linux/reactor.ts";
import { connectUnix, SEND_FLAGS, type UnixStream } from "../linux/unix_socket.ts";
import type { IovecList } from "../memory/mod.ts";
import { counterShape } from "../observe/counters.ts";
import type { Log } from "../observe/log.ts";
import { PasstProcess } from "./passt_process.ts";
import { HEADERS_SIZE, isForLoopback } from "./loopback_frame.ts";
import type { NetworkPort, PortListener } from "./port.ts";
import { PrefixedSegments } from "./prefixed_segments.ts";

export interface PasstOptions {
  /** The socket on which a passt listens that somebody else started; without it one is started here. */
  readonly socket?: string;
  /** Whether the guest reaches what listens on the host's loopback; false by default. */
  readonly loopback?: boolean;
  /** More arguments for the one that is started, e.g. `["--tcp-ports", "2222:22"]`. */
  readonly args?: readonly string[];
}

const LENGTH_SIZE = 4;
const MIN_FRAME = 14;
/** passt sends datagrams whole: 64 KiB and headers, as QEMU allows. */
const MAX_FRAME = 65536 + 4096;
const BUFFER_SIZE = 256 << 10;
const RECONNECT_MS = 1000;
/** Pauses before it is started again: each is twice the one before, until one has run for longer than the longest. */
const PAUSE_MS = 1000;
const MAX_PAUSE_MS = 30_000;
/** How long the process of an ended connection may take to end. */
const END_MS = 1000;
const END_POLL_MS = 5;
const EPOLLET = 0x8000_0000;

const PasstCounters = counterShape("sent", "received", "lost", "disconnects");

/** See the head of this file. */
export class PasstPort implements NetworkPort {
  readonly features: readonly number[] = [];
  /** The process that was started here, the latest. */
  process: PasstProcess | undefined;
  readonly #args: readonly string[];
  /** When it was started, and how long it is waited before the next start. */
  #startedMs = 0;
  #pauseMs = PAUSE_MS;
  readonly counters: InstanceType<typeof PasstCounters>;
  readonly #path: string | undefined;
  readonly #log: Log;
  readonly #out = new PrefixedSegments(LENGTH_SIZE + HEADERS_SIZE, HEADERS_SIZE);
  readonly #headers = this.#out.prefix.address + BigInt(LENGTH_SIZE);
  readonly #headersView = new DataView(
    this.#out.prefix.bytes.buffer,
    this.#out.prefix.bytes.byteOffset + LENGTH_SIZE,
  );
  readonly #loopback: boolean;
  readonly #buffer: Mapping = mapAnonymous(BUFFER_SIZE);
  readonly #bytes: Uint8Array = new Uint8Array(this.#buffer.buffer);
  readonly #view: DataView = new DataView(this.#buffer.buffer);
  /** What a full socket left of a frame: bytes [restAt, restEnd). */
  readonly #rest: Mapping = mapAnonymous(LENGTH_SIZE + MAX_FRAME);
  // struct msghdr: name @0, namelen @8, iov @16, iovlen @24, control @32, controllen @40, flags @48
  readonly #message = allocate(56);
  readonly #header = allocate(NET_HEADER_SIZE);
  readonly #retry: Timer;
  #stream: UnixStream | undefined;
  #listener: PortListener | undefined;
  #restAt = 0;
  #restEnd = 0;
  #blocked = false;
  #readable = false;
  #isDisposed = false;
  /** Received bytes not taken yet: [begin, end). */
  #begin = 0;
  #end = 0;

  /**
   * Starts passt or connects to it.
   *
   * @throws VmsgError with a line for people
   */
  constructor(options: PasstOptions, readonly reactor: Reactor, log: Log) {
    if (options.socket !== undefined && options.args !== undefined) {
      throw new UsageError("arguments for passt, and a socket of one that runs already");
    }
    this.#log = log;
    this.#path = options.socket;
    this.#message.view.setBigUint64(16, this.#out.address, true);
    this.#header.view.setUint16(NUM_BUFFERS_OFFSET, 1, true);
    // What listens on loopback was meant for this host alone, and often asks for no password.
    this.#loopback = options.loopback === true;
    const map = this.#loopback ? [] : ["--no-map-gw"];
    this.#args = [...map, ...options.args ?? []];
    if (this.#path === undefined) {
      startProgramsLater();
      this.#start();
    } else {
      this.#stream = connectUnix(this.#path);
      if (this.#stream === undefined) {
        throw new VmsgError(
          "NO_PASST",
          `nobody listens on ${this.#path}: start passt --socket ${this.#path} first`,
        );
      }
    }
    this.counters = new PasstCounters("port", this.description);
    this.#retry = reactor.timer(() =>
      this.#path === undefined ? this.#restart() : this.#reconnect()
    );
  }

  get description(): string {
    return this.process === undefined ? `passt at ${this.#path}` : `passt ${this.process.pid}`;
  }

  #start(): void {
    this.process = new PasstProcess(this.#args);
    this.#startedMs = this.reactor.now();
    this.#stream = this.process.stream;
  }

  open(listener: PortListener): void {
    this.#listener = listener;
    listener.link(this.#stream !== undefined);
    this.#watch();
  }

  #watch(): void {
    if (this.#stream === undefined || this.#listener === undefined) return;
    const events = EPOLLIN | EPOLLOUT | EPOLLET;
    this.reactor.watch(this.#stream.fd, events, (ready) => this.#ready(ready));
  }

  #ready(events: number): void {
    if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) !== 0) {
      this.#readable = true;
      // An end of file is to be seen also while the guest takes no frames.
      this.#fill();
      this.#listener!.readable();
    }
    if (this.#blocked && (events & EPOLLOUT) !== 0 && this.#flushRest()) {
      this.#blocked = false;
      this.#listener!.writable();
    }
  }

  send(frame: IovecList): boolean {
    const given = frame.length - NET_HEADER_SIZE;
    // A shorter one is padded, as on a wire.
    const length = given < HEADERS_SIZE ? HEADERS_SIZE : given;
    const stream = this.#stream;
    if (stream === undefined || given < MIN_FRAME || length > MAX_FRAME) {
      this.counters.lost++;
      return true;
    }
    if (this.#blocked) return false;
    if (given < HEADERS_SIZE) this.#out.prefix.bytes.fill(0);
    frame.copyOut(NET_HEADER_SIZE, this.#headers, HEADERS_SIZE);
    const count = this.#out.assemble(frame, 0);
    if (count === 0 || !this.#loopback && isForLoopback(this.#headersView)) {
      this.counters.lost++;
      return true;
    }
    this.#out.prefix.view.setUint32(0, length, false);
    this.#message.view.setUint32(24, count, true);
    const sent = libc.sendmsg(stream.fd.number, this.#message.address, SEND_FLAGS);
    const total = LENGTH_SIZE + length;
    if (sent <= 0) {
      // Full, or gone, which the descriptor's hang-up tells; both may look the same here.
      this.#blocked = true;
      return false;
    }
    this.counters.sent++;
    if (sent < total) {
      const prefix = LENGTH_SIZE + HEADERS_SIZE;
      libc.memcpy(this.#rest.address, this.#out.prefix.address, prefix);
      const payload = this.#rest.address + BigInt(prefix);
      frame.copyOut(NET_HEADER_SIZE + HEADERS_SIZE, payload, length - HEADERS_SIZE);
      this.#restAt = sent;
      this.#restEnd = total;
      this.#blocked = true;
    }
    return true;
  }

  /** True when nothing of an older frame is left to send. */
  #flushRest(): boolean {
    while (this.#restAt < this.#restEnd) {
      const stream = this.#stream;
      if (stream === undefined) return false;
      const address = this.#rest.address + BigInt(this.#restAt);
      const sent = stream.send(address, this.#restEnd - this.#restAt);
      if (sent <= 0) return false;
      this.#restAt += sent;
    }
    return true;
  }

  nextLength(): number {
    const length = this.#frameLength();
    if (length > 0) return length + NET_HEADER_SIZE;
    if (!this.#readable) return 0;
    this.#fill();
    const filled = this.#frameLength();
    return filled > 0 ? filled + NET_HEADER_SIZE : 0;
  }

  /** The length of the first frame if all of it is there, otherwise 0. */
  #frameLength(): number {
    const held = this.#end - this.#begin;
    if (held < LENGTH_SIZE) return 0;
    const length = this.#view.getUint32(this.#begin, false);
    return held >= LENGTH_SIZE + length ? length : 0;
  }

  /** Receives until the buffer is full or the socket empty. */
  #fill(): void {
    while (this.#readable && this.#stream !== undefined) {
      if (this.#begin === this.#end) this.#begin = this.#end = 0;
      if (BUFFER_SIZE - this.#end < LENGTH_SIZE + MAX_FRAME) {
        this.#bytes.copyWithin(0, this.#begin, this.#end);
        this.#end -= this.#begin;
        this.#begin = 0;
      }
      if (this.#end === BUFFER_SIZE) return;
      const address = this.#buffer.address + BigInt(this.#end);
      const received = this.#stream.receive(address, BUFFER_SIZE - this.#end);
      // Nobody asked for descriptors.
      for (const fd of this.#stream.fds) fd[Symbol.dispose]();
      if (received < 0) this.#readable = false;
      else if (received === 0) this.#disconnected("ended the connection");
      else this.#end += received;
      if (!this.#isSane()) this.#disconnected("sent a length that no frame has");
    }
  }

  #isSane(): boolean {
    if (this.#end - this.#begin < LENGTH_SIZE) return true;
    const length = this.#view.getUint32(this.#begin, false);
    return length >= MIN_FRAME && length <= MAX_FRAME;
  }

  receive(into: IovecList, first: number): number {
    const length = this.#frameLength();
    if (length === 0) return 0;
    into.copyIn(0, this.#header.address, NET_HEADER_SIZE, first);
    const address = this.#buffer.address + BigInt(this.#begin + LENGTH_SIZE);
    into.copyIn(NET_HEADER_SIZE, address, length, first);
    this.#take(length);
    return NET_HEADER_SIZE + length;
  }

  discard(): void {
    const length = this.#frameLength();
    if (length > 0) this.#take(length);
  }

  #take(length: number): void {
    this.#begin += LENGTH_SIZE + length;
    this.counters.received++;
    if (!this.#isSane()) this.#disconnected("sent a length that no frame has");
  }

  #disconnected(what: string): void {
    const stream = this.#stream;
    if (stream === undefined) return;
    this.counters.disconnects++;
    this.#stream = undefined;
    this.#begin =
      this.#end =
      this.#restAt =
      this.#restEnd =
        0;
    this.#readable = this.#blocked = false;
    if (this.#listener !== undefined) this.reactor.unwatch(stream.fd);
    stream[Symbol.dispose]();
    if (this.#path !== undefined) {
      this.#log.error(`${this.description} ${what}`);
      this.#retry.arm(RECONNECT_MS);
    } else {
      // One that ended the connection is ending; one that is confused has to.
      this.reactor.spawn(() => this.#afterEnd(what));
    }
    this.#listener?.link(false);
    // Frames that wait in the guest's ring are lost now, not kept for later.
    this.#listener?.writable();
  }

  /** Says how the process ended that did so, and starts another one some time later. */
  async #afterEnd(what: string): Promise<void> {
    const { reactor } = this;
    const process = this.process!;
    await this.#until(() => process.end() !== undefined);
    const how = process.end();
    process[Symbol.dispose]();
    if (this.#isDisposed) return;
    if (reactor.now() - this.#startedMs > MAX_PAUSE_MS) this.#pauseMs = PAUSE_MS;
    const pauseMs = this.#pauseMs;
    this.#pauseMs = Math.min(2 * pauseMs, MAX_PAUSE_MS);
    this.#retry.arm(pauseMs);
    this.#log.error(
      `${this.description} ${how ?? what}; it is started again in ${pauseMs / 1000} s`,
    );
    await this.#until(() => process.isGone);
  }

  /** Waits until something is so, which lets Deno hear of processes, but not for longer than they may take. */
  async #until(isSo: () => boolean): Promise<void> {
    const { reactor } = this;
    const endMs = reactor.now() + END_MS;
    while (!isSo() && !this.#isDisposed && reactor.now() < endMs) await reactor.sleep(END_POLL_MS);
  }

  #restart(): void {
    try {
      this.#start();
    } catch (error) {
      if (!(error instanceof VmsgError)) throw error;
      this.#log.error(error.message);
      return this.#retry.arm(MAX_PAUSE_MS);
    }
    this.#log.info(`${this.description} was started`);
    this.#watch();
    this.#listener?.link(true);
  }

  #reconnect(): void {
    try {
      this.#stream = connectUnix(this.#path!);
    } catch (error) {
      if (!(error instanceof VmsgError)) throw error;
      this.#log.debug(error.message);
    }
    if (this.#stream === undefined) {
      this.#retry.arm(RECONNECT_MS);
      return;
    }
    this.#log.info(`${this.description} is back`);
    this.#watch();
    this.#listener?.link(true);
  }

  [Symbol.dispose](): void {
    this.#isDisposed = true;
    this.process?.[Symbol.dispose]();
    this.reactor.dropTimer(this.#retry);
    if (this.#stream !== undefined && this.#listener !== undefined) {
      this.reactor.unwatch(this.#stream.fd);
    }
    this.#listener = undefined;
    this.#stream?.[Symbol.dispose]();
    this.#stream = undefined;
    this.#buffer[Symbol.dispose]();
    this.#rest[Symbol.dispose]();
  }
}
