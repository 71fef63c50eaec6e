import { assert, assertEquals } from "@std/assert";
import { VirtualClock } from "../../src/linux/clock.ts";
import {
  createLog,
  limitedLevels,
  limitedLog,
  LOG_LEVELS,
  withoutRepeats,
} from "../../src/observe/log.ts";

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

Deno.test("limitedLevels: each level for itself, all but debug", () => {
  const lines: string[] = [];
  const all = createLog("vmsg test", "debug", (line) => lines.push(line));
  const log = limitedLevels(all, new VirtualClock(), 2);
  for (const level of LOG_LEVELS) for (let n = 0; n < 3; n++) log[level](level);
  const [error, warn, info, debug] = LOG_LEVELS.map((level) => `vmsg test: ${level}`);
  assertEquals(lines, [error, error, warn, warn, info, info, debug, debug, debug]);
});

Deno.test("withoutRepeats: the same line is soon said rarely, other lines as before", () => {
  const lines: string[] = [];
  let nowMs = 0;
  const log = withoutRepeats(createLog("x", "debug", (line) => lines.push(line)), {
    now: () => nowMs,
  });
  const count = (text: string) => lines.filter((line) => line.includes(text)).length;
  // A line a second for ten minutes, and another one beside it from time to time.
  for (let second = 0; second < 600; second++) {
    nowMs = second * 1000;
    log.error("refused");
    if (second % 60 === 0) log.error("something else");
  }
  assert(count("refused") >= 10 && count("refused") <= 71, `${count("refused")} lines`);
  assert(count("(and 9 more)") > 40, lines.join("\n"));
  assertEquals(count("something else"), 10);
  // Whatever it says.
  lines.length = 0;
  for (let i = 0; i < 1000; i++) log.warn(`ring ${i}`);
  assertEquals(lines.length, 30);
  for (let i = 0; i < 100; i++) log.debug("detail");
  assertEquals(count("detail"), 100);
});
