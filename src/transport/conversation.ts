/**
 * A conversation with a device: one question at a time, and what waits for its answer.
 *
 * A device may answer later (see virtio/device.ts). Until then it is asked nothing else:
 *
 *     idle --it answers at once--> idle
 *     idle --a promise--> busy --it settles--> idle, and the requests that waited are taken in turn
 *                         busy --{@link ANSWER_LIMIT_MS}--> hung --it settles--> idle
 *
 * - busy: further requests for the device wait, and each gets its answer in its turn; of all devices of a bus as many as
 *   there are tokens ({@link MAX_WAITING}). The request in flight is kept as the bytes it came in; when the answer comes it is the message in hand again, so that whoever goes on
 *   finds everything as if the device had answered at once.
 * - hung: the request is answered as failed, and so is every other that needs the device. The answer, when
 *   it comes, is only a sign that the device can be asked again.
 *
 * {@link Conversation.abandon} forgets the requests, when whoever asked is gone: the device's answer then
 * changes nothing but that it can be asked again. A device that answers at once costs no promise, no timer
 * and no copy.
 */

import type { Reactor, Task, Timer } from "../linux/reactor.ts";
import type { Answer } from "../virtio/device.ts";

/** How long a device may take for a request; a driver side waits 5 s. */
export const ANSWER_LIMIT_MS = 4000;
/**
 * Requests that wait for the devices of one bus. Each open request has a token of its own (rule G8), so whoever has
 * more than these has given one twice; a driver has few.
 */
export const MAX_WAITING = 0xffff;
/** Waiting requests that are handled before others have their turn: all of them may be failed at once. */
const BATCH = 64;

/** Who leads the conversation. */
export interface Party {
  /** Keeps a copy of the request in hand, and makes that the message in hand again. */
  readonly link: {
    keep(request: DataView): DataView;
    takeUp(request: DataView): void;
  };
  /** Handles the request in hand. */
  handle(): void;
  /**
   * The device did not answer as it should.
   *
   * @param reason for people
   * @param hasRequest the message in hand is a request that wants an answer nevertheless
   */
  failed(reason: string, hasRequest: boolean): void;
  /** The device can be asked again. */
  settled(): void;
}

/** See the head of this file. */
export class Conversation implements Disposable {
  /** The request that is being handled. */
  #current: DataView | undefined;
  /** Where it is kept while the device is busy with it. */
  #kept: DataView | undefined;
  #isAsked = false;
  #isLate = false;
  /** Counts questions whose answer is no longer wanted. */
  #abandoned = 0;
  #hasRequest = false;
  #isOver = false;
  #waiting: DataView[] = [];
  /** How many of those have been taken up. */
  #taken = 0;
  readonly #task: Task = { run: () => this.#handleWaiting() };
  #limit: Timer | undefined;

  /** @param all how many requests wait for all devices of the bus; shared by them */
  constructor(
    readonly reactor: Reactor,
    readonly party: Party,
    readonly all: { waiting: number },
  ) {}

  /** Has the device been asked something that it has not answered? */
  get isAsked(): boolean {
    return this.#isAsked;
  }

  /** Must requests wait? */
  get isBusy(): boolean {
    return this.#isAsked && !this.#isLate;
  }

  /** Has the device been silent for too long? */
  get isHung(): boolean {
    return this.#isLate;
  }

  /**
   * Handles a request, which is the message in hand, or keeps it until the device has answered an
   * earlier one.
   *
   * @returns false if too many wait
   */
  take(request: DataView): boolean {
    if (!this.isBusy && this.#waiting.length === 0) this.#handle(request);
    else if (this.all.waiting === MAX_WAITING) return false;
    else {
      this.#waiting.push(this.party.link.keep(request));
      this.all.waiting++;
    }
    return true;
  }

  #handle(request: DataView): void {
    this.#current = request;
    this.party.handle();
    this.#current = undefined;
  }

