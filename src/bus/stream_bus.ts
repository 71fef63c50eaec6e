/**
 * A QueueBus whose doorbell is a byte on a Unix stream socket, as the prototype's linux-user bus rings
 * (docs/wire.md 4.2): the byte 0xED after messages, values and number of bytes without meaning, the
 * end of file as the peer's farewell.
 *
 * Between two vmsg processes a byte can carry file descriptors (ADD_MEMORY's memory). Descriptors
 * are numbered per connection in the order they were sent, 0, 1, ...; the message that uses one names
 * its ordinal and is published after the byte was sent, so it never arrives first. At most
 * {@link MAX_WAITING_FDS} wait for their message; a truncated or surplus one ends the attachment. Where they have
 * agreed on {@link Doorbells}, the socket rings no more: then a message may be heard before its byte is read, and what was
 * sent last before the end of file.
 */

import { allocate } from "../linux/arena.ts";
import { LinuxError, VmsgError } from "../linux/errors.ts";
import { createEventFd } from "../linux/eventfd.ts";
import type { Fd } from "../linux/fd.ts";
import { EPOLLHUP, EPOLLIN } from "../linux/reactor.ts";
import type { UnixStream } from "../linux/unix_socket.ts";
import { QueueBus } from "./bus.ts";
import { Doorbells } from "./doorbells.ts";

/** Descriptors received whose ADD_MEMORY has not come yet. */
export const MAX_WAITING_FDS = 64;
/** Bytes taken per read, as the prototype does. */
const READ_SIZE = 128;
const NOTIFICATION = 0xed;

const bytes = allocate(READ_SIZE + 1);
bytes.bytes[READ_SIZE] = NOTIFICATION;
const notification = bytes.address + BigInt(READ_SIZE);

/** See the head of this file. A subclass finds the stream: {@link StreamBus.connected}. */
export abstract class StreamBus extends QueueBus {
  /** A Unix socket carries them. */
  override readonly carriesFds: boolean = true;
  #stream: UnixStream | undefined;
  #bells: Doorbells | undefined;
  readonly #waiting = new Map<number, Fd>();
  #sentFds = 0;
  #receivedFds = 0;

