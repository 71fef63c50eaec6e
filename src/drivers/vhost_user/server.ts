/**
 * The vhost-user back end of `vmsg proxy`: where the front ends of one device number come from.
 *
 *     listen    a socket of ours; QEMU and User-Mode Linux connect to it
 *     connect   a socket of QEMU's (`-chardev socket,server=on`); tried until somebody is there
 *     fd        a connection that was inherited; when it ends, so does the proxy
 *
 * One front end is served at a time; the next one waits in the socket's backlog until the first is gone
 * and the device has been reset.
 */

import { allocate } from "../../linux/arena.ts";
import { VmsgError } from "../../linux/errors.ts";
import { Fd, isSocket, setInherited } from "../../linux/fd.ts";
import { EPOLLIN, type Reactor, type Timer } from "../../linux/reactor.ts";
import { connectUnix, listenUnix, type UnixListener, UnixStream } from "../../linux/unix_socket.ts";
import { limitedLevels, type Log } from "../../observe/log.ts";
import type { DriverSide, PeerListener } from "../../transport/driver_side.ts";
import type { RemoteDevice } from "../../transport/remote_device.ts";
import type { Sharing } from "../../sharing/sharing.ts";
import { FrontEndConnection, MESSAGE_BUFFER_SIZE } from "./connection.ts";
import { FrontEnd } from "./front_end.ts";

/** How often a connecting back end tries. */
const RETRY_MS = 50;
/** Log lines of one level; a front end that behaves has three. */
const LINES_PER_SECOND = 10;

/** Options of `--vhost-user ...`. */
export interface VhostUserOptions {
  /** Where front ends come from, see the head of this file. */
  readonly source:
    | { readonly kind: "listen" | "connect"; readonly socket: string }
    | { readonly kind: "fd"; readonly number: number };
  /** The device number on the bus. */
  readonly device: number;
}

/** See the head of this file. */
export class VhostUserServer implements PeerListener, Disposable {
  readonly #buffer = allocate(MESSAGE_BUFFER_SIZE);
  readonly #device: RemoteDevice;
  readonly #name: string;
  readonly #retry: Timer;
  /** Lines for people, limited so that front ends that come and go cannot fill a disk. */
  readonly log: Log;
  #listener: UnixListener | undefined;
  #frontEnd: FrontEnd | undefined;

  /** Opens the source; throws VmsgError SOCKET_IN_USE. */
  constructor(
    readonly reactor: Reactor,
    readonly side: DriverSide,
    readonly options: VhostUserOptions,
    log: Log,
    readonly sharing: Sharing,
  ) {
    // A front end that comes and goes without end has a few lines each time.
    this.log = limitedLevels(log, reactor, LINES_PER_SECOND);
    const { source, device } = options;
    this.#device = side.device(device);
    this.#name = source.kind === "fd"
      ? `vhost-user fd ${source.number}`
      : `vhost-user ${source.socket}`;
    this.#retry = reactor.timer(() => this.#connect());
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
    const listener = listenUnix(path);
    this.#listener = listener;
    this.reactor.watch(listener.fd, EPOLLIN, () => {
      const stream = listener.accept();
      if (stream === undefined) return;
      this.reactor.rewatch(listener.fd, 0);
      this.#serve(stream);
    });
  }

  ready(): void {
    this.#frontEnd?.deviceReady();
  }

  lost(): void {
    this.#frontEnd?.deviceLost();
  }

  #connect(): void {
    const { source } = this.options;
    const stream = source.kind === "connect" ? connectUnix(source.socket) : undefined;
    if (stream === undefined) this.#retry.arm(RETRY_MS);
    else this.#serve(stream);
  }

  #serve(stream: UnixStream): void {
    const connection = new FrontEndConnection(
      stream,
      this.reactor,
      this.#buffer,
      () => this.#frontEnd?.hungUp(),
    );
    const { reactor, log, sharing } = this;
    const frontEnd = new FrontEnd(connection, this.#device, reactor, log, sharing);
    this.log.info(`${this.#name}: a front end is there`);
    this.#frontEnd = frontEnd;
    if (this.#device.isReady) frontEnd.deviceReady();
    this.reactor.spawn(async () => {
      await frontEnd.serve();
      // Shut down: everything is closed already, and nothing is waited for any more.
      if (this.#frontEnd !== frontEnd) return;
      this.#frontEnd = undefined;
      frontEnd[Symbol.dispose]();
      this.#next(connection.closed ?? "done");
    });
  }

  #next(reason: string): void {
    if (this.options.source.kind === "fd") {
      this.log.info(`${this.#name}: ${reason}`);
      return this.reactor.stop();
    }
    this.log.info(`${this.#name}: ${reason}; waiting for a front end`);
    if (this.#listener === undefined) this.#retry.arm(RETRY_MS);
    else this.reactor.rewatch(this.#listener.fd, EPOLLIN);
  }

  /** Drops the front end and closes the socket. */
  [Symbol.dispose](): void {
    const frontEnd = this.#frontEnd;
    this.#frontEnd = undefined;
    frontEnd?.[Symbol.dispose]();
    this.reactor.dropTimer(this.#retry);
    const listener = this.#listener;
    this.#listener = undefined;
    if (listener === undefined) return;
    this.reactor.unwatch(listener.fd);
    listener[Symbol.dispose]();
  }
}
