import { assertEquals } from "@std/assert";
import { VirtualClock } from "../../src/linux/clock.ts";
import { createLog, limitedLevels, limitedLog, LOG_LEVELS } from "../../src/observe/log.ts";

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
