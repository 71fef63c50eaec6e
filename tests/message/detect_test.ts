import { assertEquals } from "@std/assert";
import { codecFor } from "../../src/message/codecs.ts";
import { detectDialect, type DetectedDialect } from "../../src/message/detect.ts";
import { Kind, Message } from "../../src/message/message.ts";
import { readVectors, slotOf } from "./vectors.ts";

function detect(...bytes: number[]): DetectedDialect {
  return detectDialect(slotOf(Uint8Array.from(bytes)), 0);
}

Deno.test("the first message tells the dialect (docs/wire.md 1.4)", () => {
  for (const { dialect, name, bytes } of readVectors()) {
    if (!/^((GET_)?DEVICE_INFO|BUS_GET_DEVICES)\.req$/.test(name)) continue;
    // v1-2025 begins with the same bytes as v1, and rfc-q with those of rfc.
    const expected = dialect === "proto" ? "proto" : dialect.startsWith("rfc") ? "rfc" : "v1";
    assertEquals(detectDialect(slotOf(bytes), 0), expected, name);
  }
  assertEquals(detect(0, 2, 0, 0, 6, 0), "rfc");
  assertEquals(detect(2, 2, 0, 0, 10, 0, 0, 0, 32, 0), "rfc");
  assertEquals(detect(0, 2), "rfc1-spec");
  // A v1 token that looks like an rfc size.
  assertEquals(detect(0, 2, 3, 0, 6, 0, 8, 0), "v1");
  assertEquals(detect(2, 2, 0, 0, 10, 0, 12, 0), "v1");
  assertEquals(detect(0xfc, 2, 0, 0, 1, 1, 8, 0), "v1");
});

Deno.test("HELLO is v1", () => {
  const message = new Message();
  message.reset(Kind.HELLO, false);
  message.token = 6;
  const slot = slotOf(new Uint8Array(0));
  codecFor("v1").encode(message, slot, 0);
  assertEquals(detectDialect(slot, 0), "v1");
  assertEquals(detect(2, 0x90, 0, 0, 0, 0, 65, 0), "unknown");
});

Deno.test("anything else is unknown", () => {
  assertEquals(detect(), "unknown");
  assertEquals(detect(1, 3), "unknown");
  assertEquals(detect(0, 3, 0, 0, 1), "unknown");
  assertEquals(detect(0, 2, 0, 0, 1, 0, 9, 0), "unknown");
  assertEquals(detect(0x55, 0xaa, 0x55), "unknown");
  // What an older message left behind a proto message is not looked at.
  const slot = slotOf(Uint8Array.of(0, 3));
  slot.setUint8(40, 1);
  assertEquals(detectDialect(slot, 0), "proto");
});
