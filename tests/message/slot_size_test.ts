import { assertEquals, assertThrows } from "@std/assert";
import { codecFor } from "../../src/message/codecs.ts";
import { DIALECTS, Kind, MAX_MESSAGE, Message } from "../../src/message/message.ts";
import { readVectors } from "./vectors.ts";

/** A slot in the middle of other memory, all of it 0xaa. */
function memoryOf(slotSize: number): { bytes: Uint8Array; view: DataView } {
  const bytes = new Uint8Array(3 * slotSize).fill(0xaa);
  return { bytes, view: new DataView(bytes.buffer) };
}

for (const slotSize of [64, 128]) {
  Deno.test(`slots of ${slotSize} bytes: vectors are the same, zeros up to the slot's end`, () => {
    const message = new Message();
    for (const dialect of DIALECTS) {
      const codec = codecFor(dialect, slotSize);
      assertEquals([codec.slotSize, codec.maxSize], [
        slotSize,
        { proto: 40, "rfc-q": 44 }[dialect as string] ?? slotSize,
      ]);
      for (const vector of readVectors()) {
        if (vector.dialect !== dialect) continue;
        const { bytes, view } = memoryOf(slotSize);
        bytes.set(vector.bytes, slotSize);
        assertEquals(codec.decode(view, slotSize, message), undefined, vector.name);
        bytes.fill(0xaa);
        codec.encode(message, view, slotSize);
        const expected = new Uint8Array(3 * slotSize).fill(0xaa);
        expected.fill(0, slotSize, slotSize + 8 * Math.ceil(codec.maxSize / 8));
        expected.set(vector.bytes, slotSize);
        assertEquals(bytes, expected, vector.name);
      }
    }
  });
}

Deno.test("slots of 128 bytes: limits are those of docs/wire.md 3.1, and what just fits", () => {
  const message = new Message();
  for (const dialect of ["v1", "v1-2025"] as const) {
    const codec = codecFor(dialect, 128);
    const { featureBlocks, configBytes, configChunk, eventBytes, deviceBits } = codec.limits;
    assertEquals([featureBlocks, configBytes, eventBytes, deviceBits], [28, 108, 104, 912]);
    assertEquals(configChunk, dialect === "v1" ? 108 : 28);
    const cases: [Kind, boolean, "count" | "length", number][] = [
      [Kind.GET_DEVICE_FEATURES, true, "count", featureBlocks],
      [Kind.GET_CONFIG, true, "length", configBytes],
      [Kind.EVENT_CONFIG, false, "length", eventBytes],
      [Kind.GET_DEVICES, true, "count", deviceBits],
    ];
    for (const [kind, response, field, most] of cases) {
      const { view } = memoryOf(128);
      message.reset(kind, response);
      message[field] = most;
      message.bytes.fill(0x5a);
      assertEquals(codec.encode(message, view, 128), 128);
      const read = new Message();
      assertEquals(codec.decode(view, 128, read), undefined);
      // The record holds all that a message can carry.
      const used = kind === Kind.GET_DEVICES
        ? most / 8
        : kind === Kind.GET_DEVICE_FEATURES
        ? 112
        : most;
      assertEquals(read.bytes.subarray(0, used), new Uint8Array(used).fill(0x5a));
      message[field] = most + 1;
      assertThrows(() => codec.encode(message, view, 128), Error, "a slot has 128");
    }
    const { view } = memoryOf(128);
    view.setUint16(128 + 6, 129, true);
    assertEquals(codec.decode(view, 128, message), "bad size");
  }
});

Deno.test("a slot size that no codec can have is refused", () => {
  for (const slotSize of [63, 100, MAX_MESSAGE + 8]) {
    assertThrows(() => codecFor("v1", slotSize), Error, `slots of ${slotSize} bytes`);
  }
  assertThrows(() => codecFor("v1", 48), Error, "GET_DEVICE_INFO does not fit in 48 bytes");
  assertThrows(() => codecFor("proto", 32), Error, "slots of 32 bytes for messages of 40");
});
