import { assertEquals } from "@std/assert";
import { mapAnonymous, mapKept, PAGE_SIZE } from "../../src/linux/mapping.ts";
import { createSealedMemory } from "../../src/linux/fd.ts";
import { IovecList } from "../../src/memory/iovec_list.ts";
import { MAX_MISSED, MAX_PAGES, TranslatedSpace } from "../../src/memory/translated_space.ts";

const MACHINE_AT = 0x10_0000;
const PAGES = 16;

/** A machine of 16 pages, each full of its number, and a space whose questions are listed. */
function rig(keepsFile = true) {
  const fd = createSealedMemory("machine", PAGES * PAGE_SIZE);
  const memory = mapKept({ fd, offset: 0 }, PAGES * PAGE_SIZE, fd);
  const bytes = new Uint8Array(memory.buffer);
  for (let page = 0; page < PAGES; page++) {
    bytes.fill(page, page * PAGE_SIZE, (page + 1) * PAGE_SIZE);
  }
  const { address, buffer, size } = memory;
  const shown = keepsFile ? memory : { address, buffer, size };
  const region = { at: MACHINE_AT, size: PAGES * PAGE_SIZE, memory: shown, offset: 0 };
  const asked: number[] = [];
  const space = new TranslatedSpace([region], (page) => asked.push(page));
  const learn = (page: number, at: number) => {
    space.learn(page * PAGE_SIZE, MACHINE_AT + at * PAGE_SIZE);
  };
  return {
    space,
    asked,
    learn,
    bytes,
    [Symbol.dispose]() {
      space[Symbol.dispose]();
      memory[Symbol.dispose]();
    },
  };
}

/** The bytes of a window, as runs of equal ones. */
function runs({ view }: { readonly view: DataView }): [value: number, count: number][] {
  const found: [number, number][] = [];
  for (let i = 0; i < view.byteLength; i++) {
    const value = view.getUint8(i);
    if (found.at(-1)?.[0] === value) found.at(-1)![1]++;
    else found.push([value, 1]);
  }
  return found;
}

Deno.test("a range over several pages: what lacks is asked for together, then it is found", () => {
  using it = rig();
  const { space, asked } = it;
  const list = new IovecList(8);
  it.learn(5, 3);
  assertEquals([space.translate(0x4f00, 0x2000, list), space.missed], [false, 1]);
  assertEquals(asked, [], "looked for only");
  space.missed = 0;
  space.collects = true;
  list.clear();
  assertEquals([space.translate(0x4f00, 0x2000, list), space.missed], [true, 2]);
  assertEquals(asked, [0x4000, 0x6000]);
  space.collects = false;
  space.missed = 0;
  it.learn(4, 9);
  it.learn(6, 1);
  list.clear();
  assertEquals([space.translate(0x4f00, 0x2000, list), space.missed], [true, 0]);
  assertEquals([list.count, list.length], [3, 0x2000]);
  assertEquals([0, 0xff, 0x100, 0x10ff, 0x1100].map((at) => list.getUint8(at)), [9, 9, 3, 3, 1]);
});

Deno.test("a chain's questions have a bound, and so has what is remembered", () => {
  using it = rig();
  const { space, asked } = it;
  space.collects = true;
  assertEquals(space.translate(0, 0xffff_ffff, new IovecList(4)), true);
  assertEquals([asked.length, space.missed], [MAX_MISSED, MAX_MISSED]);
  space.collects = false;
  space.missed = 0;
  for (let page = 0; page <= MAX_PAGES; page++) it.learn(page, page % PAGES);
  const list = new IovecList(4);
  assertEquals([space.translate(PAGE_SIZE, 1, list), space.missed], [true, 0]);
  assertEquals([space.translate(0, 1, list), space.missed], [false, 1], "the oldest is gone");
});

Deno.test("what is refused, or not shown, stays so, in words; a hostile address is none", () => {
  using it = rig();
  const { space } = it;
  const list = new IovecList(4);
  space.collects = true;
  for (
    const [physical, reason] of [
      [undefined, "is in a page that the driver side refuses to translate"],
      [0, "is 0x0 in the driver side's machine, which no --memory covers"],
      [
        MACHINE_AT + PAGES * PAGE_SIZE,
        "is 0x110000 in the driver side's machine, which no --memory covers",
      ],
      [MACHINE_AT + 8, "is 0x100008 in the driver side's machine, which no --memory covers"],
    ] as const
  ) {
    space.learn(0x7000, physical);
    assertEquals([space.translate(0x7010, 4, list), space.missed], [false, 0]);
    assertEquals(space.findHalves(0, 0x7010, 16), undefined);
    assertEquals(space.explain(0x7010, 4), reason);
    assertEquals(space.prepare(0, [{ at: 0x7000, size: 4 }]), `ring at 0x7000 ${reason}`);
  }
  for (const address of [2 ** 53, 2 ** 63, 2 ** 64]) {
    assertEquals(space.translate(address, 4096, list), false);
    assertEquals(space.findHalves(address / 2 ** 32, 0, 16), undefined);
    assertEquals(typeof space.prepare(0, [{ at: address, size: 4096 }]), "string");
  }
  assertEquals(space.missed, 0);
});

