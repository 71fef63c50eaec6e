/**
 * Looking at a queue without a doorbell, at a bounded cost.
 *
 *     busy   for {@link BUSY_MS} after something was found or sent: every turn of the loop, which does
 *            not block meanwhile
 *     near   for {@link NEAR_MS}: every millisecond
 *     idle   every {@link IDLE_MS}
 *
 * So a conversation has the latency of the loop, a single message waits a few milliseconds, and silence
 * costs 200 looks per second (below 1 % of a processor). Other work of the loop goes on in between.
 */

import type { Reactor, Task, Timer } from "../linux/reactor.ts";

const BUSY_MS = 0.5;
const NEAR_MS = 10;
const NEAR_INTERVAL_MS = 1;
const IDLE_MS = 5;

/** See the head of this file. */
export class Poller implements Disposable {
  readonly #timer: Timer;
  readonly #task: Task = { run: () => this.#poll() };
  #activeMs = 0;

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
    this.#activeMs = performance.now();
    this.reactor.schedule(this.#task);
  }

  #poll(): boolean {
    const found = this.look();
    const nowMs = performance.now();
    if (found) this.#activeMs = nowMs;
    const silentMs = nowMs - this.#activeMs;
    if (silentMs < BUSY_MS) {
      this.#timer.cancel();
      return true;
    }
    this.#timer.arm(silentMs < NEAR_MS ? NEAR_INTERVAL_MS : IDLE_MS);
    return false;
  }

  /** Stops looking. */
  [Symbol.dispose](): void {
    this.reactor.dropTimer(this.#timer);
    this.look = () => false;
  }
}
