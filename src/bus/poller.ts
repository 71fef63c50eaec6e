/**
 * Looking at a queue without a doorbell, at a bounded cost.
 *
 *     busy   for {@link BUSY_MS} after something was found, if that was the second time while near: every
 *            turn of the loop, which does not block meanwhile
 *     near   for {@link NEAR_MS} after something was found or sent: every millisecond
 *     idle   every {@link IDLE_MS}
 *
 * So a conversation has the latency of the loop, a single message waits a few milliseconds, and silence
 * with a heartbeat every 100 ms costs some 200 looks per second. Other work of the loop goes on in between.
 */

import type { Reactor, Task, Timer } from "../linux/reactor.ts";

const BUSY_MS = 0.5;
const NEAR_MS = 5;
const NEAR_INTERVAL_MS = 1;
const IDLE_MS = 5;

/** See the head of this file. */
export class Poller implements Disposable {
  readonly #timer: Timer;
  readonly #task: Task = { run: () => this.#poll() };
  /** When something was found or sent. */
  #activeMs = -Infinity;
  #foundMs = -Infinity;
  /** When something was found while near, so that more is likely. */
  #busyMs = -Infinity;

  /**
   * Starts at once.
   *
   * @param look looks, and tells whether it found something
   */
  constructor(readonly reactor: Reactor, private look: () => boolean) {
    this.#timer = reactor.timer(() => reactor.schedule(this.#task));
    reactor.schedule(this.#task);
  }

  /** Something was sent, so an answer is near. */
  expect(): void {
    this.#activeMs = this.reactor.now();
    this.reactor.schedule(this.#task);
  }

  #poll(): boolean {
    const found = this.look();
    const nowMs = this.reactor.now();
    if (found) {
      if (nowMs - this.#foundMs < NEAR_MS) this.#busyMs = nowMs;
      this.#foundMs = this.#activeMs = nowMs;
    }
    if (nowMs - this.#busyMs < BUSY_MS) {
      this.#timer.cancel();
      return true;
    }
    this.#timer.arm(nowMs - this.#activeMs < NEAR_MS ? NEAR_INTERVAL_MS : IDLE_MS);
    return false;
  }

  /** Stops looking. */
  [Symbol.dispose](): void {
    this.reactor.dropTimer(this.#timer);
    this.look = () => false;
  }
}
