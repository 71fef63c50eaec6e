/**
 * A small harness for what `deno bench` does not do: medians and p99 over many short rounds, and a twin
 * written in C that is measured in the same minutes, in turns with ours.
 *
 * A round is about a millisecond of work; its figure is nanoseconds per operation. Blocks of rounds
 * alternate between Deno and the twin, so that a busy moment of the machine falls on both. The ratio is that
 * of the medians. p99 is that of the rounds: how bad a millisecond can be, collections included.
 *
 * Rows are printed as they come, and collected in {@link report}, whose `finish(false)` ends a run. What can be
 * asked for is in options.ts.
 */

import { basename, fromFileUrl } from "@std/path";
import { isQuick, isSelected, say } from "./options.ts";
import { ascending, loadLine, quantile, Report } from "./report.ts";

/** What this bench's rows come to; the bench finishes it. */
export const report: Report = new Report(basename(Deno.mainModule).replace(/_bench\.ts$/, ""));

/** The C compiler, where there is one. */
const COMPILER = Deno.env.get("CC") || "cc";
const ROUND_MS = 1;
const BLOCKS = isQuick ? 2 : 8;
const ROUNDS_PER_BLOCK = isQuick ? 4 : 12;
/** How long a case runs before it is measured; the optimizing compiler is done with it by then. */
const WARM_UP_MS = isQuick ? 10 : 100;
const NAME_WIDTH = 46;

/** One row of the table. */
export interface Case {
  readonly name: string;
  /** Rounds are multiples of so many operations. */
  readonly granularity: number;
  /** Does this many operations. */
  readonly run: (operations: number) => void;
  /** The case's name and arguments for the twin. */
  readonly twin: string;
}

/** One row that decides itself how its rounds are run. */
export interface OwnRounds {
  readonly name: string;
  readonly operations: number;
  /** Nanoseconds per operation, of `rounds` rounds. */
  readonly measure: (operations: number, rounds: number) => Promise<Float64Array>;
  readonly twin: string;
}

/** A C twin that waits for orders. Dispose ends it. */
export interface Twin extends AsyncDisposable {
  /** Nanoseconds per operation, of `rounds` rounds. */
  measure(order: string, operations: number, rounds: number): Promise<Float64Array>;
}

/** Compiles and starts a program of bench/c; undefined, and a line that says so, without a C compiler. */
export async function startTwin(name: string): Promise<Twin | undefined> {
  const directory = await Deno.makeTempDir({ prefix: "vmsg-bench-" });
  try {
    const binary = `${directory}/${name}`;
    if (!await compile(name, binary)) return undefined;
    const child = new Deno.Command(binary, { stdin: "piped", stdout: "piped" }).spawn();
    return twinOf(name, child);
  } finally {
    // A running program does not need its file.
    await Deno.remove(directory, { recursive: true });
  }
}

/** False without a compiler. */
async function compile(name: string, binary: string): Promise<boolean> {
  const source = fromFileUrl(new URL(`c/${name}.c`, import.meta.url));
  const args = ["-O2", "-std=c11", "-Wall", "-Wextra", "-pthread", "-o", binary, source];
  let success: boolean;
  try {
    ({ success } = await new Deno.Command(COMPILER, { args, stdout: "inherit" }).output());
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    say("C twin NOT RUN: no C compiler");
    return false;
  }
  if (!success) throw new Error(`${COMPILER} does not compile ${source}`);
  return true;
}

function twinOf(name: string, child: Deno.ChildProcess): Twin {
  const writer = child.stdin.getWriter();
  const reader = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
  return {
    async measure(order, operations, rounds) {
      await writer.write(new TextEncoder().encode(`${operations} ${rounds} ${order}\n`));
      let line = "";
      while (!line.endsWith("\n")) {
        const { value, done } = await reader.read();
        if (done) throw new Error(`the C twin ${name} ended`);
        line += value;
      }
      return Float64Array.from(line.trim().split(" "), Number);
    },
    async [Symbol.asyncDispose]() {
      await writer.close().catch(() => {});
      await reader.cancel();
      await child.status;
    },
  };
}

/** How many operations make a round, found while warming up. */
function warmUp({ run, granularity }: Case): number {
  const startMs = performance.now();
  let operations = granularity;
  let elapsedMs = 0;
  do {
    const roundMs = performance.now();
    run(operations);
    elapsedMs = performance.now() - roundMs;
    if (elapsedMs < ROUND_MS / 2) operations *= 2;
  } while (performance.now() - startMs < WARM_UP_MS);
  return Math.max(1, Math.round(operations * ROUND_MS / elapsedMs / granularity)) * granularity;
}

/** Medians in nanoseconds per operation. */
export interface Medians {
  readonly ours: number;
  /** NaN without a C compiler. */
  readonly twin: number;
}

/** Measures one case in turns with its twin, and prints its row; undefined if it was not selected. */
export async function measureCase(
  subject: Case,
  twin: Twin | undefined,
): Promise<Medians | undefined> {
  if (!isSelected(subject.name)) return undefined;
  const operations = warmUp(subject);
  const measure = (operations: number, rounds: number) => {
    const ns = new Float64Array(rounds);
    for (let round = 0; round < rounds; round++) {
      const startMs = performance.now();
      subject.run(operations);
      ns[round] = (performance.now() - startMs) * 1e6 / operations;
    }
    return Promise.resolve(ns);
  };
  return await measureOwnRounds(
    { name: subject.name, operations, measure, twin: subject.twin },
    twin,
  );
}

/** The same for a case that runs its own rounds. */
export async function measureOwnRounds(
  subject: OwnRounds,
  twin: Twin | undefined,
): Promise<Medians> {
  const { operations, measure } = subject;
  const ours: number[] = [], theirs: number[] = [];
  for (let block = 0; block < BLOCKS; block++) {
    ours.push(...await measure(operations, ROUNDS_PER_BLOCK));
    if (twin === undefined) continue;
    theirs.push(...await twin.measure(subject.twin, operations, ROUNDS_PER_BLOCK));
  }
  if (theirs.length > 0) report.add(subject.name, { unit: "ns" }, "C", theirs);
  report.add(subject.name, { unit: "ns" }, "vmsg", ours);
  printRow(subject.name, ours.sort(ascending), theirs.sort(ascending));
  return { ours: quantile(ours, 0.5), twin: theirs.length > 0 ? quantile(theirs, 0.5) : NaN };
}

/** Prints the head of a table. */
export function printHead(title: string): void {
  say(`\n${loadLine()}`);
  const columns = ["Deno ns", "p99", "M/s", "C ns", "ratio"];
  say(
    title.padEnd(NAME_WIDTH) + columns.map((column) => ` | ${column.padStart(7)}`).join(""),
  );
  say("-".repeat(NAME_WIDTH) + columns.map(() => "-|--------").join(""));
}

function printRow(name: string, ours: readonly number[], theirs: readonly number[]): void {
  const median = quantile(ours, 0.5), twin = theirs.length > 0 ? quantile(theirs, 0.5) : NaN;
  const cells = [
    figure(median),
    figure(quantile(ours, 0.99)),
    (1000 / median).toFixed(median < 1000 ? 1 : 3),
    theirs.length > 0 ? figure(twin) : "NOT RUN",
    theirs.length > 0 ? (median / twin).toFixed(2) : "-",
  ];
  say(name.padEnd(NAME_WIDTH) + cells.map((cell) => ` | ${cell.padStart(7)}`).join(""));
}

function figure(ns: number): string {
  return ns.toFixed(ns < 100 ? 1 : 0);
}
