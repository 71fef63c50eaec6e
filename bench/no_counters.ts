/**
 * Counters that do not count, in the place of src/observe/counters.ts: what bench:watching compares with. An import map puts them
 * there (watching_bench.ts). `received` and `sent` are plain properties, since whether a peer has spoken is read from them, and
 * how many frames the driver has sent.
 */

import type { Counters, CounterShape } from "../src/observe/counters.ts";

export * from "../src/observe/counters.ts";

const READ = ["received", "sent"];

/** As `counterShape` of counters.ts, which it stands for. */
export function counterShape<Name extends string>(...names: Name[]): CounterShape<Name> {
  class Shape {
    received = 0;
    sent = 0;
  }
  for (const name of names.filter((name) => !READ.includes(name))) {
    Object.defineProperty(Shape.prototype, name, { get: () => 0, set: () => {} });
  }
  return Shape as unknown as new () => Counters<Name>;
}
