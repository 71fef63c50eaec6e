/** `--trace` and `--capture`: what goes over a bus, and a card's frames, for people and for Wireshark. */

import type { Reactor } from "../linux/reactor.ts";
import { captureMessages, type TracedBus } from "../observe/capture.ts";
import {
  CaptureFile,
  type CaptureOptions,
  DEFAULT_LIMIT,
  MAX_SNAP_LENGTH,
  MIN_LIMIT,
  MIN_RING_LIMIT,
} from "../observe/capture_file.ts";
import type { Log } from "../observe/log.ts";
import {
  bothTracers,
  createTracer,
  TRACE_FORMATS,
  type TraceFormat,
  type Tracer,
} from "../observe/trace.ts";
import { parseTraceFilter } from "../observe/trace_filter.ts";
import type { Option, Options } from "./command.ts";
import { Group } from "./groups.ts";

/** What `--trace` and `--capture` say, as plain data for the Worker. */
export type TraceSettings = { readonly filter: string; readonly format: TraceFormat };
export type CaptureSettings = CaptureOptions & { readonly frames: boolean };

/** Of commands that have a bus. */
export const TRACE_OPTIONS: readonly Option[] = [
  {
    name: "trace",
    value: "FILTER",
    valueIsOptional: true,
    help:
      "print every message in words on standard error, and where notifications are none; with a filter some of them, as " +
      "in net0,!event (docs/trace.md)",
  },
  {
    name: "trace-format",
    value: TRACE_FORMATS.join("|"),
    default: "text",
    help: "how: lines of text, or of JSON",
  },
  {
    name: "capture",
    value: "FILE[,limit=SIZE][,ring][,snap=BYTES][,frames=off]",
    help:
      "write messages and frames to a pcapng file, for `vmsg trace` and Wireshark, up to a size (default 1G); with " +
      "ring the last of them, half of the size in FILE and the other in FILE.old",
  },
];

export function parseTrace(options: Options): TraceSettings | undefined {
  const filter = options.text("trace");
  const format = options.choice("trace-format", TRACE_FORMATS) ?? "text";
  if (filter === undefined) return undefined;
  parseTraceFilter(filter);
  return { filter, format };
}

export function parseCapture(options: Options): CaptureSettings | undefined {
  const text = options.text("capture");
  if (text === undefined) return undefined;
  const [path = "", ...parts] = text.split(",");
  const group = new Group("--capture", path, text, parts, ["limit", "ring", "snap", "frames"]);
  if (path === "") throw group.error("a file is missing");
  const ring = group.flag("ring", false);
  const limit = group.bytes("limit", DEFAULT_LIMIT);
  const least = ring ? MIN_RING_LIMIT : MIN_LIMIT;
  if (limit < least) throw group.error(`limit is at least ${least}, not ${limit}`);
  const snapLength = group.number("snap", 64, MAX_SNAP_LENGTH, MAX_SNAP_LENGTH);
  return { path, limit, ring, snapLength, frames: group.flag("frames", true) };
}

/** What watches a data plane: is there anything, the tracer of a bus, and where frames are captured. */
export interface Watching {
  readonly isTraced: boolean;
  /** @param name in front of each line, where a process has several buses */
  readonly tracerFor: (bus: TracedBus, name?: string) => Tracer | undefined;
  readonly frameCapture: CaptureFile | undefined;
}

/** Opens what was wanted, for the stack to own. */
export function openWatching(
  trace: TraceSettings | undefined,
  capture: CaptureSettings | undefined,
  write: (line: string) => void,
  { reactor, log, stack }: { reactor: Reactor; log: Log; stack: DisposableStack },
): Watching {
  const file = capture && stack.use(new CaptureFile(capture, reactor, log));
  const startMs = reactor.now();
  let buses = 0;
  return {
    isTraced: trace !== undefined || file !== undefined,
    tracerFor: (bus, name) => {
      const number = buses++;
      const lines = trace && createTracer(write, reactor, { ...trace, bus: name, startMs });
      const captured = file && captureMessages(file, bus, number);
      return lines && captured ? bothTracers(lines, captured) : lines ?? captured;
    },
    frameCapture: capture?.frames ? file : undefined,
  };
}
