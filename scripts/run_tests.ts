/**
 * Runs the tests and says plainly what ran.
 *
 *     deno task test [--report=FILE] [--leave-out=FILE,FILE...] [--again=N] [arguments of deno test, files]
 *
 * After what `deno test` prints come the slowest tests and the seconds of each directory, the tests that could
 * not run here, with reasons (a test prints `NOT RUN: name: reason`), the failures once more, and as the last
 * line the counts alone: `3 passed, 0 failed, 1 skipped`. Steps are not counted. The exit code is that of
 * `deno test`, and 1 if no test ran; a run that ended without its summary, or that failed with every test
 * passed, counts as one failure. (Called test.ts, this file would be a test.)
 *
 * Without other arguments all tests run, but for those that are to be left out, in four groups, two at a time: those
 * that emulate whole machines with vmsg inside, those without guests, and two halves of the rest. A guest that is
 * emulated uses one processor, a test that waits for it none.
 *
 * With --again, up to N tests that failed run once more at the end, each alone. Tests wait for machines and processes, all on
 * few processors that others may use as well. One that passes then counts as passed, and is named with what was wrong
 * before: a fault to be found, in it or in what it tests. If more failed, or something outside of a test, none runs again.
 *
 * With --report the counts go into a file too, one line for a shell's `read`: passed, failed, skipped; what
 * failed follows.
 */

import { brief, countsOf, type Failure, failuresOf, plain, timesOf } from "./test_output.ts";

const REPORT = "--report=";
const LEAVE_OUT = "--leave-out=";
const AGAIN = "--again=";
/** Where most tests wait for guests or for other slow programs. */
const GUESTS = "tests/guest";
const WITH_GUESTS = [GUESTS, "tests/bench", "tests/compile"];
/** Files in {@link GUESTS} that take longest, and those of a half of the others. */
const MACHINES = /^(ivshmem|machine|xen)_(.*_)?test\.ts$/;
const FIRST_HALF = /^[a-l].*_test\.ts$/;
const NOT_RUN = /^NOT RUN: .*$/gm;
const SLOWEST = 20;
/** How many lines of failures are at the end, and how many are in a report, of which a log's end shows several. */
const FAILURE_LINES = 60;
const REPORT_LINES = 20;

interface Run {
  readonly output: string;
  /** What deno itself said, as that a file does not compile; what tests say is in the output. */
  readonly complaints: string;
  readonly code: number;
}

const children = new Set<Deno.ChildProcess>();

/** Copies a stream to one of ours, at once or when it has ended, and returns its text. */
async function copy(
  from: ReadableStream<Uint8Array>,
  to: { writeSync(bytes: Uint8Array): number },
  isShownAtOnce: boolean,
): Promise<string> {
  const show = (bytes: Uint8Array) => {
    for (let done = 0; done < bytes.length;) done += to.writeSync(bytes.subarray(done));
  };
  const decoder = new TextDecoder();
  let text = "";
  for await (const bytes of from) {
    text += decoder.decode(bytes, { stream: true });
    if (isShownAtOnce) show(bytes);
  }
  if (!isShownAtOnce) show(new TextEncoder().encode(`\n${text}`));
  return plain(text);
}

