/** Where regions of a guest's lie: pins, places, and when they are let go. */

import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { VmsgError } from "../../src/linux/errors.ts";
import { createSealedMemory } from "../../src/linux/fd.ts";
import { mapAnonymous, PAGE_SIZE } from "../../src/linux/mapping.ts";
import { type PhysicalRun, physicalRuns } from "../../src/linux/page_map.ts";
import { AddressSpace, IovecList } from "../../src/memory/mod.ts";
import { PhysicalMap, PhysicalPieces } from "../../src/sharing/physical_map.ts";
import { cleanTest } from "../support/leaks.ts";
import { testUnless } from "../support/needs.ts";
import { FakePins, regionOf } from "../support/translated_rig.ts";

const ADDRESS = 0x7000_0000_0000n;
const PAGES = 8;
const SIZE = PAGES * PAGE_SIZE;

/** Pages 0 and 1 in one piece, then single ones downwards. */
const RUNS: PhysicalRun[] = [
  { offset: 0, physical: 0x1_0000_2000, length: 2 * PAGE_SIZE },
  ...[2, 3, 4, 5, 6, 7].map((page) => ({
    offset: page * PAGE_SIZE,
    physical: 0x1_0100_0000 - page * PAGE_SIZE,
    length: PAGE_SIZE,
  })),
];

function mapOf(pins = new FakePins()): { map: PhysicalMap; pins: FakePins } {
  return { map: new PhysicalMap(pins, () => RUNS), pins };
}

Deno.test("physical map: a bus that pins nothing says what to do instead", () => {
  const map = new PhysicalMap({ description: "bus ivshmem 0000:00:10.0", pin: () => undefined });
  const error = assertThrows(() => map.add(regionOf({ address: ADDRESS, size: SIZE })), VmsgError);
  assertEquals(error.code, "PIN");
  assertEquals(
    error.message,
    "bus ivshmem 0000:00:10.0: the guest's memory cannot be pinned without vfio and an IOMMU: give --confined",
  );
  assertEquals(map.inDoubt, false);
});

Deno.test("physical map: no more is pinned than the limit, also of what is only kept", () => {
  const pins = new FakePins();
  const map = new PhysicalMap(pins, () => RUNS, 2 * SIZE);
  const regions = [0n, 1n, 2n].map((n) =>
    regionOf({ address: ADDRESS + n * BigInt(SIZE), size: SIZE })
  );
  for (const region of regions.slice(0, 2)) map.add(region);
  const refused = () => {
    const { message } = assertThrows(() => map.add(regions[2]!), VmsgError);
    assertStringIncludes(message, `${SIZE} bytes of the guest's memory besides ${2 * SIZE}`);
  };
  refused();
  map.doubt();
  map.remove(regions[0]!);
  refused();
  assertEquals([pins.pinned.size, map.pinned], [2, 2 * SIZE]);
  map.trust();
  map.add(regions[2]!);
  assertEquals(map.pinned, 2 * SIZE);
});

cleanTest(
  "physical map: what two cards of a guest show is pinned for each, and counts once",
  () => {
    const map = new PhysicalMap(new FakePins(), () => RUNS, SIZE);
    using fd = createSealedMemory("vmsg-test", 2 * SIZE);
    const [one, other, more] = [0, 0, SIZE].map((fileOffset, n) => ({
      ...regionOf({ address: ADDRESS + BigInt(n * SIZE), size: SIZE }),
      fd,
      fileOffset,
      offset: 0,
    }));
    map.add(one!);
    map.add(other!);
    assertEquals(map.pinned, SIZE);
    assertThrows(() => map.add(more!), VmsgError, "at most");
    map.remove(one!);
    assertEquals(map.pinned, SIZE);
    map.remove(other!);
    assertEquals(map.pinned, 0);
  },
);

Deno.test("physical map: a region that cannot be located is not left pinned", () => {
  const pins = new FakePins();
  const map = new PhysicalMap(pins, () => {
    throw new VmsgError("PAGEMAP", "no");
  });
  const region = regionOf({ address: ADDRESS, size: SIZE });
  assertThrows(() => map.add(region), VmsgError, "no");
  assertEquals(pins.pinned.size, 0);
});

Deno.test("physical map: a region is pinned once, in whole pages, and let go when it is removed", () => {
  const { map, pins } = mapOf();
  const region = regionOf({ address: ADDRESS, size: SIZE - 100 });
  map.add(region);
  map.add(region);
  assertEquals([...pins.pinned], [[ADDRESS, SIZE]]);
  assertEquals(map.runsOf(region).length, 7);
  map.remove(region);
  map.remove(region);
  assertEquals(pins.pinned.size, 0);
  assertEquals(map.runsOf(region), []);
});

/** A list of segments at addresses of this process. */
function listOf(
  memory: ReturnType<typeof mapAnonymous>,
  ...parts: [number, number][]
): IovecList {
  const space = new AddressSpace();
  assertEquals(space.add(0x1000_0000, memory.size, memory, 0), undefined);
  const list = new IovecList(16);
  for (const [offset, length] of parts) {
    assert(space.translate(0x1000_0000 + offset, length, list));
  }
  return list;
}

function listed({ addresses, lengths, count }: PhysicalPieces): [number, number][] {
  return Array.from({ length: count }, (_, i) => [addresses[i], lengths[i]]);
}

