/**
 * The vhost-user back end of `vmsg proxy`: a socket for one device number.
 *
 * It listens; QEMU and User-Mode Linux connect. One front end is served at a time; the next one waits
 * in the socket's backlog until the first is gone and the device has been reset.
 */

import { allocate } from "../../linux/arena.ts";
import { EPOLLIN, type Reactor } from "../../linux/reactor.ts";
import { listenUnix, type UnixListener } from "../../linux/unix_socket.ts";
import type { Log } from "../../observe/log.ts";
import type { DriverSide, PeerListener, RemoteDevice } from "../../transport/driver_side.ts";
import { FrontEndConnection, MESSAGE_BUFFER_SIZE } from "./connection.ts";
import { FrontEnd } from "./front_end.ts";

/** Options of `--vhost-user ...`. */
export interface VhostUserOptions {
  readonly socket: string;
  /** The device number on the bus. */
  readonly device: number;
}

/** See the head of this file. */
export class VhostUserServer implements PeerListener, Disposable {
  readonly #listener: UnixListener;
  readonly #buffer = allocate(MESSAGE_BUFFER_SIZE);
  readonly #device: RemoteDevice;
  #frontEnd: FrontEnd | undefined;

  constructor(
    readonly reactor: Reactor,
    readonly side: DriverSide,
    readonly options: VhostUserOptions,
    readonly log: Log,
  ) {
    this.#listener = listenUnix(options.socket);
    this.#device = side.device(options.device);
    side.listen(this);
    reactor.watch(this.#listener.fd, EPOLLIN, () => this.#accept());
    log.info(`vhost-user socket ${options.socket}: waiting for a front end`);
  }

  ready(): void {
    this.#frontEnd?.deviceReady();
  }

  lost(): void {
    this.#frontEnd?.deviceLost();
  }

  #accept(): void {
    const stream = this.#listener.accept();
    if (stream === undefined) return;
    this.reactor.rewatch(this.#listener.fd, 0);
    this.log.info(`vhost-user socket ${this.options.socket}: a front end is there`);
    const connection = new FrontEndConnection(
      stream,
      this.reactor,
      this.#buffer,
      () => this.#frontEnd?.hungUp(),
    );
    const frontEnd = new FrontEnd(connection, this.#device, this.reactor, this.log);
    this.#frontEnd = frontEnd;
    if (this.side.isReady) frontEnd.deviceReady();
    this.reactor.spawn(async () => {
      await frontEnd.serve();
      this.#frontEnd = undefined;
      this.log.info(
        `vhost-user socket ${this.options.socket}: ${connection.closed}; waiting for a front end`,
      );
      frontEnd[Symbol.dispose]();
      this.reactor.rewatch(this.#listener.fd, EPOLLIN);
    });
  }

  [Symbol.dispose](): void {
    this.#frontEnd?.[Symbol.dispose]();
    this.reactor.unwatch(this.#listener.fd);
    this.#listener[Symbol.dispose]();
  }
}
