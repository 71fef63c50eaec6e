/** What is said of links that stand still: the recorded session cut off at each step, and what makes none of it work. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { codecFor } from "../../src/message/codecs.ts";
import { Message } from "../../src/message/message.ts";
import { diagnose } from "../../src/observe/bring_up.ts";
import { createTracer } from "../../src/observe/trace.ts";
import { recordedSession } from "../message/recorded_session.ts";
import { slotOf } from "../message/vectors.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

/** The first `count` messages of the session as a trace says them. */
function session(count = 174): string[] {
  const lines: string[] = [];
  const clock = new VirtualClock();
  const tracer = createTracer((line) => lines.push(line), clock, { format: "json" });
  const message = new Message();
  for (const { bytes, fromDriver } of recordedSession().slice(0, count)) {
    const slot = slotOf(bytes);
    codecFor("proto").decode(slot, 0, message);
    clock.advance(0.1);
    tracer.message(fromDriver ? "<-" : "->", message, slot, 0, message.size);
  }
  tracer.unanswered();
  return lines;
}

/** Up to the first message with these words, without it. */
function until(words: RegExp): string[] {
  return session(session().findIndex((line) => words.test(JSON.parse(line).words)));
}

type Change = (object: Record<string, unknown> & { fields?: Record<string, unknown> }) => boolean;

/** The whole session, where each object is changed, or left out if false comes back. */
function changed(change: Change): string[] {
  return session().flatMap((line) => {
    const object = JSON.parse(line);
    return change(object) ? [JSON.stringify(object)] : [];
  });
}

const NEEDS_RESET = { message: "EVENT_CONFIG", device: 0, sort: "event", fields: { status: 0x4f } };

const STUCK: [name: string, lines: string[], step: RegExp, owes: string][] = [
  ["nothing comes", [], /^no message came$/, "either side"],
  [
    "one side speaks another dialect",
    ['{"time":0,"malformed":"size 44"}'],
    /^1 messages are not understood$/,
    "either side",
  ],
  [
    "the device side is not there",
    session(1),
    /^GET_DEVICE_INFO\? was never answered$/,
    "device side",
  ],
  [
    "the device stands still later",
    session(3),
    /^GET_DEVICE_FEATURES\? blocks 0\.\.1 was never answered$/,
    "device side",
  ],
  [
    "there is no device of that number",
    changed((object) => {
      if (object.message === "GET_DEVICE_INFO" && object.fields) object.fields.deviceId = 0;
      return true;
    }).slice(0, 2),
    /no device of this number$/,
    "device side",
  ],
  [
    "nobody drives the device",
    until(/SET_DEVICE_STATUS\? ACKNOWLEDGE DRIVER$/),
    /^the driver never set DRIVER/,
    "driver side",
  ],
  [
    "the driver accepts no features",
    changed(({ message }) => message !== "SET_DRIVER_FEATURES"),
    /^SET_DRIVER_FEATURES never came$/,
    "driver side",
  ],
  [
    "the device refuses what was accepted",
    changed(({ fields, sort }) => {
      if (sort === "answer" && fields?.status === 0x0b) fields.status = 3;
      return true;
    }).slice(0, session().findIndex((line) => /SET_VQUEUE\?/.test(line))),
    /^the device took FEATURES_OK back/,
    "device side",
  ],
  [
    "the driver stops at its features",
    until(/ACKNOWLEDGE DRIVER FEATURES_OK/),
    /^FEATURES_OK was never set$/,
    "driver side",
  ],
  ["no queue is set up", until(/SET_VQUEUE\?/), /^SET_VQUEUE never came/, "driver side"],
  ["the driver does not begin", until(/DRIVER_OK/), /^DRIVER_OK was never set$/, "driver side"],
  [
    "the device has given up",
    [...session(), JSON.stringify(NEEDS_RESET)],
    /^the status is .*NEEDS_RESET/,
    "device side",
  ],
  [
    "a disk is rung and never answers",
    changed((object) => {
      if (object.message === "GET_DEVICE_INFO" && object.sort === "answer") {
        object.fields!.deviceId = 2;
      }
      object.time = 1000 * Number(object.time);
      return object.message !== "EVENT_USED";
    }),
    /^EVENT_AVAIL came \d+ times, EVENT_USED never$/,
    "device side",
  ],
];

for (const [name, lines, step, owes] of STUCK) {
  Deno.test(`doctor: ${name}`, () => {
    const stuck = diagnose(lines).find((verdict) => verdict.stuck !== undefined)?.stuck;
    assertMatch(stuck?.step ?? "nothing is said to be stuck", step);
    assertEquals(stuck?.owes, owes);
    assert((stuck?.likely ?? "").length > 20);
  });
}

/** A heartbeat and its answer, by the number of the request. */
const hello = (time: number, number: number, sort = "request") =>
  JSON.stringify({ time, message: "HELLO", sort, number, words: "HELLO", direction: "->" });

