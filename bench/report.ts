/**
 * What a run of a bench has found: a table for people, JSON for programs, and a line in a file for the next run.
 *
 * A row is one thing that is measured; its subjects were measured in turns, and the first of them is the twin
 * that the others' medians are divided by. p99 is what 99 of 100 samples were at least as good as, whichever
 * direction is good. The load of a machine falls on a subject and its twin alike, so from run to run
 * ratios say more than figures; `--compare` shows both beside the median of earlier runs.
 *
 * The file has one JSON object a line. It is no part of the repository: figures belong to a machine.
 */

import { cacheDirectory } from "../scripts/lab/cache.ts";
import { history, isCompared, isJson, isQuick, say } from "./options.ts";

/** What a row is about. */
export interface RowOptions {
  readonly unit: string;
  /** More is better, as with throughput. */
  readonly more?: boolean;
  /** What the subject's ratio is to be: at most, or with `more` at least. */
  readonly target?: number;
}

/** One subject's part of a row. */
export interface Figure {
  readonly row: string;
  readonly subject: string;
  readonly unit: string;
  readonly samples: number;
  readonly median: number;
  readonly p99: number;
  /** The median divided by the twin's; the twin itself has none. */
  readonly ratio?: number;
  /** What the ratio is to be at most, or with `more` at least. */
  readonly target?: number;
  readonly more?: boolean;
}

/** A run, as it is kept. */
export interface Run {
  readonly bench: string;
  readonly date: string;
  /** Processor, how many, kernel. */
  readonly machine: string;
  readonly deno: string;
  /** Of the last minute, at the end. */
  readonly load: number;
  readonly quick: boolean;
  readonly figures: readonly Figure[];
}

/** So many runs are kept, and so many of them are compared with. */
const KEPT_RUNS = 500, COMPARED_RUNS = 5;

/** The value below which `share` of an ascending list lies. */
export function quantile(sorted: ArrayLike<number>, share: number): number {
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))]!;
}

export function ascending(a: number, b: number): number {
  return a - b;
}

export function median(values: Iterable<number>): number {
  return quantile([...values].sort(ascending), 0.5);
}

/** Processor, how many, kernel. */
export function machineName(): string {
  const model = Deno.readTextFileSync("/proc/cpuinfo").match(/^model name\s*:\s*(.*)$/m)?.[1];
  const count = navigator.hardwareConcurrency;
  return `${count} x ${model ?? Deno.build.arch}, Linux ${Deno.osRelease()}`;
}

/** How busy the machine is, for whoever judges the figures. */
export function loadLine(): string {
  const [load] = Deno.loadavg();
  return `(load ${load!.toFixed(1)} on ${navigator.hardwareConcurrency} processors)`;
}

/** Three significant digits, without exponents. */
export function threeDigits(value: number): string {
  if (!Number.isFinite(value)) return "-";
  return value.toFixed(Math.min(3, Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value) || 1)))));
}

/** Collects samples; {@link Report.finish} says what they come to. */
export class Report {
  readonly #rows = new Map<string, Map<string, { options: RowOptions; samples: number[] }>>();
  readonly #notes: string[] = [];

  /** @param name of the bench, in the history */
  constructor(readonly name: string) {}

  /** Samples of one subject; the first subject of a row is the twin. */
  add(row: string, options: RowOptions, subject: string, measured: Iterable<number>): void {
    const samples = [...measured];
    // A twin that could not be compiled has none, and divides nothing.
    if (samples.length === 0) return;
    let subjects = this.#rows.get(row);
    if (subjects === undefined) this.#rows.set(row, subjects = new Map());
    const known = subjects.get(subject);
    if (known === undefined) subjects.set(subject, { options, samples });
    else for (const sample of samples) known.samples.push(sample);
  }

  /** A line below the table. */
  note(line: string): void {
    this.#notes.push(line);
  }

  figures(): Figure[] {
    const figures: Figure[] = [];
    for (const [row, subjects] of this.#rows) {
      const twin = median(subjects.values().next().value!.samples);
      let isFirst = true;
      for (const [subject, { options: { unit, more = false, target }, samples }] of subjects) {
        const sorted = samples.toSorted((a, b) => more ? b - a : a - b);
        const middle = quantile(sorted, 0.5);
        const ratio = isFirst || !(twin > 0) ? {} : { ratio: middle / twin };
        figures.push({
          ...{ row, subject, unit, samples: samples.length },
          ...{ median: middle, p99: quantile(sorted, 0.99), ...ratio },
          ...(isFirst || target === undefined ? {} : { target, more }),
        });
        isFirst = false;
      }
    }
    return figures;
  }

