/**
 * What watching costs: frames a second and pings between `vmsg driver` and `vmsg device`, both of them not watched at all, and
 * with counters, traces and captures, in turns.
 *
 *     deno task bench:watching [--quick] [--rounds=N] [--json] [--compare] [--exe=compiled] [direct] [confined] [counters]
 *
 * Each notification of `vmsg driver` is a message, so a trace has most to say. "Not watched" is a build of the sources in which counters are nothing
 * (no_counters.ts), which the executable has no likeness of; "as it is" has counters in its file, as every process has. Traces go
 * to files, one object of JSON a message, HELLO included; captures have a limit of 4 GiB, frames in full. What had to be dropped
 * is said below the table: nobody waits for a disk or a reader.
 */

import { fromFileUrl } from "@std/path";
import type { PingResult } from "../src/drivers/net/pinger.ts";
import { executable, isQuick, isSelected, rounds } from "./options.ts";
import { Bench, vmsgCommand } from "./processes.ts";
import { Report, type RowOptions } from "./report.ts";

const PINGS = isQuick ? 20 : 500;
const INTERVAL_S = 0.002;
const THROUGHPUT_S = isQuick ? 0.2 : 1.5;
const BUS = ["--bus", "linux-user,socket=lu.sock"];
const US: RowOptions = { unit: "us" };
const RATE: RowOptions = { unit: "1000 frames/s", more: true };
const root = (path: string) => new URL(`../${path}`, import.meta.url);

interface Subject {
  readonly name: string;
  /** Options of either process. */
  readonly args: readonly string[];
  readonly isUncounted?: boolean;
}

const TRACE = ["--trace-format", "json", "--trace=HELLO,*"];
const SUBJECTS: readonly Subject[] = [
  ...(executable === undefined ? [{ name: "not watched", args: [], isUncounted: true }] : []),
  { name: "as it is: counters", args: [] },
  { name: "trace, JSON to a file", args: TRACE },
  { name: "capture of messages", args: ["--capture", "SIDE.pcapng,limit=4G,frames=off"] },
  { name: "capture with frames", args: ["--capture", "SIDE.pcapng,limit=4G"] },
];
const MODES: readonly (readonly [name: string, args: readonly string[]])[] = [
  ["direct", []],
  ["confined", ["--confined"]],
];

/** Those that were named, if any was. */
function chosen<T>(all: readonly T[], nameOf: (each: T) => string): readonly T[] {
  const some = all.filter((each) => isSelected(nameOf(each)));
  return some.length > 0 ? some : all;
}

/** A configuration in which counters do not count. */
function uncounted(directory: string): string {
  const { imports } = JSON.parse(Deno.readTextFileSync(root("deno.json")));
  const [real, none] = ["src/observe/counters.ts", "bench/no_counters.ts"].map((path) =>
    root(path).href
  ) as [string, string];
  const config = { imports: { ...imports, [real]: none }, scopes: { [none]: { [real]: real } } };
  const path = `${directory}/uncounted.json`;
  Deno.writeTextFileSync(path, JSON.stringify(config));
  return path;
}

/** Lines of traces, and those that were dropped. */
const traced = { lines: 0, dropped: 0 };

function countLines(path: string): void {
  for (const line of Deno.readTextFileSync(path).split("\n")) {
    if (line.includes('"direction"')) traced.lines++;
    traced.dropped += Number(/^\{"dropped":(\d+)\}/.exec(line)?.[1] ?? 0);
  }
}

/** One run of both processes. */
async function measure(report: Report, mode: string, args: readonly string[], subject: Subject) {
  await using bench = await Bench.open();
  const { directory } = bench;
  const config = subject.isUncounted ? uncounted(directory) : fromFileUrl(root("deno.json"));
  const command = await vmsgCommand(config);
  const start = (side: string, ...more: string[]) => {
    const options = [...args, ...subject.args].map((each) => each.replace("SIDE", side));
    const whole = [...command, side, ...BUS, ...options, ...more];
    // Standard error is the trace's file.
    return bench.start(
      ["sh", "-c", `exec "$@" 2>>${side}.jsonl`, "sh", ...whole],
      -1,
      { XDG_RUNTIME_DIR: directory },
    );
  };
  const device = await start("device", "--net", "responder");
  const pings = ["--count", String(PINGS), "--interval", String(INTERVAL_S)];
  const driver = await start(
    "driver",
    ...pings,
    ...["--throughput", String(THROUGHPUT_S)],
    "--json",
  );
  const text = await driver.success().catch((error) => {
    throw new Error(`${error}: ${Deno.readTextFileSync(`${directory}/driver.jsonl`).slice(-2000)}`);
  });
  const { roundTripsUs, toDevice, fromDevice }: PingResult = JSON.parse(text);
  await device.end();
  report.add(`${mode}: ping every ${INTERVAL_S * 1000} ms`, US, subject.name, roundTripsUs);
  for (const [way, figure] of [["out", toDevice], ["in", fromDevice]] as const) {
    const row = `${mode}: frames of 1514 bytes, ${way}`;
    report.add(row, RATE, subject.name, [figure!.framesPerSecond / 1000]);
  }
  if (subject.args === TRACE) {
    for (const side of ["device", "driver"]) countLines(`${directory}/${side}.jsonl`);
  }
}

if (import.meta.main) {
  const report = new Report("watching");
  const [twin, ...others] = SUBJECTS;
  const subjects = [twin!, ...chosen(others, ({ name }) => name)];
  for (let round = 0; round < rounds; round++) {
    for (const [mode, args] of chosen(MODES, ([name]) => name)) {
      // Who is first has no advantage.
      for (let n = 0; n < subjects.length; n++) {
        const subject = subjects[(n + round) % subjects.length]!;
        await measure(report, mode, args, subject);
      }
    }
  }
  report.note(`traces: ${traced.lines} messages, ${traced.dropped} dropped`);
  report.finish();
}
