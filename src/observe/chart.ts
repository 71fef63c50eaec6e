/**
 * A message sequence chart of a capture: one page of HTML that needs nothing else (chart_page.ts), with the driver side at the
 * left, the device side at the right, and beside them the states that devices and queues are in.
 *
 * It is made of the objects that a trace gives as JSON (trace.ts). What is missing is marked: requests that nobody answered, and
 * for each device the first step of a bring-up (VIRTIO 1.3, 3.1.1) that was never taken.
 */

import { MESSAGES } from "../message/table.ts";
import { BAD_STATUS, BringUp } from "./bring_up.ts";
import { CHART_PAGE } from "./chart_page.ts";
import type { Line } from "./verdict.ts";

/** Which way: to the device side, to the driver side, or a line of its own. */
const TO_DEVICE = 0;
const TO_DRIVER = 1;
const NO_WAY = 2;

/** Seconds, way, text, microseconds or -1, position of the request or -1, of the state, is it bad? */
type Row = [number, number, string, number, number, number, boolean];

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
  const devices = new Map<string, BringUp>();
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
      const known = devices.get(name) ?? new BringUp(name);
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
    const step = device.missing(nowS);
    if (step !== undefined) missing.push(`${device.name}: ${step.step}`);
  }
  // Nothing in it ends the element that it stands in.
  const data = JSON.stringify({ title, rows, states, missing }).replaceAll("<", "\\u003c");
  return CHART_PAGE.replace("DATA", () => data);
}
