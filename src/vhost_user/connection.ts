/**
 * One vhost-user connection, of either end: whole messages in, requests or replies out.
 *
 * Messages are taken one at a time: the next one is read only when the last one has been handled,
 * because many of them are barriers. Descriptors that nobody takes from a message are closed with it.
 */

import { allocate, type Block } from "../linux/arena.ts";
import type { Fd } from "../linux/fd.ts";
import {
  type Deferred,
  EPOLLERR,
  EPOLLHUP,
  EPOLLIN,
  type Reactor,
  type Timer,
} from "../linux/reactor.ts";
import { MAX_FDS, type UnixStream } from "../linux/unix_socket.ts";
import { FLAG_REPLY, FLAG_VERSION, HEADER_SIZE, MAX_PAYLOAD } from "./protocol.ts";

/** A message of the peer. */
export interface Message {
  readonly request: number;
  readonly flags: number;
  readonly payload: DataView;
  /** Descriptors that came along; whoever keeps one takes it out. */
  readonly fds: Fd[];
}

/** The longest message. */
export const MESSAGE_BUFFER_SIZE: number = HEADER_SIZE + MAX_PAYLOAD;

/** How long a message may be on its way. */
const PART_MS = 10_000;

const outgoing = allocate(MESSAGE_BUFFER_SIZE);

/** Sends one message; false if the peer is gone or does not read. */
export function sendMessage(
  stream: UnixStream,
  request: number,
  flags: number,
  payload: Uint8Array,
  fds: readonly Fd[] = [],
): boolean {
  outgoing.view.setUint32(0, request, true);
  outgoing.view.setUint32(4, FLAG_VERSION | flags, true);
  outgoing.view.setUint32(8, payload.length, true);
  outgoing.bytes.set(payload, HEADER_SIZE);
  const size = HEADER_SIZE + payload.length;
  // Who reads each reply before it asks again has a socket that is never full.
  return stream.send(outgoing.address, size, fds) === size;
}

/** See the head of this file. */
export class Connection implements Disposable {
  /** Why the connection ended, once it has. */
  closed: string | undefined;
  /** Did the peer end it? */
  hungUp = false;
  readonly #fds: Fd[] = [];
  #filled = 0;
  #waiting: Deferred<Message | undefined> | undefined;
  #watched = true;
  /** For a message that has begun: who sends a part of one keeps others out. */
  readonly #patience: Timer;

  /**
   * @param buffer of {@link MESSAGE_BUFFER_SIZE}, from whoever has connections one after another
   * @param peer for people: "the front end", "the back end"
   * @param onClosed called once when the peer hangs up, also while a message is being handled
   */
  constructor(
    readonly stream: UnixStream,
    readonly reactor: Reactor,
    readonly buffer: Block,
    readonly peer: string,
    readonly onClosed: (reason: string) => void,
  ) {
    this.#patience = reactor.timer(() =>
      this.close(`${this.peer} did not end a message within ${PART_MS / 1000} s`)
    );
    reactor.watch(stream.fd, 0, (events) => this.#ready(events));
  }

  /** The next message, or undefined when the connection has ended. */
  next(): Promise<Message | undefined> {
    this.#waiting = this.reactor.defer();
    const { promise } = this.#waiting;
    if (this.closed !== undefined) this.#deliver(undefined);
    else this.reactor.rewatch(this.stream.fd, EPOLLIN);
    return promise;
  }

  #deliver(message: Message | undefined): void {
    this.#waiting?.resolve(message);
    this.#waiting = undefined;
  }

  /** Answers a request; in vain if the connection has ended meanwhile. */
  reply(request: number, payload: Uint8Array): void {
    if (this.closed === undefined) sendMessage(this.stream, request, FLAG_REPLY, payload);
  }

  /** Ends the connection; {@link next} then gives undefined. */
  close(reason: string): void {
    if (this.closed !== undefined) return;
    this.closed = reason;
    this.reactor.dropTimer(this.#patience);
    this.#unwatch();
    this.onClosed(reason);
    this.#deliver(undefined);
  }

  #hangUp(): void {
    this.hungUp = true;
    this.close(`${this.peer} hung up`);
  }

  #unwatch(): void {
    if (this.#watched) this.reactor.unwatch(this.stream.fd);
    this.#watched = false;
  }

  #ready(events: number): void {
    if (this.#waiting === undefined) {
      // Nobody reads at the moment; a hang-up is level-triggered and would spin.
      if ((events & (EPOLLHUP | EPOLLERR)) !== 0) this.#hangUp();
      return;
    }
    const message = this.#read();
    if (message === undefined) {
      if (this.closed === undefined && !this.#patience.armed) this.#patience.arm(PART_MS);
      return;
    }
    this.reactor.rewatch(this.stream.fd, 0);
    this.#deliver(message);
  }

  /** Reads on; a whole message, or undefined when more has to come or the connection has ended. */
  #read(): Message | undefined {
    for (;;) {
      const size = this.#filled < HEADER_SIZE
        ? HEADER_SIZE
        : HEADER_SIZE + this.buffer.view.getUint32(8, true);
      if (size > HEADER_SIZE + MAX_PAYLOAD) {
        this.close(`${this.peer} sent a message of ${size} bytes`);
        return undefined;
      }
      if (this.#filled === size) return this.#take(size);
      const address = this.buffer.address + BigInt(this.#filled);
      const received = this.stream.receive(address, size - this.#filled);
      this.#fds.push(...this.stream.fds);
      // A message in many parts could bring as many descriptors as there are bytes.
      const tooMany = this.stream.truncated || this.#fds.length > MAX_FDS;
      if (received === 0 || tooMany) {
        if (received === 0) this.#hangUp();
        else this.close(`${this.peer} sent too many fds`);
        // Nothing is handled after the end, also not what is whole by now.
        return undefined;
      }
      if (received < 0) return undefined;
      this.#filled += received;
      if (this.#filled === HEADER_SIZE && this.buffer.view.getUint32(8, true) === 0) {
        return this.#take(HEADER_SIZE);
      }
    }
  }

  #take(size: number): Message {
    const { bytes, view } = this.buffer;
    this.#filled = 0;
    this.#patience.cancel();
    return {
      request: view.getUint32(0, true),
      flags: view.getUint32(4, true),
      payload: new DataView(bytes.slice(HEADER_SIZE, size).buffer),
      fds: this.#fds.splice(0),
    };
  }

  [Symbol.dispose](): void {
    this.close("shut down");
    for (const fd of this.#fds) fd[Symbol.dispose]();
    this.stream[Symbol.dispose]();
  }
}