Deno.test("doctor: a heartbeat that ends, unless nobody knew it or it goes on", () => {
  const step = (...more: string[]) => diagnose([...session(), ...more])[0]!.stuck?.step;
  const answered = [hello(1, 999), hello(1, 1000, "answer")];
  assertMatch(
    step(...answered, hello(2, 1001), hello(4, 1002)) ?? "",
    /^the heartbeat \(HELLO\) is not answered any more$/,
  );
  assertEquals(step(hello(2, 1001), hello(4, 1002)), undefined);
  // The last one was under way, or the device side was away for a while.
  assertEquals(step(...answered, hello(2, 1001)), undefined);
  const later = [hello(4, 1002), hello(4, 1003, "answer")];
  assertEquals(step(...answered, hello(2, 1001), ...later), undefined);
});

Deno.test("doctor: a message that nobody understands is named where something is stuck", () => {
  const malformed = '{"time":0,"malformed":"size 44"}';
  assertEquals(diagnose([...session(), malformed]).map(({ stuck }) => stuck), [undefined]);
  const steps = diagnose([...session(1), malformed]).map(({ stuck }) => stuck?.step);
  assertEquals(steps, ["1 messages are not understood", "GET_DEVICE_INFO? was never answered"]);
});

Deno.test("doctor: of a whole session nothing is stuck, nor of an answer that may still come", () => {
  assertEquals(diagnose(session()).map(({ stuck }) => stuck), [undefined]);
  // Before it is reset at the end.
  const words = session().map((line) => String(JSON.parse(line).words));
  const running = session(words.findLastIndex((text) => text.startsWith("EVENT_USED")));
  assertMatch(
    diagnose(running)[0]!.seen,
    /^status ACKNOWLEDGE DRIVER DRIVER_OK FEATURES_OK, 3 queues, /,
  );
  const last = session().length;
  const asked = {
    time: 0.02,
    message: "GET_CONFIG",
    device: 0,
    sort: "request",
    words: "x",
    number: 999,
  };
  const later = { ...asked, message: "EVENT_USED", sort: "event", time: 0.5, number: 1000 };
  const lines = [...session(), asked, later, { unanswered: 999 }].map((line) =>
    typeof line === "string" ? line : JSON.stringify(line)
  );
  assertEquals(lines.length, last + 3);
  assertEquals(diagnose(lines)[0]!.stuck, undefined);
  assertMatch(
    diagnose([
      ...lines.slice(0, -2),
      JSON.stringify({ ...later, time: 5 }),
      '{"unanswered":999}',
    ])[0]!
      .stuck!.step,
    /^x was never answered$/,
  );
});

/** A line for each word: "GET_DEVICE_INFO", "GET_DEVICE_INFO=1" with the field that an answer has, a second apart after "...". */
function said(...words: string[]): string[] {
  const field = (name: string) =>
    name.endsWith("_INFO")
      ? "deviceId"
      : /STATUS|CONFIG/.test(name)
      ? "status"
      : name === "ADD_MEMORY"
      ? "result"
      : "flags";
  let time = 0;
  return words.flatMap((word, number) => {
    if (word === "...") {
      time += 1;
      return [];
    }
    const [, message = "", mark, value] = /^(\w+)([=?]?)(\d*)$/.exec(word)!;
    const sort = mark === "=" ? "answer" : message.startsWith("EVENT") ? "event" : "request";
    const fields = { index: 0, ...(value === "" ? {} : { [field(message)]: Number(value) }) };
    return [JSON.stringify({ time, number, device: 0, message, sort, fields, words: word })];
  });
}

const FOUND = ["GET_DEVICE_INFO", "GET_DEVICE_INFO=2"];
const status = (...of: number[]) => of.flatMap((bits) => [`SET_DEVICE_STATUS?${bits}`]);
const NEGOTIATED = [...FOUND, ...status(0, 1, 3), "SET_DRIVER_FEATURES", ...status(11)];
const READY = [...NEGOTIATED, "SET_VQUEUE?1", "GET_VQUEUE=1"];
const RUNS = [...READY, ...status(15)];

