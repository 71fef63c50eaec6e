/** Where a kernel's bridge stands, from the lines of a trace: each step that did not happen is named, and none where all did. */

import { assertEquals, assertMatch } from "@std/assert";
import { diagnose } from "../../src/observe/bring_up.ts";

const line = (time: number, object: Record<string, unknown>) => JSON.stringify({ time, ...object });
const note = (time: number, text: string) => line(time, { note: `bridge: ${text}` });
const message = (time: number, message: string, fields = {}, more = {}) =>
  line(time, { message, sort: "event", direction: "->", fields, ...more });
const request = (time: number, name: string, map: number, number: number) =>
  message(time, name, { map }, { sort: "request", direction: "<-", number });
const answer = (time: number, name: string, map: number, request: number, result: number) =>
  message(time, name, { map, result }, { sort: "answer", number: request + 1, request });

const ATTACHED = note(0, "attached, the endpoint is online, epoch 1");
const COMMIT = message(0.1, "TOPOLOGY_COMMIT", { count: 1 });
const ASKED = message(0.2, "GET_DEVICE_INFO", {}, { device: 0, direction: "<-", sort: "request" });
const ADD = request(0.3, "MAP_ADD", 1, 7);
const LATER = message(9, "PING", {}, { direction: "<-" });

const STUCK: [name: string, lines: string[], step: RegExp, owes: string][] = [
  [
    "a fault, and no session after it",
    [ATTACHED, COMMIT, note(1, "the kernel does not go on with this session (fault)")],
    /^there is no session at the kernel's bridge$/,
    "driver side",
  ],
  [
    "offline from the beginning",
    [note(0, "attached, the endpoint is offline")],
    /^the endpoint of the kernel's bridge is offline$/,
    "driver side",
  ],
  [
    "offline later",
    [ATTACHED, COMMIT, ASKED, message(5, "ENDPOINT_OFFLINE", { reason: 1 })],
    /^the endpoint of the kernel's bridge is offline$/,
    "driver side",
  ],
  ["nothing is published", [ATTACHED], /^no device was published: TOPOLOGY_COMMIT/, "device side"],
  ["nothing is asked", [ATTACHED, COMMIT], /^1 devices were published, and/, "driver side"],
  [
    "a window is asked for",
    [ATTACHED, COMMIT, ASKED, ADD],
    /^a request for a window \(MAP_ADD, MAP_DEL\) was not answered$/,
    "device side",
  ],
  [
    "a window is asked for, and much came after it",
    [ATTACHED, COMMIT, ASKED, ADD, LATER],
    /was not answered, for 8\.7 s$/,
    "device side",
  ],
  [
    "the only window is refused",
    [ATTACHED, COMMIT, ASKED, ADD, answer(0.4, "MAP_ADD", 1, 7, -12)],
    /^memory was refused: MAP_ADD, 1 times$/,
    "device side",
  ],
];

for (const [name, lines, step, owes] of STUCK) {
  Deno.test(`bridge stands: ${name}`, () => {
    const [first] = diagnose(lines);
    assertEquals([first!.subject, first!.stuck?.owes], ["bridge", owes]);
    assertMatch(first!.stuck!.step, step);
  });
}

Deno.test("bridge stands: nothing is stuck where it goes on, and under its bus's name", () => {
  const again = [
    ...[ATTACHED, COMMIT, ASKED, ADD, answer(0.4, "MAP_ADD", 1, 7, 0)],
    ...[request(0.5, "MAP_ADD", 2, 9), answer(0.5, "MAP_ADD", 2, 9, -22)],
    ...[request(0.6, "MAP_DEL", 2, 11), answer(0.6, "MAP_DEL", 2, 11, 0)],
  ].map((text) => JSON.stringify({ ...JSON.parse(text), bus: "bus1" }));
  const [first] = diagnose(again);
  assertEquals(first, {
    subject: "bus1 bridge",
    seen: "endpoint online, 1 devices published, 1 windows mapped, 1 refused",
    stuck: undefined,
  });
});
