import { assert, assertEquals } from "@std/assert";
import { createSealedMemory } from "../../src/linux/fd.ts";
import { mapAnonymous, mapShared } from "../../src/linux/mapping.ts";
import { AddressSpace, type MappedMemory, MAX_WINDOWS } from "../../src/memory/mod.ts";
import { MAX_COPIED_TABLE } from "../../src/memory/address_space.ts";
import { IovecList } from "../../src/memory/iovec_list.ts";
import { cleanTest } from "../support/leaks.ts";
import { Random } from "../support/mock_driver.ts";

/** Memory that is never touched, for questions of arithmetic. */
function paper(size: number): MappedMemory {
  return { address: 0x1000_0000n, buffer: new ArrayBuffer(size), size };
}

const list = new IovecList(8);

/** What a range translates to, undefined when refused; the same for the address in halves. */
function translated(space: AddressSpace, address: number, length: number) {
  const outcome = (done: boolean) => done ? { count: list.count, length: list.length } : undefined;
  list.clear();
  const whole = outcome(space.translate(address, length, list));
  if (length === 0 || !(address < 2 ** 64)) return whole;
  const high = Math.floor(address / 2 ** 32), low = address % 2 ** 32;
  list.clear();
  assertEquals(outcome(space.translateHalves(high, low, length, list)), whole);
  const window = space.find(address, length);
  const table = space.findHalves(high, low, length);
  if (window !== undefined) assert(table === window, "a table in a window is viewed there");
  else if (table !== undefined) assertEquals([table.at, table.size], [address, length]);
  return whole;
}

const MAX = Number.MAX_SAFE_INTEGER;

Deno.test("add: keeps windows in order, whatever order they come in", () => {
  const space = new AddressSpace();
  for (const at of [0x3000, 0x1000, 0x2000, 0]) {
    assertEquals(space.add(at, 0x1000, paper(0x1000)), undefined);
  }
  assertEquals(space.windows.map(({ at, end }) => [at, end]), [
    [0, 0x1000],
    [0x1000, 0x2000],
    [0x2000, 0x3000],
    [0x3000, 0x4000],
  ]);
});

Deno.test("add: a window shows its part of the memory", () => {
  const space = new AddressSpace();
  const memory = paper(0x1000);
  new Uint8Array(memory.buffer)[0x810] = 9;
  assertEquals(space.add(0x5000, 0x100, memory, 0x800), undefined);
  const window = space.find(0x5010, 1)!;
  assertEquals(window.view.getUint8(0x10), 9);
  assertEquals([window.view.byteLength, window.byteOffset], [0x100, 0x800]);
  assertEquals([window.address, window.addressNumber], [0x1000_0800n, 0x1000_0800]);
});

Deno.test("add: overlaps are refused, touching windows are not", () => {
  const space = new AddressSpace();
  const add = (at: number, size: number) => space.add(at, size, paper(0x4000));
  assertEquals(add(0x2000, 0x1000), undefined);
  for (
    const [at, size] of [
      [0x2000, 0x1000],
      [0x2000, 1],
      [0x2fff, 1],
      [0x1fff, 2],
      [0x1000, 0x3000],
      [0x2800, 0x1000],
    ]
  ) {
    assertEquals(add(at!, size!), "overlap", `${at} + ${size}`);
  }
  assertEquals([add(0x1000, 0x1000), add(0x3000, 0x1000)], [undefined, undefined]);
  assertEquals(space.windows.length, 3);
});

Deno.test("add: what is no range is refused", () => {
  const space = new AddressSpace();
  const bad: [number, number, number][] = [
    [0, 0, 0],
    [-1, 2, 0],
    [0, -1, 0],
    [0, 1, -1],
    [0.5, 1, 0],
    [0, 1.5, 0],
    [NaN, 1, 0],
    [0, NaN, 0],
    [0, 1, Infinity],
    [MAX, 1, 0],
    [MAX + 1, 1, 0],
    [2 ** 64, 1, 0],
    [2 ** 64 - 4096, 4096, 0],
    [0, 0x1001, 0],
    [0, 0x1000, 1],
    [0, 1, 0x1000],
    [0, MAX, MAX],
  ];
  for (const [at, size, offset] of bad) {
    assertEquals(space.add(at, size, paper(0x1000), offset), "range", `${at} ${size} ${offset}`);
  }
  assertEquals(space.windows.length, 0);
  assertEquals(space.add(MAX - 0x1000, 0x1000, paper(0x1000)), undefined);
});

Deno.test("add: no more windows than the limit, and room again after a removal", () => {
  const space = new AddressSpace();
  const memory = paper(16);
  for (let i = 0; i < MAX_WINDOWS; i++) assertEquals(space.add(i * 32, 16, memory), undefined);
  assertEquals(space.add(MAX_WINDOWS * 32, 16, memory), "too many");
  assertEquals(space.remove(64, 16), true);
  assertEquals(space.add(MAX_WINDOWS * 32, 16, memory), undefined);
});

