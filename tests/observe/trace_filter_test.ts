import { assertEquals, assertThrows } from "@std/assert";
import { UsageError } from "../../src/linux/errors.ts";
import { Kind, Message } from "../../src/message/message.ts";
import { parseTraceFilter } from "../../src/observe/trace_filter.ts";

const NET = 1;
const BLK = 2;

function shown(filter: string, kind: Kind, response = false, device = 0, deviceId?: number) {
  const message = new Message();
  message.reset(kind, response);
  message.device = device;
  return parseTraceFilter(filter)({ message, deviceId });
}

Deno.test("trace filter: what each term shows", () => {
  const { SET_VQUEUE, EVENT_USED, PING, HELLO, STOP_VQUEUE, GET_VQUEUE } = Kind;
  const cases: [string, boolean, Kind, boolean?, number?, number?][] = [
    ["", true, SET_VQUEUE],
    ["0", true, SET_VQUEUE],
    ["dev0", true, SET_VQUEUE],
    ["1", false, SET_VQUEUE],
    ["1,0", true, SET_VQUEUE],
    // Of a kind, where that is known.
    ["net0", true, SET_VQUEUE, false, 0, NET],
    ["net0", false, SET_VQUEUE, false, 0, BLK],
    ["net0", true, SET_VQUEUE],
    ["net0", false, SET_VQUEUE, false, 1, NET],
    ["blk", true, SET_VQUEUE, false, 7, BLK],
    ["blk", false, PING],
    ["bus", true, PING],
    ["bus", false, SET_VQUEUE],
    // About a device, though it is the bus's.
    ["0", true, STOP_VQUEUE],
    ["bus", false, STOP_VQUEUE],
    ["event", true, EVENT_USED],
    ["event", false, SET_VQUEUE],
    ["!event", false, EVENT_USED],
    ["request", true, SET_VQUEUE],
    ["answer", false, SET_VQUEUE],
    ["answer", true, SET_VQUEUE, true],
    ["private", true, HELLO],
    ["set_vqueue", true, SET_VQUEUE],
    ["*_VQUEUE", true, GET_VQUEUE],
    ["*_VQUEUE", false, EVENT_USED],
    ["SET_VQUEUE,GET_VQUEUE", true, GET_VQUEUE],
    // One of each sort.
    ["net0,event", true, EVENT_USED],
    ["net0,event", false, SET_VQUEUE],
    ["net1,event", false, EVENT_USED],
    ["net0,!event", true, SET_VQUEUE],
    ["net0,!event", false, EVENT_USED],
    ["GET_*,!answer", false, GET_VQUEUE, true],
  ];
  for (const [filter, expected, kind, ...rest] of cases) {
    assertEquals(shown(filter, kind, ...rest), expected, `${filter} ${kind} ${rest}`);
  }
});

Deno.test("trace filter: what is no message", () => {
  const note = { message: undefined, sort: "note", deviceId: undefined } as const;
  assertEquals(
    ["", "note", "!note", "malformed", "net0", "event"].map((f) => parseTraceFilter(f)(note)),
    [
      ...[true, true, false, false, false, false],
    ],
  );
});

Deno.test("trace filter: a term that is nothing", () => {
  for (
    const filter of [
      "x",
      "net0,",
      "-1",
      "!",
      "net0;event",
      "GET_X",
      "*Q*Z",
      "dev",
      "(",
      "constructor",
    ]
  ) {
    assertThrows(() => parseTraceFilter(filter), UsageError, "trace filter: ");
  }
});
