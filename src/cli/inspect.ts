/**
 * `vmsg inspect`: the state of a link as it is at the moment, or as a process left it that is gone.
 *
 * Three sources, none of which notices: message queues in files and shared memory (bus/queue_reader.ts), what processes
 * say of themselves in their files of counters (observe/state.ts), and the rings of their devices (observe/memory_reader.ts).
 */

import {
  busOfQueueFile,
  isHeartbeat,
  NAMES,
  type ReadMessage,
  type ReadQueue,
  readQueues,
  unansweredIn,
} from "../bus/queue_reader.ts";
import { MONOTONIC } from "../linux/clock.ts";
import { VmsgError } from "../linux/errors.ts";
import { fileIdentity, fileStatus, openPath } from "../linux/fd.ts";
import { mappedFiles } from "../linux/process_files.ts";
import { directoryNames } from "../linux/sysfs.ts";
import { DIALECTS, type Kind } from "../message/message.ts";
import { kindName } from "../message/table.ts";
import { findCounterFiles } from "../observe/counter_file.ts";
import { type Instance, readAll, readPath } from "../observe/figures.ts";
import { isCounterFile } from "../observe/read_counters.ts";
import type { ReadRegion } from "../observe/state.ts";
import type { Command, Options } from "./command.ts";
import { processLines, type ProcessView, viewOf } from "./process_view.ts";

/** Messages of a queue that are shown at most, of those that wait and of those that were read. */
const MOST = 4096;
/** Queue files of one directory, and of one process. */
const MAX_FILES = 64;

interface Found {
  readonly instances: Instance[];
  /** By bus: its files, or one that holds both queues. */
  readonly buses: Map<string, Set<string>>;
  readonly problems: string[];
}

/** Says what there is where the operands point; reads no queue. */
function find(operands: readonly string[]): Found {
  const found: Found = { instances: [], buses: new Map(), problems: [] };
  const nowMs = MONOTONIC.now();
  const addProcesses = (
    reading: { instances: readonly Instance[]; problems: readonly string[] },
  ) => {
    found.instances.push(...reading.instances);
    found.problems.push(...reading.problems);
  };
  const seen = new Set<string>();
  const addQueue = (path: string) => {
    // A process has mapped it under another name than that which was given.
    using fd = openPath(path);
    const identity = fd === undefined ? path : fileIdentity(fd);
    if (seen.has(identity)) return;
    seen.add(identity);
    const bus = busOfQueueFile(path) ?? path;
    const files = found.buses.get(bus) ?? new Set();
    found.buses.set(bus, files.add(path));
  };
  if (operands.length === 0) addProcesses(readAll(nowMs));
  for (const operand of operands) {
    if (/^\d+$/.test(operand)) addProcesses(readAll(nowMs, Number(operand)));
    else if (isDirectory(operand)) {
      const names = directoryNames(operand).filter((name) => busOfQueueFile(name) !== undefined);
      names.sort().slice(0, MAX_FILES).forEach((name) => addQueue(`${operand}/${name}`));
      const hasCounters = findCounterFiles([operand]).length > 0;
      if (hasCounters) addProcesses(readPath(nowMs, operand));
      else if (names.length === 0) {
        found.problems.push(`${operand}: neither queue files nor counters`);
      }
    } else if (isCounterFile(operand)) addProcesses(readPath(nowMs, operand));
    else addQueue(operand);
  }
  for (const { pid, isRunning } of found.instances) {
    if (!isRunning) continue;
    const paths = mappedFiles(pid).map(({ path }) => path);
    paths.filter((path) => busOfQueueFile(path)).slice(0, MAX_FILES).forEach(addQueue);
  }
  return found;
}

function isDirectory(path: string): boolean {
  using fd = openPath(path);
  return fd !== undefined && fileStatus(fd).kind === "directory";
}

function messageLine({ slot, waits, unanswered, text }: ReadMessage): string {
  const state = waits ? "waits" : "read ";
  return `  ${String(slot).padStart(4)} ${state} ${text}${unanswered ? "   (no answer)" : ""}`;
}

function queueLines(queue: ReadQueue, last: number): string[] {
  const { path, from, status, dialect, capacity, waiting, problem, messages } = queue;
  const indices = NAMES[queue.layout].map((name) => `${name} ${queue[name]}`).join(" ");
  const newest = messages.at(-1);
  const read = messages.filter((message) =>
    !message.waits && (message === newest || message.unanswered || !isHeartbeat(message))
  );
  const waits = messages.filter((message) => message.waits);
  const left = waits.length - last;
  return [
    `${path}: from the ${from} side, ${status === undefined ? "" : `${status}, `}${dialect}, ` +
    `${indices} of ${capacity}, ` +
    (problem ?? `${waiting === 0 ? "none" : waiting} ${waiting === 1 ? "waits" : "wait"}`),
    ...read.slice(-last).map(messageLine),
    ...waits.slice(0, last).map(messageLine),
    ...(left > 0 ? [`       and ${left} more that wait`] : []),
    `  last message: ${newest === undefined ? "none so far" : newest.text}`,
  ];
}

