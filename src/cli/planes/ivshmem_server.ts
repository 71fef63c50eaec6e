/** `vmsg ivshmem-server`: shared memory and doorbells for processes and guests on this host. */

import { IvshmemServer, type IvshmemServerOptions } from "../../ivshmem/server.ts";
import type { PlaneContext, RunningPlane } from "../worker.ts";

/** Parsed options. */
export type IvshmemServerSettings = Omit<IvshmemServerOptions, "log" | "trace">;

/** Builds the parts. */
export function openIvshmemServerPlane(
  settings: IvshmemServerSettings,
  { reactor, log, tracer, stack }: PlaneContext,
): RunningPlane {
  // The tracer knows virtio-msg; of it counts here that one is wanted.
  const trace = tracer === undefined ? undefined : (line: string) => log.info(line);
  stack.use(new IvshmemServer(reactor, { ...settings, log, trace }));
  return {};
}
