/**
 * The vhost-user back end of `vmsg proxy`: where the front ends of one device number come from.
 *
 *     listen    a socket of ours; QEMU and User-Mode Linux connect to it
 *     connect   a socket of QEMU's (`-chardev socket,server=on`); tried until somebody is there
 *     fd        a connection that was inherited; when it ends, so does the proxy
 *
 * One front end is served at a time. Whoever connects to a socket of ours is served when it has spoken, so that a
 * client that says nothing stands in nobody's way; it has some time, and is turned away then. One that speaks while
 * another is served waits a moment, in case that one is about to leave, and is turned away too.
 *
 * A front end whose device is not there yet is answered when it comes. One whose device is taken away (EVENT_DEVICE) is let go of,
 * and nobody is served until the device is there again: meanwhile there is no socket, because a QEMU that connected again
 * would stand still with its guest until it got an answer.
 */

import { Acceptor } from "../../linux/acceptor.ts";
import { allocate } from "../../linux/arena.ts";
import { VmsgError } from "../../linux/errors.ts";
import { Fd, isSocket, setInherited } from "../../linux/fd.ts";
import type { Access } from "../../linux/own_file.ts";
import { EPOLLERR, EPOLLHUP, EPOLLIN, type Reactor, type Timer } from "../../linux/reactor.ts";
import { connectUnix, listenUnix, UnixStream } from "../../linux/unix_socket.ts";
import { MemoryQuota } from "../../memory/mod.ts";
import type { Log } from "../../observe/log.ts";
import type { DriverSide, PeerListener } from "../../transport/driver_side.ts";
import type { RemoteDevice } from "../../transport/remote_device.ts";
import { PeerLost } from "../../transport/requests.ts";
import type { Sharing } from "../../sharing/sharing.ts";
import { Connection, MESSAGE_BUFFER_SIZE } from "../../vhost_user/connection.ts";
import { FrontEnd } from "./front_end.ts";
import { FrontEndCounters, type FrontEndCounts } from "./front_end_counters.ts";

/** How often a connecting back end tries. */
const RETRY_MS = 50;
/** How soon the next is served after one that left at once: QEMU 7.2 asks for what is not there without a pause. */
const PAUSE_MS = 200;
/** How soon a path is tried again that somebody else has taken. */
const RELISTEN_MS = 1000;
/** How long a client may say nothing, and how long one may wait for another to leave. */
const SILENT_MS = 10_000;
const BUSY_MS = 500;
/** Clients that are not served yet; the others stay in the socket's backlog. */
const MAX_CALLERS = 8;

/** Options of `--vhost-user ...`. */
export interface VhostUserOptions {
  /** Where front ends come from, see the head of this file. */
  readonly source:
    | { readonly kind: "listen" | "connect"; readonly socket: string }
    | { readonly kind: "fd"; readonly number: number };
  /** Who else may connect to a socket of ours. */
  readonly access?: Access;
  /** The device number on the bus. */
  readonly device: number;
}

/** Who has connected and is not served yet. */
interface Caller {
  readonly stream: UnixStream;
  /** Its patience, or ours. */
  readonly timer: Timer;
  hasSpoken: boolean;
}

/** See the head of this file. */
export class VhostUserServer implements PeerListener, Disposable {
  readonly #buffer = allocate(MESSAGE_BUFFER_SIZE);
  readonly #device: RemoteDevice;
  readonly #name: string;
  readonly #retry: Timer;
  /** Of all front ends that came. */
  readonly counters: FrontEndCounts;
  #acceptor: Acceptor | undefined;
  readonly #callers = new Set<Caller>();
  #frontEnd: FrontEnd | undefined;
  /** The device was taken away. */
  #isShut = false;
  #isOver = false;
  /** Since when it is served. */
  #servedMs = 0;

