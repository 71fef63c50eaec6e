import { assert, assertEquals, assertThrows } from "@std/assert";
import { mapAnonymous, type Mapping } from "../../src/linux/mapping.ts";
import { AddressSpace } from "../../src/memory/address_space.ts";
import { IovecArray, IovecList } from "../../src/memory/iovec_list.ts";
import { IovecRing } from "../../src/memory/iovec_ring.ts";
import { MemoryWindow } from "../../src/memory/window.ts";
import { cleanTest } from "../support/leaks.ts";
import { Random } from "../support/mock_driver.ts";

/** Segments of 3, 5, 1 and 7 bytes, far apart in one mapping; byte n of the list is n + 1. */
function fixture(memory: Mapping, capacity = 8): IovecList {
  const space = new AddressSpace();
  space.add(0, memory.size, memory);
  const window = space.windows[0]!;
  const list = new IovecList(capacity);
  let value = 1;
  for (const [offset, length] of [[100, 3], [50, 5], [200, 1], [300, 7]]) {
    list.push(window, offset!, length!);
    for (let i = 0; i < length!; i++) window.view.setUint8(offset! + i, value++);
  }
  return list;
}

const sequence = (from: number, count: number) => Array.from({ length: count }, (_, i) => from + i);

cleanTest("copyOut: across segments, from any byte, at most what there is", () => {
  using memory = mapAnonymous(4096);
  using target = mapAnonymous(4096);
  const bytes = new Uint8Array(target.buffer);
  const list = fixture(memory);
  assertEquals([list.count, list.length], [4, 16]);
  for (let skip = 0; skip <= 18; skip++) {
    for (let length = 0; length <= 20; length++) {
      bytes.fill(0xee);
      const expected = Math.max(0, Math.min(length, 16 - skip));
      assertEquals(list.copyOut(skip, target.address + 8n, length), expected);
      assertEquals([...bytes.subarray(8, 8 + expected)], sequence(skip + 1, expected));
      assertEquals([bytes[7], bytes[8 + expected]], [0xee, 0xee]);
    }
  }
});

cleanTest("copyIn: across segments, from any byte, nothing beside them", () => {
  using memory = mapAnonymous(4096);
  using source = mapAnonymous(4096);
  const bytes = new Uint8Array(memory.buffer);
  new Uint8Array(source.buffer).set(sequence(0x41, 32));
  for (let skip = 0; skip <= 17; skip++) {
    for (const length of [0, 1, 2, 3, 4, 8, 9, 15, 16, 30]) {
      bytes.fill(0);
      const list = fixture(memory);
      const before = bytes.slice();
      const copied = Math.max(0, Math.min(length, 16 - skip));
      assertEquals(list.copyIn(skip, source.address, length), copied);
      const expected = sequence(1, 16);
      for (let i = 0; i < copied; i++) expected[skip + i] = 0x41 + i;
      assertEquals(sequence(0, 16).map((i) => list.getUint8(i)), expected);
      // All but the sixteen bytes of the segments are as they were.
      for (const [offset, size] of [[100, 3], [50, 5], [200, 1], [300, 7]]) {
        bytes.fill(0, offset, offset! + size!);
        before.fill(0, offset, offset! + size!);
      }
      assertEquals(bytes, before);
    }
  }
});

