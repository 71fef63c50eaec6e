import { assert, assertEquals, assertMatch } from "@std/assert";
import { codecFor } from "../../src/message/codecs.ts";
import { detectDialect } from "../../src/message/detect.ts";
import { type Kind, Message } from "../../src/message/message.ts";
import { MESSAGES } from "../../src/message/table.ts";
import { describe } from "../../src/message/text.ts";
import { recordedSession } from "./recorded_session.ts";
import { bytesOf, slotOf } from "./vectors.ts";

Deno.test("a recorded proto session round-trips, byte for byte, and has words", () => {
  const trace = recordedSession();
  assertEquals(trace.length, 174);
  const codec = codecFor("proto");
  const message = new Message();
  const open = new Map<Kind, number>();
  for (const { fromDriver, bytes } of trace) {
    assertEquals(codec.decode(slotOf(bytes, 0xaa), 0, message), undefined);
    const slot = slotOf(new Uint8Array(0), 0xaa);
    assertEquals(codec.encode(message, slot, 0), 40);
    assertEquals(bytesOf(slot, 64), bytesOf(slotOf(bytes, 0xaa), 64));

    const line = describe(message);
    assertMatch(line, /^[A-Z_]+(\?| =|)( |$)/);
    assert(!/undefined|NaN|\[object|\n| {2}| $/.test(line), line);

    // Who sends what, and that exactly the answered requests are answered, is as the table has it.
    const { kind, response } = message;
    assertEquals((MESSAGES[kind]!.sender === "driver") !== response, fromDriver, line);
    if (response) open.set(kind, open.get(kind)! - 1);
    else if (codec.answered(kind)) open.set(kind, (open.get(kind) ?? 0) + 1);
  }
  assert([...open.values()].every((count) => count === 0));
  assertEquals(detectDialect(slotOf(trace[0]!.bytes, 0xaa), 0), "proto");
});
