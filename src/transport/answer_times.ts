/**
 * How long a side takes to answer: from the turn of the loop in which a request came until its answer is made, whatever it waited for
 * meanwhile, other requests or a device. A histogram for each kind of request, made when the first one is answered.
 */

import type { Kind } from "../message/message.ts";
import { MESSAGES } from "../message/table.ts";
import { countingAsNow, noteCounters } from "../observe/counters.ts";
import { Latency } from "../observe/latency.ts";

/** See the head of this file. */
export class AnswerTimes {
  readonly #latencies: (Latency | undefined)[] = [];
  readonly #counting = countingAsNow();

  /** Counts one. */
  add(kind: Kind, ms: number): void {
    (this.#latencies[kind] ??= this.#make(kind)).add(ms);
  }

  /** It lives as long as the side, whatever is being made at the moment. */
  #make(kind: Kind): Latency {
    const make = () => new Latency(`answering ${MESSAGES[kind].name}`);
    return noteCounters(undefined, () => this.#counting(make));
  }
}
