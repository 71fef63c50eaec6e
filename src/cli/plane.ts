/**
 * A subcommand that moves data: on the main thread it parses its options into settings, in its Worker it
 * opens the parts that they describe. One file a subcommand holds both.
 */

import { UsageError } from "../linux/errors.ts";
import type { Reactor } from "../linux/reactor.ts";
import { type Log, LOG_LEVELS, type LogLevel } from "../observe/log.ts";
import type { Tracer } from "../observe/trace.ts";
import type { CommandText, Option, Options } from "./command.ts";

export interface PlaneContext {
  readonly reactor: Reactor;
  readonly log: Log;
  readonly tracer: Tracer | undefined;
  readonly stack: DisposableStack;
  readonly print: (line: string) => void;
}

export interface RunningPlane {
  /** Called when a signal ends the run, before everything is disposed; what it prints is shown. */
  finish?(): void;
  exitCode?(): number;
}

export type RunPlane = (settings: unknown) => Promise<number>;

/** A subcommand with a Worker. */
export interface PlaneCommand<Settings = unknown> extends CommandText {
  parse(options: Options): Settings;
  /** Builds the parts, for the context's stack to own. */
  open(settings: Settings, context: PlaneContext): RunningPlane;
  /** Answers an option that stands alone, and tells whether one was given. */
  inform?(options: Options): boolean;
  run(options: Options, runPlane: RunPlane): Promise<number>;
}

/** What all of them share. */
export interface CommonSettings {
  readonly trace: boolean;
  readonly logLevel: LogLevel;
}

const COMMON_OPTIONS: readonly Option[] = [
  { name: "trace", help: "print every message in words on standard error" },
  {
    name: "log-level",
    value: LOG_LEVELS.join("|"),
    default: "info",
    help: "how much to say on standard error",
  },
];

export function parseCommon(options: Options): CommonSettings {
  const text = options.text("log-level") ?? "info";
  const logLevel = LOG_LEVELS.find((level) => level === text);
  if (logLevel === undefined) {
    throw new UsageError(`--log-level is one of ${LOG_LEVELS.join(", ")}, not ${text}`);
  }
  return { trace: options.flag("trace"), logLevel };
}

/** Makes the subcommand, with the options that all of them have. */
export function planeCommand<Settings>(
  plane: Omit<PlaneCommand<Settings>, "run">,
): PlaneCommand<Settings> {
  return {
    ...plane,
    options: [...plane.options, ...COMMON_OPTIONS],
    run: async (options, runPlane) =>
      plane.inform?.(options) === true ? 0 : await runPlane(plane.parse(options)),
  };
}
