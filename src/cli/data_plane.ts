/**
 * The two threads of a data plane subcommand, as seen from the main one.
 *
 * The Worker (worker.ts) builds the parts and blocks in its reactor; the main thread keeps Deno's event
 * loop for signals. They share a stop eventfd, by number: SIGINT and SIGTERM signal it, the Worker takes
 * everything down and answers with how it ended. A Worker that does not answer in time is left behind by
 * ending the process; the kernel then closes what it held.
 */

import { VmsgError } from "../linux/errors.ts";
import { createEventFd, signalEventFd } from "../linux/eventfd.ts";
import { libc } from "../linux/libc.ts";
import { notifySystemd, systemdSocket } from "../linux/sd_notify.ts";
import { complaintOf } from "./complaint.ts";
import type { Options } from "./command.ts";
import type { PlaneName } from "./commands.ts";
import { limitsProblem } from "./needs.ts";
import { forbidNewPrivileges } from "./permissions.ts";
import { parseCommon } from "./plane.ts";
import { watchThread } from "./watchdog.ts";
import type { StartMessage, WorkerMessage } from "./worker.ts";

/** Many times what it takes: a machine may have other work to do, and exit code 1 says that something hangs. */
const STOP_TIMEOUT_MS = 5000;
/** A tenth of what the Worker gets, where they compete. */
const NICE = 10;

/**
 * Runs a plane until it ends or a signal comes; the exit code.
 *
 * @param settings what the subcommand's `parse` gave
 * @param options for what all planes share
 */
export async function runDataPlane(
  plane: PlaneName,
  settings: unknown,
  options: Options,
): Promise<number> {
  const common = parseCommon(options);
  const problem = limitsProblem();
  if (problem !== undefined) throw new VmsgError("LIMITS", problem);
  const systemd = systemdSocket();
  forbidNewPrivileges();
  using stop = createEventFd();
  const worker = new Worker(new URL("./worker.ts", import.meta.url).href, { type: "module" });
  const ended = Promise.withResolvers<number>();
  let stopping: ReturnType<typeof setTimeout> | undefined;
  let watchdog: Disposable | undefined;
  const onSignal = () => {
    signalEventFd(stop);
    stopping ??= setTimeout(() => ended.resolve(1), STOP_TIMEOUT_MS);
  };
  const signals: Deno.Signal[] = ["SIGINT", "SIGTERM"];
  for (const signal of signals) Deno.addSignalListener(signal, onSignal);
  worker.onmessage = ({ data }: MessageEvent<WorkerMessage>) => {
    if (data.kind === "loaded") {
      const start: StartMessage = { plane, settings, common, stopFd: stop.number };
      worker.postMessage(start);
    } else if (data.kind === "ready") {
      // From here on this thread only looks. Its collector, which is at work for seconds in an emulated machine, must not
      // keep the Worker from the only processor there may be.
      libc.nice(NICE);
      notifySystemd(systemd, "READY=1");
      watchdog = watchThread(data.thread, (error) => ended.reject(error));
    } else if (data.kind === "ended") ended.resolve(data.exitCode);
    else ended.reject(new VmsgError(data.code, data.message));
  };
  worker.onerror = (event) => {
    event.preventDefault();
    ended.reject(new VmsgError("INTERNAL", complaintOf(event.message)));
  };
  try {
    return await ended.promise;
  } finally {
    clearTimeout(stopping);
    watchdog?.[Symbol.dispose]();
    for (const signal of signals) Deno.removeSignalListener(signal, onSignal);
    worker.terminate();
  }
}
