/**
 * The end of a process that neither needs its server to be there first nor ends with it.
 *
 * States: waiting for the server -> at a server -> on its own -> at the next server ...
 *
 * A server that goes leaves its peers with one another, and they go on. When nobody has rung this end for
 * {@link SILENT_MS}, it looks for a server at the same path again and becomes a peer there as well, but moves
 * only when somebody else is there: those who were only quiet find it where it was.
 *
 * To move is to have the memory show the new server's at the same addresses, so all views of it stay. The
 * listener is told before that the former peers left, and afterwards who is there now.
 */

import { VmsgError } from "../linux/errors.ts";
import type { Fd } from "../linux/fd.ts";
import type { Reactor, Timer } from "../linux/reactor.ts";
import { connectUnix, type UnixStream } from "../linux/unix_socket.ts";
import type { MappedMemory } from "../memory/mod.ts";
import type { Log } from "../observe/log.ts";
import type { EndListener, IvshmemEnd } from "./end.ts";
import { openServerEnd, ServerEnd } from "./server_end.ts";

/** How long nobody has rung when those who were there count as gone; a vmsg peer rings every 100 ms. */
const SILENT_MS = 1500;
/** How often a server that is not there is looked for. */
const RETRY_MS = 100;
/** The same where one is there that does not want us, which takes time to find out. */
const REFUSED_RETRY_MS = 10_000;

/** What {@link openLastingEnd} needs besides the path. */
export interface LastingEndOptions {
  /** Where lines for people go. */
  readonly log: Log;
  readonly reactor: Reactor;
  /** Wait for the first server by running the loop, which must not run yet; otherwise it must be there. */
  readonly wait: boolean;
}

class LastingEnd implements IvshmemEnd {
  readonly description: string;
  readonly isDeviceMemory = false;
  readonly pinHandles: readonly Fd[] = [];
  readonly #timer: Timer;
  #next: ServerEnd | undefined;
  #listener: EndListener | undefined;
  #rungMs = -Infinity;
  #told = "";

  constructor(readonly path: string, readonly options: LastingEndOptions, private end: ServerEnd) {
    this.description = end.description;
    this.#timer = options.reactor.timer(() => this.#look());
  }

  get id(): number {
    return this.end.id;
  }

  get memory(): MappedMemory {
    return this.end.memory;
  }

  get interrupts(): boolean {
    return this.end.interrupts;
  }

  get peers(): ReadonlySet<number> {
    return this.end.peers;
  }

  open(_reactor: Reactor, listener: EndListener): void {
    this.#listener = listener;
    this.#follow(this.end);
  }

  /** What an end that is not ours yet says is of no interest: {@link ServerEnd.peers} tells all. */
  #follow(end: ServerEnd): void {
    const { reactor } = this.options;
    const tell = (say: (listener: EndListener) => void) => {
      if (end === this.end && this.#listener !== undefined) say(this.#listener);
    };
    end.open(reactor, {
      rung: () => {
        if (end === this.end) this.#rungMs = reactor.now();
        tell((listener) => listener.rung());
      },
      joined: (peer) => tell((listener) => listener.joined(peer)),
      left: (peer) => tell((listener) => listener.left(peer)),
    }, () => this.#gone(end));
  }

  #gone(end: ServerEnd): void {
    if (end === this.end) return this.#timer.arm(RETRY_MS);
    this.#next = undefined;
    end[Symbol.dispose]();
  }

  #look(): void {
    let pauseMs = RETRY_MS;
    try {
      if (this.options.reactor.now() - this.#rungMs >= SILENT_MS && this.#join()) return;
    } catch (error) {
      if (!(error instanceof VmsgError)) throw error;
      if (error.message !== this.#told) this.options.log.warn(error.message);
      this.#told = error.message;
      pauseMs = REFUSED_RETRY_MS;
    }
    this.#timer.arm(pauseMs);
  }

  /** Becomes a peer of the next server, if it is not; moves there if anybody else is one, and tells whether. */
  #join(): boolean {
    if (this.#next === undefined) {
      const stream = connectUnix(this.path);
      if (stream === undefined) return false;
      this.#next = new ServerEnd(stream, this.path, this.options);
      this.#follow(this.#next);
    }
    if (this.#next.peers.size === 0) return false;
    this.#move(this.#next);
    return true;
  }

  #move(next: ServerEnd): void {
    const former = this.end;
    former.forgetPeers();
    next.succeed(former, this.#listener?.keptFrom);
    this.end = next;
    this.#next = undefined;
    former[Symbol.dispose]();
    this.options.log.info(
      `${this.description} is another one now, there this side is peer ${next.id}`,
    );
    for (const peer of [...next.peers]) this.#listener?.joined(peer);
  }

  ring(peer: number): void {
    this.end.ring(peer);
  }

  pin(_address: bigint, _size: number): undefined {
    return undefined;
  }

  [Symbol.dispose](): void {
    this.#listener = undefined;
    this.options.reactor.dropTimer(this.#timer);
    this.#next?.[Symbol.dispose]();
    this.end[Symbol.dispose]();
  }
}

/** Runs the loop until there is a server. */
function waitForServer(path: string, { reactor, log }: LastingEndOptions): UnixStream {
  let stream = connectUnix(path);
  if (stream === undefined) log.info(`waiting for the ivshmem server ${path}`);
  const timer = reactor.timer(() => stream = connectUnix(path));
  while (stream === undefined && !reactor.isStopped) {
    if (!timer.armed) timer.arm(RETRY_MS);
    reactor.turn();
  }
  reactor.dropTimer(timer);
  if (stream === undefined) throw new VmsgError("STOPPED", `stopped, ${path} is no server yet`);
  return stream;
}

/**
 * Becomes a peer of the server at `path`, and of those that follow it there.
 *
 * @throws VmsgError STOPPED if the loop is stopped meanwhile, and those of server_end.ts
 */
export function openLastingEnd(path: string, options: LastingEndOptions): IvshmemEnd {
  const end = options.wait
    ? new ServerEnd(waitForServer(path, options), path, options)
    : openServerEnd(path, options);
  return new LastingEnd(path, options, end);
}