  /**
   * Must an answer of the device be waited for? If so, `then` is called with it, unless it is late, or
   * abandoned, or a failure. If not, it is there, and the caller goes on.
   */
  defers<T>(answer: Answer<T>, then: (value: T) => void): answer is Promise<T> {
    if (!(answer instanceof Promise)) return false;
    if (this.#isAsked) throw new Error("a device was asked two things at once");
    this.#isAsked = true;
    this.#hasRequest = this.#current !== undefined;
    if (this.#current !== this.#kept) {
      this.#kept = this.#current && this.party.link.keep(this.#current);
    }
    this.#limit ??= this.reactor.timer(() => this.#late());
    // For all that one request asks together.
    if (!this.#limit.armed) this.#limit.arm(ANSWER_LIMIT_MS);
    // It has the reactor look for promises, also for one that is settled already.
    this.reactor.spawn(() => this.#wait(answer, then));
    return true;
  }

  /** Goes on with an answer: now, or when it has come. */
  ask<T>(answer: Answer<T>, then: (value: T) => void): void {
    if (!this.defers(answer, then)) then(answer);
  }

  async #wait<T>(answer: Promise<T>, then: (value: T) => void): Promise<void> {
    const abandoned = this.#abandoned;
    let goOn: () => void;
    try {
      const value = await answer;
      goOn = () => then(value);
    } catch (error) {
      goOn = () => this.party.failed(`it failed: ${error}`, this.#hasRequest);
    }
    if (this.#isOver) return;
    this.#isAsked = false;
    const isWanted = !this.#isLate && abandoned === this.#abandoned;
    this.#isLate = false;
    if (isWanted) this.#goOn(goOn);
    // What has come up meanwhile, if it has not asked the next thing.
    if (!this.#isAsked) this.party.settled();
    if (this.#isAsked) return;
    this.#limit!.cancel();
    this.#goOnWaiting();
  }

  /** Goes on with the request that the device was asked for. */
  #goOn(then: () => void): void {
    this.#current = this.#hasRequest ? this.#kept : undefined;
    if (this.#current !== undefined) this.party.link.takeUp(this.#current);
    then();
    this.#current = undefined;
  }

  #late(): void {
    this.#isLate = true;
    const hasRequest = this.#hasRequest;
    this.#hasRequest = false;
    if (hasRequest) this.party.link.takeUp(this.#kept!);
    this.party.failed(`no answer within ${ANSWER_LIMIT_MS} ms`, hasRequest);
    this.#goOnWaiting();
  }

  #goOnWaiting(): void {
    if (this.#handleWaiting()) this.reactor.schedule(this.#task);
  }

  /** A batch of what waits; true if there is more that can be handled now. */
  #handleWaiting(): boolean {
    for (let i = 0; i < BATCH && this.#taken < this.#waiting.length; i++) {
      if (this.isBusy) return false;
      const request = this.#waiting[this.#taken++]!;
      this.all.waiting--;
      this.party.link.takeUp(request);
      this.#handle(request);
    }
    if (this.#taken < this.#waiting.length) return true;
    this.#forgetWaiting();
    return false;
  }

  #forgetWaiting(): void {
    this.all.waiting -= this.#waiting.length - this.#taken;
    this.#waiting = [];
    this.#taken = 0;
  }

  /** Forgets the requests that have no answer: that of which the device was asked, and those that wait. */
  surrender(): { readonly asked: DataView | undefined; readonly waiting: readonly DataView[] } {
    const asked = this.#isAsked && this.#hasRequest ? this.#kept : undefined;
    const waiting = this.#waiting.slice(this.#taken);
    this.abandon();
    return { asked, waiting };
  }

  /** Nothing is asked of the device any more, whatever it has answered. */
  giveUp(): void {
    this.#isLate = true;
  }

  /** A copy of the request that is being handled, to {@link take} it later. */
  copyOfRequest(): DataView {
    return this.party.link.keep(this.#current!);
  }

  /** Whoever sent the requests is gone: none of them is answered. */
  abandon(): void {
    this.#abandoned++;
    this.#hasRequest = false;
    this.#forgetWaiting();
  }

  /** The device is gone as well: what it answers is not heard. */
  [Symbol.dispose](): void {
    this.abandon();
    this.#isOver = true;
    if (this.#limit !== undefined) this.reactor.dropTimer(this.#limit);
  }
}
