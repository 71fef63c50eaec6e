/** Which windows a process has mapped, by /proc/PID/maps. */

import { MEMORY_NAME, PAGE, type Window } from "./windows.ts";

/** Pages of the memory file, in order, each as often as it is mapped. */
function mappedPages(pid: number): number[] {
  const lines = Deno.readTextFileSync(`/proc/${pid}/maps`).split("\n");
  return lines.filter((line) => line.includes(`/memfd:${MEMORY_NAME}`)).flatMap((line) => {
    const [, from = "", to = "", offset = ""] = /^(\w+)-(\w+) \S+ (\w+)/.exec(line) ?? [];
    const count = (parseInt(to, 16) - parseInt(from, 16)) / PAGE;
    return Array.from({ length: count }, (_, i) => parseInt(offset, 16) / PAGE + i);
  }).sort((a, b) => a - b);
}

/** What is mapped and should not be, or the reverse; every window once; empty if all is well. */
export function mappingFaults(pid: number, windows: Iterable<Window>): string[] {
  const wanted = new Map<number, number>();
  for (const { mapId, offset, length } of windows) {
    for (let page = offset / PAGE; page < (offset + length) / PAGE; page++) wanted.set(page, mapId);
  }
  const faults = new Set<string>();
  let last = -1;
  for (const page of mappedPages(pid)) {
    if (page === last) faults.add(`page ${page} is mapped twice`);
    else if (!wanted.delete(page)) faults.add(`page ${page} is mapped and in no window`);
    last = page;
  }
  for (const mapId of new Set(wanted.values())) faults.add(`window ${mapId} is not mapped`);
  return [...faults];
}