const STEPS: [name: string, words: string[], step: RegExp | undefined, owes?: string][] = [
  [
    "what came was of another dialect",
    ["DISCONNECT"],
    /^GET_DEVICE_INFO never came$/,
    "driver side",
  ],
  [
    "a queue is refused",
    [...NEGOTIATED, "SET_VQUEUE?1", "GET_VQUEUE=0"],
    /queue 0 is not enabled: the device refused it$/,
    "device side",
  ],
  // Where the device says nothing of queues.
  [
    "a queue is refused, which breaks the device",
    [...NEGOTIATED, "SET_VQUEUE", "GET_VQUEUE=", "EVENT_CONFIG?75"],
    /^the status is .*NEEDS_RESET$/,
    "device side",
  ],
  ["a queue was not enabled before it was set up", ["GET_VQUEUE=0", ...RUNS], undefined],
  ["a queue is stopped", [...RUNS, "STOP_VQUEUE", "GET_VQUEUE=0"], undefined],
  [
    "memory is refused",
    [...FOUND, "ADD_MEMORY=1"],
    /^memory was refused: ADD_MEMORY=1$/,
    "device side",
  ],
  ["memory is refused, and taken in another way", [...RUNS, "ADD_MEMORY=1"], undefined],
  [
    "a reset that is not finished",
    [...RUNS, ...status(0), "GET_DEVICE_STATUS=15", "...", "GET_DEVICE_STATUS=15"],
    /^the reset is not finished: the status is still .*DRIVER_OK/,
    "device side",
  ],
  ["a reset that takes a while", [...RUNS, ...status(0), "GET_DEVICE_STATUS=15"], undefined],
  [
    "a reset that is finished at last",
    [...RUNS, ...status(0), "GET_DEVICE_STATUS=15", "...", "GET_DEVICE_STATUS=0"],
    undefined,
  ],
  [
    "a guest that is rebooted, and whose driver then stops",
    [...RUNS, "EVENT_USED", ...status(0), "GET_DEVICE_STATUS=0", ...status(1, 3)],
    /^SET_DRIVER_FEATURES never came$/,
    "driver side",
  ],
  [
    "a driver that gives up, and resets",
    [...NEGOTIATED, ...status(0), "GET_DEVICE_STATUS=0"],
    /^SET_VQUEUE never came/,
    "driver side",
  ],
  ["a driver that ran, and resets", [...RUNS, "EVENT_USED", ...status(0), "..."], undefined],
  ["a driver that has just begun", RUNS, undefined],
  [
    "a driver that never kicks",
    [...RUNS, "...", "GET_DEVICE_STATUS=15"],
    /^no queue was ever kicked$/,
    "driver side",
  ],
  ["a kick that may still be answered", [...RUNS, "EVENT_AVAIL"], undefined],
  [
    "a kick that is not answered",
    [...RUNS, "EVENT_AVAIL", "...", "EVENT_AVAIL"],
    /^EVENT_AVAIL came 2 times, EVENT_USED never$/,
    "device side",
  ],
  [
    "a kick that is not answered before the driver gives up",
    [...RUNS, "EVENT_AVAIL", "...", ...status(0)],
    /^EVENT_AVAIL came 1 times, EVENT_USED never$/,
    "device side",
  ],
  ["a capture that begins later", ["EVENT_AVAIL", "EVENT_USED", "...", "EVENT_AVAIL"], undefined],
  ["a capture that begins with a status", ["GET_DEVICE_STATUS=15", "EVENT_USED"], undefined],
];

for (const [name, words, step, owes] of STEPS) {
  Deno.test(`doctor: ${name}`, () => {
    const find = (...more: string[]) =>
      diagnose([...said(...words), ...more]).find(({ stuck }) => stuck !== undefined)?.stuck;
    const stuck = find();
    // A capture that has frames of cards, or was cut off, says so at its end.
    assertEquals(find('{"capture":"3 Ethernet frames are not shown here"}'), stuck);
    if (step === undefined) assertEquals(stuck, undefined);
    else assertMatch(stuck?.step ?? "nothing is said to be stuck", step);
    assertEquals(stuck?.owes, owes);
  });
}

Deno.test("doctor: what a proxy without a guest asked before it was heard is not the device side's", () => {
  const asked = (bus?: string) => ({
    bus,
    time: 0,
    device: 0,
    message: "GET_DEVICE_INFO",
    words: "i",
  });
  const answer = { sort: "answer", device: undefined, message: "HELLO", time: 9 };
  const request = { ...asked(), sort: "request", number: 1 };
  const dropped = [request, { ...answer, number: 2 }, { unanswered: 1 }];
  const of = (lines: object[]) => diagnose(lines.map((line) => JSON.stringify(line)));
  assertEquals(of(dropped).map(({ subject, stuck }) => [subject, stuck?.step]), [
    ["bus", "no device was asked for"],
  ]);
  // What was asked afterwards, or on another bus, is.
  const later = [{ ...answer, number: 2 }, { ...request, number: 3 }, { ...answer, number: 4 }];
  const other = [{ ...request, bus: "bus1" }, { ...answer, number: 2 }];
  for (const lines of [[...later, { unanswered: 3 }], [...other, { bus: "bus1", unanswered: 1 }]]) {
    assertEquals(of(lines)[0]!.stuck?.step, "i was never answered");
  }
});

Deno.test("doctor: of a driver that has reset the device it is said what was seen of it", () => {
  const [verdict] = diagnose(said(...RUNS, "EVENT_AVAIL", "EVENT_USED", ...status(0)));
  assertEquals(
    verdict!.seen,
    "status ACKNOWLEDGE DRIVER DRIVER_OK FEATURES_OK, 1 queues, EVENT_AVAIL 1, EVENT_USED 1, then status reset",
  );
});
