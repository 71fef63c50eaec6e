import { assert } from "@std/assert";
import { Pace } from "../../src/linux/pace.ts";

/** So many turns that took so long each. */
function turn(pace: Pace, count: number, ms: number): void {
  for (let i = 0; i < count; i++) pace.turned(ms);
}

Deno.test("pace: a loop is busy after some dozens of quick turns, and not after one long wait", () => {
  const pace = new Pace(2);
  assert(!pace.isBusy, "at first");
  turn(pace, 20, 0.03);
  assert(!pace.isBusy, "after a few");
  turn(pace, 80, 0.03);
  assert(pace.isBusy);
  turn(pace, 1, 0.2);
  assert(pace.isBusy, "one that is a little longer");
  turn(pace, 1, 2);
  assert(!pace.isBusy, "a wait");
  turn(pace, 5, 0.03);
  assert(!pace.isBusy, "five are not enough");
  turn(pace, 20, 0.03);
  assert(pace.isBusy, "as a stream that paused goes on");
});

Deno.test("pace: pings every millisecond, and a heartbeat, keep no loop awake", () => {
  for (const ms of [0.15, 1, 100]) {
    const pace = new Pace(64);
    turn(pace, 1000, ms);
    assert(!pace.isBusy, `${ms} ms`);
  }
  // Three quick turns belong to each ping.
  const pace = new Pace(64);
  for (let i = 0; i < 1000; i++) {
    turn(pace, 1, 1);
    turn(pace, 3, 0.005);
  }
  assert(!pace.isBusy);
});

Deno.test("pace: with one processor no loop looks twice", () => {
  const pace = new Pace(1);
  turn(pace, 1000, 0.01);
  assert(!pace.isBusy);
});
