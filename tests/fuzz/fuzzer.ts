/**
 * What a fuzzer is, and how one is run.
 *
 * A fuzzer makes a target and throws rounds at it. Each round has a seed of its own, the run's seed plus the
 * round's number, from which everything in it follows; so the line that a failure ends with repeats that round
 * alone. A target checks its invariants in the round that may have hurt them, and what can only be seen in the
 * long run (leaks, lines, memory) when it is finished.
 */

import { Random } from "../support/mock_driver.ts";

/** What is fuzzed, with what lasts from round to round. */
export interface Target {
  /** One round; throws if an invariant is hurt. */
  round(random: Random): void | Promise<void>;
  /** After the last round: what only shows in the long run, and a line about what was reached. */
  finish(rounds: number): string | Promise<string>;
}

/** See the head of this file. */
export interface Fuzzer {
  /** For `--only`. */
  readonly name: string;
  /** What is thrown at what. */
  readonly what: string;
  /** Makes a target, hands it over, and cleans up. */
  readonly open: (use: (target: Target) => Promise<void>) => Promise<void>;
}

/** How long a fuzzer runs. */
export interface Bounds {
  readonly seed: number;
  readonly rounds: number;
  readonly seconds: number;
}

/** A seed for a run that was given none. */
export function freshSeed(): number {
  return Math.floor(Math.random() * 2 ** 32);
}

/** Runs a fuzzer; what it throws says how to see it again. */
export async function runFuzzer(fuzzer: Fuzzer, { seed, rounds, seconds }: Bounds): Promise<void> {
  const { name } = fuzzer;
  console.log(`${name}: --seed ${seed}`);
  let round = 0;
  const place = () => (seed + round) >>> 0;
  try {
    await fuzzer.open(async (target) => {
      const startMs = performance.now();
      const elapsed = () => performance.now() - startMs;
      for (; round < rounds && elapsed() < 1000 * seconds; round++) {
        await target.round(new Random(place()));
      }
      const reached = await target.finish(round);
      console.log(`${name}: ${round} rounds in ${(elapsed() / 1000).toFixed(1)} s, ${reached}`);
    });
  } catch (error) {
    const again = (from: number, count: number) =>
      `deno task fuzz --only ${name} --seed ${from} --rounds ${count}`;
    const how = `${name}: round ${round} failed; again: ${again(place(), 1)}\n` +
      `${name}: with all before it: ${again(seed, round + 1)}`;
    console.error(how);
    throw new Error(how, { cause: error });
  }
}
