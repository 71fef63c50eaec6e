/**
 * The threads of a data plane subcommand, as seen from the main one.
 *
 * The Worker (worker.ts) builds the parts and blocks in its reactor; the main thread keeps Deno's event
 * loop for signals. They share a stop eventfd, by number: SIGINT and SIGTERM signal it, the Worker takes
 * everything down and answers with how it ended. A Worker that does not answer in time is left behind by
 * ending the process; the kernel then closes what it held.
 */

import { endPair, openPairLine, type PairLine } from "../devices/net/pair_line.ts";
import { VmsgError } from "../linux/errors.ts";
import { createEventFd, signalEventFd } from "../linux/eventfd.ts";
import { libc } from "../linux/libc.ts";
import { notifySystemd, systemdSocket } from "../linux/sd_notify.ts";
import { complaintOf } from "./complaint.ts";
import type { Options } from "./command.ts";
import type { PlaneName } from "./commands.ts";
import { limitsProblem, pairThreadsFor } from "./needs.ts";
import { forbidNewPrivileges } from "./permissions.ts";
import { parseCommon } from "./plane.ts";
import { watchThread } from "./watchdog.ts";
import type { StartMessage, WorkerMessage } from "./worker.ts";

/** Many times what it takes: a machine may have other work to do, and exit code 1 says that something hangs. */
const STOP_TIMEOUT_MS = 5000;
/** A tenth of what the Worker gets, where they compete. */
const NICE = 10;

/** A Worker, and how it ends. */
class PlaneThread implements Disposable {
  readonly #worker = new Worker(new URL("./worker.ts", import.meta.url).href, { type: "module" });
  readonly #ended = Promise.withResolvers<number>();
  readonly #ready = Promise.withResolvers<void>();
  #watchdog: Disposable | undefined;
  /** Called when it goes on though it was told to stop. */
  stays: (() => void) | undefined;

  /** @param start what it is told when it is loaded, if `when` is over */
  constructor(start: StartMessage | PairLine, when: Promise<unknown> = Promise.resolve()) {
    this.#worker.onmessage = ({ data }: MessageEvent<WorkerMessage>) => {
      // A failure is told by what it is a failure of.
      if (data.kind === "stays") this.stays?.();
      else if (data.kind === "loaded") when.then(() => this.#worker.postMessage(start), () => {});
      else if (data.kind === "ready") {
        this.#ready.resolve();
        this.#watchdog = watchThread(data.thread, (error) => this.#ended.reject(error));
      } else if (data.kind === "ended") this.#ended.resolve(data.exitCode);
      else this.#ended.reject(new VmsgError(data.code, data.message));
    };
    this.#worker.onerror = (event) => {
      event.preventDefault();
      this.#ended.reject(new VmsgError("INTERNAL", complaintOf(event.message)));
    };
  }

  /** It runs. */
  get ready(): Promise<void> {
    return this.#ready.promise;
  }

  /** Its exit code. */
  get ended(): Promise<number> {
    return this.#ended.promise;
  }

  [Symbol.dispose](): void {
    this.#watchdog?.[Symbol.dispose]();
    this.#worker.terminate();
  }
}

/**
 * Runs a plane until it ends or a signal comes; the exit code.
 *
 * @param settings what the subcommand's `parse` gave
 * @param options for what all planes share
 * @param pairs how many queue pairs would have Workers, which the plane's, as it blocks, could not start
 */
export async function runDataPlane(
  plane: PlaneName,
  settings: unknown,
  options: Options,
  pairs = 0,
): Promise<number> {
  const common = parseCommon(options);
  const problem = limitsProblem();
  if (problem !== undefined) throw new VmsgError("LIMITS", problem);
  const systemd = systemdSocket();
  forbidNewPrivileges();
  using stack = new DisposableStack();
  const stop = stack.use(createEventFd());
  const pairLines = Array.from({ length: pairThreadsFor(pairs) }, () => openPairLine(stack));
  const pairThreads = pairLines.map((line) => stack.use(new PlaneThread(line)));
  const start = { plane, settings, common, stopFd: stop.number, pairLines };
  // It blocks until a pair's thread answers, which is to be there then.
  const pairsReady = Promise.all(pairThreads.map(({ ready }) => ready));
  const thread = stack.use(new PlaneThread(start, pairsReady));
  thread.ready.then(() => {
    // From here on this thread only looks. Its collector, which is at work for seconds in an emulated machine, must not
    // keep the Worker from the only processor there may be.
    libc.nice(NICE);
    notifySystemd(systemd, "READY=1");
  });
  const late = Promise.withResolvers<number>();
  let stopping: ReturnType<typeof setTimeout> | undefined;
  const onSignal = () => {
    signalEventFd(stop);
    stopping ??= setTimeout(() => late.resolve(1), STOP_TIMEOUT_MS);
  };
  thread.stays = () => {
    clearTimeout(stopping);
    stopping = undefined;
  };
  const signals: Deno.Signal[] = ["SIGINT", "SIGTERM"];
  for (const signal of signals) Deno.addSignalListener(signal, onSignal);
  const pairsEnd = Promise.all(pairThreads.map(({ ended }) => ended));
  try {
    // None of a pair ends before the plane's, unless it fails.
    return await Promise.race([thread.ended, pairsEnd.then(() => late.promise), late.promise]);
  } finally {
    for (const line of pairLines) endPair(line);
    stopping ??= setTimeout(() => late.resolve(1), STOP_TIMEOUT_MS);
    await Promise.race([pairsEnd.catch(() => {}), late.promise]);
    clearTimeout(stopping);
    for (const signal of signals) Deno.removeSignalListener(signal, onSignal);
  }
}