  /**
   * Prints what was asked for, and keeps the run.
   *
   * @param table false where rows were printed as they came
   */
  finish(table = true): void {
    const run: Run = {
      bench: this.name,
      date: new Date().toISOString(),
      machine: machineName(),
      deno: Deno.version.deno,
      load: Deno.loadavg()[0]!,
      quick: isQuick,
      figures: this.figures(),
    };
    const file = historyFile();
    const before = isCompared ? earlierRuns(file, run) : [];
    if (isCompared && before.length === 0) say("\nno earlier run to compare with");
    if (table || before.length > 0) this.#print(run, before);
    for (const line of this.#notes) say(line);
    if (isJson) console.log(JSON.stringify(run));
    if (file !== undefined && run.figures.length > 0) keep(file, run);
  }

  #print(run: Run, before: readonly Run[]): void {
    say(`\n${this.name} ${loadLine()}${run.quick ? ", quick: not to be compared" : ""}`);
    const columns = ["samples", "median", "p99", "ratio", "target"];
    if (before.length > 0) columns.push("before", "change", "ratio b.");
    const table = [["", ...columns]];
    let last = "";
    for (const figure of run.figures) {
      if (figure.row !== last) table.push([`${figure.row}, ${figure.unit}`]);
      last = figure.row;
      const { ratio, target, more } = figure;
      const sign = more ? ">=" : "<=";
      const cells = [
        `  ${figure.subject}`,
        `${figure.samples}`,
        threeDigits(figure.median),
        threeDigits(figure.p99),
        ratio === undefined ? "" : ratio.toFixed(2),
        target === undefined ? "" : `${sign} ${threeDigits(target)}`,
      ];
      if (before.length > 0) cells.push(...comparison(figure, before));
      table.push(cells);
    }
    const widths = table[0]!.map((_, i) => Math.max(...table.map((row) => (row[i] ?? "").length)));
    for (const row of table) {
      const cells = row.map((cell, i) =>
        i === 0 ? cell.padEnd(widths[0]!) : cell.padStart(widths[i]!)
      );
      say(cells.join("  ").trimEnd());
    }
  }
}

/** Median of earlier runs, the change since, and their ratio. */
function comparison({ row, subject, median: now }: Figure, runs: readonly Run[]): string[] {
  const same = runs.flatMap(({ figures }) =>
    figures.filter((figure) => figure.row === row && figure.subject === subject)
  );
  if (same.length === 0) return ["-", "-", "-"];
  const before = median(same.map((figure) => figure.median));
  const ratios = same.flatMap(({ ratio }) => ratio === undefined ? [] : [ratio]);
  const change = before > 0
    ? `${now < before ? "" : "+"}${((now / before - 1) * 100).toFixed(0)} %`
    : "-";
  return [threeDigits(before), change, ratios.length === 0 ? "" : median(ratios).toFixed(2)];
}

/** Where runs are kept; undefined: nowhere. */
function historyFile(): string | undefined {
  if (history === "off") return undefined;
  if (history !== undefined) return history;
  const cache = cacheDirectory();
  return cache === undefined ? undefined : `${cache}/bench.jsonl`;
}

function linesOf(file: string): string[] {
  try {
    return Deno.readTextFileSync(file).split("\n").filter((line) => line !== "");
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return [];
    throw error;
  }
}

/** The last runs of the same bench, as long, on the same machine. A line that is none is left out. */
function earlierRuns(file: string | undefined, run: Run): Run[] {
  if (file === undefined) return [];
  const runs = linesOf(file).flatMap((line): Run[] => {
    try {
      return [JSON.parse(line)];
    } catch {
      return [];
    }
  });
  const isSame = ({ bench, machine, quick }: Run) =>
    bench === run.bench && machine === run.machine && quick === run.quick;
  return runs.filter(isSame).slice(-COMPARED_RUNS);
}

function keep(file: string, run: Run): void {
  const slash = file.lastIndexOf("/");
  if (slash > 0) Deno.mkdirSync(file.slice(0, slash), { recursive: true });
  // Twice as many before it is cut: not for each run.
  const lines = linesOf(file);
  if (lines.length >= 2 * KEPT_RUNS) {
    Deno.writeTextFileSync(file, lines.slice(-KEPT_RUNS).join("\n") + "\n");
  }
  Deno.writeTextFileSync(file, JSON.stringify(run) + "\n", { append: true });
}