Deno.test("remove: exactly the window that was added; then nothing is found there", () => {
  const space = new AddressSpace();
  space.add(0x1000, 0x1000, paper(0x1000));
  assertEquals(translated(space, 0x1800, 1)?.count, 1);
  assertEquals([space.remove(0x1000, 0x800), space.remove(0x1001, 0x1000)], [false, false]);
  assertEquals(space.remove(0x1000, 0x1000), true);
  assertEquals(translated(space, 0x1800, 1), undefined, "not by the cache either");
  assertEquals(space.find(0x1800, 1), undefined);
  assertEquals(space.remove(0x1000, 0x1000), false);
  space.add(0x1000, 0x1000, paper(0x1000));
  space.find(0x1000, 1);
  space.clear();
  assertEquals(space.find(0x1000, 1), undefined);
});

Deno.test("find: all of a range in one window, or nothing", () => {
  const space = new AddressSpace();
  space.add(0x1000, 0x1000, paper(0x1000));
  space.add(0x2000, 0x1000, paper(0x1000));
  // Twice: found by search, then by the cache.
  for (let i = 0; i < 2; i++) {
    assertEquals(space.find(0x1000, 0x1000)?.at, 0x1000);
    assertEquals(space.find(0x1fff, 1)?.at, 0x1000);
    assertEquals(space.find(0x1fff, 2), undefined, "over two windows");
    assertEquals(space.find(0x2fff, 2), undefined);
    assertEquals(space.find(0x0fff, 1), undefined);
    assertEquals(space.find(0x3000, 1), undefined);
  }
});

Deno.test("translate: follows adjacent windows, stops at a hole", () => {
  const space = new AddressSpace();
  for (const at of [0x1000, 0x2000, 0x3000, 0x5000]) space.add(at, 0x1000, paper(0x1000));
  assertEquals(translated(space, 0x1800, 0x800), { count: 1, length: 0x800 });
  assertEquals(translated(space, 0x1800, 0x801), { count: 2, length: 0x801 });
  assertEquals(translated(space, 0x1001, 0x2fff), { count: 3, length: 0x2fff });
  assertEquals(translated(space, 0x1001, 0x3000), undefined);
  assertEquals(translated(space, 0x4fff, 2), undefined);
  assertEquals(translated(space, 0x0fff, 2), undefined);
  assertEquals(translated(space, 0x5fff, 2), undefined);
});

Deno.test("a table across windows is copied up to a length, and is gone with the next one", () => {
  const space = new AddressSpace();
  for (const at of [0, 0x4000]) space.add(at, 0x4000, paper(0x4000));
  assertEquals(space.findHalves(0, 0x3ff0, MAX_COPIED_TABLE)?.size, MAX_COPIED_TABLE);
  assertEquals(space.findHalves(0, 0x3ff0, MAX_COPIED_TABLE + 16), undefined);
  assertEquals(space.explainTable(0x3ff0, MAX_COPIED_TABLE + 16), "is too long");
  assertEquals(space.findHalves(0, 0x7ff0, 0x20), undefined);
});

Deno.test("translate: no bytes are no segments, and take no room", () => {
  const space = new AddressSpace();
  space.add(0x1000, 0x1000, paper(0x1000));
  for (const address of [0x1000, 0x1800, 0x2000, 0, MAX, 2 ** 64]) {
    assertEquals(translated(space, address, 0), { count: 0, length: 0 });
  }
});

Deno.test("translate: never wraps and never rounds into a window", () => {
  const space = new AddressSpace();
  space.add(0, 0x1000, paper(0x1000));
  space.add(MAX - 0xfff, 0xfff, paper(0xfff));
  const last = space.windows.at(-1)!;
  assertEquals(last.end, MAX);
  const hostile = [2 ** 53, 2 ** 53 + 2, 2 ** 63, 2 ** 64 - 4096, 2 ** 64 - 1, 2 ** 64, Infinity];
  for (const address of hostile) {
    for (const length of [1, 2, 0x1000, 0xffff_ffff]) {
      assertEquals(translated(space, address, length), undefined, `${address} + ${length}`);
      assertEquals(space.find(address, length), undefined);
    }
  }
  // From inside the last window over its end, with the cache on it.
  assertEquals(translated(space, MAX - 1, 1), { count: 1, length: 1 });
  for (const length of [2, 3, 4, 0xffff_ffff]) {
    assertEquals(translated(space, MAX - 1, length), undefined);
    assertEquals(space.find(MAX - 1, length), undefined);
  }
  assertEquals(translated(space, MAX, 1), undefined);
  assertEquals(translated(space, 0, 2 ** 53), undefined);
  assertEquals(translated(space, NaN, 1), undefined);
});

