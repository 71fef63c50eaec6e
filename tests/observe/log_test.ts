import { assert, assertEquals } from "@std/assert";
import type { Timer } from "../../src/linux/reactor.ts";
import { createLog, limitedLog, LOG_LEVELS, withoutRepeats } from "../../src/observe/log.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

/** A limited log, and how to let time pass for it. */
function limited() {
  const lines: string[] = [];
  const clock = new VirtualClock();
  const timers: { atMs: number; fire: () => void }[] = [];
  const timer = (fire: () => void): Timer => {
    const made = { atMs: Infinity, fire };
    timers.push(made);
    return {
      arm: (delayMs) => made.atMs = clock.nowMs + delayMs,
      cancel: () => made.atMs = Infinity,
      get armed() {
        return made.atMs < Infinity;
      },
    };
  };
  return {
    lines,
    log: withoutRepeats(createLog("x", "debug", (line) => lines.push(line)), {
      now: () => clock.nowMs,
      timer,
    }),
    count: (text: string) => lines.filter((line) => line.includes(text)).length,
    advance(ms: number) {
      clock.advance(ms);
      for (const timer of timers.filter(({ atMs }) => atMs <= clock.nowMs)) {
        timer.atMs = Infinity;
        timer.fire();
      }
    },
  };
}

Deno.test("log: lines at and above the level, with the name in front", () => {
  for (const [position, level] of LOG_LEVELS.entries()) {
    const lines: string[] = [];
    const log = createLog("vmsg test", level, (line) => lines.push(line));
    for (const wanted of LOG_LEVELS) log[wanted](wanted);
    assertEquals(lines, LOG_LEVELS.slice(0, position + 1).map((word) => `vmsg test: ${word}`));
  }
});

Deno.test("limitedLog: once per interval, and how many were left out", () => {
  const lines: string[] = [];
  const clock = new VirtualClock();
  const never = limitedLog((line) => lines.push(line), clock, 1e9);
  for (let n = 0; n < 5; n++) never(`line ${n}`);
  assertEquals(lines, ["line 0"]);
  lines.length = 0;
  const always = limitedLog((line) => lines.push(line), clock, 0);
  always("a");
  always("b");
  assertEquals(lines, ["a", "b"]);
  lines.length = 0;
  const short = limitedLog((line) => lines.push(line), clock, 20);
  short("first");
  short("second");
  short("third");
  clock.advance(19);
  short("not yet");
  clock.advance(1);
  short("fourth");
  short("fifth");
  assertEquals(lines, ["first", "fourth (and 3 more)"]);
});

Deno.test("withoutRepeats: the same line is soon said rarely, other lines as before", () => {
  const { log, lines, count, advance } = limited();
  // A line a second for ten minutes, and another one beside it from time to time.
  for (let second = 0; second < 600; second++) {
    advance(1000);
    log.error("refused");
    if (second % 60 === 0) log.error("something else");
  }
  assert(count("refused") >= 10 && count("refused") <= 71, `${count("refused")} lines`);
  assert(count("(and 9 more)") > 40, lines.join("\n"));
  assertEquals(count("something else"), 10);
});

Deno.test("withoutRepeats: whatever is said, at most so many lines of a level; what is not said is counted", () => {
  const { log, lines, count, advance } = limited();
  for (const level of LOG_LEVELS) for (let i = 0; i < 1000; i++) log[level](`${level} ${i}`);
  for (const level of ["error", "warn", "info"]) assertEquals(count(level), 100);
  assertEquals(count("debug"), 1000);
  // One a second from then on, for an hour of a flood; what was not said is told with the next, or at the end.
  for (let second = 0; second < 3600; second++) {
    advance(1000);
    for (let i = 0; i < 5; i++) log.warn(`ring ${second}.${i}`);
  }
  assert(count("ring") >= 3590 && count("ring") <= 3601, `${count("ring")} lines`);
  advance(10_001);
  advance(60_000);
  assertEquals(count("more lines like these were left out"), 3);
  const counted = lines.map((line) => Number(/(\d+) more/.exec(line)?.[1] ?? 0));
  const all = 3 * 1000 + 3600 * 5;
  assertEquals(lines.length - 1000 - 3 + counted.reduce((sum, n) => sum + n, 0), all);
});
