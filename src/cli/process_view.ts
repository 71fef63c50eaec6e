/**
 * A process as `vmsg inspect` shows it: what its file of counters says of its devices, of the other end of its bus and of its
 * requests (observe/state.ts), with the rings of its queues as they lie in memory now (virtio/queue/ring_reader.ts).
 */

import { MONOTONIC } from "../linux/clock.ts";
import type { Kind } from "../message/message.ts";
import { kindName } from "../message/table.ts";
import { DEVICE_KINDS, featureNames, statusNames } from "../message/text.ts";
import type { Instance } from "../observe/figures.ts";
import { MemoryReader } from "../observe/memory_reader.ts";
import {
  type ReadBridge,
  type ReadDevice,
  type ReadPeer,
  type ReadQueue,
  type ReadRequests,
  readState,
} from "../observe/state.ts";
import { hasFeature, RingFeature } from "../virtio/features.ts";
import {
  type ReadBuffer,
  type ReadRing,
  readRing,
  type Wish,
} from "../virtio/queue/ring_reader.ts";

const hex = (value: number) => `0x${value.toString(16)}`;

/** How long ago that was, on the clock of the machine. */
const ago = (ms: number) => `${(Math.max(MONOTONIC.now() - ms, 0) / 1000).toFixed(3)} s`;

/** A process with its rings as they are. */
export interface ProcessView extends Omit<Instance, "groups"> {
  readonly devices: readonly DeviceView[];
  readonly remote: readonly DeviceView[];
  readonly peers: readonly ReadPeer[];
  readonly requests: readonly ReadRequests[];
  readonly bridges: readonly ReadBridge[];
}

/** A device with its rings. */
export interface DeviceView extends Omit<ReadDevice, "queues"> {
  /** Those that were set up have a ring, or what was wrong with it. */
  readonly queues: readonly (ReadQueue & { readonly ring?: ReadRing | string })[];
  readonly statusNames: readonly string[];
  readonly featureNames: readonly string[];
}

/**
 * Looks at the rings of a process's devices.
 *
 * @param memoryFiles where memory may be that no process has open any more
 * @param most buffers of a ring
 */
export function viewOf(
  { groups, ...instance }: Instance,
  memoryFiles: readonly string[],
  most: number,
): ProcessView {
  const { devices, remote, ...rest } = readState(groups);
  const withRings = (device: ReadDevice): DeviceView => {
    using memory = new MemoryReader(device.memory, instance, memoryFiles);
    const has = (bit: number) => hasFeature(new Uint32Array(device.features), bit);
    const terms = {
      isPacked: has(RingFeature.RING_PACKED),
      eventIndex: has(RingFeature.EVENT_IDX),
      isOurs: device.leavesPlace,
    };
    const queues = device.queues.map((queue) =>
      queue.size === 0 ? queue : { ...queue, ring: readRing(memory, queue, terms, most) }
    );
    return {
      ...device,
      queues,
      statusNames: statusNames(device.status),
      featureNames: featureNames(device.features, device.deviceId),
    };
  };
  return {
    ...instance,
    ...rest,
    devices: devices.map(withRings),
    remote: remote.map(withRings),
  };
}

/** Pieces of a device's memory, and descriptors of a buffer, that are shown to people. */
const SHOWN = 8;