Deno.test("rings: neighbours are seen where they are, scattered pages in one piece; both ways", () => {
  using it = rig();
  const { space, asked, bytes } = it;
  const areas = [{ at: 0x2f00, size: 0x1200 }, { at: 0x8000, size: 0x2000 }];
  assertEquals(space.prepare(1, areas), false);
  assertEquals(asked, [0x2000, 0x3000, 0x4000, 0x8000, 0x9000]);
  assertEquals(space.find(0x2f00, 0x1200), undefined);
  [[2, 7], [3, 0], [4, 15], [8, 4], [9, 5]].forEach(([page, at]) => it.learn(page!, at!));
  assertEquals(space.prepare(1, areas), true);
  const scattered = space.find(0x2f00, 0x1200)!;
  assertEquals(runs(scattered), [[7, PAGE_SIZE], [0, PAGE_SIZE], [15, PAGE_SIZE]]);
  assertEquals(runs(space.find(0x8000, 0x2000)!), [[4, PAGE_SIZE], [5, PAGE_SIZE]]);
  assertEquals(space.find(0x8000, 0x2001), undefined);
  scattered.view.setUint16(PAGE_SIZE - 1, 0xabcd, true);
  assertEquals([bytes[8 * PAGE_SIZE - 1], bytes[0]], [0xcd, 0xab]);
  // Views live until the queue is known to be closed, whatever is forgotten.
  space.forget();
  assertEquals(scattered.view.getUint8(PAGE_SIZE), 0xab);
  space.release();
  assertEquals([space.find(0x2f00, 2), scattered.buffer.detached], [undefined, true]);
});

Deno.test("rings in memory that cannot be mapped again: scattered ones are refused in words", () => {
  using it = rig(false);
  it.learn(0, 1);
  it.learn(1, 3);
  assertEquals(
    it.space.prepare(0, [{ at: 0, size: 0x2000 }]),
    "ring at 0x0 is scattered over memory that cannot be mapped again",
  );
  it.learn(1, 2);
  assertEquals(it.space.prepare(0, [{ at: 0, size: 0x2000 }]), true);
});

Deno.test("an indirect table over two pages is read in one piece", () => {
  using it = rig();
  const { space } = it;
  assertEquals([space.findHalves(0, 0x1ff0, 32), space.missed], [undefined, 1]);
  space.missed = 0;
  it.learn(1, 11);
  it.learn(2, 6);
  assertEquals(runs(space.findHalves(0, 0x1ff0, 32)!), [[11, 16], [6, 16]]);
  const inPage = space.findHalves(0, 0x1010, 32)!;
  assertEquals([inPage.at, inPage.size], [0x1000, PAGE_SIZE]);
  assertEquals([space.findHalves(0, 0x1000, 0x10_0000), space.missed], [undefined, 0]);
  assertEquals(space.explainTable(0x1000, 0x10_0000), "is too long");
});

Deno.test("anonymous memory cannot be mapped again", () => {
  using memory = mapAnonymous(PAGE_SIZE);
  assertEquals(memory.file, undefined);
});

Deno.test("a machine with a hole: pages on both sides of it, in one ring; none in it", () => {
  const fd = createSealedMemory("machine", 4 * PAGE_SIZE);
  using memory = mapKept({ fd, offset: 0 }, 4 * PAGE_SIZE, fd);
  const bytes = new Uint8Array(memory.buffer);
  for (let page = 0; page < 4; page++) bytes.fill(page, page * PAGE_SIZE);
  // As --memory at=0x1000,low=8K,hole=4K gives them.
  const regions = [
    { at: 0x1000, size: 0x2000, memory, offset: 0 },
    { at: 0x4000, size: 0x2000, memory, offset: 0x2000 },
  ];
  using space = new TranslatedSpace(regions, () => {});
  [0x5000, 0x2000, 0x4000].forEach((physical, page) => space.learn(page * PAGE_SIZE, physical));
  assertEquals(space.prepare(0, [{ at: 0, size: 0x3000 }]), true);
  assertEquals(runs(space.find(0, 0x3000)!), [3, 1, 2].map((page) => [page, PAGE_SIZE]));
  space.learn(0x3000, 0x3000);
  assertEquals(
    space.explain(0x3000, 1),
    "is 0x3000 in the driver side's machine, which no --memory covers",
  );
});
