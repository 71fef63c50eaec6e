/**
 * Events that wait for room in the message queue.
 *
 * A notification says that something has happened, not how often: it is raised as often as anybody likes
 * and sent once. What waits stands in a list, each notification at most once, so that the list is no
 * longer than there are queues and devices, and sending visits only what has something to say. A full
 * message queue blocks nobody: it is tried again soon, in the order in which they were raised.
 *
 * The driver side sends at once. The device side sends by a task: a device may raise a notification while
 * a request is being handled (features are accepted, so its configuration changes), and it must not
 * overtake the answer to that request, because a peer of the prototype stands still until that comes.
 */

import type { Reactor, Timer } from "../linux/reactor.ts";
import { Kind, type Message } from "../message/message.ts";
import { FULL_RETRY_MS, type Link } from "./link.ts";

/** Something to tell the peer. */
export abstract class Notification {
  /** Is it raised and not sent? */
  isWaiting = false;

  /** A notification of a device number; the kind is that of an event. */
  constructor(readonly kind: Kind, readonly device: number) {}

  /** Fills the event's payload with what is so now. */
  abstract fill(event: Message): void;
}

/** EVENT_AVAIL or EVENT_USED of one queue. */
export class QueueNotification extends Notification {
  constructor(
    kind: typeof Kind.EVENT_AVAIL | typeof Kind.EVENT_USED,
    device: number,
    readonly index: number,
  ) {
    super(kind, device);
  }

  override fill(event: Message): void {
    event.index = this.index;
  }
}

/** EVENT_CONFIG: the device changed its configuration or its status by itself. */
export class ConfigNotification extends Notification {
  constructor(readonly slot: Record<"number" | "status" | "generation", number>) {
    super(Kind.EVENT_CONFIG, slot.number);
  }

  override fill(event: Message): void {
    event.status = this.slot.status;
    event.generation = this.slot.generation;
  }
}

/** When notifications are sent, and what they leave to others. */
export interface NotificationOptions {
  /** As soon as they are raised, instead of after the descriptors of this turn. */
  readonly atOnce: boolean;
  /** Slots that they leave free, for answers. */
  readonly reserve: number;
}

/** See the head of this file. */
export class Notifications implements Disposable {
  /** Those that wait are the first {@link #count}; an array that shrinks would be allocated anew. */
  readonly #waiting: Notification[] = [];
  #count = 0;
  readonly #task = { run: (): boolean => this.#flush() };
  readonly #retry: Timer;

  /** None waits yet. */
  constructor(
    readonly link: Link,
    readonly reactor: Reactor,
    readonly options: NotificationOptions,
  ) {
    this.#retry = reactor.timer(() => this.#flush());
  }

  /** Sends a notification as soon as there is room. */
  raise(notification: Notification): void {
    if (notification.isWaiting) return;
    notification.isWaiting = true;
    this.#waiting[this.#count++] = notification;
    if (this.#retry.armed) return;
    if (this.options.atOnce) this.#flush();
    else this.reactor.schedule(this.#task);
  }

  /** Forgets it, because there is nobody any more who should be told. */
  cancel(notification: Notification): void {
    if (!notification.isWaiting) return;
    notification.isWaiting = false;
    const position = this.#waiting.indexOf(notification);
    this.#waiting.copyWithin(position, position + 1, this.#count--);
  }

  /** Forgets all of them. */
  cancelAll(): void {
    while (this.#count > 0) this.#waiting[--this.#count].isWaiting = false;
  }

  /** Sends it before others if it waits and there is room for it and `reserve` more. */
  hurry(notification: Notification, reserve: number): void {
    if (notification.isWaiting && this.#send(notification, reserve)) this.cancel(notification);
  }

  #send(notification: Notification, reserve: number): boolean {
    notification.fill(this.link.start(notification.kind, notification.device));
    return this.link.send(reserve);
  }

  #flush(): boolean {
    const waiting = this.#waiting;
    const count = this.#count;
    let sent = 0;
    while (sent < count && this.#send(waiting[sent], this.options.reserve)) {
      waiting[sent++].isWaiting = false;
    }
    this.#count = count - sent;
    if (sent === count) return false;
    waiting.copyWithin(0, sent, count);
    // Without a peer nobody is to be told; what waits is cancelled when one is lost.
    if (this.link.bus.isAttached) this.#retry.arm(FULL_RETRY_MS);
    return false;
  }

  /** Sends nothing any more. */
  [Symbol.dispose](): void {
    this.reactor.dropTimer(this.#retry);
  }
}
