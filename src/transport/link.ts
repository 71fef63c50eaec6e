/**
 * A bus with a codec on it: messages instead of slots, the same for both sides.
 *
 * There is one record for what came ({@link Link.in}) and one for what goes out ({@link Link.out}), so that
 * no message allocates anything. A handler therefore reads `in` before it hands control to anybody who may
 * receive, and fills `out` only when nothing but sending it is left to do.
 */

import type { Bus } from "../bus/bus.ts";
import type { Codec, Malformed } from "../message/codec.ts";
import { type Kind, Message } from "../message/message.ts";
import { type Counters, counterShape } from "../observe/counters.ts";
import type { Tracer } from "../observe/trace.ts";

const LinkCounters = counterShape("received", "malformed", "dropped", "unansweredFull");

/** See the head of this file. */
export class Link {
  /** The message in hand. */
  readonly in: Message = new Message();
  /** The message that is being made. */
  readonly out: Message = new Message();
  /** What came, what of it could not be used, and answers for which there was no room. */
  readonly counters: Counters<"received" | "malformed" | "dropped" | "unansweredFull">;

  /**
   * Sends nothing and reads nothing by itself.
   *
   * @param codec the dialect that is spoken; a device side may change it when it hears another one
   */
  constructor(readonly bus: Bus, public codec: Codec, readonly tracer: Tracer | undefined) {
    this.counters = new LinkCounters("bus", bus.description);
  }

  /** Reads what came into {@link in}; says why it is no message, if it is none. */
  receive(slot: DataView): Malformed | undefined {
    this.counters.received++;
    const malformed = this.codec.decode(slot, 0, this.in);
    if (malformed === undefined) this.tracer?.message("<-", this.in, slot, 0, this.in.size);
    return malformed;
  }

  /** Makes a message that was received before the one in hand again. */
  takeUp(slot: DataView): void {
    const malformed = this.codec.decode(slot, 0, this.in);
    if (malformed !== undefined) throw new Error(`a message became ${malformed} by waiting`);
  }

  /** Counts and shows what {@link receive} refused. */
  refuse(slot: DataView, reason: Malformed): void {
    this.counters.malformed++;
    this.tracer?.malformed(slot, 0, slot.byteLength, reason);
  }

  /** Counts the message in hand as one that nothing is done about. */
  drop(): void {
    this.counters.dropped++;
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
   * Sends {@link out}.
   *
   * @param reserve slots that must stay free
   * @returns false if there is no room or no peer
   */
  send(reserve = 0): boolean {
    if (!this.#encode(reserve)) return false;
    this.bus.send();
    return true;
  }

  /** Sends {@link out} together with the next message: a peer that attaches sees both or neither. */
  sendWithNext(): boolean {
    if (!this.#encode(0)) return false;
    this.bus.sendWithNext();
    return true;
  }

  #encode(reserve: number): boolean {
    const { bus, codec, out } = this;
    const offset = bus.claim(reserve);
    if (offset < 0) {
      if (out.response) this.counters.unansweredFull++;
      return false;
    }
    codec.encode(out, bus.view, offset);
    this.tracer?.message("->", out, bus.view, offset, out.size);
    return true;
  }
}
