/**
 * A subcommand that moves data: on the main thread it parses its options into settings, in its Worker it
 * opens the parts that they describe. One file a subcommand holds both.
 */

import type { PairLine } from "../devices/net/pair_line.ts";
import { MEMORY_FILES, type MemoryFiles } from "../linux/memory_file.ts";
import type { Reactor } from "../linux/reactor.ts";
import { type Log, LOG_LEVELS, type LogLevel } from "../observe/log.ts";
import type { CommandText, Option, Options } from "./command.ts";
import {
  type CaptureSettings,
  parseCapture,
  parseTrace,
  TRACE_OPTIONS,
  type TraceSettings,
  type Watching,
} from "./trace_option.ts";

export interface PlaneContext extends Watching {
  readonly reactor: Reactor;
  readonly log: Log;
  /** Takes lines of a trace in other words than virtio-msg's, if one is wanted; they are not limited. */
  readonly trace: ((line: string) => void) | undefined;
  readonly stack: DisposableStack;
  readonly print: (line: string) => void;
  /** To as many threads as {@link PlaneCommand.pairThreads} said, or fewer. */
  readonly pairLines: readonly PairLine[];
}

export interface RunningPlane {
  /** Asked when a signal is to end the run: false goes on, and has said why; the next signal asks again. */
  mayEnd?(): boolean;
  /** Called when a signal ends the run, before everything is disposed; what it prints is shown. */
  finish?(): void;
  exitCode?(): number;
}

/** @param pairs for how many queue pairs threads are wanted */
export type RunPlane = (settings: unknown, pairs: number) => Promise<number>;

/** A subcommand with a Worker. */
export interface PlaneCommand<Settings = unknown> extends CommandText {
  parse(options: Options): Settings;
  /** Builds the parts, for the context's stack to own. */
  open(settings: Settings, context: PlaneContext): RunningPlane;
  /** For how many queue pairs of its devices threads are wanted. */
  pairThreads?(settings: Settings): number;
  /** Answers an option that stands alone, and tells whether one was given. */
  inform?(options: Options): boolean;
  run(options: Options, runPlane: RunPlane): Promise<number>;
}

/** What all of them share. */
export interface CommonSettings {
  readonly trace: TraceSettings | undefined;
  readonly capture: CaptureSettings | undefined;
  readonly logLevel: LogLevel;
  /** Which files a peer's memory may be in. */
  readonly memoryFiles: MemoryFiles;
}

/** Of a command without a bus: its messages are others. */
const PLAIN_TRACE: Option = {
  name: "trace",
  help: "print every message in words on standard error",
};

const COMMON_OPTIONS: readonly Option[] = [
  {
    name: "log-level",
    value: LOG_LEVELS.join("|"),
    default: "info",
    help: "how much to say on standard error",
  },
  {
    name: "memory-files",
    value: MEMORY_FILES.join("|"),
    default: "memory",
    help:
      "which files of a peer's are taken as memory: sealed memfds; memfds and files on tmpfs, hugetlbfs or a disk; " +
      "any, also those that may stall this process",
  },
];

export function parseCommon(options: Options): CommonSettings {
  const logLevel = options.choice("log-level", LOG_LEVELS) ?? "info";
  const memoryFiles = options.choice("memory-files", MEMORY_FILES) ?? "memory";
  const plain = options.flag("trace") ? { filter: "", format: "text" } as const : undefined;
  const trace = plain ?? parseTrace(options);
  return { trace, capture: parseCapture(options), logLevel, memoryFiles };
}

/** Makes the subcommand, with the options that all of them have. */
export function planeCommand<Settings>(
  plane: Omit<PlaneCommand<Settings>, "run">,
): PlaneCommand<Settings> {
  const hasBus = plane.options.some(({ name }) => name === "bus");
  const trace = hasBus ? TRACE_OPTIONS : [PLAIN_TRACE];
  return {
    ...plane,
    options: [...plane.options, ...trace, ...COMMON_OPTIONS],
    run: async (options, runPlane) => {
      if (plane.inform?.(options) === true) return 0;
      const settings = plane.parse(options);
      // A capture sees all frames in one thread.
      const isCaptured = parseCapture(options)?.frames === true;
      return await runPlane(settings, isCaptured ? 0 : plane.pairThreads?.(settings) ?? 0);
    },
  };
}
