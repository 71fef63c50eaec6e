/** Every fuzzer there is. */

import type { Fuzzer } from "./fuzzer.ts";
import { RING_FUZZERS } from "./rings.ts";

/** In the order in which they run. */
export const FUZZERS: readonly Fuzzer[] = [...RING_FUZZERS];
