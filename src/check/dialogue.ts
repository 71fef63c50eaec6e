/**
 * The dialogue with a peer that is asked for its rules, over any bus and in either role. What is heard is kept
 * as bytes beside its meaning, since half of the rules are about bytes; nothing of this is fast.
 *
 * Private messages of vmsg (message/private.ts) are not answered and not shown: to its peer, who checks is
 * a foreigner.
 */

import type { Bus, BusListener } from "../bus/bus.ts";
import { SLOT_SIZE } from "../bus/spsc_queue.ts";
import type { Deferred, Reactor } from "../linux/reactor.ts";
import type { Codec, Malformed } from "../message/codec.ts";
import { type Fields as Said, type Kind, Message } from "../message/message.ts";
import { isPrivate } from "../message/private.ts";
import { isBusMessage, kindName } from "../message/table.ts";
import { expect } from "./outcome.ts";

/** As a driver side of ours waits for one: a peer may have other work to do. */
const ANSWER_MS = 5000;
/** What one rule may take; the longest conversations give a peer a few times ten seconds. */
const RULE_MS = 60_000;
/** Tokens of requests begin here, so that both bytes are used. */
const FIRST_TOKEN = 0x1f0;
/** Messages that are kept for one rule. */
const MAX_HEARD = 20_000;

/** What a message says, or has to say. */
export type Fields = Said & { readonly kind?: Kind; readonly size?: number };

export type Spoil = (bytes: Uint8Array) => void;

/** A message of that kind, and its bytes in a slot. */
function write(codec: Codec, kind: Kind, response: boolean, says: Fields) {
  const message = new Message();
  message.reset(kind, response);
  message.say(says);
  const slot = new Uint8Array(SLOT_SIZE);
  codec.encode(message, new DataView(slot.buffer), 0);
  return { bytes: slot, token: message.token };
}

export interface Heard {
  readonly bytes: Uint8Array;
  /** What it means, if it means anything. */
  readonly message: Message;
  readonly malformed: Malformed | undefined;
  readonly atMs: number;
}

/** The message is undefined where the bytes mean nothing. */
export type Watch = (direction: "->" | "<-", bytes: Uint8Array, message?: Message) => void;

/** See the head of this file. */
export class Dialogue implements BusListener {
  readonly heard: Heard[] = [];
  /** What was heard and not taken. */
  readonly #waiting: Heard[] = [];
  #arrival: Deferred<void> | undefined;
  #nextToken = FIRST_TOKEN;
  /** When the rule that is asked for must be done with. */
  #endMs = Infinity;
  /** How often a peer has gone. */
  departures = 0;

  /**
   * {@link open} starts it; what is awaited of it is to be awaited in the reactor.
   *
   * @param bus the end that is ours
   * @param codec what is spoken
   * @param device the number of the device that is asked, or played
   * @param memory bus addresses at which queues may lie, for a device that looks; without it no queue is set up
   * @param watch sees every message that comes and goes
   */
  constructor(
    readonly reactor: Reactor,
    readonly bus: Bus,
    readonly codec: Codec,
    readonly device: number,
    readonly memory: { readonly at: number; readonly size: number } | undefined,
    readonly watch?: Watch,
  ) {}

  open(): void {
    this.bus.open(this);
  }

  attached(): void {}

  detached(): void {
    this.departures++;
  }

  received(slot: DataView): void {
    const bytes = Uint8Array.from({ length: SLOT_SIZE }, (_, i) => slot.getUint8(i));
    const message = new Message();
    const malformed = this.codec.decode(new DataView(bytes.buffer), 0, message);
    if (malformed === undefined && isPrivate(message.kind)) return;
    this.watch?.("<-", bytes, malformed === undefined ? message : undefined);
    const heard = { bytes, message, malformed, atMs: this.reactor.now() };
    // Who floods us is not answered in time.
    if (this.heard.length === MAX_HEARD) return;
    this.heard.push(heard);
    this.#waiting.push(heard);
    this.#wake();
  }

  #wake(): void {
    this.#arrival?.resolve();
    this.#arrival = undefined;
  }

  /** The next rule: what was said before is of no interest. */
  startOver(): void {
    this.heard.length = 0;
    this.#waiting.length = 0;
    this.bus.isPaused = false;
    this.#endMs = this.reactor.now() + RULE_MS;
  }

  /** To be asked by whoever waits for a peer in a loop of its own. */
  expectTime(): void {
    expect(this.reactor.now() <= this.#endMs, `not done within ${RULE_MS / 1000} s`);
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

  send(kind: Kind, fields?: Fields): number {
    const { bytes, token } = this.bytesOf(kind, fields);
    this.put(bytes);
    return token;
  }

  reply({ kind, device, token }: Message, fields: Fields = {}, spoil?: Spoil): void {
    const says = { device, token, ...fields };
    const { bytes } = write(this.codec, fields.kind ?? kind, true, says);
    spoil?.(bytes);
    this.put(bytes);
  }

  /** The bytes of a request or an event, and its token, to be changed and {@link put}. */
  bytesOf(kind: Kind, fields: Fields = {}) {
    const device = isBusMessage(kind) ? 0 : this.device;
    const hasToken = this.codec.answered(kind) && this.codec.conduct.hasTokens;
    const token = hasToken ? this.#nextToken : 0;
    if (hasToken) this.#nextToken = token === 0xffff ? FIRST_TOKEN : token + 1;
    return write(this.codec, kind, false, { device, token, ...fields });
  }

  put(bytes: ArrayLike<number>): void {
    if (this.watch !== undefined) this.#show(bytes);
    const offset = this.bus.claim();
    expect(offset >= 0, "the peer does not take our messages: its queue is full, or it is gone");
    for (let i = 0; i < SLOT_SIZE; i++) this.bus.view.setUint8(offset + i, bytes[i] ?? 0);
    this.bus.send();
  }

  /** Bytes as they are in revision 1, and in a dialect that has no token without it. */
  framed(bytes: readonly number[]): readonly number[] {
    if (this.codec.conduct.hasTokens) return bytes;
    const size = (bytes[6]! | bytes[7]! << 8) - 2;
    return [...bytes.slice(0, 4), size & 0xff, size >> 8, ...bytes.slice(8)];
  }

  #show(bytes: ArrayLike<number>): void {
    const slot = Uint8Array.from({ length: SLOT_SIZE }, (_, i) => bytes[i] ?? 0);
    const message = new Message();
    const malformed = this.codec.decode(new DataView(slot.buffer), 0, message);
    this.watch?.("->", slot, malformed === undefined ? message : undefined);
  }

  /** The next message that nobody has taken; undefined if none comes in time. */
  next(withinMs: number = ANSWER_MS): Promise<Heard | undefined> {
    return this.#take(() => true, withinMs);
  }

  /** The next message that is one of these, if it comes while so many naps of a millisecond last. */
  async withinNaps(
    wanted: (heard: Heard) => boolean,
    naps: number,
  ): Promise<Heard | undefined> {
    let heard: Heard | undefined;
    for (let n = 0; n < naps && heard === undefined; n++) heard = await this.#take(wanted, 1);
    return heard;
  }

  async #take(wanted: (heard: Heard) => boolean, withinMs: number): Promise<Heard | undefined> {
    this.expectTime();
    const timer = this.reactor.timer(() => this.#wake());
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
