/** Log lines for people: what a process does and waits for, on standard error. */

import type { Clock } from "../linux/clock.ts";
import type { Reactor } from "../linux/reactor.ts";

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
 * Says one line at most per `intervalMs`, or `burst` of them, whatever they say. For lines that each differ, which would
 * use up what {@link withoutRepeats} lets the whole process say, and for the transport, which others use without that.
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

/** Turns that come back with time: `burst` at once, then one each `everyMs`. */
class Allowance {
  #usedUpMs = -Infinity;

  constructor(readonly everyMs: number, readonly burst: number) {}

  /** Takes one, if there is one. */
  take(nowMs: number): boolean {
    const usedUpMs = Math.max(this.#usedUpMs, nowMs) + this.everyMs;
    if (usedUpMs > nowMs + this.burst * this.everyMs) return false;
    this.#usedUpMs = usedUpMs;
    return true;
  }
}

/** The same line is said that often, and once more each time so much time has passed. */
const SAME_LINES = 10;
const SAME_LINE_MS = 10_000;
/** Lines that are remembered. */
const MAX_REMEMBERED = 64;
/** Lines of one level, whatever they say: at once, and then one in so much time. A day of it is some 10 MB. */
const LINES = 100;
const LINE_MS = 1000;
/** When nothing was left out for so long, it is said how much was. */
const QUIET_MS = 10_000;

/**
 * A log that nobody can have fill a disk, to be put around that of a process, once. What goes wrong again and again,
 * each time that somebody tries, is soon said rarely, and whatever is not said is counted. "debug" is asked for, and
 * left alone.
 */
export function withoutRepeats(log: Log, reactor: Pick<Reactor, "now" | "timer">): Log {
  const limited = (say: (line: string) => void) => {
    // By line. The first is the one that was not said for longest.
    const lines = new Map<string, { allowance: Allowance; missed: number }>();
    const allowance = new Allowance(LINE_MS, LINES);
    let missed = 0;
    const quiet = reactor.timer(() => {
      for (const known of lines.values()) {
        missed += known.missed;
        known.missed = 0;
      }
      if (missed > 0) say(`${missed} more line${missed === 1 ? "" : "s"} like these were left out`);
      missed = 0;
    });
    return (line: string): void => {
      const nowMs = reactor.now();
      const known = lines.get(line) ??
        { allowance: new Allowance(SAME_LINE_MS, SAME_LINES), missed: 0 };
      const isRepeat = !known.allowance.take(nowMs);
      if (isRepeat || !allowance.take(nowMs)) {
        if (isRepeat) known.missed++;
        else missed++;
        return quiet.arm(QUIET_MS);
      }
      missed += known.missed;
      say(missed > 0 ? `${line} (and ${missed} more)` : line);
      missed = known.missed = 0;
      lines.delete(line);
      lines.set(line, known);
      if (lines.size <= MAX_REMEMBERED) return;
      const [[oldest, { missed: rest }]] = lines;
      lines.delete(oldest);
      missed += rest;
    };
  };
  const { error, warn, info, debug } = log;
  return { error: limited(error), warn: limited(warn), info: limited(info), debug };
}
