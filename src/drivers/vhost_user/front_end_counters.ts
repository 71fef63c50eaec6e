/** What is counted of the front ends that one socket serves, one after another. */

import { counterShape } from "../../observe/counters.ts";

/**
 * `refused` are connections that we ended, for what they sent or could not have; the log says why. Kicks and calls are those that
 * come by here: out of band they go from one end to the other.
 */
export const FrontEndCounters = counterShape(
  "connections",
  "messages",
  "kicks",
  "calls",
  "refused",
);
/** Their values. */
export type FrontEndCounts = InstanceType<typeof FrontEndCounters>;