cleanTest("copies: pieces that adjoin, in one mapping and over two, as one and in parts", () => {
  using memory = mapAnonymous(1 << 16);
  using other = mapAnonymous(1 << 12);
  const space = new AddressSpace();
  space.add(0, memory.size, memory);
  const [window] = space.windows;
  const bytes = new Uint8Array(memory.buffer), copy = new Uint8Array(other.buffer);
  const list = new IovecList(16);
  const random = new Random(7);
  for (let round = 0; round < 1000; round++) {
    const ring = new IovecRing(16);
    const places: number[] = [];
    // Some turns of the ring, so that buffers also lie over its end.
    for (let turns = random.below(16); turns > 0; turns--) {
      list.clear();
      list.push(window!, 0, 1);
      ring.push(list);
      ring.shift(1);
    }
    list.clear();
    list.start = random.below(3);
    let at = random.below(1000);
    for (let count = 1 + random.below(8); count > 0; count--) {
      const length = 1 + random.below(40);
      list.push(window!, at, length);
      for (let i = 0; i < length; i++) places.push(at + i);
      // The next one adjoins, or leaves a gap, or lies before.
      at += [length, length, length, length + 1, length - 50][random.below(5)]!;
      if (at < 0) at = 2000;
    }
    ring.push(list);
    const skip = random.below(places.length + 2), length = random.below(places.length + 10);
    for (let i = 0; i < 4000; i++) bytes[i] = random.below(256);
    copy.fill(0);
    const done = Math.max(0, Math.min(length, places.length - skip));
    assertEquals(list.copyOut(skip, other.address, length), done);
    assertEquals([...copy.subarray(0, done + 1)], [
      ...places.slice(skip, skip + done).map((place) => bytes[place]!),
      0,
    ]);
    for (let i = 0; i < 400; i++) copy[i] = random.below(256);
    const expected = bytes.slice(0, 4000);
    for (let i = 0; i < done; i++) expected[places[skip + i]!] = copy[i]!;
    assertEquals(list.copyIn(skip, other.address, length), done);
    assertEquals(bytes.subarray(0, 4000), expected);
    const all = Math.min(length, places.length);
    for (let i = 0; i < all; i++) expected[places[i]!] = copy[i]!;
    ring.copyIn(other.address, all);
    assertEquals(bytes.subarray(0, 4000), expected);
  }
});

cleanTest("copies: a negative length copies nothing", () => {
  using memory = mapAnonymous(4096);
  const list = fixture(memory);
  assertEquals(list.copyOut(0, memory.address + 1000n, -1), 0);
  assertEquals(list.copyIn(0, memory.address + 1000n, -1), 0);
});

cleanTest(
  "touch: nothing outside of segments, at the ends of windows and over several of them",
  () => {
    using memory = mapAnonymous(8192);
    const array = new IovecArray(8);
    const list = new IovecList(array);
    // What lies outside of its window throws.
    const windows = [0, 4096].map((at) => new MemoryWindow(at, 4096, memory, at));
    for (
      const [window, offset, length] of [
        [0, 4095, 1],
        [0, 4000, 96],
        [1, 4032, 64],
        [1, 4031, 65],
        [0, 0, 4096],
        [1, 0, 3],
      ]
    ) {
      list.push(windows[window!]!, offset!, length!);
    }
    for (let from = 0; from <= list.count; from++) {
      for (let end = from; end <= list.count; end++) array.touch(from, end);
    }
    assertThrows(() => array.touch(0, list.count + 1));
  },
);

cleanTest("a part of the list: the segments from `first` on", () => {
  using memory = mapAnonymous(4096);
  using target = mapAnonymous(64);
  const list = fixture(memory);
  assertEquals(list.copyOut(0, target.address, 64, 1), 13);
  assertEquals([...new Uint8Array(target.buffer, 0, 13)], sequence(4, 13));
  assertEquals(list.copyOut(6, target.address, 2, 1), 2);
  assertEquals([...new Uint8Array(target.buffer, 0, 2)], [10, 11]);
  assertEquals([list.getUint8(0, 2), list.getUint8(1, 2)], [9, 10]);
  assertEquals(list.copyOut(0, target.address, 64, 4), 0);
  assertEquals(list.addressFrom(0), list.address);
  assertEquals(list.addressFrom(3), list.address + 48n);
});

cleanTest("bytes and words: over the border of two segments, nothing outside", () => {
  using memory = mapAnonymous(4096);
  const list = fixture(memory);
  assertEquals(list.setUint16(2, 0xbbaa), true);
  assertEquals(sequence(0, 5).map((i) => list.getUint8(i)), [1, 2, 0xaa, 0xbb, 5]);
  assertEquals(list.setUint16(0, 0x1122, 3), true);
  assertEquals([list.getUint8(9), list.getUint8(10)], [0x22, 0x11]);
  assertEquals(list.setUint8(15, 0x77), true);
  assertEquals(list.getUint8(15), 0x77);
  assertEquals([list.setUint8(16, 1), list.setUint16(16, 1), list.setUint16(15, 1)], [
    false,
    false,
    false,
  ]);
  assertEquals(list.getUint8(16), 0);
});

