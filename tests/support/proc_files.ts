/** What /proc says of processes and threads that may end while they are looked at. */

/** A file of one; "" if it has ended. */
export function readProc(path: string): string {
  try {
    return Deno.readTextFileSync(`/proc/${path}`);
  } catch {
    return "";
  }
}

/** The threads of a process; none if it has ended. */
export function threadsOf(pid: number | string): string[] {
  try {
    return [...Deno.readDirSync(`/proc/${pid}/task`)].map(({ name }) => name);
  } catch {
    return [];
  }
}

/** The processes that one has started, on any of its threads. */
export function childrenOf(pid: number | string): string[] {
  return threadsOf(pid).flatMap((thread) => readProc(`${pid}/task/${thread}/children`).split(" "))
    .filter((word) => word !== "");
}
