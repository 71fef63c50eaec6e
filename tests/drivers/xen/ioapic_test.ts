/** The IOAPIC of a PVH domain: how an edge becomes a message (82093AA, 3.2). */

import { assertEquals } from "@std/assert";
import { Ioapic, IOAPIC_PINS } from "../../../src/drivers/xen/ioapic.ts";

const INDEX = 0;
const WINDOW = 0x10;

function open() {
  const sent: string[] = [];
  let kept = 0;
  const ioapic = new Ioapic(
    (address, data) => sent.push(`${address.toString(16)} ${data.toString(16)}`),
    () => kept++,
  );
  const write = (register: number, value: number) => {
    ioapic.write(INDEX, 4, register);
    ioapic.write(WINDOW, 4, value);
  };
  const read = (register: number) => {
    ioapic.write(INDEX, 4, register);
    return ioapic.read(WINDOW);
  };
  return { ioapic, sent: () => sent.splice(0), kept: () => kept, write, read };
}

Deno.test("IOAPIC: id, version, entries; nothing else is there", () => {
  const { ioapic, read, write, kept } = open();
  assertEquals([read(0), read(1), read(2)], [0, 0x17_0011, 0]);
  assertEquals([read(0x10), read(0x11), read(0x3f), read(0x40)], [0x1_0000, 0, 0, 0]);
  write(0x30, 0x1234);
  write(1, 0);
  write(0x40, 0xffff_ffff);
  assertEquals([read(0x30), read(1), read(0x40), kept()], [0x1234, 0x17_0011, 0, 1]);
  assertEquals([ioapic.read(INDEX), ioapic.read(0x20), ioapic.read(4)], [0x40, 0, 0]);
});

Deno.test("IOAPIC: an edge goes where the entry says", () => {
  const { ioapic, write, sent } = open();
  // Pin 16: vector 0x51, fixed, physical, to processor 3.
  write(0x31, 0x0300_0000);
  write(0x30, 0x51);
  ioapic.raise(16);
  assertEquals(sent(), ["fee03000 51"]);
  // Lowest priority, logical; level and polarity are no part of the message.
  write(0x30, 0x52 | 1 << 8 | 1 << 11 | 1 << 13 | 1 << 15);
  ioapic.raise(16);
  assertEquals(sent(), ["fee03004 152"]);
});

Deno.test("IOAPIC: an edge at a masked pin comes when it is unmasked, once", () => {
  const { ioapic, write, sent } = open();
  ioapic.raise(5);
  ioapic.raise(5);
  assertEquals(sent(), []);
  write(0x1a, 0x61);
  assertEquals(sent(), ["fee00000 61"]);
  write(0x1a, 0x61);
  assertEquals(sent(), []);
});

Deno.test("IOAPIC: entries that another process has left", () => {
  const entries = Array(2 * IOAPIC_PINS).fill(0);
  entries[32] = 0x77;
  const sent: number[] = [];
  new Ioapic((_, data) => sent.push(data), () => {}, entries).raise(16);
  assertEquals(sent, [0x77]);
});
