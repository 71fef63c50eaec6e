/**
 * What a fuzzer is, and how one is run.
 *
 * A fuzzer makes a target and throws rounds at it. Each round has a seed of its own, the run's seed plus the
 * round's number, from which everything in it follows; so the line that a failure ends with repeats that round
 * alone. A target checks its invariants in the round that may have hurt them, and what can only be seen in the
 * long run (leaks, lines, memory) when it is finished.
 */

import { assert, assertEquals } from "@std/assert";
import { held } from "../support/leaks.ts";
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

/** Sockets that Deno opens by itself while a program runs. */
const SOCKETS_OF_DENO = 4;
/** What a garbage collector may leave for later, and more. */
const MOST_GROWTH_MIB = 512;
const isSocket = (target: string) => target.startsWith("socket:");
const socketCount = () => held().filter(isSocket).length;
const others = () => held().filter((target) => !isSocket(target));

/** Descriptors and mappings of this process before the first round, to which all later ones are compared. */
export class Holdings {
  readonly #others = others();
  readonly #sockets = socketCount();
  readonly #bytes = Deno.memoryUsage().rss;

  /** After a round. */
  check(): void {
    assertEquals(others(), this.#others, "descriptors or mappings were left behind");
  }

  /** After the last round: memory too, and sockets, of which a few are not ours. */
  finish(reached: string): string {
    const grownMiB = (Deno.memoryUsage().rss - this.#bytes) >> 20;
    assert(grownMiB < MOST_GROWTH_MIB, `this process has grown by ${grownMiB} MiB`);
    const more = socketCount() - this.#sockets;
    assert(more <= SOCKETS_OF_DENO, `${more} sockets were left behind`);
    return reached;
  }
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
