/**
 * The two threads of a data plane subcommand, as seen from the main one.
 *
 * The Worker (worker.ts) builds the parts and blocks in its reactor; the main thread keeps Deno's event
 * loop for signals. They share a stop eventfd, by number: SIGINT and SIGTERM signal it, the Worker takes
 * everything down and answers with how it ended. A Worker that does not answer in time is left behind by
 * ending the process; the kernel then closes what it held.
 */

import { UsageError, VmsgError } from "../linux/errors.ts";
import { createEventFd, signalEventFd } from "../linux/eventfd.ts";
import { notifySystemd } from "../linux/sd_notify.ts";
import { LOG_LEVELS, type LogLevel } from "../observe/log.ts";
import type { Option, Options } from "./command.ts";
import type { DeviceSettings } from "./planes/device.ts";
import type { DriverSettings } from "./planes/driver.ts";
import type { IvshmemServerSettings } from "./planes/ivshmem_server.ts";
import type { ProxySettings } from "./planes/proxy.ts";

/** How long a Worker may take to end. */
const STOP_TIMEOUT_MS = 2000;

/** What all data plane subcommands share. */
export interface CommonSettings {
  readonly trace: boolean;
  readonly logLevel: LogLevel;
}

/** What a Worker is to run. */
export type Plane =
  | { readonly kind: "device"; readonly settings: DeviceSettings }
  | { readonly kind: "proxy"; readonly settings: ProxySettings }
  | { readonly kind: "driver"; readonly settings: DriverSettings }
  | { readonly kind: "ivshmem-server"; readonly settings: IvshmemServerSettings };

/** The first message to a Worker. */
export interface StartMessage {
  readonly plane: Plane;
  readonly common: CommonSettings;
  /** The number of the stop eventfd; the main thread owns it. */
  readonly stopFd: number;
}

/** What a Worker says. */
export type WorkerMessage =
  /** The module is loaded and listens. */
  | { readonly kind: "loaded" }
  /** Everything is built; sockets listen. */
  | { readonly kind: "ready" }
  | { readonly kind: "ended"; readonly exitCode: number }
  | { readonly kind: "failed"; readonly code: string; readonly message: string };

/** The options' entries in a command's table. */
export const COMMON_OPTIONS: readonly Option[] = [
  { name: "trace", help: "print every message in words on standard error" },
  {
    name: "log-level",
    value: LOG_LEVELS.join("|"),
    default: "info",
    help: "how much to say on standard error",
  },
];

/** Parses {@link COMMON_OPTIONS}. */
export function parseCommon(options: Options): CommonSettings {
  const text = options.text("log-level") ?? "info";
  const logLevel = LOG_LEVELS.find((level) => level === text);
  if (logLevel === undefined) {
    throw new UsageError(`--log-level is one of ${LOG_LEVELS.join(", ")}, not ${text}`);
  }
  return { trace: options.flag("trace"), logLevel };
}

/** Runs a plane until it ends or a signal comes; the exit code. */
export async function runDataPlane(plane: Plane, common: CommonSettings): Promise<number> {
  using stop = createEventFd();
  const worker = new Worker(new URL("./worker.ts", import.meta.url).href, { type: "module" });
  const ended = Promise.withResolvers<number>();
  let stopping: ReturnType<typeof setTimeout> | undefined;
  const onSignal = () => {
    signalEventFd(stop);
    stopping ??= setTimeout(() => ended.resolve(1), STOP_TIMEOUT_MS);
  };
  const signals: Deno.Signal[] = ["SIGINT", "SIGTERM"];
  for (const signal of signals) Deno.addSignalListener(signal, onSignal);
  worker.onmessage = ({ data }: MessageEvent<WorkerMessage>) => {
    if (data.kind === "loaded") {
      const start: StartMessage = { plane, common, stopFd: stop.number };
      worker.postMessage(start);
    } else if (data.kind === "ready") notifySystemd("READY=1");
    else if (data.kind === "ended") ended.resolve(data.exitCode);
    else ended.reject(new VmsgError(data.code, data.message));
  };
  worker.onerror = (event) => {
    event.preventDefault();
    ended.reject(new VmsgError("INTERNAL", `internal error: ${event.message}`));
  };
  try {
    return await ended.promise;
  } finally {
    clearTimeout(stopping);
    for (const signal of signals) Deno.removeSignalListener(signal, onSignal);
    worker.terminate();
  }
}
