/**
 * The Worker of a data plane: builds the parts, runs the reactor, takes everything down.
 *
 * Its end is always told to the main thread, see data_plane.ts. Whatever was opened is owned by one
 * stack and disposed in reverse order, however the run ends.
 */

/// <reference lib="deno.worker" />

import { VmsgError } from "../linux/errors.ts";
import { Fd } from "../linux/fd.ts";
import { Reactor, stopReactorFrom } from "../linux/reactor.ts";
import { createLog, type Log } from "../observe/log.ts";
import { createTracer, type Tracer } from "../observe/trace.ts";
import type { StartMessage, WorkerMessage } from "./data_plane.ts";
import { openDevicePlane } from "./planes/device.ts";
import { openDriverPlane } from "./planes/driver.ts";
import { openIvshmemServerPlane } from "./planes/ivshmem_server.ts";
import { openProxyPlane } from "./planes/proxy.ts";

/** What a plane is given. */
export interface PlaneContext {
  readonly reactor: Reactor;
  readonly log: Log;
  readonly tracer: Tracer | undefined;
  /** Owns what the plane opens. */
  readonly stack: DisposableStack;
  /** Writes a line of results to standard output. */
  readonly print: (line: string) => void;
}

/** What a plane gives back. */
export interface RunningPlane {
  /** Called when a signal ends the run, before everything is disposed; what it prints is shown. */
  finish?(): void;
  /** The exit code, asked for at the end. */
  exitCode?(): number;
}

const encoder = new TextEncoder();

function writeLine(to: { writeSync(bytes: Uint8Array): number }, line: string): void {
  const bytes = encoder.encode(line + "\n");
  try {
    for (let done = 0; done < bytes.length;) done += to.writeSync(bytes.subarray(done));
  } catch {
    // Nobody reads any more; what is said there is not worth ending for.
  }
}

async function run({ plane, common, stopFd }: StartMessage): Promise<number> {
  using stack = new DisposableStack();
  const reactor = stack.use(new Reactor());
  const toStderr = (line: string) => writeLine(Deno.stderr, line);
  const context: PlaneContext = {
    reactor,
    log: createLog(`vmsg ${plane.kind}`, common.logLevel, toStderr),
    tracer: common.trace ? createTracer(toStderr, () => performance.now()) : undefined,
    stack,
    print: (line) => writeLine(Deno.stdout, line),
  };
  // Borrowed: the main thread closes it, so it is not put on the stack.
  stopReactorFrom(reactor, new Fd(stopFd));
  const running = openPlane(plane, context);
  post({ kind: "ready" });
  await reactor.run();
  running.finish?.();
  return running.exitCode?.() ?? 0;
}

function openPlane(plane: StartMessage["plane"], context: PlaneContext): RunningPlane {
  switch (plane.kind) {
    case "device":
      return openDevicePlane(plane.settings, context);
    case "proxy":
      return openProxyPlane(plane.settings, context);
    case "driver":
      return openDriverPlane(plane.settings, context);
    case "ivshmem-server":
      return openIvshmemServerPlane(plane.settings, context);
  }
}

function post(message: WorkerMessage): void {
  self.postMessage(message);
}

self.onmessage = async ({ data }: MessageEvent<StartMessage>) => {
  try {
    post({ kind: "ended", exitCode: await run(data) });
  } catch (error) {
    if (error instanceof VmsgError) {
      post({ kind: "failed", code: error.code, message: error.message });
    } else {
      const text = error instanceof Error ? error.stack ?? error.message : String(error);
      post({ kind: "failed", code: "INTERNAL", message: `internal error: ${text}` });
    }
  }
  self.close();
};

post({ kind: "loaded" });
