import { assertEquals } from "@std/assert";
import { codecFor } from "../../src/message/codecs.ts";
import { Message } from "../../src/message/message.ts";
import { BRIDGE_SLOT, type Frame, readFrames } from "./bridge_kernel.ts";

Deno.test("the kernel's bridge, recorded: every frame decodes, and encodes to the same bytes", () => {
  const codec = codecFor("v1", BRIDGE_SLOT);
  const frames = readFrames();
  // About devices, and about the bridge itself.
  const isBus = ({ bytes }: Frame) => (bytes[0]! & 2) !== 0;
  assertEquals([frames.filter((frame) => !isBus(frame)).length, frames.some(isBus)], [257, true]);
  const message = new Message();
  for (const { bytes, line } of frames) {
    const slot = new Uint8Array(BRIDGE_SLOT);
    slot.set(bytes);
    assertEquals(codec.decode(new DataView(slot.buffer), 0, message), undefined, line);
    const again = new Uint8Array(BRIDGE_SLOT).fill(0xee);
    assertEquals(codec.encode(message, new DataView(again.buffer), 0), bytes.length, line);
    assertEquals(again.toHex(), slot.toHex(), line);
  }
});
