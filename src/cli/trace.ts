/** `vmsg trace`: what `--capture` wrote, as lines; and the dissector that lets Wireshark read it. */

import { UsageError } from "../linux/errors.ts";
import { readFile } from "../linux/fd.ts";
import { readMessage } from "../observe/capture.ts";
import { dissector } from "../observe/dissector.ts";
import { LINKTYPE_ETHERNET, readPcapng } from "../observe/pcapng.ts";
import { createTracer, type LineTracer } from "../observe/trace.ts";
import { parseTraceFilter } from "../observe/trace_filter.ts";
import { VERSION } from "../version.ts";
import type { Command } from "./command.ts";

/** Lines that are printed by one call. */
const LINES_AT_ONCE = 256;

/** Prints captures behind one another, as if they were one. */
function printCaptures(paths: readonly string[], filterText: string, isJson: boolean): void {
  const filter = parseTraceFilter(filterText);
  const tracers = new Map<number, LineTracer>();
  const lines: string[] = [];
  let nowMs = 0;
  let start: bigint | undefined;
  let frames = 0;
  const print = () => {
    if (lines.length > 0) console.log(lines.splice(0).join("\n"));
  };
  const write = (line: string) => {
    if (lines.push(line) >= LINES_AT_ONCE) print();
  };
  const say = (line: string) =>
    write(isJson ? JSON.stringify({ capture: line }) : `capture: ${line}`);
  const tracerOf = (number: number) => {
    // The first bus has no name, since most captures have no other one.
    const bus = number === 0 ? undefined : `bus${number}`;
    const format = isJson ? "json" : "text";
    const options = {
      filter,
      format,
      bus,
      startMs: 0,
      heartbeat: /hello/i.test(filterText),
    } as const;
    const tracer = tracers.get(number) ?? createTracer(write, { now: () => nowMs }, options);
    tracers.set(number, tracer);
    return tracer;
  };
  for (const path of paths) {
    const dropped = new Map<string, number>();
    for (const item of readPcapng(readFile(path))) {
      if (item.kind === "cut") say(`${path} ends in the middle of a packet`);
      else if (item.kind === "statistics") {
        const { name } = item.interface;
        const more = item.dropped - (dropped.get(name) ?? 0);
        dropped.set(name, item.dropped);
        if (more > 0) say(`${more} packets of ${name} were dropped before this`);
      } else {
        start ??= item.nanoseconds;
        nowMs = Number(item.nanoseconds - start) / 1e6;
        if (item.interface.linkType === LINKTYPE_ETHERNET) frames++;
        const captured = readMessage(item);
        captured?.tell(tracerOf(captured.bus));
      }
    }
  }
  for (const tracer of tracers.values()) tracer.unanswered();
  if (frames > 0) say(`${frames} Ethernet frames are not shown here`);
  print();
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
      name: "dissector",
      help: "print a dissector for Wireshark and tshark, in Lua: wireshark -X lua_script:vmsg.lua",
    },
  ],
  examples: [
    "vmsg device --bus linux-user,socket=lu.sock --net responder --capture c.pcapng",
    "vmsg trace c.pcapng",
    "vmsg trace --filter 'SET_*,event' --json c.pcapng",
    "vmsg trace --dissector > vmsg.lua; tshark -X lua_script:vmsg.lua -r c.pcapng",
  ],
  run: (options) => {
    const paths = options.operands;
    if (options.flag("dissector")) console.log(dissector(VERSION));
    else if (paths.length === 0) throw new UsageError("a file is missing; see: vmsg trace --help");
    else printCaptures(paths, options.text("filter") ?? "", options.flag("json"));
    return Promise.resolve(0);
  },
};
