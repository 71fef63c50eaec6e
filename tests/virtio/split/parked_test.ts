/** A queue in translated memory: what a chain lacks is asked for at once, and the chain is popped when it is there. */

import { assertEquals, assertMatch } from "@std/assert";
import { mapAnonymous, PAGE_SIZE } from "../../../src/linux/mapping.ts";
import { TranslatedSpace } from "../../../src/memory/translated_space.ts";
import { Chain, openDeviceQueue, Pop } from "../../../src/virtio/queue/mod.ts";

const PAGES = 64;
const MACHINE_AT = 0x100_0000;
const SIZE = 8;
const NEXT = 1, WRITE = 2, INDIRECT = 4;
/** Ring areas in one page each. */
const AREAS = { descriptorAddress: 0x1000, driverAddress: 0x2000, deviceAddress: 0x3000 };
const place = (page: number) => (page * 37 + 5) % PAGES;

/** A guest whose pages are scattered, with an open queue, and what was asked and not answered yet. */
function guest() {
  const memory = mapAnonymous(PAGES * PAGE_SIZE);
  const view = new DataView(memory.buffer);
  const asked = new Set<number>();
  const space = new TranslatedSpace(
    [{ at: MACHINE_AT, size: memory.size, memory, offset: 0 }],
    (page) => asked.add(page),
  );
  const where = (at: number) => place(Math.floor(at / PAGE_SIZE)) * PAGE_SIZE + at % PAGE_SIZE;
  const answer = () => {
    const pages = [...asked];
    asked.clear();
    for (const page of pages) space.learn(page, MACHINE_AT + where(page));
    return pages;
  };
  const areas = Object.values(AREAS).map((at) => ({ at, size: 256 }));
  space.prepare(0, areas);
  answer();
  assertEquals(space.prepare(0, areas), true);
  const queue = openDeviceQueue(space, {
    ...{ size: SIZE, base: 0, eventIndex: false, indirect: true },
    ...AREAS,
  });
  if (typeof queue === "string") throw new Error(queue);
  let offered = 0;
  return {
    space,
    queue,
    answer,
    describe(
      table: number,
      index: number,
      address: number,
      length: number,
      flags: number,
      next = 0,
    ) {
      // One descriptor never crosses a page.
      const at = where(table + 16 * index);
      view.setBigUint64(at, BigInt(address), true);
      view.setUint32(at + 8, length, true);
      view.setUint16(at + 12, flags, true);
      view.setUint16(at + 14, next, true);
    },
    offer(head: number) {
      view.setUint16(where(AREAS.driverAddress + 4 + 2 * (offered % SIZE)), head, true);
      view.setUint16(where(AREAS.driverAddress + 2), ++offered, true);
    },
    [Symbol.dispose]() {
      space[Symbol.dispose]();
      memory[Symbol.dispose]();
    },
  };
}

Deno.test("a chain over many pages parks once, keeps its place, asks for no kick, then is popped", () => {
  using it = guest();
  const { queue } = it;
  it.describe(0x1000, 0, 0x1_0f00, 0x2000, NEXT, 1);
  it.describe(0x1000, 1, 0x1_8ff0, 0x20, NEXT | WRITE, 2);
  it.describe(0x1000, 2, 0x1_a000, 0x10, WRITE);
  it.offer(0);
  const chain = new Chain();
  queue.noKicks();
  assertEquals(queue.next(chain), Pop.PARKED);
  assertEquals([queue.wantKicks(), queue.inFlight, queue.base], [false, 0, 0]);
  assertEquals([chain.readable.count, chain.writable.count], [0, 0]);
  assertEquals(it.answer(), [0x1_0000, 0x1_1000, 0x1_2000, 0x1_8000, 0x1_9000, 0x1_a000]);
  queue.noKicks();
  assertEquals(queue.next(chain), Pop.CHAIN);
  assertEquals([chain.readable.count, chain.readable.length], [3, 0x2000]);
  assertEquals([chain.writable.count, chain.writable.length], [3, 0x30]);
  queue.complete(0, 0x30);
  assertEquals([queue.publish(), queue.wantKicks(), queue.next(chain)], [true, false, Pop.EMPTY]);
});

Deno.test("an indirect table over two pages: first the table is asked for, then what it names", () => {
  using it = guest();
  const { queue } = it;
  const table = 0x2_0ff0;
  it.describe(table, 0, 0x2_4000, 8, NEXT, 1);
  it.describe(table, 1, 0x2_5ffc, 8, WRITE);
  it.describe(0x1000, 3, table, 32, INDIRECT);
  it.offer(3);
  const chain = new Chain();
  assertEquals([queue.next(chain), it.answer()], [Pop.PARKED, [0x2_0000, 0x2_1000]]);
  assertEquals([queue.next(chain), it.answer()], [Pop.PARKED, [0x2_4000, 0x2_5000, 0x2_6000]]);
  assertEquals([queue.next(chain), chain.head], [Pop.CHAIN, 3]);
  assertEquals([chain.readable.length, chain.writable.count, chain.writable.length], [8, 2, 8]);
});

Deno.test("a chain with a refused page is broken at once, whatever else it lacks", () => {
  using it = guest();
  const { queue, space } = it;
  it.describe(0x1000, 0, 0x3_0000, 8, NEXT, 1);
  it.describe(0x1000, 1, 0x3_1000, 8, 0);
  space.learn(0x3_1000, undefined);
  it.offer(0);
  const chain = new Chain();
  assertEquals(queue.next(chain), Pop.BROKEN);
  assertMatch(
    queue.broken!,
    /^descriptor 1: 0x31000 \(8 bytes\) is in a page that the driver side/,
  );
  assertEquals(space.missed, 0);
});

Deno.test("a chain that never ends, or of 4 GiB, is broken and not asked for for ever", () => {
  using it = guest();
  const { queue } = it;
  it.describe(0x1000, 0, 0x3_0000, 8, NEXT, 1);
  it.describe(0x1000, 1, 0x3_1000, 8, NEXT, 0);
  it.offer(0);
  const chain = new Chain(4);
  assertEquals([queue.next(chain), it.answer().length], [Pop.BROKEN, 2]);
  using other = guest();
  other.describe(0x1000, 0, 0x8_0000, 0xffff_ffff, 0);
  other.offer(0);
  for (let round = 0; round < 3; round++) {
    if (other.queue.next(chain) !== Pop.PARKED) break;
    other.answer();
  }
  assertMatch(other.queue.broken!, /chain 0 has more segments than the device takes/);
});
