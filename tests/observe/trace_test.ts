import { assert, assertEquals } from "@std/assert";
import { codecFor } from "../../src/message/codecs.ts";
import { Kind, Message } from "../../src/message/message.ts";
import { createTracer, type Direction } from "../../src/observe/trace.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

/** A tracer with a clock that the test moves, and the lines it wrote. */
class Rig {
  readonly clock = new VirtualClock();
  readonly lines: string[] = [];
  readonly tracer = createTracer((line) => this.lines.push(line), this.clock);
  readonly #message = new Message();
  readonly #slot = new DataView(new ArrayBuffer(64));

  trace(direction: Direction, kind: Kind, response: boolean, token: number, device = 0): void {
    this.#message.reset(kind, response);
    this.#message.token = token;
    this.#message.device = device;
    const size = codecFor("v1").encode(this.#message, this.#slot, 0);
    this.tracer.message(direction, this.#message, this.#slot, 0, size);
  }
}

Deno.test("trace: time, direction, device, words; an answer with how long it took", () => {
  const rig = new Rig();
  rig.trace("->", Kind.GET_DEVICE_STATUS, false, 5, 3);
  rig.clock.advance(0.184);
  rig.trace("<-", Kind.GET_DEVICE_STATUS, true, 5, 3);
  // Answered once, timed once.
  rig.trace("<-", Kind.GET_DEVICE_STATUS, true, 5, 3);
  rig.clock.advance(1000);
  rig.trace("<-", Kind.PING, false, 9);
  assertEquals(rig.lines, [
    "+0.000000 -> dev 3 GET_DEVICE_STATUS?",
    "+0.000184 <- dev 3 GET_DEVICE_STATUS = 0 (reset)   184 us",
    "+0.000184 <- dev 3 GET_DEVICE_STATUS = 0 (reset)",
    "+1.000184 <- bus   PING? 0x0",
  ]);
});

Deno.test("trace: answers are timed by token, kind and device", () => {
  const rig = new Rig();
  rig.trace("->", Kind.GET_DEVICE_STATUS, false, 5, 3);
  rig.trace("<-", Kind.GET_DEVICE_STATUS, true, 6, 3);
  rig.trace("<-", Kind.GET_DEVICE_STATUS, true, 5, 4);
  rig.trace("<-", Kind.SET_DEVICE_STATUS, true, 5, 3);
  assertEquals(rig.lines.filter((line) => line.endsWith(" us")), []);
  rig.trace("<-", Kind.GET_DEVICE_STATUS, true, 5, 3);
  assert(rig.lines.at(-1)!.endsWith("   0 us after +0.000000"), "not that of the line before");
});

Deno.test("trace: the heartbeat is shown at an attachment's beginning only", () => {
  const rig = new Rig();
  for (let n = 0; n < 100; n++) rig.trace("->", Kind.HELLO, false, 1);
  const shown = rig.lines.length;
  assert(shown > 0 && shown < 10, `${shown} lines`);
  rig.trace("->", Kind.GET_DEVICE_INFO, false, 2);
  rig.trace("->", Kind.HELLO, false, 1);
  assertEquals(rig.lines.length, shown + 2);
});

Deno.test("trace: what no message shows has the time as well", () => {
  const rig = new Rig();
  rig.tracer.note("dev 0 queue 1: notifications out of band");
  assertEquals(rig.lines, ["+0.000000 dev 0 queue 1: notifications out of band"]);
});

Deno.test("trace: a slot that is no message, in hex, with the reason", () => {
  const rig = new Rig();
  const bytes = new DataView(Uint8Array.from({ length: 128 }, (_, i) => i).buffer);
  rig.tracer.malformed(bytes, 64, 64, "unknown id");
  rig.tracer.malformed(bytes, 64, 3, "short");
  assertEquals(rig.lines, [
    "+0.000000 <- not understood (unknown id): 40 41 42 43 44 45 46 47 48 49 4a 4b 4c 4d 4e 4f ...",
    "+0.000000 <- not understood (short): 40 41 42 ...",
  ]);
});
