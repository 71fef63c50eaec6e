/**
 * The control socket of a process that runs: lines of JSON, one request and one answer at a time.
 *
 *     ["add","--device","blk,file=disk.img"]      {"result":{"number":3,"description":"blk disk.img"}}
 *     ["remove","9"]                              {"error":{"code":"NO_DEVICE","message":"there is no device 9"}}
 *
 * It stands in the reactor of the data plane, where the devices are: nothing else reaches a Worker that waits. So clients get little
 * of it: few at a time, a line that is short and comes soon, the next one when the last is answered and a moment has passed; who
 * does not read is let go of. Who may connect is who the file's mode says; others who run as this user could do worse.
 */

import { Acceptor } from "../../linux/acceptor.ts";
import { allocate } from "../../linux/arena.ts";
import { UsageError, VmsgError } from "../../linux/errors.ts";
import type { Access } from "../../linux/own_file.ts";
import { EPOLLERR, EPOLLHUP, EPOLLIN, type Reactor, type Timer } from "../../linux/reactor.ts";
import { listenUnix, type UnixStream } from "../../linux/unix_socket.ts";
import { complaintOf } from "../complaint.ts";

/** Clients at a time; the others stay in the socket's backlog. */
export const MAX_CLIENTS = 4;
/** Bytes of a line. */
export const MAX_LINE = 8192;
/** How long a client may say nothing, and how soon after an answer it is heard again. */
export const SILENT_MS = 10_000;
const PAUSE_MS = 10;

const PIECE = 4096;
const piece = allocate(PIECE);
const NEWLINE = 10;

/** An answer: a line of it is one of these. */
export type ControlAnswer =
  | { readonly result: unknown }
  | { readonly error: { readonly code: string; readonly message: string } };

interface Client {
  readonly stream: UnixStream;
  /** Its patience, or ours. */
  readonly timer: Timer;
  /** What came of lines that are not handled yet. */
  received: Uint8Array;
  isAsking: boolean;
}

/** See the head of this file. */
export class ControlSocket implements Disposable {
  readonly #acceptor: Acceptor;
  readonly #clients = new Set<Client>();

  /**
   * Listens at once.
   *
   * @param answer does what a line asks for, or fails
   */
  constructor(
    readonly reactor: Reactor,
    path: string,
    access: Access,
    readonly answer: (line: string) => Promise<unknown>,
    readonly warn: (line: string) => void,
  ) {
    this.#acceptor = new Acceptor(
      reactor,
      listenUnix(path, access),
      (stream) => this.#take(stream),
      (problem) => warn(`control socket ${path}: ${problem}`),
    );
  }

  #take(stream: UnixStream): void {
    const { reactor } = this;
    const timer = reactor.timer(() => client.isAsking ? this.#listen(client) : this.#drop(client));
    const client: Client = { stream, timer, received: new Uint8Array(), isAsking: false };
    this.#clients.add(client);
    this.#acceptor.hold(this.#clients.size >= MAX_CLIENTS);
    timer.arm(SILENT_MS);
    reactor.watch(stream.fd, EPOLLIN, (events) => {
      if ((events & EPOLLIN) !== 0) this.#receive(client);
      else if ((events & (EPOLLHUP | EPOLLERR)) !== 0) this.#drop(client);
    });
  }

  #drop(client: Client): void {
    if (!this.#clients.delete(client)) return;
    this.reactor.unwatch(client.stream.fd);
    this.reactor.dropTimer(client.timer);
    client.stream[Symbol.dispose]();
    this.#acceptor.hold(this.#clients.size >= MAX_CLIENTS);
  }

  #receive(client: Client): void {
    const { stream } = client;
    const count = stream.receive(piece.address, PIECE);
    for (const fd of stream.fds) fd[Symbol.dispose]();
    if (count === 0) return this.#drop(client);
    if (count < 0) return;
    const received = new Uint8Array(client.received.length + count);
    received.set(client.received);
    received.set(piece.bytes.subarray(0, count), client.received.length);
    client.received = received;
    this.#handleNext(client);
  }

  /** Handles the next line if it is whole. */
  #handleNext(client: Client): void {
    const { received } = client;
    const end = received.indexOf(NEWLINE);
    if (end < 0 && received.length <= MAX_LINE) return;
    if (end < 0 || end > MAX_LINE) {
      const message = `a line has at most ${MAX_LINE} bytes`;
      this.#send(client, { error: { code: "USAGE", message } });
      return this.#drop(client);
    }
    client.received = received.slice(end + 1);
    client.isAsking = true;
    client.timer.cancel();
    // A client that hangs up is heard of all the same; what it asked for is done.
    this.reactor.rewatch(client.stream.fd, 0);
    this.reactor.spawn(() =>
      this.#answer(client, new TextDecoder().decode(received.subarray(0, end)))
    );
  }

  async #answer(client: Client, line: string): Promise<void> {
    let answer: ControlAnswer;
    try {
      answer = { result: await this.answer(line) ?? null };
    } catch (error) {
      const code = error instanceof VmsgError ? error.code : "INTERNAL";
      answer = { error: { code, message: complaintOf(error) } };
    }
    if (!this.#clients.has(client)) return;
    if (this.#send(client, answer)) client.timer.arm(PAUSE_MS);
    else this.#drop(client);
  }

  /** False if the client has no room for it: it does not read. */
  #send({ stream }: Client, answer: ControlAnswer): boolean {
    const bytes = new TextEncoder().encode(JSON.stringify(answer) + "\n");
    for (let at = 0; at < bytes.length; at += PIECE) {
      const part = bytes.subarray(at, at + PIECE);
      piece.bytes.set(part);
      if (stream.send(piece.address, part.length) !== part.length) return false;
    }
    return true;
  }

  /** Hears a client again. */
  #listen(client: Client): void {
    client.isAsking = false;
    client.timer.arm(SILENT_MS);
    this.reactor.rewatch(client.stream.fd, EPOLLIN);
    this.#handleNext(client);
  }

  [Symbol.dispose](): void {
    for (const client of this.#clients) this.#drop(client);
    this.#acceptor[Symbol.dispose]();
  }
}

/** The result of an answer; @throws what the other process would have thrown. */
export function resultOf(answer: ControlAnswer): unknown {
  if (!("error" in answer)) return answer.result;
  const { code, message } = answer.error;
  throw code === "USAGE" ? new UsageError(message) : new VmsgError(code, message);
}
