/**
 * Time. Whoever waits or measures asks its reactor, and the reactor asks one of these clocks. A set-up that
 * blocks has no reactor: it asks {@link MONOTONIC} and waits with {@link pause}.
 *
 * The real clock is CLOCK_MONOTONIC, so that all Workers and processes of a machine count from one origin.
 * `performance.now` reads the same clock without a call through FFI, but counts from the start of its own
 * Worker. The difference is measured once, when this module is loaded.
 */

import { allocate } from "./arena.ts";
import { check, libc } from "./libc.ts";

const CLOCK_MONOTONIC = 1;
/** How often the difference is measured. The first time is slow, and any time we may lose the processor. */
const SAMPLES = 8;

/** What a reactor tells time by. */
export interface Clock {
  /** Milliseconds that never go back. */
  now(): number;
  /**
   * Only a clock that is moved by hand has it, and is then never waited for: every turn of the loop calls it.
   * `deadlineMs` is the next timer's if the turn found nothing to do, and otherwise -Infinity.
   */
  readonly skipTo?: (deadlineMs: number) => void;
}

/** What `performance.now` has to be added to. The reading that took least time is the nearest one. */
function originMs(): number {
  // struct timespec: s64 seconds, s64 nanoseconds @8
  const { address, view } = allocate(16);
  let origin = 0;
  let shortestMs = Infinity;
  for (let i = 0; i < SAMPLES; i++) {
    const beforeMs = performance.now();
    check(libc.clock_gettime(CLOCK_MONOTONIC, address), "clock_gettime");
    const afterMs = performance.now();
    if (afterMs - beforeMs >= shortestMs) continue;
    shortestMs = afterMs - beforeMs;
    const ms = Number(view.getBigInt64(0, true)) * 1000 + Number(view.getBigInt64(8, true)) / 1e6;
    origin = ms - (beforeMs + afterMs) / 2;
  }
  return origin;
}

const ORIGIN_MS = originMs();

/** CLOCK_MONOTONIC. */
export const MONOTONIC: Clock = { now: () => ORIGIN_MS + performance.now() };

/**
 * The date, in milliseconds since 1970, for people to read. It is set, and may go back: nothing is measured or
 * waited for by it.
 */
export function dateMs(): number {
  return Date.now();
}

/** Blocks the whole thread for `ms`, signals or not; for a set-up or an end that has no reactor. */
export function pause(ms: number): void {
  const endMs = MONOTONIC.now() + ms;
  for (let leftMs = ms; leftMs > 0; leftMs = endMs - MONOTONIC.now()) {
    libc.poll(0n, 0n, Math.ceil(leftMs));
  }
}
