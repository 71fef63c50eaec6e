import { assert, assertEquals, assertMatch } from "@std/assert";
import { Kind, Message } from "../../src/message/message.ts";
import { createTracer } from "../../src/observe/trace.ts";

function message(kind: Kind, response: boolean, token: number, device = 0): Message {
  const made = new Message();
  made.reset(kind, response);
  made.token = token;
  made.device = device;
  return made;
}

Deno.test("trace: time, direction, device, words; an answer with how long it took", () => {
  const lines: string[] = [];
  const tracer = createTracer((line) => lines.push(line));
  tracer.message("->", message(Kind.GET_DEVICE_STATUS, false, 5, 3));
  tracer.message("<-", message(Kind.GET_DEVICE_STATUS, true, 5, 3));
  tracer.message("<-", message(Kind.GET_DEVICE_STATUS, true, 5, 3));
  tracer.message("<-", message(Kind.PING, false, 9));
  assertMatch(lines[0]!, /^\+\d\.\d{6} -> dev 3 GET_DEVICE_STATUS\?$/);
  assertMatch(lines[1]!, /^\+\d\.\d{6} <- dev 3 GET_DEVICE_STATUS = .* {3}\d+ us$/);
  assert(!lines[2]!.endsWith(" us"), "answered once, timed once");
  assertMatch(lines[3]!, /^\+\d\.\d{6} <- bus {3}PING\? 0x0$/);
});

Deno.test("trace: answers are timed by token, kind and device", () => {
  const lines: string[] = [];
  const tracer = createTracer((line) => lines.push(line));
  tracer.message("->", message(Kind.GET_DEVICE_STATUS, false, 5, 3));
  tracer.message("<-", message(Kind.GET_DEVICE_STATUS, true, 6, 3));
  tracer.message("<-", message(Kind.GET_DEVICE_STATUS, true, 5, 4));
  tracer.message("<-", message(Kind.SET_DEVICE_STATUS, true, 5, 3));
  assertEquals(lines.filter((line) => line.endsWith(" us")), []);
  tracer.message("<-", message(Kind.GET_DEVICE_STATUS, true, 5, 3));
  assert(lines.at(-1)!.endsWith(" us"));
});

Deno.test("trace: the heartbeat is shown at an attachment's beginning only", () => {
  const lines: string[] = [];
  const tracer = createTracer((line) => lines.push(line));
  for (let n = 0; n < 100; n++) tracer.message("->", message(Kind.HELLO, false, 1));
  const shown = lines.length;
  assert(shown > 0 && shown < 10, `${shown} lines`);
  tracer.message("->", message(Kind.GET_DEVICE_INFO, false, 2));
  tracer.message("->", message(Kind.HELLO, false, 1));
  assertEquals(lines.length, shown + 2);
});

Deno.test("trace: a slot that is no message, in hex, with the reason", () => {
  const lines: string[] = [];
  const tracer = createTracer((line) => lines.push(line));
  const slot = new Uint8Array(64).map((_, i) => i);
  tracer.malformed(new DataView(slot.buffer), "unknown id");
  assert(lines[0]!.endsWith(
    "<- not understood (unknown id): 00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f ...",
  ));
});
