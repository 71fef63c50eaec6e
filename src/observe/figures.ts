/**
 * What the counters of processes say, for people and for monitoring: as a table with rates (`vmsg top`), as JSON and as
 * Prometheus takes it.
 *
 * Nothing here is asked of a process: its file is read (read_counters.ts), and it does not notice. A file that is not as it
 * should be costs one line, and is no reason not to show the others.
 */

import { VmsgError } from "../linux/errors.ts";
import { fileStatus, openPath } from "../linux/fd.ts";
import { counterDirectories, findCounterFiles, type FoundFile, isProcess } from "./counter_file.ts";
import { LATENCY, readLatency } from "./latency.ts";
import { type ReadCounters, readCounters } from "./read_counters.ts";
import { STATE } from "./state.ts";

/** The counters of a process at a time. */
export interface Instance extends ReadCounters {
  readonly path: string;
  readonly isRunning: boolean;
}

/** What could be read, and a line for each file that could not. */
export interface Reading {
  readonly instances: readonly Instance[];
  readonly problems: readonly string[];
  /** When, on the clock of whoever reads. */
  readonly atMs: number;
}

/** A counter and how fast it grows. */
export interface Figure {
  readonly process: string;
  /** What counts, as in "device 0 net, tap0". */
  readonly group: string;
  readonly counter: string;
  readonly value: number;
  /** Per second; undefined where it is not known, or makes no sense. */
  readonly rate: number | undefined;
  /** Where it stands by rate, if it has none: p99 beside how many were counted. */
  readonly beside?: number | undefined;
}

/** In which order figures stand. */
export const SORTS = ["rate", "total", "name"] as const;
export type Sort = typeof SORTS[number];

/** All processes there are, or those of a directory, or one of them. */
export function readAll(
  atMs: number,
  pid?: number,
  directories: readonly string[] = counterDirectories(),
): Reading {
  const found = findCounterFiles(directories).filter((file) =>
    pid === undefined || file.pid === pid
  );
  const instances: Instance[] = [];
  const problems: string[] = [];
  for (const file of found) {
    try {
      instances.push(readOne(file));
    } catch (error) {
      if (!(error instanceof VmsgError)) throw error;
      // It ended between two looks.
      if (error.code !== "ENOENT") problems.push(error.message);
    }
  }
  if (found.length === 0) {
    const whose = pid === undefined ? "" : ` of process ${pid}`;
    problems.push(`no counters${whose} in ${directories.join(" or ")}`);
  }
  return { instances, problems, atMs };
}

function readOne({ path, isRunning }: Omit<FoundFile, "pid">): Instance {
  return { ...readCounters(path), path, isRunning };
}

/** The file of this path, wherever it is, or those of this directory. @throws VmsgError for one that is none */
export function readPath(atMs: number, path: string): Reading {
  using fd = openPath(path);
  if (fd !== undefined && fileStatus(fd).kind === "directory") {
    return readAll(atMs, undefined, [path]);
  }
  const read = readCounters(path);
  const instances = [{ ...read, path, isRunning: isProcess(read.pid) }];
  return { instances, problems: [], atMs };
}

/** What is at the moment is for `vmsg inspect`. */
function isCounted({ kind }: { readonly kind: string }): boolean {
  return kind !== STATE;
}

function processName({ subcommand, pid, isRunning }: Instance): string {
  return `${subcommand} ${pid}${isRunning ? "" : " (ended)"}`;
}

/** The figures of all groups in their order; a histogram is shown as what is read from it. */
export function figuresOf(now: Reading, before?: Reading): Figure[] {
  const seconds = (now.atMs - (before?.atMs ?? NaN)) / 1000;
  return now.instances.flatMap((instance) => {
    const { path, pid, startMs, isRunning, groups } = instance;
    const old = before?.instances.find((other) =>
      other.path === path && other.pid === pid && other.startMs === startMs
    );
    const process = processName(instance);
    const seen = new Map<string, number>();
    return groups.filter(isCounted).flatMap(({ kind, name, counters }) => {
      const group = `${kind} ${name}`.trim();
      const same = old?.groups.filter((other) => other.kind === kind && other.name === name);
      const nth = seen.get(group) ?? 0;
      seen.set(group, nth + 1);
      const rateOf = (counter: string, value: number) => {
        const was = same?.[nth]?.counters.find((other) => other.name === counter)?.value;
        const rate = (value - (was ?? NaN)) / seconds;
        // One that went back is another thing's that has the place now.
        return isRunning && rate >= 0 && Number.isFinite(rate) ? rate : undefined;
      };
      const row = (counter: string, value: number, rate: number | undefined, beside?: number) => [
        { process, group, counter, value, rate, beside },
      ];
      if (kind !== LATENCY) {
        return counters.flatMap(({ name, value }) => row(name, value, rateOf(name, value)));
      }
      const read = readLatency(counters);
      const rate = rateOf("count", read.count);
      return [
        ...row("count", read.count, rate),
        ...row("p50 in us", read.p50Us, undefined, rate),
        ...row("p99 in us", read.p99Us, undefined, rate),
        ...row("longest in us", read.longestUs, undefined, rate),
      ];
    });
  });
}

/** The most at the top; by name they stay in the order of the files. */
export function sortFigures(figures: readonly Figure[], sort: Sort): Figure[] {
  const by = ({ rate, beside, value }: Figure) => sort === "rate" ? rate ?? beside ?? -1 : value;
  return sort === "name"
    ? [...figures]
    : figures.toSorted((a, b) => by(b) - by(a) || b.value - a.value);
}

