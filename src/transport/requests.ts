/**
 * The open requests of a driver side.
 *
 * Requests are promises of async sequences (see reactor.ts); several may be open, answers are paired by
 * token, or by kind and device where the dialect has no tokens. What is wanted of an answer is read inside
 * the receive handler, because the record it comes in is reused.
 *
 * A request ends in one of four ways: it is answered; it is late, and who asked recovers the device
 * ({@link Asker.late}); the device is lost, which fails all its requests at once; or there is none to send it
 * to. All but the first are {@link PeerLost} to whoever waits. None is sent again.
 */

import { errnoName, VmsgError } from "../linux/errors.ts";
import type { Deferred, Reactor, Timer } from "../linux/reactor.ts";
import type { Fields, Kind, Message } from "../message/message.ts";
import { isBusMessage, kindName } from "../message/table.ts";
import { Latency } from "../observe/latency.ts";
import { RequestState } from "../observe/state.ts";
import { randomToken } from "./epoch.ts";
import { FULL_RETRY_MS, type Link } from "./link.ts";
import type { Notifications } from "./notifications.ts";

/** How long an answer may take; the Linux transport waits as long. */
export const REQUEST_TIMEOUT_MS = 5000;

/** The device went away, was replaced or did not answer while a request was open: it has to be set up anew. */
export class PeerLost extends VmsgError {
  /** The class, for printing. */
  override readonly name: string = "PeerLost";

  /** Its code is PEER_LOST, or TIMEOUT for the request that was not answered. */
  constructor(reason: string, code = "PEER_LOST") {
    super(code, reason);
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

/** Who wants to know whether there is a device side, or one device. */
export interface PeerListener {
  /** Requests can be sent; the other side knows nothing of what was set up before. */
  ready(): void;
  /** The other side is gone, with all that was set up there. */
  lost(reason: string): void;
}

/** Whose requests they are: a device number. */
export interface Asker {
  /** The device number. */
  readonly number: number;
  /** True while requests can be sent. */
  readonly mayAsk: boolean;
  /** Changes when the device is lost; equal values are the same device. */
  readonly session: number;
  /** A request was not answered in time. */
  late(error: PeerLost): void;
}

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
  /** The epoch that private requests carry. */
  readonly epoch: number;
  /** Does the device side take kicks and calls (linux/notifier.ts)? */
  readonly takesNotifiers: boolean;
  /** Those that were sent. */
  readonly requests: OpenRequests;
  /** What the device side is told as soon as there is room. */
  readonly notifications: Notifications;
  /** The device side is not the one that it was, as whoever uses a device has found: it is looked for again. */
  replaced(reason: string): void;
  /** Tells people what a device side can make us say as often as it likes. */
  complain(line: string): void;
}

interface OpenRequest {
  readonly asker: Asker;
  readonly kind: Kind;
  readonly device: number;
  readonly deadlineMs: number;
  readonly sentMs: number;
  /** Reads what is wanted from the answer, and settles the promise. */
  readonly answer: (message: Message) => void;
  readonly fail: (error: PeerLost) => void;
}

/** See the head of this file. */
export class OpenRequests implements Disposable {
  /** By token; without tokens, by a number of our own. */
  readonly #open = new Map<number, OpenRequest>();
  readonly #timeouts: Timer;
  readonly #latency: Latency;
  readonly #seen = new RequestState();
  #nextToken = randomToken();

  /**
   * None is open yet.
   *
   * @param timeoutMs how long an answer may take
   */
  constructor(readonly reactor: Reactor, readonly link: Link, readonly timeoutMs: number) {
    this.#timeouts = reactor.timer(() => this.#failLate());
    this.#latency = new Latency("answers to requests");
  }

  /**
   * Sends one request and reads its answer.
   *
   * @param fields what the request says
   * @param read takes what is wanted from the answer, if anything is; the record is reused afterwards
   * @throws PeerLost
   */
  async request<T = void>(
    asker: Asker,
    kind: Kind,
    fields: Fields,
    read: (answer: Message) => T = () => undefined as T,
  ): Promise<T> {
    const { reactor, link } = this;
    const { session } = asker;
    const device = isBusMessage(kind) ? 0 : asker.number;
    const deadlineMs = reactor.now() + this.timeoutMs;
    if (!asker.mayAsk) throw new PeerLost("there is no device side");
    const deferred: Deferred<T> = reactor.defer();
    for (;;) {
      const token = this.#freeToken();
      const out = link.start(kind, device);
      out.token = link.codec.conduct.hasTokens ? token : 0;
      out.say(fields);
      if (link.send()) {
        if (!link.codec.answered(kind)) return read(out);
        this.#open.set(token, {
          asker,
          kind,
          device,
          deadlineMs,
          sentMs: reactor.now(),
          answer: (message) => deferred.resolve(read(message)),
          fail: deferred.reject,
        });
        this.#show();
        this.#armTimeouts();
        const value = await deferred.promise;
        // Answered and lost in one turn of the loop: whoever went on would speak to the next device
        // side, and remember of it what the last one was told.
        if (session !== asker.session) throw new PeerLost("the device side is gone");
        return value;
      }
      await reactor.sleep(FULL_RETRY_MS);
      if (!asker.mayAsk || session !== asker.session) throw new PeerLost("the device side is gone");
      if (reactor.now() > deadlineMs) {
        const error = this.#tooLate(kind);
        asker.late(error);
        throw error;
      }
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
      this.#show();
      this.#latency.add(this.reactor.now() - request.sentMs);
      return request.answer(message);
    }
    this.link.drop("not asked for");
  }

  /** A device is gone: its requests fail. */
  lose(asker: Asker, reason: string): void {
    const error = new PeerLost(reason);
    for (const [key, request] of this.#open) {
      if (request.asker !== asker) continue;
      this.#open.delete(key);
      request.fail(error);
    }
    this.#show();
  }

  /** For whoever looks from outside; the oldest stands first. */
  #show(): void {
    this.#seen.open(this.#open.size, this.#open.values().next().value);
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
      const error = this.#tooLate(request.kind);
      request.fail(error);
      request.asker.late(error);
    }
    this.#show();
    this.#armTimeouts();
  }

  #tooLate(kind: Kind): PeerLost {
    // Who never said anything may not have understood anything.
    const hint = this.link.counters.received === 0 ? ": it may speak another dialect or hang" : "";
    return new PeerLost(
      `the device side did not answer ${kindName(kind)} within ${this.timeoutMs} ms${hint}`,
      "TIMEOUT",
    );
  }

  /** Nothing is late any more. */
  [Symbol.dispose](): void {
    this.reactor.dropTimer(this.#timeouts);
  }
}
