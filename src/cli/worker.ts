/**
 * The Worker of a data plane: builds the parts, runs the reactor, takes everything down. Or that of a queue pair of one of its
 * devices, which runs a reactor for its end of a line.
 *
 * Its end is always told to the main thread, see data_plane.ts. Whatever was opened is owned by one
 * stack and disposed in reverse order, however the run ends.
 */

/// <reference lib="deno.worker" />

import { type PairLine, PairThread } from "../devices/net/pair_line.ts";
import { VmsgError } from "../linux/errors.ts";
import { Fd } from "../linux/fd.ts";
import { guardMemory } from "../linux/memory_guard.ts";
import { takeMemoryFiles } from "../linux/memory_file.ts";
import { threadId } from "../linux/process_files.ts";
import { forgetProgramPages } from "../linux/program_pages.ts";
import { nameOf } from "../linux/received_fd.ts";
import { Reactor, stopReactorFrom } from "../linux/reactor.ts";
import { openCounterFile } from "../observe/counter_file.ts";
import { counterShape } from "../observe/counters.ts";
import { LineWriter } from "../linux/line_writer.ts";
import { createLog, limitedLog, withoutRepeats } from "../observe/log.ts";
import type { TraceFormat } from "../observe/trace.ts";
import { complaintOf } from "./complaint.ts";
import { type PlaneName, PLANES } from "./commands.ts";
import { enterRunning } from "./permissions.ts";
import type { CommonSettings, PlaneCommand, PlaneContext } from "./plane.ts";
import { openWatching } from "./trace_option.ts";

export interface StartMessage {
  readonly plane: PlaneName;
  /** What this plane's `parse` gave. */
  readonly settings: unknown;
  readonly common: CommonSettings;
  /** The number of the stop eventfd; the main thread owns it. */
  readonly stopFd: number;
  /** To the Workers of queue pairs. */
  readonly pairLines: readonly PairLine[];
}

export type WorkerMessage =
  /** The module is loaded and listens. */
  | { readonly kind: "loaded" }
  /** A signal came, and the run goes on. */
  | { readonly kind: "stays" }
  /** Everything is built; sockets listen. */
  | { readonly kind: "ready"; readonly thread: number }
  | { readonly kind: "ended"; readonly exitCode: number }
  | { readonly kind: "failed"; readonly code: string; readonly message: string };

const STDERR = 2;

// V8 compiles typed arrays in the belief that no buffer is ever detached, and discards nearly all of that code at the first
// one, for the life of the thread: it is to learn now, not when the first guest reboots (Mapping's dispose detaches). Only time
// shows it, so no test does.
new ArrayBuffer(8).transfer();

/** Permissions are the process's, for the plane to give up. */
async function runPair(line: PairLine): Promise<number> {
  using reactor = new Reactor();
  new PairThread(line, reactor);
  post({ kind: "ready", thread: threadId() });
  await reactor.run();
  return 0;
}

const LineCounters = counterShape("written", "dropped");

/** What stands in the place of lines that nobody read; in JSON where the others are. */
function gapIn(format: TraceFormat | undefined): ((count: number) => string) | undefined {
  return format === "json" ? (dropped) => JSON.stringify({ dropped }) : undefined;
}

async function run(
  { plane, settings, common, stopFd, pairLines }: StartMessage,
): Promise<number> {
  const command: PlaneCommand = await PLANES[plane]();
  // Before anybody waits for an answer.
  forgetProgramPages();
  using stack = new DisposableStack();
  // First, so that it is removed last: whatever counts is gone by then.
  stack.use(openCounterFile(plane));
  const reactor = stack.use(new Reactor());
  const stderr = stack.use(
    new LineWriter(
      reactor,
      STDERR,
      gapIn(common.trace?.format),
      new LineCounters("lines", "standard error"),
    ),
  );
  const toStderr = (line: string) => stderr.write(line);
  const log = withoutRepeats(createLog(`vmsg ${plane}`, common.logLevel, toStderr), reactor);
  const context: PlaneContext = {
    reactor,
    log,
    ...openWatching(common.trace, common.capture, toStderr, { reactor, log, stack }),
    trace: common.trace ? toStderr : undefined,
    stack,
    print: (line) => console.log(line),
    pairLines,
  };
  const canEnd = () => log.info("memory without seals came: cut off, it would end this process");
  takeMemoryFiles(common.memoryFiles, guardMemory() ? undefined : canEnd);
  const complain = limitedLog(log.error, reactor);
  reactor.cutHandlers.add((address) =>
    complain(`memory that a peer shares was cut off (at 0x${address.toString(16)}): it reads as 0`)
  );
  reactor.paced = (fd) =>
    complain(
      `descriptor ${fd} (${
        nameOf(fd)
      }) is always ready and has nothing: it is looked at less often`,
    );
  let mayEnd = () => true;
  // Opening may wait for others. Borrowed: the main thread closes it, so it is not put on the stack.
  stopReactorFrom(reactor, new Fd(stopFd), () => {
    const ends = mayEnd();
    if (!ends) post({ kind: "stays" });
    return ends;
  });
  const running = command.open(settings, context);
  if (running.mayEnd !== undefined) mayEnd = () => running.mayEnd!();
  enterRunning(plane);
  post({ kind: "ready", thread: threadId() });
  await reactor.run();
  running.finish?.();
  return running.exitCode?.() ?? 0;
}

function post(message: WorkerMessage): void {
  self.postMessage(message);
}

self.onmessage = async ({ data }: MessageEvent<StartMessage | PairLine>) => {
  try {
    const exitCode = await ("bells" in data ? runPair(data) : run(data));
    post({ kind: "ended", exitCode });
  } catch (error) {
    const code = error instanceof VmsgError ? error.code : "INTERNAL";
    if (code === "STOPPED") post({ kind: "ended", exitCode: 0 });
    else post({ kind: "failed", code, message: complaintOf(error) });
  }
  self.close();
};

post({ kind: "loaded" });