/** A table; counters that never counted are left out unless `zeros`. */
export function tableOf(figures: readonly Figure[], zeros: boolean): string[] {
  const rows = figures.filter(({ value }) => zeros || value > 0).map((figure) => [
    rateText(figure.rate),
    String(figure.value),
    figure.counter,
    figure.process,
    figure.group,
  ]);
  rows.unshift(["PER SECOND", "TOTAL", "COUNTER", "PROCESS", "OF"]);
  const widths = [0, 1, 2, 3].map((n) => Math.max(...rows.map((row) => row[n]!.length)));
  return rows.map((row) =>
    row.map((cell, n) => n < 2 ? cell.padStart(widths[n]!) : cell.padEnd(widths[n] ?? 0)).join("  ")
  );
}

function rateText(rate: number | undefined): string {
  if (rate === undefined) return "-";
  return rate === 0 ? "0" : rate < 10 ? rate.toFixed(1) : rate.toFixed(0);
}

/** One object, for programs. */
export function figuresAsJson({ instances, problems }: Reading): string {
  const processes = instances.map(({ path, subcommand, pid, isRunning, startMs, groups }) => ({
    path,
    subcommand,
    pid,
    isRunning,
    startMs,
    groups: groups.filter(isCounted).map(({ kind, name, counters }) => ({
      kind,
      name,
      counters: Object.fromEntries(counters.map(({ name, value }) => [name, value])),
      ...kind === LATENCY ? { latency: readLatency(counters) } : {},
    })),
  }));
  return JSON.stringify({ processes, problems });
}

/** The text format 0.0.4 of Prometheus: a metric per kind and counter, with all its values behind one another. */
export function figuresAsPrometheus({ instances }: Reading): string {
  const metrics = new Map<string, { readonly type: string; readonly lines: string[] }>();
  const add = (metric: string, type: string, labels: Label[], value: number, suffix = "") => {
    const lines = metrics.get(metric)?.lines ?? new Array<string>();
    const text = labels.map(([name, value]) => `${name}="${value.replaceAll(/["\\]/g, "\\$&")}"`);
    lines.push(`${metric}${suffix}{${text.join(",")}} ${value}`);
    metrics.set(metric, { type, lines });
  };
  const numbered = numbering();
  // One that crashed may have had the number of one that runs, as in containers that begin with 1: the newest keeps it.
  const newest = instances.toSorted((a, b) => b.startMs - a.startMs);
  for (const { subcommand, pid, isRunning, startMs, groups } of newest) {
    const number = numbered(String(pid), subcommand);
    const process: Label[] = [["subcommand", subcommand], ["pid", number]];
    add("vmsg_running", "gauge", process, Number(isRunning));
    add("vmsg_start_time_seconds", "gauge", process, startMs / 1000);
    const named = numbering();
    for (const { kind, name, counters } of groups.filter(isCounted)) {
      const labels: Label[] = [...process, ["name", named(name, snake(kind))]];
      if (kind === LATENCY) addLatency(add, labels, counters);
      else {for (const { name, value } of unique(counters)) {
          add(`vmsg_${snake(kind)}_${snake(name)}_total`, "counter", labels, value);
        }}
    }
  }
  return [...metrics].flatMap(([name, { type, lines }]) => [`# TYPE ${name} ${type}`, ...lines])
    .join("\n");
}

type Label = [name: string, value: string];

/** Tells the second of a name, and those after it, from the first: two lines must not have the same labels. */
function numbering(): (name: string, of: string) => string {
  const seen = new Map<string, number>();
  return (name, of) => {
    const nth = (seen.get(`${of} ${name}`) ?? 0) + 1;
    seen.set(`${of} ${name}`, nth);
    return nth === 1 ? name : `${name} #${nth}`;
  };
}

function addLatency(
  add: (metric: string, type: string, labels: Label[], value: number, suffix?: string) => void,
  labels: Label[],
  counters: Instance["groups"][number]["counters"],
): void {
  const { below, totalUs, longestUs } = readLatency(counters);
  const count = below.at(-1)![1];
  // The last step has what took longer as well.
  for (const [us, count] of below.slice(0, -1)) {
    // `le` includes its bound, and there are whole microseconds only.
    add(
      "vmsg_latency_seconds",
      "histogram",
      [...labels, ["le", seconds(us - 1)]],
      count,
      "_bucket",
    );
  }
  add("vmsg_latency_seconds", "histogram", [...labels, ["le", "+Inf"]], count, "_bucket");
  add("vmsg_latency_seconds", "histogram", labels, totalUs / 1e6, "_sum");
  add("vmsg_latency_seconds", "histogram", labels, count, "_count");
  add("vmsg_latency_longest_seconds", "gauge", labels, longestUs / 1e6);
}

function seconds(us: number): string {
  return String(us / 1e6);
}

/** The first of each name: a file may be anybody's. */
function unique<T extends { readonly name: string }>(counters: readonly T[]): T[] {
  const names = new Set<string>();
  return counters.filter(({ name }) => !names.has(snake(name)) && names.add(snake(name)));
}

/** As metrics are named: `bytesRead` becomes `bytes_read`, and what no metric may have becomes `_`. */
function snake(name: string): string {
  return name.replaceAll(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)
    .replaceAll(/[^a-z0-9_]/g, "_");
}
