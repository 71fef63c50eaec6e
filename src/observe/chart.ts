/**
 * A message sequence chart of a capture: one page of HTML that needs nothing else (chart_page.ts), with the driver side at the
 * left, the device side at the right, and beside them the states that devices and queues are in.
 *
 * It is made of the objects that a trace gives as JSON (trace.ts). What is missing is marked: requests that nobody answered, and
 * for each device the first step of a bring-up (VIRTIO 1.3, 3.1.1) that was never taken.
 */

import { DEVICE_KINDS, statusNames } from "../message/text.ts";
import { MESSAGES } from "../message/table.ts";
import { CHART_PAGE } from "./chart_page.ts";

/** A line of a trace as JSON, as far as it matters here. */
type Line =
  & {
    readonly [
      name in "bus" | "direction" | "message" | "sort" | "words" | "malformed" | "note" | "capture"
    ]?: string;
  }
  & {
    readonly [name in "time" | "number" | "device" | "latency" | "request" | "unanswered"]?: number;
  }
  & { readonly fields?: Readonly<Record<string, number | string | readonly number[]>> };

/** Which way: to the device side, to the driver side, or a line of its own. */
const TO_DEVICE = 0;
const TO_DRIVER = 1;
const NO_WAY = 2;

/** Seconds, way, text, microseconds or -1, position of the request or -1, of the state, is it bad? */
type Row = [number, number, string, number, number, number, boolean];

const DRIVER = 2;
const FEATURES_OK = 8;
const DRIVER_OK = 4;
/** DEVICE_NEEDS_RESET and FAILED. */
const BAD_STATUS = 0xc0;

/** What a device was seen to be and to do. */
class DeviceState {
  kind = "";
  status = 0;
  /** All bits that its status ever had. */
  everStatus = 0;
  isKnown = false;
  hasFeatures = false;
  hasQueue = false;
  readonly queues = new Map<number, string>();

  constructor(readonly name: string) {}

  see({ message, sort, fields = {} }: Line): void {
    const value = (name: string) => Number(fields[name] ?? 0);
    const isAnswer = sort === "answer";
    if (message === "GET_DEVICE_INFO" && isAnswer) {
      this.isKnown = true;
      this.kind = DEVICE_KINDS.get(value("deviceId")) ?? `id ${value("deviceId")}`;
    } else if (message === "SET_DRIVER_FEATURES") this.hasFeatures = true;
    else if (/_DEVICE_STATUS$|^EVENT_CONFIG$/.test(message ?? "") && "status" in fields) {
      this.status = value("status");
      this.everStatus |= this.status;
      if (this.status === 0) this.queues.clear();
    } else if (message === "SET_VQUEUE" && !isAnswer) {
      this.hasQueue = true;
      this.queues.set(value("index"), `set up, size ${value("queueSize")}`);
    } else if (/^(RESET|STOP)_VQUEUE$/.test(message ?? "") && !isAnswer) {
      this.queues.set(value("index"), "stopped");
    }
  }

  /** The first step that was never taken; undefined if the driver runs, or ran. */
  missing(): string | undefined {
    const steps: [boolean, string][] = [
      [this.isKnown, "no answer to GET_DEVICE_INFO"],
      [(this.everStatus & DRIVER) !== 0, "the driver never set DRIVER: nobody drives the device"],
      [this.hasFeatures, "SET_DRIVER_FEATURES never came"],
      [(this.everStatus & FEATURES_OK) !== 0, "FEATURES_OK was never set"],
      [this.hasQueue, "SET_VQUEUE never came: no queue was set up"],
      [(this.everStatus & DRIVER_OK) !== 0, "DRIVER_OK was never set"],
    ];
    return steps.find(([isTaken]) => !isTaken)?.[1];
  }

  text(): string {
    const status = this.status === 0 ? "reset" : statusNames(this.status).join(" ");
    const queues = [...this.queues].sort(([a], [b]) => a - b)
      .map(([index, text]) => `  queue ${index}: ${text}`);
    return [`${this.name} ${this.kind}: ${status}`, ...queues].join("\n");
  }
}

/** Is `->` what the driver side said? Told by the first message that only one side sends. */
function isSeenByDriver(lines: readonly Line[]): boolean {
  for (const { direction, message, sort } of lines) {
    const sender = MESSAGES.find(({ name }) => name === message)?.sender ?? "either";
    if (sender === "either") continue;
    return ((sender === "driver") === (sort !== "answer")) === (direction === "->");
  }
  return true;
}

/** Makes the page. @param json the lines of a trace as JSON. @param title whose it is, for people */
export function chart(json: readonly string[], title: string): string {
  const lines: Line[] = json.map((line) => JSON.parse(line));
  const devices = new Map<string, DeviceState>();
  const states: string[] = [""];
  const rows: Row[] = [];
  const missing: string[] = [];
  const positions = new Map<string, number>();
  const isDriver = isSeenByDriver(lines);
  let nowS = 0;
  for (const line of lines) {
    const { bus = "", direction, message, device, words = "", request, latency = -1 } = line;
    nowS = line.time ?? nowS;
    const at = (number: number | undefined) => positions.get(`${bus} ${number}`) ?? -1;
    if (line.unanswered !== undefined) {
      const row = rows[at(line.unanswered)];
      if (row === undefined) continue;
      row[6] = true;
      missing.push(`not answered: ${row[2]} at ${row[0].toFixed(6)} s`);
      continue;
    }
    let state = states.length - 1;
    if (message === undefined) {
      const text = line.note ?? line.capture ?? `not understood: ${line.malformed}`;
      rows.push([nowS, NO_WAY, text, -1, -1, state, line.note === undefined]);
      continue;
    }
    const about = line.fields?.memoryDevice ?? device;
    if (about !== undefined) {
      const name = `${bus} dev ${about}`.trim();
      const known = devices.get(name) ?? new DeviceState(name);
      devices.set(name, known);
      known.see(line);
      const text = [...devices.values()].map((each) => each.text()).join("\n");
      if (text !== states[state]) state = states.push(text) - 1;
    }
    const isBad = "status" in (line.fields ?? {}) &&
      (Number(line.fields!.status) & BAD_STATUS) !== 0;
    positions.set(`${bus} ${line.number}`, rows.length);
    const where = device === undefined ? "bus" : `dev ${device}`;
    const text = `${bus} ${where} ${words}`.trim();
    const way = (direction === "->") === isDriver ? TO_DEVICE : TO_DRIVER;
    rows.push([nowS, way, text, latency, at(request), state, isBad]);
  }
  for (const device of devices.values()) {
    const step = device.missing();
    if (step !== undefined) missing.push(`${device.name}: ${step}`);
  }
  // Nothing in it ends the element that it stands in.
  const data = JSON.stringify({ title, rows, states, missing }).replaceAll("<", "\\u003c");
  return CHART_PAGE.replace("DATA", () => data);
}
