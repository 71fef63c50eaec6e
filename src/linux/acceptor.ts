/**
 * Takes connections in the turns of a reactor.
 *
 * A listening socket stays ready as long as somebody waits. Where nobody can be let in, because the process or
 * the machine is out of descriptors, that would be a busy loop: then it is said, and nobody is let in for
 * a while.
 */

import { EPOLLIN, type Reactor, type Timer } from "./reactor.ts";
import type { UnixListener, UnixStream } from "./unix_socket.ts";

/** Connections taken per turn, so that a peer that connects without end cannot hold the loop. */
const BUDGET = 8;
/** How long nobody is accepted after that has failed. */
const PAUSE_MS = 100;

/** See the head of this file. Dispose closes the listener. */
export class Acceptor implements Disposable {
  readonly #pause: Timer;
  #isHeld = false;

  /**
   * Begins at once.
   *
   * @param take is given each connection, to own
   * @param warn takes a line when nobody can be let in, up to ten times a second
   */
  constructor(
    private readonly reactor: Reactor,
    private readonly listener: UnixListener,
    private readonly take: (stream: UnixStream) => void,
    private readonly warn: (line: string) => void,
  ) {
    reactor.watch(listener.fd, EPOLLIN, () => this.accept());
    this.#pause = reactor.timer(() => this.#watch());
  }

  /** Lets everybody wait in the listener's backlog, or goes on. */
  hold(isHeld: boolean): void {
    this.#isHeld = isHeld;
    this.#watch();
  }

  #watch(): void {
    this.reactor.rewatch(this.listener.fd, this.#isHeld || this.#pause.armed ? 0 : EPOLLIN);
  }

  /** Takes those who wait at this moment. */
  accept(): void {
    for (let i = 0; i < BUDGET && !this.#isHeld; i++) {
      const stream = this.listener.accept();
      if (stream !== undefined) this.take(stream);
      else {
        if (this.listener.acceptError !== "") this.#pauseAccepting(this.listener.acceptError);
        return;
      }
    }
  }

  #pauseAccepting(reason: string): void {
    this.#pause.arm(PAUSE_MS);
    this.#watch();
    this.warn(`cannot accept a connection (${reason}): raise the limit of open files (ulimit -n)`);
  }

  [Symbol.dispose](): void {
    this.reactor.dropTimer(this.#pause);
    this.reactor.unwatch(this.listener.fd);
    this.listener[Symbol.dispose]();
  }
}