  /** Opens the source; throws VmsgError SOCKET_IN_USE. */
  constructor(
    readonly reactor: Reactor,
    readonly side: DriverSide,
    readonly options: VhostUserOptions,
    readonly log: Log,
    readonly sharing: Sharing,
    readonly quota: MemoryQuota = new MemoryQuota(),
  ) {
    const { source, device } = options;
    this.#device = side.device(device);
    this.#name = source.kind === "fd"
      ? `vhost-user fd ${source.number}`
      : `vhost-user ${source.socket}`;
    this.counters = new FrontEndCounters("front end", `of device ${device}, ${this.#name}`);
    this.#retry = reactor.timer(() => this.#again());
    this.#device.listen(this);
    if (source.kind === "fd") {
      const fd = new Fd(source.number);
      // Without one from the caller the number may be of any file that this process has open itself.
      if (!isSocket(fd)) {
        throw new VmsgError("SOCKET_FD", `${this.#name} is no socket: the caller has to pass one`);
      }
      // It came to us by inheritance, and ends with us.
      setInherited(fd, false);
      this.#serve(new UnixStream(fd));
      return;
    }
    if (source.kind === "connect") this.#connect();
    else this.#listen(source.socket);
    // Said in the first turn: if another part cannot be opened, its error stands alone.
    reactor.schedule({
      run: () => {
        if (this.#frontEnd === undefined) log.info(`${this.#name}: waiting for a front end`);
        return false;
      },
    });
  }

  #listen(path: string): void {
    this.#acceptor = new Acceptor(
      this.reactor,
      listenUnix(path, this.options.access),
      (stream) => this.#called(stream),
      (problem) => this.log.warn(`${this.#name}: ${problem}`),
    );
  }

  #called(stream: UnixStream): void {
    const { reactor } = this;
    const timer = reactor.timer(() => this.#outOfPatience(caller));
    const caller: Caller = { stream, timer, hasSpoken: false };
    this.#callers.add(caller);
    this.#acceptor?.hold(this.#callers.size >= MAX_CALLERS);
    timer.arm(SILENT_MS);
    reactor.watch(stream.fd, EPOLLIN, (events) => {
      if ((events & EPOLLIN) === 0 && (events & (EPOLLHUP | EPOLLERR)) !== 0) {
        return this.#letGo(caller)[Symbol.dispose]();
      }
      caller.hasSpoken = true;
      reactor.rewatch(stream.fd, 0);
      timer.arm(BUSY_MS);
      this.#admit();
    });
  }

  /** The stream of a client that is not waited for any more. */
  #letGo(caller: Caller): UnixStream {
    this.#callers.delete(caller);
    this.reactor.unwatch(caller.stream.fd);
    this.reactor.dropTimer(caller.timer);
    this.#acceptor?.hold(this.#callers.size >= MAX_CALLERS);
    return caller.stream;
  }

  /** Serves the first that has spoken, if nobody is served. */
  #admit(): void {
    if (this.#frontEnd !== undefined || this.#retry.armed) return;
    const caller = [...this.#callers].find(({ hasSpoken }) => hasSpoken);
    if (caller !== undefined) this.#serve(this.#letGo(caller));
  }

  #outOfPatience(caller: Caller): void {
    const isLeaving = this.#frontEnd?.connection.closed !== undefined;
    if (caller.hasSpoken && (isLeaving || this.#frontEnd === undefined)) {
      return caller.timer.arm(BUSY_MS);
    }
    this.log.warn(
      `${this.#name}: ` +
        (caller.hasSpoken
          ? "one more front end is turned away, one is served at a time"
          : `a client that said nothing for ${SILENT_MS / 1000} s is turned away`),
    );
    this.#letGo(caller)[Symbol.dispose]();
  }

  ready(): void {
    this.#frontEnd?.deviceReady();
    if (this.#isShut) this.reactor.spawn(() => this.#reopen());
  }

  lost(): void {
    this.#frontEnd?.deviceLost();
    if (this.#device.isRemoved) this.#shut();
  }

  // --- the device is taken away and comes back -----------------------------------------------------

  #shut(): void {
    if (this.#isShut) return;
    this.#isShut = true;
    this.log.info(`${this.#name}: device ${this.options.device} was removed; waiting for it`);
    this.#frontEnd?.connection.close("its device was removed");
    this.#stopListening();
  }

  #stopListening(): void {
    for (const caller of this.#callers) this.#letGo(caller)[Symbol.dispose]();
    this.#acceptor?.[Symbol.dispose]();
    this.#acceptor = undefined;
  }

  /** A device side may be another one than that which took the device away, and have none of its own. */
  async #reopen(): Promise<void> {
    try {
      await this.#device.info();
    } catch (error) {
      if (error instanceof PeerLost) return;
      throw error;
    }
    if (!this.#isShut || this.#isOver || !this.#device.isReady) return;
    this.#isShut = false;
    this.log.info(`${this.#name}: device ${this.options.device} is there; waiting for a front end`);
    if (!this.#retry.armed) this.#again();
  }

  /** Serves the next one, wherever it comes from. */
  #again(): void {
    const { source } = this.options;
    if (this.#isShut || this.#frontEnd !== undefined) return;
    if (source.kind === "connect") return this.#connect();
    if (source.kind === "listen" && this.#acceptor === undefined) this.#listenAgain(source.socket);
    this.#admit();
  }

  #listenAgain(path: string): void {
    try {
      this.#listen(path);
    } catch (error) {
      if (!(error instanceof VmsgError)) throw error;
      this.log.warn(`${this.#name}: ${error.message}`);
      this.#retry.arm(RELISTEN_MS);
    }
  }

  #connect(): void {
    const { source } = this.options;
    const stream = source.kind === "connect" ? connectUnix(source.socket) : undefined;
    if (stream === undefined) this.#retry.arm(RETRY_MS);
    else this.#serve(stream);
  }

  #serve(stream: UnixStream): void {
    const connection = new Connection(
      stream,
      this.reactor,
      this.#buffer,
      "the front end",
      () => this.#frontEnd?.hungUp(),
    );
    const { reactor, log, sharing, quota } = this;
    const frontEnd = new FrontEnd(
      connection,
      this.#device,
      reactor,
      log,
      sharing,
      quota,
      this.counters,
    );
    this.log.info(`${this.#name}: a front end is there`);
    this.#frontEnd = frontEnd;
    this.#servedMs = reactor.now();
    if (this.#device.isReady) frontEnd.deviceReady();
    this.reactor.spawn(async () => {
      await frontEnd.serve();
      // Shut down: everything is closed already, and nothing is waited for any more.
      if (this.#frontEnd !== frontEnd) return;
      if (!connection.hungUp) this.counters.refused++;
      this.#frontEnd = undefined;
      const { guess } = frontEnd;
      frontEnd[Symbol.dispose]();
      this.#next(`${connection.closed}${guess}`);
    });
  }

  #next(reason: string): void {
    if (this.options.source.kind === "fd") {
      this.log.info(`${this.#name}: ${reason}`);
      return this.reactor.stop();
    }
    const what = this.#isShut ? "its device" : "a front end";
    this.log.info(`${this.#name}: ${reason}; waiting for ${what}`);
    const leftAtOnce = this.reactor.now() - this.#servedMs < PAUSE_MS;
    if (leftAtOnce) this.#retry.arm(PAUSE_MS);
    else if (this.options.source.kind === "connect") this.#retry.arm(RETRY_MS);
    else this.#again();
  }

  /** Drops the front end and closes the socket. */
  [Symbol.dispose](): void {
    const frontEnd = this.#frontEnd;
    this.#frontEnd = undefined;
    this.#isOver = true;
    frontEnd?.[Symbol.dispose]();
    this.reactor.dropTimer(this.#retry);
    this.#stopListening();
  }
}
