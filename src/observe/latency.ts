/**
 * How long things took, as a group of counters (counters.ts): how many there were, their sum and the longest, and a
 * histogram whose steps are powers of two. `below8us` counts those that took 4 to 7 microseconds; what lasted longer
 * than the last step is in it as well.
 *
 * p50 and p99 are read from the histogram: the end of the step they are in, or the longest if that is less.
 */

import { type Counters, counterShape } from "./counters.ts";

/** The kind of such a group. */
export const LATENCY = "latency";
/** Up to 8 seconds: nobody waits longer for an answer. */
const STEPS = 24;

const COUNTS: readonly string[] = Array.from({ length: STEPS }, (_, n) => `below${2 ** n}us`);
const LatencyCounters = counterShape("count", "totalUs", "longestUs", ...COUNTS);

/** See the head of this file. */
export class Latency {
  readonly counters: Counters<string>;

  /** Of what, for people. */
  constructor(name: string) {
    this.counters = new LatencyCounters(LATENCY, name);
  }

  /** Counts one. */
  add(ms: number): void {
    const { counters } = this;
    const us = Math.max(0, Math.round(1000 * ms));
    const step = Math.min(us >= 2 ** STEPS ? STEPS : 32 - Math.clz32(us), STEPS - 1);
    counters.count!++;
    counters.totalUs! += us;
    if (us > counters.longestUs!) counters.longestUs = us;
    counters[COUNTS[step]!]!++;
  }
}

/** What a group says, in microseconds. */
export interface LatencyRead {
  readonly count: number;
  readonly totalUs: number;
  readonly longestUs: number;
  readonly p50Us: number;
  readonly p99Us: number;
  /** How many took less than so many microseconds, all that took less yet included. */
  readonly below: readonly (readonly [us: number, count: number])[];
}

/** Reads such a group, which may be anybody's. */
export function readLatency(
  counters: readonly { readonly name: string; readonly value: number }[],
): LatencyRead {
  const valueOf = (wanted: string) => counters.find(({ name }) => name === wanted)?.value ?? 0;
  const longestUs = valueOf("longestUs");
  let sum = 0;
  const below = COUNTS.map((name, n) => [2 ** n, sum += valueOf(name)] as const);
  const at = (part: number) => {
    const us = below.find(([, count]) => count > 0 && count >= part * sum)?.[0] ?? 0;
    return Math.min(us, longestUs);
  };
  const [count, totalUs] = [valueOf("count"), valueOf("totalUs")];
  return { count, totalUs, longestUs, p50Us: at(0.5), p99Us: at(0.99), below };
}
