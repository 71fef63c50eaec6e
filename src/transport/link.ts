/**
 * A bus with a codec on it: messages instead of slots, the same for both sides.
 *
 * There is one record for what came ({@link Link.in}) and one for what goes out ({@link Link.out}), so that
 * no message allocates anything. A handler therefore reads `in` before it hands control to anybody who may
 * receive, and fills `out` only when nothing but sending it is left to do.
 *
 * An answer that finds the queue full waits, and whatever is sent later waits behind it (rule G23). Where
 * {@link LinkOptions.pauses}, the bus is not read while {@link MAX_ANSWERS} wait: a peer that asks and never
 * reads stands still, and no more wait than those and what devices have been asked before. Otherwise further
 * answers are lost, and counted.
 */

import type { Bus } from "../bus/bus.ts";
import type { Reactor, Timer } from "../linux/reactor.ts";
import type { Codec, Malformed } from "../message/codec.ts";
import { type Kind, Message } from "../message/message.ts";
import { MESSAGES } from "../message/table.ts";
import { type Counters, counterShape } from "../observe/counters.ts";
import type { Tracer } from "../observe/trace.ts";
import { AnswerTimes } from "./answer_times.ts";

const LinkCounters = counterShape(
  "received",
  "sent",
  "malformed",
  "bad size",
  "unknown id",
  "no answer exists",
  "short",
  "long",
  "bad length",
  "dropped",
  "out of turn",
  "no such device",
  "no such queue",
  "unknown request",
  "not asked for",
  "busy",
  "full",
  "unansweredFull",
);

/** Why nothing is done about a message; "out of turn" is one of another epoch, or of a peer that is not set up so far. */
export type DropCause =
  | "out of turn"
  | "no such device"
  | "no such queue"
  | "unknown request"
  | "not asked for"
  | "busy";

/** How soon a full message queue is tried again. */
export const FULL_RETRY_MS = 1;
/** Answers that wait for room before no more requests are taken. */
export const MAX_ANSWERS = 64;

/** What a link is made of. */
export interface LinkOptions {
  /** The loop. */
  readonly reactor: Reactor;
  /** Sees every message. */
  readonly tracer: Tracer | undefined;
  /** Does it stop to read when too many answers wait? Not both sides of a bus may. */
  readonly pauses: boolean;
}

/** See the head of this file. */
export class Link implements Disposable {
  /** The message in hand. */
  readonly in: Message = new Message();
  /** The message that is being made. */
  readonly out: Message = new Message();
  /**
   * What came and went, what came and could not be used (malformed, dropped; both by cause), how often there was no room, and answers
   * that were lost for that.
   */
  readonly counters: Counters<
    | Malformed
    | DropCause
    | "received"
    | "sent"
    | "malformed"
    | "dropped"
    | "full"
    | "unansweredFull"
  >;
  /** See {@link LinkOptions.tracer}. */
  readonly tracer: Tracer | undefined;
  /** Answers that wait for room, oldest first, as they will be sent. */
  readonly #answers: Uint8Array[] = [];
  readonly #retry: Timer;
  readonly #answerTimes = new AnswerTimes();
  /** When the request in hand came, and those did that are kept. */
  #cameMs = 0;
  readonly #keptMs = new WeakMap<DataView, number>();

  /**
   * Reads nothing by itself.
   *
   * @param codec the dialect that is spoken; a device side may change it when it hears another one
   */
  constructor(readonly bus: Bus, public codec: Codec, readonly options: LinkOptions) {
    this.counters = new LinkCounters("bus", bus.description);
    this.tracer = options.tracer;
    if (this.tracer !== undefined) bus.kernel?.traceBy(this.tracer);
    this.#retry = options.reactor.timer(() => this.#sendWaiting());
  }

  /** Reads what came into {@link in}; says why it is no message, if it is none. */
  receive(slot: DataView): Malformed | undefined {
    this.counters.received++;
    const malformed = this.codec.decode(slot, 0, this.in);
    if (malformed !== undefined) return malformed;
    const { kind, response, size } = this.in;
    if (!response && !MESSAGES[kind].event) this.#cameMs = this.options.reactor.turnMs();
    this.tracer?.message("<-", this.in, slot, 0, size);
    return undefined;
  }

  /** A copy of the request in hand, which is in this slot. */
  keep(slot: DataView): DataView {
    const kept = new DataView(slot.buffer.slice(0), slot.byteOffset, slot.byteLength);
    this.#keptMs.set(kept, this.#cameMs);
    return kept;
  }

