/**
 * `vmsg inspect`: the state of a link as it is at the moment, or as a process left it that is gone.
 *
 * Three sources, none of which notices: message queues in files and shared memory (bus/queue_reader.ts), what processes
 * say of themselves in their files of counters (observe/state.ts), and the rings of their devices (observe/memory_reader.ts).
 */

import {
  busOfQueueFile,
  isHeartbeat,
  type ReadMessage,
  type ReadQueue,
  readQueues,
  unansweredIn,
} from "../bus/queue_reader.ts";
import { MONOTONIC } from "../linux/clock.ts";
import { UsageError, VmsgError } from "../linux/errors.ts";
import { fileIdentity, fileStatus, openPath } from "../linux/fd.ts";
import { mappedFiles } from "../linux/process_files.ts";
import { directoryNames } from "../linux/sysfs.ts";
import { DIALECTS, type Kind } from "../message/message.ts";
import { kindName } from "../message/table.ts";
import { DEVICE_KINDS, featureNames, statusNames } from "../message/text.ts";
import { findCounterFiles } from "../observe/counter_file.ts";
import { type Instance, readAll, readPath } from "../observe/figures.ts";
import { isCounterFile } from "../observe/read_counters.ts";
import { MemoryReader } from "../observe/memory_reader.ts";
import {
  type ReadDevice,
  type ReadPeer,
  type ReadQueue as ReadVirtqueue,
  type ReadRegion,
  type ReadRequests,
  readState,
} from "../observe/state.ts";
import { hasFeature, RingFeature } from "../virtio/features.ts";
import { type ReadBuffer, type ReadRing, readRing } from "../virtio/queue/ring_reader.ts";
import type { Command, Options } from "./command.ts";

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

const hex = (value: number) => `0x${value.toString(16)}`;

function ago(ms: number): string {
  return `${(Math.max(MONOTONIC.now() - ms, 0) / 1000).toFixed(3)} s`;
}

/** A process with its rings as they are. */
interface ProcessView extends Omit<Instance, "groups"> {
  readonly devices: readonly DeviceView[];
  readonly peers: readonly ReadPeer[];
  readonly requests: readonly ReadRequests[];
}

interface DeviceView extends Omit<ReadDevice, "queues"> {
  /** Those that were set up have a ring, or what was wrong with it. */
  readonly queues: readonly (ReadVirtqueue & { readonly ring?: ReadRing | string })[];
}

function viewOf(
  { groups, ...instance }: Instance,
  memoryFiles: readonly string[],
  most: number,
): ProcessView {
  const { devices, ...rest } = readState(groups);
  const withRings = devices.map((device): DeviceView => {
    using memory = new MemoryReader(device.memory, instance, memoryFiles);
    const has = (bit: number) => hasFeature(new Uint32Array(device.features), bit);
    const terms = {
      isPacked: has(RingFeature.RING_PACKED),
      eventIndex: has(RingFeature.EVENT_IDX),
      isOurs: true,
    };
    const queues = device.queues.map((queue) =>
      queue.size === 0 ? queue : { ...queue, ring: readRing(memory, queue, terms, most) }
    );
    return { ...device, queues };
  });
  return { ...instance, ...rest, devices: withRings };
}

function deviceLines(device: DeviceView): string[] {
  const { number, deviceId, status, features, queueCount, sinceMs, queues, memory } = device;
  const kind = DEVICE_KINDS.get(deviceId) ?? `device id ${deviceId}`;
  const bits = statusNames(status).join(" ") || "0 (reset)";
  const names = featureNames(features, deviceId).join(" ") || "none";
  const set = queues.filter(({ size }) => size > 0);
  return [
    `  device ${number} ${kind}: status ${bits}${sinceMs === 0 ? "" : `, since ${ago(sinceMs)}`}`,
    `    features of the driver: ${names}`,
    ...memory.map(({ at, size }) => `    memory ${hex(at)} to ${hex(at + size)}`),
    `    ${queueCount} queues, ${set.filter(({ isEnabled }) => isEnabled).length} enabled`,
    ...set.flatMap((queue) => [
      `    queue ${queue.index}: size ${queue.size} ${queue.isEnabled ? "enabled" : "disabled"} ` +
      `since ${ago(queue.sinceMs)}, desc ${hex(queue.descriptorAddress)} ` +
      `driver ${hex(queue.driverAddress)} device ${hex(queue.deviceAddress)}`,
      ...ringLines(queue.ring!),
    ]),
  ];
}

function ringLines(ring: ReadRing | string): string[] {
  if (typeof ring === "string") return [`      its ring cannot be shown: ${ring}`];
  const { indices, pending, isUpperBound, buffers, problem } = ring;
  const count = `${isUpperBound ? "at most " : ""}${pending}`;
  const left = pending - buffers.length;
  return [
    `      ${Object.entries(indices).map(([name, value]) => `${name} ${value}`).join(", ")}`,
    `      ${problem ?? `${pending === 0 ? "no" : count} buffers are the device's to use`}`,
    ...buffers.map((buffer) => `      ${bufferText(buffer)}`),
    ...(left > 0 ? [`      and ${left} more`] : []),
  ];
}

