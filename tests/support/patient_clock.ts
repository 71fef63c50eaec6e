/** A clock for set-ups that block and give up after seconds: the other side may be a process that is not scheduled for long. */

import { type Clock, MONOTONIC } from "../../src/linux/clock.ts";

const SLOWER = 30;

export const PATIENT: Clock = { now: () => MONOTONIC.now() / SLOWER };
