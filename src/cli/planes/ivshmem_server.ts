/** `vmsg ivshmem-server`: shared memory and doorbells for processes and guests on this host. */

import { IvshmemServer, type IvshmemServerOptions } from "../../ivshmem/server.ts";
import type { PlaneContext, RunningPlane } from "../worker.ts";

/** Parsed options. */
export type IvshmemServerSettings = Omit<IvshmemServerOptions, "log">;

/** Builds the parts. */
export function openIvshmemServerPlane(
  settings: IvshmemServerSettings,
  { reactor, log, stack }: PlaneContext,
): RunningPlane {
  stack.use(new IvshmemServer(reactor, { ...settings, log }));
  return {};
}
