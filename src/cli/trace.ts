/** `vmsg trace`: what `--capture` wrote, as lines; and the dissector that lets Wireshark read it. */

import { UsageError, VmsgError } from "../linux/errors.ts";
import { FileReader } from "../linux/file_reader.ts";
import { replaceFile } from "../linux/own_file.ts";
import { readMessage } from "../observe/capture.ts";
import { chart } from "../observe/chart.ts";
import { dissector } from "../observe/dissector.ts";
import { LINKTYPE_ETHERNET, type ReadItem, readPcapng } from "../observe/pcapng.ts";
import { createTracer, type LineTracer } from "../observe/trace.ts";
import { parseTraceFilter } from "../observe/trace_filter.ts";
import { VERSION } from "../version.ts";
import type { Command } from "./command.ts";

/** Messages of a chart: a browser keeps all of them. */
const MAX_CHART = 500_000;

/** What is in a file; what is wrong with it names the file. */
function* itemsOf(path: string): Generator<ReadItem> {
  using file = new FileReader(path);
  try {
    yield* readPcapng((at, size) => file.read(at, size));
  } catch (error) {
    if (!(error instanceof VmsgError) || error.code !== "CAPTURE") throw error;
    throw new VmsgError("CAPTURE", `${path} cannot be read: ${error.message}`);
  }
}

/** Gives the lines of captures, behind one another as if they were one. */
export function* readCaptures(
  paths: readonly string[],
  filter: string,
  isJson: boolean,
): Generator<string> {
  const tracers = new Map<number, LineTracer>();
  const lines: string[] = [];
  let nowMs = 0;
  let start: bigint | undefined;
  let frames = 0;
  const say = (line: string) => isJson ? JSON.stringify({ capture: line }) : `capture: ${line}`;
  const tracerOf = (number: number) => {
    // The first bus has no name, since most captures have no other one.
    const bus = number === 0 ? undefined : `bus${number}`;
    const options = { filter, format: isJson ? "json" : "text", bus, startMs: 0 } as const;
    const tracer = tracers.get(number) ??
      createTracer((line) => lines.push(line), { now: () => nowMs }, options);
    tracers.set(number, tracer);
    return tracer;
  };
  for (const path of paths) {
    const dropped = new Map<string, number>();
    for (const item of itemsOf(path)) {
      if (item.kind === "cut") yield say(`${path} ends in the middle of a packet`);
      else if (item.kind === "statistics") {
        const { name } = item.interface;
        const more = item.dropped - (dropped.get(name) ?? 0);
        dropped.set(name, item.dropped);
        if (more > 0) yield say(`${more} packets of ${name} were dropped before this`);
      } else {
        start ??= item.nanoseconds;
        nowMs = Number(item.nanoseconds - start) / 1e6;
        if (item.interface.linkType === LINKTYPE_ETHERNET) frames++;
        const captured = readMessage(item);
        captured?.tell(tracerOf(captured.bus));
        yield* lines.splice(0);
      }
    }
  }
  for (const tracer of tracers.values()) tracer.unanswered();
  yield* lines;
  if (frames > 0) yield say(`${frames} Ethernet frames are not shown here`);
}

/** Writes a chart to a file, for a browser. */
function drawCaptures(paths: readonly string[], filter: string, target: string): void {
  const lines: string[] = [];
  for (const line of readCaptures(paths, filter, true)) {
    if (lines.push(line) <= MAX_CHART) continue;
    const advice = "--filter leaves some out, as in '!HELLO,!event'";
    throw new VmsgError("CHART", `a chart has at most ${MAX_CHART} messages: ${advice}`);
  }
  replaceFile(target, chart(lines, paths.join(", ")));
}

/** See `vmsg trace --help`. */
export const traceCommand: Command = {
  name: "trace",
  summary: "reads what --capture wrote, and has Wireshark read it",
  description:
    "Prints the messages of captures (device, proxy and driver --capture) as --trace does. More than one " +
    "file is read in the order given: FILE.old and FILE of a ring.",
  operands: "FILE...",
  options: [
    {
      name: "filter",
      value: "FILTER",
      help:
        "show some of them only, as in net0,!event; the same as that of --trace (docs/trace.md)",
    },
    { name: "json", help: "print a JSON object a line" },
    {
      name: "html",
      value: "FILE",
      help: "write a chart instead: one page for a browser, which needs nothing else",
    },
    {
      name: "dissector",
      help: "print a dissector for Wireshark and tshark, in Lua: wireshark -X lua_script:vmsg.lua",
    },
  ],
  examples: [
    "vmsg device --bus linux-user,socket=lu.sock --net responder --capture c.pcapng",
    "vmsg trace c.pcapng",
    "vmsg trace --filter 'SET_*,event' --json c.pcapng",
    "vmsg trace --html chart.html c.pcapng",
    "vmsg trace --dissector > vmsg.lua; tshark -X lua_script:vmsg.lua -r c.pcapng",
  ],
  run: (options) => {
    const paths = options.operands;
    const html = options.text("html");
    const filter = options.text("filter") ?? "";
    parseTraceFilter(filter);
    if (options.flag("dissector")) console.log(dissector(VERSION));
    else if (paths.length === 0) throw new UsageError("a file is missing; see: vmsg trace --help");
    else if (html !== undefined) drawCaptures(paths, filter, html);
    else {
      for (const line of readCaptures(paths, filter, options.flag("json"))) console.log(line);
    }
    return Promise.resolve(0);
  },
};