/** Descriptors of a buffer that are shown to people. */
const SHOWN_DESCRIPTORS = 8;

function bufferText({ head, descriptors, problem }: ReadBuffer): string {
  const shown = descriptors.slice(0, SHOWN_DESCRIPTORS).map((descriptor) => {
    const { address, length, writable, indirect, outside } = descriptor;
    return `${hex(address)} ${length} bytes ${writable ? "writable" : "readable"}` +
      `${indirect ? " indirect" : ""}${outside ? " OUTSIDE OF MEMORY" : ""}`;
  });
  const left = descriptors.length - shown.length;
  const more = left > 0 ? [`and ${left} more descriptors`] : [];
  return `buffer ${head}: ${
    [...shown, ...more, ...problem === undefined ? [] : [problem]].join("; ")
  }`;
}

function requestLine({ open, kind, device, sinceMs }: ReadRequests): string {
  if (open === 0) return "  no request waits for its answer";
  const more = open > 1 ? `, and ${open - 1} more` : "";
  return `  waits for the answer to ${kindName(kind as Kind)} of device ${device}, for ${
    ago(sinceMs)
  }${more}`;
}

const PEERS: Readonly<Record<ReadPeer["state"], string>> = {
  none: "waits for a driver side",
  unknown: "waits for the driver side's first message",
  greeted: "waits for the driver side to name this epoch",
  vmsg: "the driver side is a vmsg",
  foreign: "the driver side is no vmsg, or one that says no HELLO",
};

function peerLine({ state, sinceMs, heardMs }: ReadPeer): string {
  const heard = heardMs === 0 ? "" : `, its heartbeat was ${ago(heardMs)} ago`;
  return `  ${PEERS[state]}, for ${ago(sinceMs)}${heard}`;
}

function processLines(
  { subcommand, pid, isRunning, devices, peers, requests }: ProcessView,
): string[] {
  return [
    `process ${pid}: ${subcommand}, ${isRunning ? "running" : "ended"}`,
    ...peers.map(peerLine),
    ...devices.flatMap(deviceLines),
    ...requests.map(requestLine),
  ];
}

function messageLine({ slot, waits, unanswered, text }: ReadMessage): string {
  const state = waits ? "waits" : "read ";
  return `  ${String(slot).padStart(4)} ${state} ${text}${unanswered ? "   (no answer)" : ""}`;
}

function queueLines(queue: ReadQueue, last: number): string[] {
  const { path, from, dialect, capacity, head, tail, waiting, problem, messages } = queue;
  const newest = messages.at(-1);
  const read = messages.filter((message) =>
    !message.waits && (message === newest || message.unanswered || !isHeartbeat(message))
  );
  const waits = messages.filter((message) => message.waits);
  const left = waits.length - last;
  return [
    `${path}: from the ${from} side, ${dialect}, head ${head} tail ${tail} of ${capacity}, ` +
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
  const regions = processes.flatMap(({ devices }) => devices.flatMap(({ memory }) => memory));
  for (const path of buses.keys()) {
    using fd = openPath(path);
    const identity = fd === undefined ? "" : fileIdentity(fd);
    const isThere = (region: ReadRegion) =>
      region.file === identity && region.offset <= offset && offset < region.offset + region.size;
    if (regions.some(isThere)) buses.delete(path);
  }
}

function inspect(options: Options): number {
  const dialect = DIALECTS.find((known) => known === options.text("dialect"));
  if (options.text("dialect") !== undefined && dialect === undefined) {
    const given = options.text("dialect");
    throw new UsageError(`--dialect is one of ${DIALECTS.join(", ")}, not ${given}`);
  }
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
    for (const line of buses.flatMap(unansweredIn)) console.log(line);
    for (const problem of found.problems) console.error(`vmsg: ${problem}`);
  }
  return isNothing ? 1 : 0;
}

/** See `vmsg inspect --help`. */
export const inspectCommand: Command = {
  name: "inspect",
  summary: "the state of a link: messages in queues, status, features and queues of devices",
  description:
    "Shows what lies in message queues (of the linux-user bus, its files; of ivshmem and shm, the memory), also those of other " +
    "implementations: what waits, what was said last, and which request has no answer. Of processes of vmsg, running " +
    "or crashed, it shows status, features and queues of devices, and what they wait for. Reads only.",
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
    { name: "last", value: "N", default: "8", help: "messages of each queue that are shown" },
    { name: "json", help: "print one JSON object, with all messages" },
  ],
  examples: [
    "vmsg inspect",
    "vmsg inspect 30702 .",
    "vmsg inspect --dialect proto queue-linux-user-driver queue-linux-user-device",
    "vmsg inspect /dev/shm/ivshmem",
  ],
  run: (options) => Promise.resolve(inspect(options)),
};
