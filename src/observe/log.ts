/** Log lines for people: what a process does and waits for, on standard error. */

import type { Clock } from "../linux/clock.ts";

/** How talkative a log is. */
export type LogLevel = "error" | "warn" | "info" | "debug";

/** From least to most talkative. */
export const LOG_LEVELS: readonly LogLevel[] = ["error", "warn", "info", "debug"];

/** Where log lines go. */
export interface Log {
  /** Something cannot go on. */
  error(line: string): void;
  /** Something is wrong at the other end, or will be. */
  warn(line: string): void;
  /** What happens and what is waited for. */
  info(line: string): void;
  /** Details for whoever looks for a fault. */
  debug(line: string): void;
}

/**
 * A log that writes the lines at and above a level.
 *
 * @param name goes in front of each line, as in "vmsg proxy"
 * @param write takes whole lines
 */
export function createLog(name: string, level: LogLevel, write: (line: string) => void): Log {
  const limit = LOG_LEVELS.indexOf(level);
  const at = (wanted: LogLevel) => (line: string): void => {
    if (LOG_LEVELS.indexOf(wanted) <= limit) write(`${name}: ${line}`);
  };
  return { error: at("error"), warn: at("warn"), info: at("info"), debug: at("debug") };
}

/**
 * Says the same thing at most once per `intervalMs`, or `burst` times; a hostile peer must not fill a
 * disk.
 *
 * @param clock the reactor
 */
export function limitedLog(
  log: (line: string) => void,
  clock: Pick<Clock, "now">,
  intervalMs = 1000,
  burst = 1,
): (line: string) => void {
  let nextMs = 0;
  let said = 0;
  let missed = 0;
  return (line) => {
    const nowMs = clock.now();
    if (nowMs >= nextMs) {
      nextMs = nowMs + intervalMs;
      said = 0;
    }
    if (said >= burst) {
      missed++;
      return;
    }
    said++;
    log(missed > 0 ? `${line} (and ${missed} more)` : line);
    missed = 0;
  };
}

/** A log of which each level but "debug", which is asked for, says at most `burst` lines a second. */
export function limitedLevels(log: Log, clock: Pick<Clock, "now">, burst: number): Log {
  const limited = (level: (line: string) => void) => limitedLog(level, clock, 1000, burst);
  const { error, warn, info, debug } = log;
  return { error: limited(error), warn: limited(warn), info: limited(info), debug };
}

/** The same line is said that often, and once more each time so much time has passed. */
const SAME_LINES = 10;
const SAME_LINE_MS = 10_000;
/** Lines that are remembered. */
const MAX_REMEMBERED = 64;
/** Lines of one level a second, whatever they say. */
const LINES_PER_SECOND = 30;

/**
 * A log that nobody can have fill a disk, to be put around that of a process. What goes wrong again and again, each
 * time that somebody tries, is soon said rarely, with how often it was not said. "debug" is asked for, and left alone.
 *
 * @param clock the reactor
 */
export function withoutRepeats(log: Log, clock: Pick<Clock, "now">): Log {
  // By line: until when its turns are used up. The first is the one that was not said for longest.
  const lines = new Map<string, { usedUpMs: number; missed: number }>();
  const limited = (say: (line: string) => void) => (line: string): void => {
    const nowMs = clock.now();
    const known = lines.get(line) ?? { usedUpMs: nowMs, missed: 0 };
    const usedUpMs = Math.max(known.usedUpMs, nowMs) + SAME_LINE_MS;
    if (usedUpMs > nowMs + SAME_LINES * SAME_LINE_MS) {
      known.missed++;
      return;
    }
    say(known.missed > 0 ? `${line} (and ${known.missed} more)` : line);
    lines.delete(line);
    lines.set(line, { usedUpMs, missed: 0 });
    if (lines.size > MAX_REMEMBERED) lines.delete(lines.keys().next().value!);
  };
  const { error, warn, info, debug } = limitedLevels(log, clock, LINES_PER_SECOND);
  return { error: limited(error), warn: limited(warn), info: limited(info), debug };
}
