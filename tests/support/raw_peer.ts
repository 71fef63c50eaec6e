/**
 * One end of a bus without a transport: puts any slot into the queue, decodes what comes. It plays the
 * peer of a side under test, right or wrong.
 */

import type { Bus, BusListener } from "../../src/bus/bus.ts";
import type { Deferred, Reactor } from "../../src/linux/reactor.ts";
import type { Codec } from "../../src/message/codec.ts";
import { Kind, Message, QUEUE_ENABLED } from "../../src/message/message.ts";
import { kindName } from "../../src/message/table.ts";

/** How long a message may take to come: longer than the side under test takes for anything. */
const TIMEOUT_MS = 60_000;

/** Fills a message's payload, its device and its token. */
export type Fill = (message: Message) => void;

/** What a peer that plays a device has been told of its queues, and says of them. */
export class SetQueues {
  readonly #set = new Map<number, Message>();

  /** Remembers SET_VQUEUE, and fills the answer to GET_VQUEUE. */
  answer(request: Message, answer: Message): void {
    if (request.kind === Kind.SET_DEVICE_STATUS && request.status === 0) this.#set.clear();
    if (request.kind === Kind.SET_VQUEUE) this.#set.set(request.index, request);
    if (request.kind === Kind.RESET_VQUEUE) this.#set.delete(request.index);
    if (request.kind !== Kind.GET_VQUEUE) return;
    const set = this.#set.get(request.index);
    answer.index = request.index;
    answer.maxSize = 256;
    if (set === undefined) return;
    const { queueSize, descriptorAddress, driverAddress, deviceAddress } = set;
    const at = { descriptorAddress, driverAddress, deviceAddress };
    Object.assign(answer, { queueSize, flags: QUEUE_ENABLED, ...at });
  }
}

/** See the head of this file. */
export class RawPeer implements BusListener {
  /** Messages that came and were not taken. */
  readonly messages: Message[] = [];
  /** Why the bus detached, each time. */
  readonly detachReasons: string[] = [];
  attachments = 0;
  /** Called for every message instead of keeping it, if set; true: keep it nevertheless. */
  onMessage: ((message: Message) => boolean | void) | undefined;
  #waiting: Deferred<Message> | undefined;
  #nextToken = 0x100;

  constructor(readonly reactor: Reactor, readonly bus: Bus, readonly codec: Codec) {}

  open(): void {
    this.bus.open(this);
  }

  attached(): void {
    this.attachments++;
  }

  detached(reason: string): void {
    this.detachReasons.push(reason);
  }

  received(slot: DataView): void {
    const message = new Message();
    const malformed = this.codec.decode(slot, 0, message);
    if (malformed !== undefined) throw new Error(`the side under test sent nonsense: ${malformed}`);
    if (this.onMessage !== undefined && this.onMessage(message) !== true) return;
    const waiting = this.#waiting;
    this.#waiting = undefined;
    if (waiting !== undefined) waiting.resolve(message);
    else this.messages.push(message);
  }

  /** The next message; to be awaited inside `reactor.until`. */
  async next(): Promise<Message> {
    const message = this.messages.shift();
    if (message !== undefined) return message;
    const deferred = this.#waiting = this.reactor.defer<Message>();
    const timer = this.reactor.timer(() => deferred.reject(new Error("no message came")));
    timer.arm(TIMEOUT_MS);
    try {
      return await deferred.promise;
    } finally {
      this.reactor.dropTimer(timer);
    }
  }

  /** The next message, which must be of this kind. */
  async nextOf(kind: Kind): Promise<Message> {
    const message = await this.next();
    if (message.kind !== kind) {
      throw new Error(`expected ${kindName(kind)}, got ${kindName(message.kind)}`);
    }
    return message;
  }

  /** Sends a request (with a token of its own) or an event; returns the token. */
  send(kind: Kind, fill: Fill = () => {}): number {
    const message = new Message();
    message.reset(kind, false);
    message.token = this.codec.answered(kind) && this.codec.conduct.hasTokens
      ? this.#nextToken++
      : 0;
    fill(message);
    this.put(message);
    return message.token;
  }

  /** Answers a request. */
  reply(request: Message, fill: Fill = () => {}): void {
    const message = new Message();
    message.reset(request.kind, true);
    message.device = request.device;
    message.token = request.token;
    fill(message);
    this.put(message);
  }

  /** Sends a request and waits for the next message, which must be its answer. */
  async ask(kind: Kind, fill: Fill = () => {}): Promise<Message> {
    const token = this.send(kind, fill);
    const answer = await this.nextOf(kind);
    if (!answer.response || answer.token !== token) throw new Error("that is not the answer");
    return answer;
  }

  /** Sends one message. */
  put(message: Message): void {
    const offset = this.bus.claim();
    if (offset < 0) throw new Error("the queue is full");
    this.codec.encode(message, this.bus.view, offset);
    this.bus.send();
  }

  /** Sends any bytes, padded with zeros to a slot. */
  putBytes(bytes: readonly number[]): void {
    const offset = this.bus.claim();
    if (offset < 0) throw new Error("the queue is full");
    for (let i = 0; i < 64; i++) this.bus.view.setUint8(offset + i, bytes[i] ?? 0);
    this.bus.send();
  }
}
