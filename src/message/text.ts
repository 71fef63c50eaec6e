/**
 * Messages in words, one line each, for trace and errors.
 *
 * A request ends its name with "?", an answer has " =", an event has neither:
 *
 *     GET_VQUEUE? queue 0
 *     GET_VQUEUE = queue 0 max 256
 *     EVENT_USED queue 0
 *
 * Messages worth reading have words of their own; for all others the fields of the table are listed. A
 * record that no codec has touched is described as `v1`. Device number and token are the trace's
 * business. Text is made for people and allocates.
 */

import {
  DEVICE_ADDED,
  DEVICE_REMOVED,
  FIELDS,
  Kind,
  MEMORY_SEGMENT,
  MEMORY_WINDOW,
  type Message,
  NOTIFIER_CALL,
  NOTIFIER_KICK,
  NOTIFIER_VECTOR,
  QUEUE_ENABLED,
  QUEUE_GOES_ON,
} from "./message.ts";
import { DEVICE_NET, featureNames, statusNames } from "../virtio/features.ts";
import type { Layout } from "./layout.ts";
import { kindName, MESSAGES, wireOf } from "./table.ts";

export { featureNames, statusNames };

/** Kinds of devices by their id (VIRTIO 1.3, 5), as vmsg's options and QEMU's devices have them. */
export const DEVICE_KINDS: ReadonlyMap<number, string> = new Map(
  ("1 net,2 blk,3 console,4 rng,5 balloon,8 scsi,9 9p,16 gpu,18 input,19 vsock,20 crypto,23 iommu,24 mem,25 sound,26 fs," +
    "27 pmem,32 scmi,34 i2c,41 gpio").split(",").map((kind) => kind.split(" ") as [string, string])
    .map(([id, name]) => [Number(id), name]),
);

const FIELD_NAMES: ReadonlySet<string> = new Set(FIELDS);

/**
 * One message in words.
 *
 * @param deviceId whose feature bits to name; a message does not say, and most devices are net
 */
export function describe(message: Message, deviceId: number = DEVICE_NET): string {
  const event = MESSAGES[message.kind]?.event ?? false;
  const mark = event ? "" : message.response ? " =" : "?";
  const words = payload(message, deviceId);
  return `${kindName(message.kind)}${mark}${words === "" ? "" : ` ${words}`}`;
}

function payload(m: Message, deviceId: number): string {
  switch (m.kind) {
    case Kind.GET_DEVICE_INFO:
      return m.response ? deviceInfo(m) : "";
    case Kind.GET_DEVICE_FEATURES:
      return m.response ? features(m, deviceId) : blocks(m);
    case Kind.SET_DRIVER_FEATURES:
      return m.count > 0 ? features(m, deviceId) : done(m);
    case Kind.GET_CONFIG:
    case Kind.SET_CONFIG:
      return config(m);
    case Kind.GET_DEVICE_STATUS:
      return m.response ? status(m.status) : "";
    case Kind.SET_DEVICE_STATUS:
      return status(m.status);
    case Kind.GET_VQUEUE:
      return m.response ? queueState(m) : `queue ${m.index}`;
    case Kind.SET_VQUEUE:
      return m.response ? done(m) : `queue ${m.index}${flags(m)} size ${m.queueSize} ${rings(m)}`;
    case Kind.RESET_VQUEUE:
      return m.response ? done(m) : `queue ${m.index}`;
    case Kind.GET_SHM:
      if (!m.response) return `region ${m.index}`;
      if (m.length === 0) return `region ${m.index} absent`;
      return `region ${m.index} ${m.length} bytes at ${hex(m.address)}`;
    case Kind.EVENT_CONFIG:
      return [status(m.status), ...generation(m), ...(m.length > 0 ? [range(m)] : [])].join(", ");
    case Kind.EVENT_AVAIL:
      return `queue ${m.index}${next(m)}`;
    case Kind.EVENT_USED:
      return `queue ${m.index}`;
    case Kind.GET_DEVICES:
      return m.response ? devices(m) : `${m.count} numbers from ${m.offset}`;
    case Kind.PING:
      return hex(m.data);
    case Kind.EVENT_DEVICE:
      return `device ${m.number} ${deviceState(m)}`;
    case Kind.IOMMU_ENABLE:
      return m.state !== 0 ? "on" : "off";
    case Kind.IOMMU_TRANSLATE:
      if (!m.response) return `${hex(m.address)} for ${access(m.prot)}`;
      return m.prot === 0
        ? "not mapped"
        : `${hex(m.address)} is ${hex(m.physicalAddress)} for ${access(m.prot)}`;
    case Kind.ADD_MEMORY:
    case Kind.REMOVE_MEMORY:
      return m.response ? result(m) : memory(m);
    case Kind.STOP_VQUEUE:
      if (!m.response) return `device ${m.memoryDevice} queue ${m.index}`;
      return `${result(m)} queue ${m.index} base ${m.base} wrap ${m.wrap}`;
    case Kind.SET_VQUEUE_STATE:
      if (m.response) return result(m);
      return `device ${m.memoryDevice} queue ${m.index} base ${m.base} wrap ${m.wrap}` +
        ((m.flags & QUEUE_GOES_ON) !== 0 ? " goes on" : "");
    case Kind.SET_NOTIFIER:
      return m.response ? result(m) : notifier(m);
    case Kind.MAP_ADD:
    case Kind.MAP_DEL:
      return `window ${m.map}${m.response ? ` ${result(m)}` : `: ${place(m)}`}`;
    case Kind.ENDPOINT_ONLINE:
      return `${printable(m.bytes)}, epoch ${m.epoch}, messages of up to ${m.maxMessage} bytes`;
    case Kind.ENDPOINT_OFFLINE:
      return `epoch ${m.epoch}, ${["", "removed", "reset"][m.reason] || `reason ${m.reason}`}`;
    case Kind.TOPOLOGY_RESET:
      return `epoch ${m.epoch}`;
    case Kind.TOPOLOGY_DEV_ADD:
      return `device ${m.number}, epoch ${m.epoch}`;
    case Kind.TOPOLOGY_COMMIT:
      return `${m.count} devices, epoch ${m.epoch}`;
    default:
      return fromTable(m);
  }
}

