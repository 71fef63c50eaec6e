/**
 * Fuzzes every surface that somebody hostile can reach, for minutes.
 *
 *     deno task fuzz [--only NAME]... [--seed N] [--seconds N] [--rounds N] [--list]
 *
 * Each fuzzer runs for that long (60 s) or that often, one after another. Seeds are printed at the start and with a
 * failure; `--seed` repeats a run. Fuzzers with other processes in them repeat what they send, not when.
 */

import { parseArgs } from "@std/cli/parse-args";
import { freshSeed, runFuzzer } from "../tests/fuzz/fuzzer.ts";
import { FUZZERS } from "../tests/fuzz/fuzzers.ts";

function fail(problem: string): never {
  console.error(`fuzz: ${problem}`);
  Deno.exit(2);
}

const options = parseArgs(Deno.args, {
  string: ["only", "seed", "seconds", "rounds"],
  boolean: ["list"],
  collect: ["only"],
  unknown: (argument: string) => fail(`${argument} is no option of this task`),
});

function count(name: "seed" | "seconds" | "rounds", otherwise: number): number {
  const text = options[name];
  if (text === undefined) return otherwise;
  return /^\d+$/.test(text) ? Number(text) : fail(`--${name} needs a number, not "${text}"`);
}

const names = FUZZERS.map(({ name }) => name);
for (const name of options.only as string[]) {
  if (!names.includes(name)) fail(`no fuzzer is called ${name}; there are ${names.join(", ")}`);
}
const seed = count("seed", freshSeed());
const rounds = count("rounds", Infinity);
const seconds = count("seconds", rounds === Infinity ? 60 : Infinity);
let failed = 0;
for (const fuzzer of FUZZERS) {
  if (options.only.length > 0 && !options.only.includes(fuzzer.name)) continue;
  if (options.list) {
    console.log(`${fuzzer.name.padEnd(16)} ${fuzzer.what}`);
    continue;
  }
  try {
    await runFuzzer(fuzzer, { seed, rounds, seconds });
  } catch (error) {
    failed++;
    console.error(error);
  }
}
Deno.exit(failed === 0 ? 0 : 1);