  /** Makes a request that was kept the one in hand again. */
  takeUp(slot: DataView): void {
    this.#cameMs = this.#keptMs.get(slot) ?? this.#cameMs;
    const malformed = this.codec.decode(slot, 0, this.in);
    if (malformed !== undefined) throw new Error(`a message became ${malformed} by waiting`);
  }

  /** Counts and shows what {@link receive} refused. */
  refuse(slot: DataView, reason: Malformed): void {
    this.counters.malformed++;
    this.counters[reason]++;
    this.tracer?.malformed(slot, 0, slot.byteLength, reason);
  }

  /** Counts the message in hand as one that nothing is done about. */
  drop(cause: DropCause): void {
    this.counters.dropped++;
    this.counters[cause]++;
  }

  /** Starts a message; fill {@link out} and call {@link send}. */
  start(kind: Kind, device: number): Message {
    this.out.reset(kind, false);
    this.out.device = device;
    return this.out;
  }

  /** Starts the answer to the message in hand; fill it and call {@link send}. */
  answer(): Message {
    const { in: request, out } = this;
    out.reset(request.kind, true);
    out.device = request.device;
    out.token = request.token;
    return out;
  }

  /** Answers the PING in hand. */
  pong(): void {
    const { data } = this.in;
    this.answer().data = data;
    this.send();
  }

  /**
   * Sends {@link out}; an answer goes as soon as there is room.
   *
   * @param reserve slots that must stay free
   * @returns false if there is no room or no peer now
   */
  send(reserve = 0): boolean {
    const { out, options } = this;
    if (out.response) this.#answerTimes.add(out.kind, options.reactor.now() - this.#cameMs);
    if (this.#encode(reserve)) {
      this.bus.send();
      return true;
    }
    if (out.response && this.bus.isAttached) this.#keepAnswer();
    return false;
  }

  /** Sends {@link out} together with the next message: a peer that attaches sees both or neither. */
  sendWithNext(): boolean {
    if (!this.#encode(0)) return false;
    this.bus.sendWithNext();
    return true;
  }

  #encode(reserve: number): boolean {
    const { bus, codec, out } = this;
    const offset = this.#sendWaiting() ? bus.claim(reserve) : -1;
    if (offset < 0) {
      if (bus.isAttached) this.counters.full++;
      return false;
    }
    codec.encode(out, bus.view, offset);
    this.counters.sent++;
    this.tracer?.message("->", out, bus.view, offset, out.size);
    return true;
  }

  // --- answers that wait -------------------------------------------------------------------------

  #keepAnswer(): void {
    const { bus, codec, out, options } = this;
    const isMuch = this.#answers.length >= MAX_ANSWERS;
    if (isMuch && !options.pauses) {
      this.counters.unansweredFull++;
      return;
    }
    const slot = new Uint8Array(codec.slotSize);
    const view = new DataView(slot.buffer);
    codec.encode(out, view, 0);
    this.tracer?.message("->", out, view, 0, out.size);
    this.#answers.push(slot);
    if (options.pauses) bus.isPaused = this.#answers.length >= MAX_ANSWERS;
    this.#retry.arm(FULL_RETRY_MS);
  }

  /** Sends the answers that wait, as far as there is room; true when none is left. */
  #sendWaiting(): boolean {
    const answers = this.#answers;
    if (answers.length === 0) return true;
    const { bus } = this;
    let sent = 0;
    for (let offset; sent < answers.length && (offset = bus.claim()) >= 0; sent++) {
      answers[sent].forEach((byte, i) => bus.view.setUint8(offset + i, byte));
      this.counters.sent++;
      bus.send();
    }
    answers.splice(0, sent);
    if (bus.isPaused && answers.length < MAX_ANSWERS) bus.isPaused = false;
    if (answers.length === 0) return true;
    this.counters.full++;
    this.#retry.arm(FULL_RETRY_MS);
    return false;
  }

  /** Nobody wants the answers any more that wait. */
  forget(): void {
    this.#answers.length = 0;
    if (this.bus.isPaused) this.bus.isPaused = false;
    this.#retry.cancel();
  }

  /** Sends nothing any more by itself. */
  [Symbol.dispose](): void {
    this.forget();
    this.options.reactor.dropTimer(this.#retry);
  }
}
