/**
 * Time. Whoever waits or measures asks its reactor, and the reactor asks one of these clocks. A set-up that
 * blocks has no reactor: it asks {@link MONOTONIC} and waits with {@link pause}.
 *
 * The real clock is CLOCK_MONOTONIC, so that all Workers and processes of a machine count from one origin. Called
 * through FFI it takes a third of what `performance.now` takes, which matters where it is read once a batch.
 */

import { allocate } from "./arena.ts";
import { libc } from "./libc.ts";

const CLOCK_MONOTONIC = 1;

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

// struct timespec: s64 seconds, of which the lower half is enough for 136 years after a boot; s64 nanoseconds @8
const { address, bytes } = allocate(16);
const words = new Uint32Array(bytes.buffer, bytes.byteOffset, 4);

/** CLOCK_MONOTONIC. */
export const MONOTONIC: Clock = {
  now(): number {
    libc.clock_gettime(CLOCK_MONOTONIC, address);
    return words[0] * 1000 + words[2] / 1e6;
  },
};

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
