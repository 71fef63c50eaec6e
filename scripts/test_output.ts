/**
 * What `deno test` prints, read: counts, what failed and why, and how long each test took.
 *
 * Its form, of which only what begins a line counts, as a test may print anything in between:
 *
 *     running 2 tests from ./tests/x_test.ts
 *     name ...
 *     ------- output -------          (or `post-test output`, up to `----- output end -----`)
 *     name ... ok (12ms)              (or FAILED, ignored; `1m30s`, `310µs`)
 *      ERRORS                         (each failure: `name => ./file:line:column`, and lines up to the next)
 *      FAILURES                       (the names again)
 *     ok | 3 passed (2 steps) | 0 failed | 1 ignored (5ms)
 */

// deno-lint-ignore no-control-regex
const COLORS = /\x1b\[[0-9;]*m/g;
const SUMMARY = /^(?:ok|FAILED) \| .*$/gm;
const FROM = /^running \d+ tests? from (?:\.\/)?(.+)$/;
const ENDED = /^(\S.*?) \.\.\. (ok|FAILED).*\(([^()]*)\)$/;
const ERRORS = /^ ERRORS\s*$([\s\S]*)^ FAILURES\s*$/m;
/** A step's place follows its test's name; a file that failed outside of its tests has no place. */
const FAILURE = /^(?:.+ => \.{1,2}\/\S+:\d+:\d+|\.\S+ \(uncaught error\))$/;
const STACK = /^\s+at /;
/** What deno says whatever happens. */
const NOISE = /^(?:Check|Stack backtrace:| +0: <unknown>)/;
const UNITS_MS: Readonly<Record<string, number>> = {
  h: 3_600_000,
  m: 60_000,
  s: 1000,
  ms: 1,
  µs: 0.001,
  ns: 0.000001,
};
/** Of a run that ended without naming a failure so many lines say why. */
const LAST_LINES = 30;
/** Lines of the output of a failed test's processes, of which the last say most. */
const SAID_LINES = 8;

export interface Counts {
  readonly passed: number;
  readonly failed: number;
  readonly skipped: number;
}

export interface Failure {
  readonly name: string;
  /** What was wrong, without stacks. */
  readonly error: readonly string[];
  /** What the test and its processes said last. */
  readonly said: readonly string[];
}

export interface Timed {
  readonly name: string;
  readonly file: string;
  readonly ms: number;
  readonly hasFailed: boolean;
}

/** The text of a run without colors. */
export function plain(text: string): string {
  return text.replace(COLORS, "");
}

/** Steps are not counted. A run that failed with every test passed, or without a summary, is one failure. */
export function countsOf(output: string, code: number): Counts {
  const summary = output.match(SUMMARY)?.at(-1) ?? "";
  const count = (word: string) =>
    Number(summary.match(new RegExp(`\\| (\\d+) ${word}\\b`))?.[1] ?? 0);
  const failed = count("failed") || (code === 0 ? 0 : 1);
  return { passed: count("passed"), failed, skipped: count("ignored") };
}

function msOf(text: string): number {
  let ms = 0;
  for (const [, number, unit] of text.matchAll(/([\d.]+)(h|ms|m|s|µs|ns)/g)) {
    ms += Number(number) * UNITS_MS[unit!]!;
  }
  return ms;
}

/** How long each test took, and whether it failed; steps begin with a blank, and are part of theirs. */
export function timesOf(output: string): Timed[] {
  const times: Timed[] = [];
  let file = "";
  for (const line of output.split("\n")) {
    file = FROM.exec(line)?.[1] ?? file;
    const [, name, result, time] = ENDED.exec(line) ?? [];
    if (name !== undefined) {
      times.push({ name, file, ms: msOf(time!), hasFailed: result === "FAILED" });
    }
  }
  return times;
}

function saidBy(test: string, output: string): string[] {
  const end = output.lastIndexOf(`\n${test} ... FAILED`);
  const before = output.slice(0, Math.max(0, end));
  const said = before.slice(before.lastIndexOf("output -------\n")).split("\n");
  return said.at(-1)?.endsWith("output end -----") ? said.slice(1, -1).slice(-SAID_LINES) : [];
}

/** A run that failed and named nothing is one failure with its last lines. */
export function failuresOf(output: string, code: number): Failure[] {
  const failures: { name: string; error: string[]; said: string[] }[] = [];
  for (const line of (ERRORS.exec(output)?.[1] ?? "").split("\n")) {
    if (FAILURE.test(line)) {
      const test = line.replace(/(?: \.\.\. .*)? => \S+$/, "");
      failures.push({ name: line, error: [], said: saidBy(test, output) });
    } else if (line.trim() !== "" && !STACK.test(line)) {
      failures.at(-1)?.error.push(line);
    }
  }
  if (code === 0 || failures.length > 0) return failures;
  const error = output.split("\n").filter((line) => line.trim() !== "" && !NOISE.test(line));
  return [{
    name: `a run that ended with ${code} and named no test`,
    error: error.slice(-LAST_LINES),
    said: [],
  }];
}

/**
 * Failures in at most so many lines, for the end of a log that may be cut at its beginning: each has its name, and as
 * much of the rest as all can have.
 */
export function brief(failures: readonly Failure[], limit: number, word = "FAILED"): string[] {
  const named = failures.length > limit ? failures.slice(0, limit - 1) : failures;
  const room = Math.floor(limit / Math.max(1, named.length)) - 1;
  const lines = named.flatMap(({ name, error, said }) => {
    const rest = said.slice(Math.max(0, said.length - Math.floor(room / 3)));
    const text = [...error.slice(0, room - rest.length), ...rest.map((line) => `| ${line}`)];
    return [`${word}: ${name}`, ...text.map((line) => `    ${line}`)];
  });
  if (named.length < failures.length) lines.push(`${word}: ${failures.length - named.length} more`);
  return lines;
}