/** What is read, for programs. */
function asJson(
  processes: readonly ProcessView[],
  buses: readonly ReadQueue[][],
  problems: readonly string[],
): string {
  const named = processes.map((process) => ({
    ...process,
    requests: process.requests.map((one) => ({
      ...one,
      message: one.open > 0 ? kindName(one.kind as Kind) : undefined,
    })),
  }));
  const queues = buses.flat().map((queue) => ({ ...queue, last: queue.messages.at(-1)?.text }));
  return JSON.stringify({
    // Of the clock that times of processes are on.
    nowMs: MONOTONIC.now(),
    processes: named,
    queues,
    unanswered: buses.flatMap(unansweredIn),
    problems,
  });
}

/** A file that is a device's memory where queues would be was given for its rings, and has no queues. */
function takeMemory(
  buses: Map<string, Set<string>>,
  processes: readonly ProcessView[],
  offset: number,
): void {
  const regions = processes.flatMap(({ devices, remote }) =>
    [...devices, ...remote].flatMap(({ memory }) => memory)
  );
  for (const path of buses.keys()) {
    using fd = openPath(path);
    const identity = fd === undefined ? "" : fileIdentity(fd);
    const isThere = (region: ReadRegion) =>
      region.file === identity && region.offset <= offset && offset < region.offset + region.size;
    if (regions.some(isThere)) buses.delete(path);
  }
}

function inspect(options: Options): number {
  const dialect = options.choice("dialect", DIALECTS);
  const offset = options.wholeNumber("offset", 0, Number.MAX_SAFE_INTEGER)!;
  const last = options.wholeNumber("last", 1, MOST)!;
  const found = find(options.operands);
  const isJson = options.flag("json");
  const processes = found.instances.map((instance) =>
    viewOf(instance, options.operands, isJson ? MOST : last)
  );
  takeMemory(found.buses, processes, offset);
  const buses = [...found.buses.values()].flatMap((paths) => {
    try {
      // The driver side's queue first.
      return [readQueues([...paths].sort().reverse(), { dialect, offset })];
    } catch (error) {
      if (!(error instanceof VmsgError)) throw error;
      found.problems.push(error.message);
      return [];
    }
  });
  const isNothing = found.instances.length === 0 && buses.length === 0;
  if (isJson) console.log(asJson(processes, buses, found.problems));
  else {
    for (const process of processes) processLines(process).forEach((line) => console.log(line));
    for (const queue of buses.flat()) queueLines(queue, last).forEach((line) => console.log(line));
    const waits = buses.flatMap(unansweredIn);
    for (const line of waits.slice(0, last)) console.log(line);
    if (waits.length > last) console.log(`and ${waits.length - last} more requests`);
    for (const problem of found.problems) console.error(`vmsg: ${problem}`);
  }
  return isNothing ? 1 : 0;
}

/** See `vmsg inspect --help`. */
export const inspectCommand: Command = {
  name: "inspect",
  summary: "the state of a link: messages in queues, status, features and queues of devices",
  description:
    "Shows what lies in message queues (of the linux-user bus, its files; of ivshmem and shm, the memory, in either layout), also those of other " +
    "implementations: what waits, what was said last, and which request has no answer. Of processes of vmsg, running " +
    "or crashed, it shows status, features and queues of devices, with indices and buffers of their rings, and what they " +
    "wait for. Reads only.",
  operands: "[PID|FILE|DIRECTORY]...",
  options: [
    {
      name: "dialect",
      value: DIALECTS.join("|"),
      help: "of the messages; unless given, the one in which most are understood",
    },
    {
      name: "offset",
      value: "BYTES",
      default: "0",
      help: "where the queues begin in shared memory",
    },
    {
      name: "last",
      value: "N",
      default: "8",
      help: "messages of each queue, and buffers of each ring, that are shown",
    },
    { name: "json", help: "print one JSON object, with all messages" },
  ],
  examples: [
    "vmsg inspect",
    "vmsg inspect 30702 .",
    "vmsg inspect --dialect proto queue-linux-user-driver queue-linux-user-device",
    "vmsg inspect /dev/shm/ivshmem",
    "vmsg inspect 30702 ram",
  ],
  run: (options) => Promise.resolve(inspect(options)),
};
