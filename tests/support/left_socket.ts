/** The socket file that a process leaves behind when it is killed. */

import { listenUnix } from "../../src/linux/unix_socket.ts";

/** Makes one at `path`: it is there, and nobody listens. */
export function leaveSocket(path: string): void {
  {
    using _listener = listenUnix(path);
    // Not at its path it is not removed.
    Deno.renameSync(path, `${path}~`);
  }
  Deno.renameSync(`${path}~`, path);
}
