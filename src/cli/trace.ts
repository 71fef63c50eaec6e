/** `vmsg trace`: what `--capture` wrote, as lines; and the dissector that lets Wireshark read it. */

import { UsageError, VmsgError } from "../linux/errors.ts";
import { openForReading } from "../linux/fd.ts";
import { allocate } from "../linux/arena.ts";
import { check, libc } from "../linux/libc.ts";
import { readMessage } from "../observe/capture.ts";
import { dissector } from "../observe/dissector.ts";
import { LINKTYPE_ETHERNET, readPcapng } from "../observe/pcapng.ts";
import { createTracer, type LineTracer } from "../observe/trace.ts";
import { parseTraceFilter } from "../observe/trace_filter.ts";
import { VERSION } from "../version.ts";
import type { Command, Options } from "./command.ts";

const CHUNK = 1 << 16;
/** Lines that are printed by one call. */
const LINES_AT_ONCE = 256;
const chunk = allocate(CHUNK);

/** Prints lines, many at once. */
class Printer implements Disposable {
  readonly #lines: string[] = [];

  write(line: string): void {
    this.#lines.push(line);
    if (this.#lines.length >= LINES_AT_ONCE) this.#print();
  }

  #print(): void {
    if (this.#lines.length > 0) console.log(this.#lines.join("\n"));
    this.#lines.length = 0;
  }

  [Symbol.dispose](): void {
    this.#print();
  }
}

/** Gives a file's bytes piece by piece. */
function reader(path: string, stack: DisposableStack): (into: Uint8Array) => number {
  const fd = stack.use(openForReading(path));
  return (into) => {
    const length = Math.min(into.length, CHUNK);
    const count = check(libc.read(fd.number, chunk.address, length), `read ${path}`);
    into.set(chunk.bytes.subarray(0, count));
    return count;
  };
}

/** All files behind one another, as lines. */
class CaptureReader {
  /** The time of the packet in hand, in milliseconds since the first one. */
  #nowMs = 0;
  #start: bigint | undefined;
  readonly #tracers = new Map<number, LineTracer>();
  readonly #dropped = new Map<string, number>();
  #frames = 0;

  constructor(private readonly options: Options, private readonly write: (line: string) => void) {}

  read(path: string): void {
    using stack = new DisposableStack();
    // What was dropped is counted anew in each file.
    this.#dropped.clear();
    for (const item of readPcapng(reader(path, stack))) {
      if (item.kind === "cut") this.#say(`${path} ends in the middle of a packet`);
      else if (item.kind === "statistics") this.#tellDropped(item.interface.name, item.dropped);
      else {
        this.#start ??= item.nanoseconds;
        this.#nowMs = Number(item.nanoseconds - this.#start) / 1e6;
        if (item.interface.linkType === LINKTYPE_ETHERNET) this.#frames++;
        const captured = readMessage(item);
        captured?.tell(this.#tracerOf(captured.bus));
      }
    }
  }

  #tracerOf(bus: number): LineTracer {
    const known = this.#tracers.get(bus);
    if (known !== undefined) return known;
    const filter = this.options.text("filter") ?? "";
    const made = createTracer(this.write, { now: () => this.#nowMs }, {
      filter: parseTraceFilter(filter),
      format: this.options.flag("json") ? "json" : "text",
      // The first has no name, since most captures have no other one.
      bus: bus === 0 ? undefined : `bus${bus}`,
      startMs: 0,
      heartbeat: /\bhello\b/i.test(filter),
    });
    this.#tracers.set(bus, made);
    return made;
  }

  #tellDropped(name: string, dropped: number): void {
    const before = this.#dropped.get(name) ?? 0;
    this.#dropped.set(name, dropped);
    if (dropped > before) {
      this.#say(`${dropped - before} packets of ${name} were dropped before this`);
    }
  }

  #say(line: string): void {
    this.write(this.options.flag("json") ? JSON.stringify({ capture: line }) : `capture: ${line}`);
  }

  end(): void {
    for (const tracer of this.#tracers.values()) tracer.unanswered();
    if (this.#frames > 0) this.#say(`${this.#frames} Ethernet frames are not shown here`);
  }
}

/** See `vmsg trace --help`. */
export const traceCommand: Command = {
  name: "trace",
  summary: "reads what --capture wrote, and has Wireshark read it",
  description:
    "Prints the messages of captures (device, proxy and driver --capture) as --trace does. More than one " +
    "file is read in the order given: FILE.old and FILE of a ring.",
  arguments: "FILE...",
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
    if (options.flag("dissector")) {
      console.log(dissector(VERSION));
      return Promise.resolve(0);
    }
    const paths = options.arguments;
    if (paths.length === 0) throw new UsageError("a file is missing; see: vmsg trace --help");
    using printer = new Printer();
    const captures = new CaptureReader(options, (line) => printer.write(line));
    parseTraceFilter(options.text("filter") ?? "");
    for (const path of paths) {
      try {
        captures.read(path);
      } catch (error) {
        if (!(error instanceof VmsgError) || error.code !== "CAPTURE") throw error;
        throw new VmsgError("CAPTURE", `${path} cannot be read: ${error.message}`);
      }
    }
    captures.end();
    return Promise.resolve(0);
  },
};
