/**
 * Time. Everything that waits or measures asks its reactor, and the reactor asks one of these.
 *
 * The real clock is CLOCK_MONOTONIC, so that all Workers and processes of a machine count from one origin.
 * `performance.now` is the same clock from another origin, which differs from Worker to Worker, and costs
 * no call: the difference is measured once, when this module is loaded.
 */

import { allocate } from "./arena.ts";
import { check, libc } from "./libc.ts";

const CLOCK_MONOTONIC = 1;

/** What a reactor tells time by. */
export interface Clock {
  /** Milliseconds that never go back. */
  now(): number;
  /**
   * A clock that is moved by hand: called instead of waiting when there is nothing to do before
   * `deadlineMs`. A clock without it is waited for.
   */
  readonly skipTo?: (deadlineMs: number) => void;
}

function originMs(): number {
  const { address, view } = allocate(16);
  check(libc.clock_gettime(CLOCK_MONOTONIC, address), "clock_gettime");
  const seconds = Number(view.getBigInt64(0, true));
  return seconds * 1000 + Number(view.getBigInt64(8, true)) / 1e6 - performance.now();
}

const ORIGIN_MS = originMs();

/** CLOCK_MONOTONIC. */
export const MONOTONIC: Clock = { now: () => ORIGIN_MS + performance.now() };

/** A clock that stands still until it is moved, and jumps over every wait; for tests. */
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

  skipTo(deadlineMs: number): void {
    this.nowMs = Math.max(this.nowMs, deadlineMs);
  }
}