function deviceLines(device: DeviceView, where: string): string[] {
  const { number, deviceId, queueCount, sinceMs, queues, memory } = device;
  const kind = DEVICE_KINDS.get(deviceId) ?? `device id ${deviceId}`;
  const bits = device.statusNames.join(" ") || "0 (reset)";
  const names = device.featureNames.join(" ") || "none";
  const set = queues.filter(({ size }) => size > 0);
  return [
    `  device ${number} ${kind}${where}: status ${bits}${
      sinceMs === 0 ? "" : `, set ${ago(sinceMs)} ago`
    }`,
    `    features of the driver: ${names}`,
    ...memory.slice(0, SHOWN).map(({ at, size }) => `    memory ${hex(at)} to ${hex(at + size)}`),
    ...(memory.length > SHOWN ? [`    and ${memory.length - SHOWN} more pieces`] : []),
    `    ${queueCount} queues, ${set.filter(({ isEnabled }) => isEnabled).length} enabled` +
    (device.refused > 0 ? `, ${device.refused} times one was refused` : ""),
    ...set.flatMap((queue) => [
      `    queue ${queue.index}: size ${queue.size}, ${queue.isEnabled ? "enabled" : "disabled"} ` +
      `${ago(queue.sinceMs)} ago${notified(queue)}, desc ${hex(queue.descriptorAddress)} ` +
      `driver ${hex(queue.driverAddress)} device ${hex(queue.deviceAddress)}`,
      ...ringLines(queue.ring!),
    ]),
  ];
}

/** What went through this process, if that was all. */
function notified({ kicks, calls }: ReadQueue): string {
  return kicks === undefined || calls === undefined ? "" : `, ${kicks} kicks and ${calls} calls`;
}

const WISHES: Readonly<Record<Wish, (what: string) => string>> = {
  each: (what) => `wants each ${what}`,
  none: (what) => `wants no ${what}s`,
  passed: (what) => `wanted a ${what}, which was due`,
  ahead: (what) => `waits for a ${what}`,
};
/** Words that say no more to people than is said of kicks and calls. */
const RAW = /(flags| event)$/;

function ringLines(ring: ReadRing | string): string[] {
  if (typeof ring === "string") return [`      its ring cannot be shown: ${ring}`];
  const { indices, kicks, calls, pending, isUpperBound, isMoving, buffers, problem } = ring;
  const count = pending === 0 ? "no" : `${isUpperBound ? "at most " : ""}${pending}`;
  const left = pending - buffers.length;
  const places = Object.entries(indices).filter(([name]) => !RAW.test(name));
  return [
    `      ${places.map(([name, value]) => `${name} ${value}`).join(", ")}`,
    `      ${problem ?? `${count} buffers are the device's to use`}; ` +
    `the device ${WISHES[kicks]("kick")}, the driver ${WISHES[calls]("call")}` +
    (isMoving ? "; it is in use" : ""),
    ...buffers.map((buffer) => `      ${bufferText(buffer)}`),
    ...(left > 0 ? [`      and ${left} more`] : []),
  ];
}

function bufferText({ head, descriptors, problem }: ReadBuffer): string {
  const shown = descriptors.slice(0, SHOWN).map((descriptor) => {
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

function bridgeLines(bridge: ReadBridge): string[] {
  const { state, sinceMs, sessions, faults, epoch, published, open, waitsSinceMs, tx, rx } = bridge;
  const { windows, bytes, refused, awake } = bridge;
  const session = state === "none" ? "no session" : `endpoint ${state}`;
  return [
    `  kernel's bridge: ${session}${state === "online" ? `, epoch ${epoch}` : ""}, ` +
    `for ${ago(sinceMs)}, session ${sessions}, ${faults} faults, ` +
    `${published ?? "no"} devices published, ${awake} taken by drivers`,
    `    ${windows} windows mapped, ${bytes} bytes, ${refused} refused; ` +
    (open === 0
      ? "no request for one waits"
      : `${open} requests for one wait, the first for ${ago(waitsSinceMs)}`),
    `    ring to the kernel: prod ${tx.prod} cons ${tx.cons}; from it: prod ${rx.prod} cons ${rx.cons}`,
  ];
}

/** For people. */
export function processLines(
  { subcommand, pid, isRunning, devices, remote, peers, requests, bridges }: ProcessView,
): string[] {
  return [
    `process ${pid}: ${subcommand}, ${isRunning ? "running" : "ended"}`,
    ...bridges.flatMap(bridgeLines),
    ...peers.map(peerLine),
    ...devices.flatMap((device) => deviceLines(device, "")),
    ...remote.flatMap((device) => deviceLines(device, ", at the other end")),
    ...requests.map(requestLine),
  ];
}