Deno.test("translate: a full list refuses, and says how far it came", () => {
  const space = new AddressSpace();
  for (let i = 0; i < 4; i++) space.add(0x1000 * i, 0x1000, paper(0x1000));
  const short = new IovecList(2);
  assertEquals(space.translate(0, 0x2001, short), false);
  assertEquals([short.count, short.length], [2, 0x2000]);
  assertEquals(space.translate(0, 1, short), false);
});

Deno.test("translate: agrees with a byte-by-byte model on random windows", () => {
  const random = new Random(20261124);
  for (let round = 0; round < 200; round++) {
    const space = new AddressSpace();
    const owner = new Int8Array(256).fill(-1);
    for (let n = 0; n < 8; n++) {
      const at = random.below(240);
      const size = 1 + random.below(16);
      const free = owner.subarray(at, at + size).every((who) => who < 0);
      const memory = paper(16);
      new Uint8Array(memory.buffer).fill(n);
      assertEquals(space.add(at, size, memory), free ? undefined : "overlap");
      if (free) owner.fill(n, at, at + size);
    }
    for (let n = 0; n < 50; n++) {
      const address = random.below(256);
      const length = 1 + random.below(40);
      const owners = [...owner.subarray(address, address + length)];
      const covered = address + length <= 256 && owners.every((who) => who >= 0);
      const segments = owners.filter((who, i) => i === 0 || who !== owners[i - 1]).length;
      const expected = covered && segments <= list.capacity
        ? { count: segments, length }
        : undefined;
      assertEquals(translated(space, address, length), expected);
      assertEquals(space.find(address, length) !== undefined, covered && segments === 1);
      const table = space.findHalves(0, address, length);
      const bytes = table &&
        [...new Uint8Array(table.buffer, table.byteOffset + address - table.at, length)];
      assertEquals(bytes, covered ? owners : undefined, "a table across windows is copied whole");
    }
  }
});

cleanTest("windows above 4 GiB on the bus and in the memory", () => {
  const size = 5 * 2 ** 30;
  const at = 0x12_0000_0000;
  using fd = createSealedMemory("vmsg-test", size);
  using memory = mapShared(fd.number, size);
  using small = mapAnonymous(4096);
  const space = new AddressSpace();
  assertEquals(space.add(at, size, memory), undefined);
  const address = at + size - 100;
  const window = space.find(address, 100)!;
  window.view.setUint32(address - window.at, 0x1234_5678, true);
  list.clear();
  assertEquals(space.translate(address, 100, list), true);
  assertEquals([0, 1, 2, 3].map((i) => list.getUint8(i)), [0x78, 0x56, 0x34, 0x12]);
  assertEquals(list.copyOut(0, small.address, 4), 4);
  assertEquals(new DataView(small.buffer).getUint32(0, true), 0x1234_5678);
  new DataView(small.buffer).setUint16(0, 0xabcd, true);
  assertEquals(list.copyIn(98, small.address, 4), 2);
  assertEquals(new DataView(memory.buffer).getUint16(size - 2, true), 0xabcd);
  // In halves, on both sides of 4 GiB borders of the bus and of the memory, in and outside of the window.
  const iovec = new Deno.UnsafePointerView(Deno.UnsafePointer.create(list.address)!);
  for (const offset of [0, 2 ** 32 - 200, 2 ** 32 - 100, 2 ** 32 - 1, 2 ** 32, size - 100]) {
    assertEquals(translated(space, at + offset, 100), { count: 1, length: 100 });
    assertEquals(iovec.getBigUint64(), memory.address + BigInt(offset));
    assertEquals(iovec.getBigUint64(8), 100n);
  }
  for (const offset of [-(2 ** 32), -1, size - 99, size, 2 * 2 ** 32]) {
    assertEquals(translated(space, at + offset, 100), undefined, `offset ${offset}`);
  }
});

Deno.test("find: with as many windows as there can be few of them are looked at", () => {
  const space = new AddressSpace();
  const memory = paper(0x1000);
  // Neighbours are joined by nobody: every second one is missing.
  for (let i = 0; i < MAX_WINDOWS; i++) {
    assertEquals(space.add(0x2000 * (MAX_WINDOWS - i), 0x1000, memory), undefined);
  }
  let looks = 0;
  for (const window of space.windows) {
    const { end } = window;
    Object.defineProperty(window, "end", { get: () => (looks++, end) });
  }
  for (let i = 1; i <= MAX_WINDOWS; i++) {
    for (const at of [0x2000 * i, 0x2000 * (MAX_WINDOWS + 1 - i)]) {
      looks = 0;
      assertEquals(space.find(at, 0x1000)?.at, at);
      // The last one, those of the search, and the end of the one that was found.
      assert(looks <= 2 + Math.ceil(Math.log2(MAX_WINDOWS + 1)), `${looks} looks`);
      assertEquals([space.find(at - 1, 1), space.find(at + 0x1000, 1)], [undefined, undefined]);
    }
  }
});
