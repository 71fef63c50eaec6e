/**
 * The open requests of a driver side.
 *
 * Requests are promises of async sequences (see reactor.ts); several may be open, answers are paired by
 * token, or by kind and device where the dialect has no tokens. What is wanted of an answer is read inside
 * the receive handler, because the record it comes in is reused.
 *
 * A request ends in one of four ways: it is answered; it is late ("TIMEOUT"); the device side is lost
 * ({@link PeerLost}), which fails all of them at once; or there is none to send it to. None is sent again.
 */

import { errnoName, VmsgError } from "../linux/errors.ts";
import type { Deferred, Reactor, Timer } from "../linux/reactor.ts";
import type { Kind, Message } from "../message/message.ts";
import { kindName } from "../message/table.ts";
import { randomToken } from "./epoch.ts";
import { FULL_RETRY_MS, type Link } from "./link.ts";
import type { Notification } from "./notifications.ts";

/** How long an answer may take; the Linux transport waits as long. */
export const REQUEST_TIMEOUT_MS = 5000;

/** The peer went away or was replaced while a request was open. */
export class PeerLost extends VmsgError {
  /** The class, for printing. */
  override readonly name: string = "PeerLost";

  /** Its code is always PEER_LOST. */
  constructor(reason: string) {
    super("PEER_LOST", reason);
  }
}

/** The device side answered a private request with an errno. */
export class RequestRefused extends VmsgError {
  /** The class, for printing. */
  override readonly name: string = "RequestRefused";

  /** Its code is always REFUSED. */
  constructor(kind: Kind, device: number, readonly errno: number) {
    super("REFUSED", `device ${device} refused ${kindName(kind)}: ${errnoName(errno)}`);
  }
}

/** Who is at the other end, see driver_side.ts. */
export type PeerKind = "none" | "probing" | "vmsg" | "foreign";

/** What a remote device needs of the side it belongs to. */
export interface Requests {
  /** The loop. */
  readonly reactor: Reactor;
  /** The bus and its dialect. */
  readonly link: Link;
  /** Who is at the other end. */
  readonly peer: PeerKind;
  /** True while requests can be sent. */
  readonly isReady: boolean;
  /** Changes when the device side is lost; equal values are the same device side. */
  readonly session: number;
  /** The epoch that private requests carry. */
  readonly epoch: number;
  /**
   * Sends one request and reads its answer.
   *
   * @param fill fills the payload of the request
   * @param read takes what is wanted from the answer; the record is reused afterwards
   * @throws PeerLost, or VmsgError "TIMEOUT"
   */
  request<T>(
    kind: Kind,
    device: number,
    fill: (request: Message) => void,
    read: (answer: Message) => T,
  ): Promise<T>;
  /** Tells the device side, as soon as there is room. */
  notify(notification: Notification): void;
}

interface OpenRequest {
  readonly kind: Kind;
  readonly device: number;
  readonly deadlineMs: number;
  /** Reads what is wanted from the answer, and settles the promise. */
  readonly answer: (message: Message) => void;
  readonly fail: (error: VmsgError) => void;
}

/** See the head of this file. */
export class OpenRequests implements Disposable {
  /** By token; without tokens, by a number of our own. */
  readonly #open = new Map<number, OpenRequest>();
  readonly #timeouts: Timer;
  #nextToken = randomToken();
  #session = 0;

  /**
   * @param isReady can requests be sent?
   * @param timeoutMs how long an answer may take
   */
  constructor(
    readonly reactor: Reactor,
    readonly link: Link,
    readonly isReady: () => boolean,
    readonly timeoutMs: number,
  ) {
    this.#timeouts = reactor.timer(() => this.#failLate());
  }

  /** See {@link Requests.session}. */
  get session(): number {
    return this.#session;
  }

  /** See {@link Requests.request}. */
  async request<T>(
    kind: Kind,
    device: number,
    fill: (request: Message) => void,
    read: (answer: Message) => T,
  ): Promise<T> {
    const { reactor, link } = this;
    const session = this.#session;
    const deadlineMs = reactor.now() + this.timeoutMs;
    if (!this.isReady()) throw new PeerLost("there is no device side");
    const deferred: Deferred<T> = reactor.defer();
    for (;;) {
      const token = this.#freeToken();
      const out = link.start(kind, device);
      out.token = link.codec.conduct.hasTokens ? token : 0;
      fill(out);
      if (link.send()) {
        if (!link.codec.answered(kind)) return read(out);
        this.#open.set(token, {
          kind,
          device,
          deadlineMs,
          answer: (message) => deferred.resolve(read(message)),
          fail: deferred.reject,
        });
        this.#armTimeouts();
        const value = await deferred.promise;
        // Answered and lost in one turn of the loop: whoever went on would speak to the next device
        // side, and remember of it what the last one was told.
        if (session !== this.#session) throw new PeerLost("the device side is gone");
        return value;
      }
      await reactor.sleep(FULL_RETRY_MS);
      if (!this.isReady() || session !== this.#session) {
        throw new PeerLost("the device side is gone");
      }
      if (reactor.now() > deadlineMs) throw this.#tooLate();
    }
  }

  #freeToken(): number {
    do this.#nextToken = (this.#nextToken + 1) & 0xffff; while (
      this.#nextToken === 0 || this.#open.has(this.#nextToken)
    );
    return this.#nextToken;
  }

  /** The answer in hand came; it is dropped if nobody waits for it. */
  answered(): void {
    const message = this.link.in;
    for (const [key, request] of this.#open) {
      if (this.link.codec.conduct.hasTokens && key !== message.token) continue;
      if (request.kind !== message.kind || request.device !== message.device) continue;
      this.#open.delete(key);
      return request.answer(message);
    }
    this.link.drop();
  }

  /** The device side is gone: every request fails, and what began with it is not sent to the next. */
  lose(reason: string): void {
    this.#session++;
    const error = new PeerLost(reason);
    for (const request of this.#open.values()) request.fail(error);
    this.#open.clear();
  }

  #armTimeouts(): void {
    if (this.#timeouts.armed || this.#open.size === 0) return;
    let deadlineMs = Infinity;
    for (const request of this.#open.values()) {
      deadlineMs = Math.min(deadlineMs, request.deadlineMs);
    }
    this.#timeouts.arm(Math.max(0, deadlineMs - this.reactor.now()));
  }

  #failLate(): void {
    const nowMs = this.reactor.now();
    for (const [key, request] of this.#open) {
      if (request.deadlineMs > nowMs) continue;
      this.#open.delete(key);
      request.fail(this.#tooLate());
    }
    this.#armTimeouts();
  }

  #tooLate(): VmsgError {
    // Who never said anything may not have understood anything.
    const hint = this.link.counters.received === 0 ? ": it may speak another dialect or hang" : "";
    return new VmsgError(
      "TIMEOUT",
      `the device side did not answer within ${this.timeoutMs} ms${hint}`,
    );
  }

  /** Nothing is late any more. */
  [Symbol.dispose](): void {
    this.reactor.dropTimer(this.#timeouts);
  }
}