/** Runs `deno test`. */
async function test(args: readonly string[], isShownAtOnce: boolean): Promise<Run> {
  const child = new Deno.Command(Deno.execPath(), {
    args: ["test", "--allow-all", "--doc", ...args],
    env: Deno.stdout.isTerminal() ? { FORCE_COLOR: "1" } : { NO_COLOR: "1" },
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  children.add(child);
  const [output, complaints] = await Promise.all([
    copy(child.stdout, Deno.stdout, isShownAtOnce),
    copy(child.stderr, Deno.stderr, true),
  ]);
  const { code } = await child.status;
  children.delete(child);
  return { output, complaints, code };
}

/** Prints where the time went. */
function printTimes(runs: readonly Run[]): void {
  const times = runs.flatMap(({ output }) => timesOf(output)).sort((a, b) => b.ms - a.ms);
  const directories = new Map<string, number>();
  for (const { file, ms } of times) {
    const directory = file.split("/").slice(0, 2).join("/");
    directories.set(directory, (directories.get(directory) ?? 0) + ms);
  }
  const seconds = (ms: number) => `${Math.round(ms / 1000)} s`;
  console.log("slowest:");
  for (const { name, file, ms } of times.slice(0, SLOWEST).filter(({ ms }) => ms >= 500)) {
    console.log(`${seconds(ms).padStart(6)} ${file}: ${name}`);
  }
  const sums = [...directories].filter(([, ms]) => ms >= 1000).sort(([, a], [, b]) => b - a);
  console.log(sums.map(([directory, ms]) => `${directory} ${seconds(ms)}`).join(", "));
}

const valueOf = (option: string) =>
  Deno.args.findLast((argument) => argument.startsWith(option))?.slice(option.length);
const report = valueOf(REPORT);
const leftOut = valueOf(LEAVE_OUT)?.split(",") ?? [];
const args = Deno.args.filter((argument) =>
  ![REPORT, LEAVE_OUT, AGAIN].some((o) => argument.startsWith(o))
);
const ignore = (paths: readonly string[]) => paths.length === 0 ? [] : [`--ignore=${paths}`];
let isEnding = false;
// deno test gets the terminal's signal as well, ends its tests and prints what it has.
Deno.addSignalListener("SIGINT", () => {
  isEnding = true;
});
Deno.addSignalListener("SIGTERM", () => {
  isEnding = true;
  for (const child of children) child.kill("SIGTERM");
});

/** All tests: see the head of this file. */
async function testAll(): Promise<Run[]> {
  const names = [...Deno.readDirSync(GUESTS)].map(({ name }) => name).sort();
  const files = (names: readonly string[]) => names.map((name) => `${GUESTS}/${name}`);
  const machines = files(names.filter((name) => MACHINES.test(name)));
  const half = files(names.filter((name) => FIRST_HALF.test(name) && !MACHINES.test(name)));
  // What is named runs, whatever is ignored; and all runs where nothing is named.
  const named = (paths: readonly string[]) => paths.filter((path) => !leftOut.includes(path));
  const groups = [
    named(machines),
    ignore([...leftOut, ...WITH_GUESTS]),
    named(half),
    [...ignore([...leftOut, ...machines, ...half]), ...named(WITH_GUESTS)],
  ].filter((args) => args.length > 0);
  const runs: Run[] = [];
  const lane = async (isShownAtOnce: boolean) => {
    for (let args; !isEnding && (args = groups.shift()) !== undefined;) {
      runs.push(await test(args, isShownAtOnce));
    }
  };
  await Promise.all([lane(true), lane(false)]);
  return runs;
}

const runs = args.length > 0 ? [await test([...ignore(leftOut), ...args], true)] : await testAll();
printTimes(runs);
for (const line of new Set(runs.flatMap(({ output }) => output.match(NOT_RUN) ?? []))) {
  console.log(line);
}
let failures: Failure[] = [];
const sum = { passed: 0, failed: 0, skipped: 0 };
for (const { output, complaints, code } of runs) {
  const { passed, failed, skipped } = countsOf(output, code);
  sum.passed += passed;
  sum.failed += failed;
  sum.skipped += skipped;
  if (passed + failed === 0) failures.push({ name: "no test ran", error: [], said: [] });
  failures.push(...failuresOf(`${output}\n${complaints}`, code));
}
const inTests = runs.flatMap(({ output }) => timesOf(output).filter(({ hasFailed }) => hasFailed));
const passedAgain: Failure[] = [];
if (!isEnding && inTests.length === sum.failed && sum.failed <= Number(valueOf(AGAIN) ?? 0)) {
  for (const { name, file } of inTests) {
    console.log(`once more, alone: ${name}`);
    const { code } = await test([file, "--filter", `/^${RegExp.escape(name)}$/`], true);
    if (code !== 0) continue;
    sum.passed++;
    sum.failed--;
    const isOfIt = (failure: Failure) =>
      [" => ", " ... "].some((end) => failure.name.startsWith(name + end));
    passedAgain.push(...failures.filter(isOfIt));
    failures = failures.filter((failure) => !isOfIt(failure));
  }
}
const linesOf = (limit: number) => [
  ...brief(failures, limit),
  ...brief(passedAgain, limit, "PASSED ONLY WHEN RUN AGAIN"),
];
for (const line of linesOf(FAILURE_LINES)) console.log(line);
const skipped = sum.skipped > 0 ? `, ${sum.skipped} skipped` : "";
if (report !== undefined) {
  const counts = `${sum.passed} ${sum.failed} ${sum.skipped}`;
  Deno.writeTextFileSync(report, [counts, ...linesOf(REPORT_LINES), ""].join("\n"));
}
console.log(`${sum.passed} passed, ${sum.failed} failed${skipped}`);
const code = runs.find(({ code }) => code !== 0)?.code ?? 1;
Deno.exit(failures.length === 0 ? 0 : code);