function hex(value: number): string {
  return `0x${value.toString(16)}`;
}

function done(m: Message): string {
  return m.response ? "done" : "";
}

function deviceInfo(m: Message): string {
  const kind = DEVICE_KINDS.get(m.deviceId) ?? `device id ${m.deviceId}`;
  const admin = m.adminCount > 0 ? `, admin queues ${m.adminStart} +${m.adminCount}` : "";
  const what = `${kind} vendor ${hex(m.vendorId)}`;
  // Only `proto` names a revision, and it says nothing about sizes.
  if (m.dialect === "proto") return `${what} version ${m.version}`;
  const sizes = `${m.featureBlocks} feature blocks, config ${m.configSize} bytes`;
  return `${what}, ${sizes}, ${m.maxQueues} queues${admin}${uuid(m)}`;
}

function uuid(m: Message): string {
  if (m.uuid.every((byte) => byte === 0)) return "";
  return `, uuid ${hexBytes(m.uuid)}`;
}

function hexBytes(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function blocks(m: Message): string {
  if (m.count === 0) return "no blocks";
  return m.count === 1 ? `block ${m.index}` : `blocks ${m.index}..${m.index + m.count - 1}`;
}

function features(m: Message, deviceId: number): string {
  const names = featureNames(m.words.subarray(0, m.count), deviceId, m.index);
  return names.length === 0 ? "none" : names.join(" ");
}

function status(value: number): string {
  return value === 0 ? "0 (reset)" : statusNames(value).join(" ");
}

function range(m: Message): string {
  if (m.length === 0) return `offset ${m.offset} no bytes`;
  return `offset ${m.offset} bytes ${hexBytes(m.bytes.subarray(0, m.length))}`;
}

function config(m: Message): string {
  if (m.kind === Kind.GET_CONFIG && !m.response) return `offset ${m.offset} length ${m.length}`;
  return [...generation(m), configData(m)].join(", ");
}

function configData(m: Message): string {
  if (m.kind === Kind.SET_CONFIG && m.response) {
    if (m.length === 0) return `offset ${m.offset} not applied`;
    if (m.omitData !== 0) return `offset ${m.offset} length ${m.length} applied`;
  }
  return range(m);
}

/** `proto` has none in these messages, and a driver of the baseline profile sends 0. */
function generation(m: Message): string[] {
  return m.generation === 0 ? [] : [`generation ${m.generation}`];
}

/** What a plain SET_VQUEUE does not have, and that of `proto` never. */
function flags(m: Message): string {
  return m.flags === QUEUE_ENABLED || m.dialect === "proto" ? "" : ` flags ${hex(m.flags)}`;
}

function rings(m: Message): string {
  const { descriptorAddress, driverAddress, deviceAddress } = m;
  return `desc ${hex(descriptorAddress)} driver ${hex(driverAddress)} device ${hex(deviceAddress)}`;
}

function queueState(m: Message): string {
  if (m.maxSize === 0) return `queue ${m.index} absent`;
  const head = `queue ${m.index} max ${m.maxSize}`;
  if (m.queueSize === 0) return head;
  return `${head} size ${m.queueSize} ${m.flags !== 0 ? "enabled" : "disabled"} ${rings(m)}`;
}

function next(m: Message): string {
  if (m.nextOffset === 0 && m.nextWrap === 0) return "";
  return ` next ${m.nextOffset} wrap ${m.nextWrap}`;
}

function devices(m: Message): string {
  const numbers: number[] = [];
  for (let n = 0; n < m.count && n < 8 * m.bytes.length; n++) {
    if ((m.bytes[n >>> 3]! >>> (n & 7)) & 1) numbers.push(m.offset + n);
  }
  const list = numbers.length === 0 ? "none" : numbers.join(" ");
  return `${list} of ${m.count} from ${m.offset}${
    m.nextOffset > 0 ? `, next ${m.nextOffset}` : ""
  }`;
}

function deviceState({ state, dialect }: Message): string {
  const isAdded = dialect === undefined || dialect === "v1";
  if (state === DEVICE_ADDED) return isAdded ? "added" : "ready";
  return state === DEVICE_REMOVED ? "removed" : `state ${state}`;
}

function access(prot: number): string {
  const words = [prot & 1 ? "read" : "", prot & 2 ? "write" : "", prot & ~3 ? hex(prot) : ""];
  return words.filter((word) => word !== "").join(" ") || "nothing";
}

function result(m: Message): string {
  return m.result === 0 ? "done" : `errno ${Math.abs(m.result)}`;
}

/** A window of a kernel's memory. */
function place({ kind, length, address, offset, mapLength, flags }: Message): string {
  const where = `${length} bytes at ${hex(address)}`;
  if (kind === Kind.MAP_DEL) return where;
  const part = mapLength === length ? "" : ` (${mapLength} bytes can be)`;
  return `${where}, mapped from ${hex(offset)}${part}${(flags & 1) !== 0 ? ", kept" : ""}`;
}

/** A name that somebody else gave, up to its NUL. */
function printable(bytes: Uint8Array): string {
  const text = String.fromCharCode(...bytes.subarray(0, 16));
  return text.split("\0")[0]!.replace(/[^ -~]/g, "?");
}

function memory(m: Message): string {
  const what = `device ${m.memoryDevice} ${m.length} bytes at ${hex(m.address)}`;
  if (m.kind === Kind.REMOVE_MEMORY) return what;
  if (m.flags & MEMORY_WINDOW) return `${what} is at ${hex(m.offset)} of the sender's machine`;
  const from = m.flags & MEMORY_SEGMENT ? "segment" : `descriptor ${m.ordinal}`;
  return `${what} is ${from} offset ${hex(m.offset)}`;
}

function notifier({ memoryDevice, index, flags, ordinal }: Message): string {
  if (flags & NOTIFIER_VECTOR) {
    return `device ${memoryDevice} queue ${index} call vector ${ordinal}`;
  }
  const kick = flags & NOTIFIER_KICK ? `kick descriptor ${ordinal}` : "in band";
  const call = flags & NOTIFIER_CALL ? ` call descriptor ${ordinal + 1}` : "";
  return `device ${memoryDevice} queue ${index} ${kick}${call}`;
}

/** How a message is written. */
function layoutOf({ kind, dialect, response }: Message): Layout | undefined {
  const definition = MESSAGES[kind]!;
  const form = wireOf(definition, dialect ?? "v1") ?? definition.wire.proto;
  return response ? form?.response : form?.request;
}

/** What a message says, for programs: its fields by the names of the table, bytes in hex. */
export function fieldsOf(m: Message): Record<string, number | string | number[]> {
  const fields: Record<string, number | string | number[]> = {};
  for (const [, type, name] of layoutOf(m)?.fields ?? []) {
    if (name === "words") fields[name] = [...m.words.subarray(0, m.count)];
    else if (name === "uuid") fields[name] = hexBytes(m.uuid);
    else if (name === "bytes") {
      const size = type.startsWith("bits") ? Math.ceil(m.count / 8) : m.length;
      fields[name] = hexBytes(m.bytes.subarray(0, m.omitData !== 0 ? 0 : size));
    } else if (name !== "reserved") fields[name] = m[name];
    if (type === "next") fields.nextWrap = m.nextWrap;
  }
  return fields;
}

/** What the table says about a message, for all that have no words of their own. */
function fromTable(m: Message): string {
  const words: string[] = [];
  for (const [, type, name] of layoutOf(m)?.fields ?? []) {
    if (!FIELD_NAMES.has(name)) continue;
    const value = m[name as typeof FIELDS[number]];
    words.push(`${name} ${type === "u64" || name === "nonce" ? hex(value) : value}`);
  }
  return words.length === 0 && m.response ? "done" : words.join(", ");
}
