/**
 * A conversation with the peer that is asked for its rules.
 *
 * A rule's body asks, sends and hears, over any bus and in either role, and does not know how the peer is
 * reached. What is heard is kept as bytes beside its meaning, since half of the rules are about bytes;
 * nothing of this is fast.
 *
 * Private messages of vmsg (message/private.ts) are not answered and not shown: to its peer, who checks is
 * a foreigner.
 */

import type { Bus, BusListener } from "../bus/bus.ts";
import { SLOT_SIZE } from "../bus/spsc_queue.ts";
import type { Deferred, Reactor } from "../linux/reactor.ts";
import type { Codec, Malformed } from "../message/codec.ts";
import { type Field, type Kind, Message } from "../message/message.ts";
import { isPrivate } from "../message/private.ts";
import { isBusMessage, kindName } from "../message/table.ts";
import { expect } from "./outcome.ts";
import type { BusKind } from "./rules.ts";

/** How long a message may take to come. */
const ANSWER_MS = 2000;
/** Tokens of requests begin here, so that both bytes are used. */
const FIRST_TOKEN = 0x1f0;
const MAX_TOKEN = 0xffff;
/** Messages that are kept for one rule. */
const MAX_HEARD = 20_000;

/** What a message says: numbers of its payload, `words` and `bytes` from their beginning on; device and token. */
export type Fields =
  & Partial<Record<Field | "device" | "token", number>>
  & {
    readonly kind?: Kind;
    readonly words?: ArrayLike<number>;
    readonly bytes?: ArrayLike<number>;
  };

function say(message: Message, { words = [], bytes = [], ...fields }: Fields): void {
  Object.assign(message, fields);
  message.words.set(words);
  message.bytes.set(bytes);
}

/** One message that came. */
export interface Heard {
  /** The whole slot. */
  readonly bytes: Uint8Array;
  /** What it means, if it means anything. */
  readonly message: Message;
  /** Why it means nothing. */
  readonly malformed: Malformed | undefined;
  /** When it came, in milliseconds of {@link Conversation.now}. */
  readonly atMs: number;
}

/** See the head of this file. */
export class Conversation implements BusListener {
  /** Everything that was heard, in order. */
  readonly heard: Heard[] = [];
  /** What was heard and not taken. */
  readonly #waiting: Heard[] = [];
  #arrival: Deferred<void> | undefined;
  #nextToken = FIRST_TOKEN;

  /**
   * {@link open} starts it; what is awaited of it is to be awaited in the reactor.
   *
   * @param bus the end that is ours
   * @param codec what is spoken
   * @param device the number of the device that is asked, or played
   * @param memory bus addresses at which queues may lie, for a device that looks
   * @param busKind what kind of bus it is; undefined for one of two ends in one process
   */
  constructor(
    readonly reactor: Reactor,
    readonly bus: Bus,
    readonly codec: Codec,
    readonly device: number,
    readonly memory: { readonly at: number; readonly size: number },
    readonly busKind?: BusKind,
  ) {}

  /** Opens the bus. */
  open(): void {
    this.bus.open(this);
  }

  attached(): void {}

  detached(): void {}

  received(slot: DataView): void {
    const bytes = Uint8Array.from({ length: SLOT_SIZE }, (_, i) => slot.getUint8(i));
    const message = new Message();
    const malformed = this.codec.decode(new DataView(bytes.buffer), 0, message);
    if (malformed === undefined && isPrivate(message.kind)) return;
    const heard = { bytes, message, malformed, atMs: this.now() };
    // Who floods us is not answered in time.
    if (this.heard.length === MAX_HEARD) return;
    this.heard.push(heard);
    this.#waiting.push(heard);
    this.#arrival?.resolve();
    this.#arrival = undefined;
  }

  /** Forgets what was heard. */
  startOver(): void {
    this.heard.length = 0;
    this.#waiting.length = 0;
  }

  /** Milliseconds that never go back. */
  now(): number {
    return this.reactor.now();
  }

  /** Sends a request, and waits for its answer; other messages wait for {@link next}. */
  ask(kind: Kind, fields?: Fields): Promise<Heard> {
    return this.answer(kind, this.send(kind, fields));
  }

  /** The answer with this token (and of this kind), which has been asked for already. */
  async answer(kind: Kind, token: number): Promise<Heard> {
    const heard = await this.#take(
      ({ message, malformed }) =>
        malformed === undefined && message.response && message.kind === kind &&
        message.token === token,
      ANSWER_MS,
    );
    expect(heard !== undefined, `${kindName(kind)} was not answered`);
    return heard;
  }

  /** Sends an event, or a request without waiting; its token. */
  send(kind: Kind, fields?: Fields): number {
    const { bytes, token } = this.bytesOf(kind, fields);
    this.put(bytes);
    return token;
  }

  /** Answers a request. */
  reply(request: Message, fields: Fields = {}): void {
    const message = new Message();
    message.reset(request.kind, true);
    message.device = request.device;
    message.token = request.token;
    say(message, fields);
    this.put(this.#encode(message));
  }

  /** The bytes of a request or an event, and its token, to be changed and {@link put}. */
  bytesOf(kind: Kind, fields: Fields = {}) {
    const message = new Message();
    message.reset(kind, false);
    message.device = isBusMessage(kind) ? 0 : this.device;
    if (this.codec.answered(kind) && this.codec.conduct.hasTokens) {
      message.token = this.#nextToken;
      this.#nextToken = this.#nextToken === MAX_TOKEN ? FIRST_TOKEN : this.#nextToken + 1;
    }
    say(message, fields);
    return { bytes: this.#encode(message), token: message.token };
  }

  #encode(message: Message): Uint8Array {
    const bytes = new Uint8Array(SLOT_SIZE);
    this.codec.encode(message, new DataView(bytes.buffer), 0);
    return bytes;
  }

  /** Sends any bytes; behind them the slot is zeros. */
  put(bytes: ArrayLike<number>): void {
    const offset = this.bus.claim();
    expect(offset >= 0, "the peer does not take our messages: its queue is full, or it is gone");
    for (let i = 0; i < SLOT_SIZE; i++) this.bus.view.setUint8(offset + i, bytes[i] ?? 0);
    this.bus.send();
  }

  /** The next message that nobody has taken; undefined if none comes in time. */
  next(withinMs: number = ANSWER_MS): Promise<Heard | undefined> {
    return this.#take(() => true, withinMs);
  }

  async #take(wanted: (heard: Heard) => boolean, withinMs: number): Promise<Heard | undefined> {
    const timer = this.reactor.timer(() => {
      this.#arrival?.resolve();
      this.#arrival = undefined;
    });
    timer.arm(withinMs);
    try {
      for (;;) {
        const index = this.#waiting.findIndex(wanted);
        if (index >= 0) return this.#waiting.splice(index, 1)[0];
        if (!timer.armed) return undefined;
        this.#arrival = this.reactor.defer<void>();
        await this.#arrival.promise;
      }
    } finally {
      this.reactor.dropTimer(timer);
    }
  }
}