Deno.test("physical map: pieces end where frames do, neighbours are joined, room is respected", () => {
  using memory = mapAnonymous(SIZE);
  const { map } = mapOf();
  const region = regionOf(memory);
  map.add(region);
  const pieces = new PhysicalPieces(3);
  // Across the join of pages 0 and 1, into page 2.
  assert(map.translate(listOf(memory, [100, 2 * PAGE_SIZE]), pieces));
  assertEquals(listed(pieces), [
    [0x1_0000_2064, 2 * PAGE_SIZE - 100],
    [0x1_0100_0000 - 2 * PAGE_SIZE, 100],
  ]);
  // What is appended is not joined to what was there: one is read, the other written.
  assert(map.translate(listOf(memory, [2 * PAGE_SIZE + 100, 50]), pieces));
  assertEquals(pieces.count, 3);
  pieces.count = 0;
  assert(map.translate(listOf(memory, [3 * PAGE_SIZE - 10, 10], [3 * PAGE_SIZE, 4096]), pieces));
  // Pages 2 and 3 follow each other the other way round.
  assertEquals(pieces.count, 2);
  pieces.count = 0;
  assertEquals(map.translate(listOf(memory, [2 * PAGE_SIZE, 4 * PAGE_SIZE]), pieces), false);
  // A region that has been removed is found no more.
  map.remove(region);
  pieces.count = 0;
  assertThrows(() => map.translate(listOf(memory, [0, 1]), pieces), Error, "no pinned region");
});

Deno.test("physical map: what goes in doubt stays pinned until a device side is there that knows nothing", () => {
  const { map, pins } = mapOf();
  const regions = [0n, 0x10_0000n].map((at) => regionOf({ address: ADDRESS + at, size: SIZE }));
  for (const region of regions) map.add(region);
  assertEquals(map.inDoubt, false);
  map.doubt();
  assertEquals(map.inDoubt, true);
  map.remove(regions[0]);
  assertEquals([pins.pinned.size, map.runsOf(regions[0])], [2, []]);
  map.trust();
  // The other one is the guest's still.
  assertEquals([[...pins.pinned.keys()], map.inDoubt], [[ADDRESS + 0x10_0000n], false]);
  map.remove(regions[1]);
  assertEquals(pins.pinned.size, 0);
  // With nothing pinned there is nothing to doubt.
  map.doubt();
  assertEquals(map.inDoubt, false);
});

Deno.test("physical map: its end lets everything go", () => {
  const { map, pins } = mapOf();
  const regions = [0n, 0x10_0000n].map((at) => regionOf({ address: ADDRESS + at, size: SIZE }));
  for (const region of regions) map.add(region);
  map.doubt();
  map.remove(regions[0]);
  map[Symbol.dispose]();
  assertEquals([pins.pinned.size, map.inDoubt], [0, false]);
});

/** Only who is root in the first user namespace is shown frames. */
function framesAreHidden(): boolean {
  using memory = mapAnonymous(PAGE_SIZE);
  new Uint8Array(memory.buffer)[0] = 1;
  try {
    physicalRuns(memory.address, PAGE_SIZE, PAGE_SIZE);
    return false;
  } catch (error) {
    if (error instanceof VmsgError && error.message.includes("be root")) return true;
    throw error;
  }
}

const NAME = "page map: runs cover the memory in order, joined, across reads of the file";
testUnless(NAME, framesAreHidden() ? [{ what: "it needs root" }] : [], () => {
  // More pages than are read at once.
  const pages = 1300;
  using memory = mapAnonymous(pages * PAGE_SIZE);
  const bytes = new Uint8Array(memory.buffer);
  for (let page = 0; page < pages; page++) bytes[page * PAGE_SIZE] = 1;
  const runs: PhysicalRun[] = physicalRuns(memory.address, memory.size, PAGE_SIZE);
  let end = 0;
  for (const [i, { offset, physical, length }] of runs.entries()) {
    assertEquals([offset, physical % PAGE_SIZE, length % PAGE_SIZE], [end, 0, 0]);
    const before = runs[i - 1];
    if (before !== undefined) assert(before.physical + before.length !== physical, "not joined");
    end += length;
  }
  assertEquals(end, memory.size);
  const frames = new Set(
    runs.flatMap(({ physical, length }) =>
      Array.from({ length: length / PAGE_SIZE }, (_, i) => physical + i * PAGE_SIZE)
    ),
  );
  assertEquals(frames.size, pages, "no frame twice");
});

Deno.test("page map: a page that was never touched has no frame", () => {
  using memory = mapAnonymous(4 * PAGE_SIZE);
  const error = assertThrows(
    () => physicalRuns(memory.address, memory.size, PAGE_SIZE),
    VmsgError,
  );
  assertStringIncludes(error.message, "lies nowhere");
});

Deno.test("page map: a page without an entry is touched and looked at again, and its neighbours are kept", () => {
  const pages = 1100;
  using memory = mapAnonymous(pages * PAGE_SIZE);
  const bytes = new Uint8Array(memory.buffer);
  const missing = [0, 3, 511, 512, 700, 1099];
  for (let page = 0; page < pages; page++) {
    if (!missing.includes(page)) bytes[page * PAGE_SIZE] = 1;
  }
  const touched: number[] = [];
  const runs = () =>
    physicalRuns(memory.address, memory.size, PAGE_SIZE, (offset) => {
      touched.push(offset / PAGE_SIZE);
      bytes[offset] = 1;
    });
  try {
    const first = runs();
    assertEquals([touched, first], [missing, runs()]);
  } catch (error) {
    if (!(error instanceof VmsgError && error.message.includes("be root"))) throw error;
  }
});
