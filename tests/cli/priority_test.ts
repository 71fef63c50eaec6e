/** Of a data plane's threads the one that carries frames goes first. */

import { readProc, threadsOf } from "../support/proc_files.ts";
import { processTest, until } from "../support/processes.ts";

/** By name of a thread that there is one of. */
function niceOf(pid: number, thread: (name: string, id: string) => boolean): number {
  for (const id of threadsOf(pid)) {
    const [, name, fields] = /^\d+ \((.*)\) (.*)$/s.exec(readProc(`${pid}/task/${id}/stat`)) ?? [];
    // proc_pid_stat(5): nice is field 19, of which the third is the first here.
    if (name !== undefined && thread(name, id)) return Number(fields!.split(" ")[19 - 3]);
  }
  throw new Error(`process ${pid} has no such thread`);
}

const [STEP, LAST] = [10, 19];

processTest("a data plane's main thread steps back for its Worker", async (vmsg) => {
  await using device = await vmsg.start("device", "--bus", "linux-user,socket=lu.sock");
  await device.waitFor(/waiting for the driver side/);
  const { pid } = device;
  const worker = niceOf(pid, (name) => name.startsWith("worker-"));
  const main = () => niceOf(pid, (_, id) => id === String(pid));
  // There is no step behind the last one, where the test's own processes have it.
  await until(() => main() === Math.min(worker + STEP, LAST));
});
