import { assertEquals } from "@std/assert";
import { createSealedMemory } from "../../src/linux/fd.ts";
import { mapAnonymous, mapShared, PAGE_SIZE } from "../../src/linux/mapping.ts";
import { cleanTest } from "../support/leaks.ts";

cleanTest("mapAnonymous: zeroed, writable, the address is byte 0", () => {
  using mapping = mapAnonymous(3 * PAGE_SIZE);
  const bytes = new Uint8Array(mapping.buffer);
  assertEquals(bytes.length, 3 * PAGE_SIZE);
  assertEquals(bytes.every((byte) => byte === 0), true);
  bytes[PAGE_SIZE] = 7;
  const pointer = Deno.UnsafePointer.create(mapping.address + BigInt(PAGE_SIZE))!;
  assertEquals(new Deno.UnsafePointerView(pointer).getUint8(), 7);
});

cleanTest("dispose detaches every view and unmaps once", () => {
  const mapping = mapAnonymous(PAGE_SIZE);
  const { buffer } = mapping;
  const bytes = new Uint8Array(buffer);
  const words = new Uint32Array(buffer, 64, 4);
  const view = new DataView(buffer, 8);
  mapping[Symbol.dispose]();
  assertEquals(buffer.detached, true);
  assertEquals([bytes.length, words.length, buffer.byteLength], [0, 0, 0]);
  assertEquals(mapping.buffer.byteLength, 0);
  assertEquals(bytes[0], undefined);
  let threw = false;
  try {
    view.getUint8(0);
  } catch {
    threw = true;
  }
  assertEquals(threw, true);
  // The place may be taken again; a second dispose must not unmap that.
  const others = Array.from({ length: 4 }, () => mapAnonymous(PAGE_SIZE));
  mapping[Symbol.dispose]();
  for (const other of others) {
    new Uint8Array(other.buffer)[0] = 1;
    other[Symbol.dispose]();
  }
});

cleanTest(
  "mapShared: two mappings of one file show the same bytes, and outlive the descriptor",
  () => {
    const fd = createSealedMemory("vmsg-test", 2 * PAGE_SIZE);
    using whole = mapShared(fd.number, 2 * PAGE_SIZE);
    using second = mapShared(fd.number, PAGE_SIZE, PAGE_SIZE);
    fd[Symbol.dispose]();
    new Uint8Array(whole.buffer)[PAGE_SIZE + 5] = 42;
    assertEquals(new Uint8Array(second.buffer)[5], 42);
    new Uint8Array(second.buffer)[6] = 43;
    assertEquals(new Uint8Array(whole.buffer)[PAGE_SIZE + 6], 43);
  },
);

cleanTest("mapShared: a sparse file of 5 GiB, seen beyond 4 GiB", () => {
  const size = 5 * 2 ** 30;
  using fd = createSealedMemory("vmsg-test", size);
  using whole = mapShared(fd.number, size);
  using end = mapShared(fd.number, PAGE_SIZE, size - PAGE_SIZE);
  assertEquals(whole.buffer.byteLength, size);
  new DataView(whole.buffer).setUint32(size - 8, 0xdead_beef);
  assertEquals(new DataView(end.buffer).getUint32(PAGE_SIZE - 8), 0xdead_beef);
});
