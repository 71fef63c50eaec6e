/** Virtual time: a clock that a test's reactor moves, so that nothing is waited for. */

import type { Clock } from "../../src/linux/clock.ts";

/** What a turn of the loop takes of virtual time: about as long as a real one, and a sum of them is exact. */
const TURN_MS = 1 / 128;
/** Virtual time in which whatever a test waits for has come. */
const LIMIT_MS = 24 * 3_600_000;

/**
 * A clock for tests. It jumps over every wait, from deadline to deadline, and stands still otherwise but for
 * {@link TURN_MS} a turn: so who looks again and again until a moment comes gets there as well.
 *
 * It suits tests in which everything happens in one thread. Another thread or process would see hours pass
 * in no time.
 */
export class VirtualClock implements Clock {
  /** Milliseconds. */
  nowMs = 1000;

  now(): number {
    return this.nowMs;
  }

  /** Lets time pass. */
  advance(ms: number): void {
    this.nowMs += ms;
  }

  /** See {@link Clock.skipTo}. Throws after a day: timers that go on and on would hide that nothing comes. */
  skipTo(deadlineMs: number): void {
    this.nowMs = deadlineMs > this.nowMs ? deadlineMs : this.nowMs + TURN_MS;
    if (this.nowMs > LIMIT_MS) throw new Error("a day of virtual time is over: it never comes");
  }
}