cleanTest("a list is full at its capacity and usable again after clear", () => {
  using memory = mapAnonymous(4096);
  const list = fixture(memory, 4);
  const space = new AddressSpace();
  space.add(0, 4096, memory);
  assertEquals(list.push(space.windows[0]!, 0, 1), false);
  assertEquals([list.count, list.length], [4, 16]);
  list.clear();
  assertEquals([list.count, list.length, list.getUint8(0)], [0, 0, 0]);
  assertEquals(list.push(space.windows[0]!, 50, 2), true);
  assertEquals(list.getUint8(1), 5);
});

cleanTest("the iovec array holds the addresses and lengths", () => {
  using memory = mapAnonymous(4096);
  const list = fixture(memory);
  const pointer = Deno.UnsafePointer.create(list.address)!;
  const iovec = new DataView(Deno.UnsafePointerView.getArrayBuffer(pointer, 8 * 16));
  const at = (
    i: number,
  ) => [iovec.getBigUint64(16 * i, true), iovec.getBigUint64(16 * i + 8, true)];
  assertEquals(sequence(0, 4).map(at), [
    [memory.address + 100n, 3n],
    [memory.address + 50n, 5n],
    [memory.address + 200n, 1n],
    [memory.address + 300n, 7n],
  ]);
  const space = new AddressSpace();
  space.add(0, 16, { address: 0x7fff_ffff_fff0n, buffer: new ArrayBuffer(16), size: 16 });
  list.push(space.windows[0]!, 8, 8);
  assertEquals(at(4), [0x7fff_ffff_fff8n, 8n]);
});

cleanTest("random copies agree with a plain array", () => {
  using memory = mapAnonymous(1 << 16);
  using other = mapAnonymous(4096);
  const random = new Random(7);
  const space = new AddressSpace();
  space.add(0, memory.size, memory);
  const bytes = new Uint8Array(other.buffer);
  const list = new IovecList(32);
  for (let round = 0; round < 200; round++) {
    list.clear();
    const model: number[] = [];
    for (let n = 0; n < 1 + random.below(20); n++) {
      const length = 1 + random.below(30);
      // Segments of a buffer do not overlap here, or the model would have to know.
      list.push(space.windows[0]!, n * 64, length);
      for (let i = 0; i < length; i++) model.push(new Uint8Array(memory.buffer)[n * 64 + i]!);
    }
    const skip = random.below(model.length + 4);
    const length = random.below(200);
    for (let i = 0; i < length; i++) bytes[i] = random.below(256);
    const copied = list.copyIn(skip, other.address, length);
    assertEquals(copied, Math.max(0, Math.min(length, model.length - skip)));
    for (let i = 0; i < copied; i++) model[skip + i] = bytes[i]!;
    assertEquals(list.copyOut(0, other.address, 4096), model.length);
    assertEquals([...bytes.subarray(0, model.length)], model);
  }
});

cleanTest(
  "bytes are found in their windows, however these alternate, also in a full list cut and filled again",
  () => {
    using memory = mapAnonymous(4096);
    using other = mapAnonymous(4096);
    const windows = [memory, other].map((mapping) => new MemoryWindow(0, 4096, mapping, 0));
    const list = new IovecList(16);
    const fill = (from: number, pick: (i: number) => number) => {
      list.count = from;
      for (let i = from; list.push(windows[pick(i)], 8 * i, 1); i++);
      for (let i = 0; i < 16; i++) assert(list.setUint8(i, 100 + i));
      for (let i = from; i < 16; i++) {
        assertEquals(windows[pick(i)].view.getUint8(8 * i), 100 + i);
        assertEquals(list.getUint8(i), 100 + i);
        windows[pick(i)].view.setUint8(8 * i, 0);
      }
    };
    fill(0, (i) => i & 1);
    fill(8, () => 1);
    fill(3, (i) => i >> 1 & 1);
    fill(0, () => 0);

    const array = new IovecArray(2);
    const full = new IovecList(array);
    full.push(windows[0], 0, 1);
    full.push(windows[1], 8, 1);
    array.beginRun(2, windows[0]);
    assertEquals([array.windowOf(0), array.windowOf(1)], windows);
  },
);