  /** The subclass has a stream to a peer; the bus owns it from here. */
  protected connected(stream: UnixStream): void {
    this.#stream = stream;
    this.#sentFds = 0;
    this.#receivedFds = 0;
    this.reactor.watch(stream.fd, EPOLLIN, (events) => this.#ready(stream, events));
    this.attach();
  }

  /** The stream is gone and the bus detached; the subclass looks for the next peer. */
  protected abstract disconnected(): void;

  /** Drops a peer that is gone, which may not have been noticed yet. */
  protected dropIfGone(): void {
    if (this.#stream?.isPeerGone === true) this.drop("the other side closed the connection");
  }

  /** Looks whether the next peer waits already. */
  protected letIn(): void {}

  #ready(stream: UnixStream, events: number): void {
    // What is queued may be the next one's, where that is here already.
    if ((events & EPOLLHUP) !== 0) this.letIn();
    if (this.#stream !== stream) return;
    const problem = this.#read(stream);
    if (problem === undefined) return void this.rung();
    // What it said last was rung for by another way, which may not have been looked at yet.
    if (this.#bells !== undefined) this.rung();
    this.drop(problem);
  }

  /** Reads what there is; why it is the last of this peer, if it is. */
  #read(stream: UnixStream): string | undefined {
    // Bounded: a peer that writes bytes without end must not hold the loop.
    for (let i = 0; i < 8; i++) {
      const received = stream.receive(bytes.address, READ_SIZE);
      if (received === 0) return "the other side closed the connection";
      const problem = this.#keepFds(stream);
      if (problem !== undefined) return problem;
      if (received < READ_SIZE && stream.fds.length === 0) break;
    }
    return undefined;
  }

  #keepFds(stream: UnixStream): string | undefined {
    let surplus = false;
    for (const fd of stream.fds) {
      if (this.side === "driver" || this.#waiting.size >= MAX_WAITING_FDS) {
        fd[Symbol.dispose]();
        surplus = true;
      } else {
        this.#waiting.set(this.#receivedFds++, fd);
      }
    }
    if (surplus) return "the other side sent a file descriptor that nobody asked for";
    return stream.truncated ? "a file descriptor from the other side was lost" : undefined;
  }

  /** Signals the eventfd, or sends one byte. */
  protected override ring(): void {
    if (this.#bells?.isHeard === true) return this.#bells.ring();
    // A full socket already holds a wake-up, and a dead one is reported by its end of file.
    this.#stream?.send(notification, 1);
  }

  /** One byte with the descriptors, see the head of this file. */
  override sendFd(...fds: readonly Fd[]): number {
    if (this.#stream === undefined || this.#stream.send(notification, 1, fds) <= 0) return -1;
    this.#sentFds += fds.length;
    return this.#sentFds - fds.length;
  }

  offerDoorbells(): number {
    if (this.#stream === undefined || this.#bells !== undefined) return -1;
    using stack = new DisposableStack();
    let theirs: Fd, ours: Fd;
    try {
      [theirs, ours] = [stack.use(createEventFd()), stack.use(createEventFd())];
    } catch (error) {
      // No descriptors are left; the socket rings on.
      if (!(error instanceof LinuxError)) throw error;
      return -1;
    }
    const bells = this.#openDoorbells(ours, theirs);
    if (bells === undefined) return -1;
    stack.use(bells);
    const ordinal = this.sendFd(theirs, ours);
    if (ordinal < 0) return -1;
    this.#bells = bells;
    stack.move();
    return ordinal;
  }

  /** Undefined for what is no eventfd, and without /proc, which tells that it is one: then the socket rings on. */
  #openDoorbells(listening: Fd, ringing: Fd): Doorbells | undefined {
    try {
      return new Doorbells(this.reactor, listening, ringing, this.#rung);
    } catch (error) {
      if (!(error instanceof VmsgError)) throw error;
      return undefined;
    }
  }

  takeDoorbells(ordinal: number): boolean {
    using stack = new DisposableStack();
    const fds = [ordinal, ordinal + 1].map((number) => this.takeFd(number));
    for (const fd of fds) if (fd !== undefined) stack.use(fd);
    const [ours, theirs] = fds;
    if (ours === undefined || theirs === undefined || this.#bells !== undefined) return false;
    this.#bells = this.#openDoorbells(ours, theirs);
    if (this.#bells === undefined) return false;
    this.#bells.isHeard = true;
    stack.move();
    return true;
  }

  useDoorbells(): void {
    if (this.#bells !== undefined) this.#bells.isHeard = true;
  }

  readonly #rung = (): void => void this.rung();

  /** What came with that byte, which may still be in the socket: the message was seen after that was read. */
  override takeFd(ordinal: number): Fd | undefined {
    if (!this.#waiting.has(ordinal) && this.#stream !== undefined) {
      const stream = this.#stream;
      const problem = this.#read(stream);
      // Whoever asks is about to answer, and its answer is not for the next peer: so not before it is done.
      if (problem !== undefined) {
        this.reactor.schedule({ run: () => this.#dropIfStill(stream, problem) });
      }
    }
    const fd = this.#waiting.get(ordinal);
    this.#waiting.delete(ordinal);
    return fd;
  }

  #dropIfStill(stream: UnixStream, problem: string): boolean {
    if (this.#stream === stream) this.drop(problem);
    return false;
  }

  /** Closes the stream; the subclass looks for the next peer. */
  override drop(reason: string): void {
    if (this.#stream === undefined) return;
    this.#closeStream();
    // Whoever comes aborts on an answer to somebody else, where the queues are used as found.
    this.outgoing.retract();
    this.detach(reason);
    this.disconnected();
  }

  #closeStream(): void {
    const stream = this.#stream;
    this.#stream = undefined;
    this.#bells?.[Symbol.dispose]();
    this.#bells = undefined;
    if (stream !== undefined) {
      this.reactor.unwatch(stream.fd);
      stream[Symbol.dispose]();
    }
    for (const fd of this.#waiting.values()) fd[Symbol.dispose]();
    this.#waiting.clear();
  }

  /** Closes the stream and the descriptors nobody took. */
  override [Symbol.dispose](): void {
    this.#closeStream();
    // Nobody is told, and nothing is claimed in memory that goes away.
    this.listener = undefined;
    this.detach("closed");
  }
}
