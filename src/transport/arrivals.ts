/**
 * Device numbers that come and go while a driver side is there (rules B13, B23, B28, B33).
 *
 *     free --requests are served, EVENT_DEVICE added--> taken --nothing is touched any more, EVENT_DEVICE removed--> resting
 *     resting --{@link REST_MS} after that was sent--> free
 *
 * A number rests because a driver side may have sent requests before it read that the device is gone: they are dropped, and
 * must not reach another device. Who wants any number gets one that was not taken yet, until all of them were.
 */

import type { Reactor } from "../linux/reactor.ts";
import { DEVICE_ADDED, DEVICE_REMOVED, Kind, type Message } from "../message/message.ts";
import type { Link } from "./link.ts";
import { Notification, type Notifications } from "./notifications.ts";

/** How long after EVENT_DEVICE a driver side may still send what was meant for the device that is gone. */
export const REST_MS = 1000;
const NUMBERS = 0x1_0000;

/** EVENT_DEVICE: about the bus, so its own device number is 0. */
class Arrival extends Notification {
  /** When it was last tried to be sent: when it was, if it does not wait. */
  sentMs = -Infinity;

  constructor(readonly reactor: Reactor, readonly number: number, readonly state: number) {
    super(Kind.EVENT_DEVICE, 0);
  }

  override fill(event: Message): void {
    event.number = this.number;
    event.state = this.state;
    this.sentMs = this.reactor.now();
  }
}

/** See the head of this file. */
export class Arrivals {
  readonly #resting = new Map<number, Arrival>();
  readonly #added = new Map<number, Arrival>();
  #next = 0;

  /** @param isHeard is there a driver side that knows EVENT_DEVICE? One that comes later asks what there is. */
  constructor(
    readonly reactor: Reactor,
    readonly notifications: Notifications,
    readonly isHeard: () => boolean,
  ) {}

  /** A number that is neither taken nor resting, and was not taken before if there is such a one; -1 for none. */
  free(isTaken: (number: number) => boolean): number {
    for (let tried = 0; tried < NUMBERS; tried++) {
      if (!isTaken(this.#next) && this.restMs(this.#next) === 0) return this.#next;
      this.#pass(this.#next);
    }
    return -1;
  }

  #pass(number: number): void {
    this.#next = (number + 1) % NUMBERS;
  }

  /** How long this number rests yet; as long as it takes to send that its device is gone, and {@link REST_MS}. */
  restMs(number: number): number {
    const removed = this.#resting.get(number);
    if (removed === undefined) return 0;
    if (removed.isWaiting) return REST_MS;
    const left = removed.sentMs + REST_MS - this.reactor.now();
    if (left <= 0) this.#resting.delete(number);
    return Math.max(0, left);
  }

  /** A device serves requests from now on. */
  added(number: number): void {
    if (number >= this.#next) this.#pass(number);
    if (!this.isHeard()) return;
    const arrival = new Arrival(this.reactor, number, DEVICE_ADDED);
    this.#added.set(number, arrival);
    this.notifications.raise(arrival);
  }

  /** A device is gone. */
  removed(number: number): void {
    const added = this.#added.get(number);
    if (added !== undefined) this.notifications.cancel(added);
    this.#added.delete(number);
    for (const resting of this.#resting.keys()) this.restMs(resting);
    if (!this.isHeard()) return;
    const arrival = new Arrival(this.reactor, number, DEVICE_REMOVED);
    this.#resting.set(number, arrival);
    this.notifications.raise(arrival);
  }
}

/** Answers the GET_DEVICES in hand. */
export function answerDevices(link: Link, numbers: readonly number[]): void {
  const { codec, in: { offset, count } } = link;
  const out = link.answer();
  const end = offset + Math.min(count, codec.limits.deviceBits);
  // Behind what was asked for, also of a window of nothing: else who goes on there never ends (rule B31).
  const behind = Math.max(end, offset + 1);
  out.offset = offset;
  out.count = end - offset;
  for (const number of numbers) {
    if (number >= offset && number < end) {
      out.bytes[(number - offset) >> 3] |= 1 << ((number - offset) & 7);
    } else if (number >= behind && (out.nextOffset === 0 || number < out.nextOffset)) {
      out.nextOffset = number;
    }
  }
  if (codec.conduct.nextOffsetIsAligned && out.nextOffset !== 0) {
    out.nextOffset = Math.max(end, out.nextOffset - out.nextOffset % 8);
  }
  link.send();
}

/**
 * Answers the request in hand, for a device that is not there. Early discovery may ask for any number: all zero means that there
 * is no device (rule V4). All else is dropped: a bus invents no answer (rule B20).
 */
export function answerAbsent(link: Link): void {
  if (link.in.kind !== Kind.GET_DEVICE_INFO) return link.drop("no such device");
  link.answer();
  link.send();
}
