/**
 * Every fuzzer for a moment: a few rounds of a seed that never changes, and a second of one that was never seen
 * (FUZZ_SECONDS for longer). A failure says how to see it again.
 */

import { freshSeed, runFuzzer } from "./fuzzer.ts";
import { FUZZERS } from "./fuzzers.ts";

const SECONDS = Number(Deno.env.get("FUZZ_SECONDS") ?? 1);
const FIXED_SEED = 1;

for (const fuzzer of FUZZERS) {
  Deno.test(`fuzz ${fuzzer.name}: ${fuzzer.what}`, async () => {
    await runFuzzer(fuzzer, { seed: FIXED_SEED, rounds: 20, seconds: SECONDS });
    await runFuzzer(fuzzer, { seed: freshSeed(), rounds: Infinity, seconds: SECONDS });
  });
}
