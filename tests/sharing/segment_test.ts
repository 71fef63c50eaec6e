/** How a segment is cut: parts disjoint, inside, aligned; what its header says; what is too small, in words. */

import { assert, assertEquals, assertThrows } from "@std/assert";
import type { Bus } from "../../src/bus/bus.ts";
import { VmsgError } from "../../src/linux/errors.ts";
import { mapAnonymous } from "../../src/linux/mapping.ts";
import { Segment } from "../../src/sharing/segment.ts";
import { shadowRingsSize } from "../../src/sharing/copied_queue.ts";
import { cleanTest } from "../support/leaks.ts";

const PAGE = 4096;
const MIB = 1 << 20;
/** The largest frame with its headers. */
const FRAME = 66_048;

/** As much of a bus as a segment looks at. */
function busOf(segment: Bus["segment"]): Bus {
  return { description: "test bus", segment } as Bus;
}

const WITHOUT_MEMORY = busOf(undefined);

for (const size of [1, 4, 64]) {
  for (const devices of [1, 2, 3]) {
    for (const queues of size === 1 && devices > 1 ? [1, 2, 3] : [1, 2, 3, 5]) {
      cleanTest(`segment: ${size} MiB, ${devices} device numbers, ${queues} queues`, () => {
        using segment = new Segment(WITHOUT_MEMORY, size * MIB, devices);
        const parts: { start: number; end: number }[] = [];
        for (let position = 0; position < devices; position++) {
          for (let queue = 0; queue < queues; queue++) {
            const isControl = queues % 2 === 1 && queues > 1 && queue === queues - 1;
            const entries = isControl ? 64 : 256;
            const place = segment.part(position, queues, queue, entries);
            assertEquals([place.busAddress, place.offset % PAGE, place.size % PAGE], [0, 0, 0]);
            if (!isControl) assert(place.size - shadowRingsSize(entries) > FRAME);
            parts.push({ start: place.offset, end: place.offset + place.size });
          }
        }
        parts.sort((a, b) => a.start - b.start);
        assert(parts[0].start >= PAGE, "the header is the first page");
        assert(parts.at(-1)!.end <= size * MIB);
        parts.slice(1).forEach(({ start }, i) => assert(start >= parts[i].end, "parts overlap"));
        // Little is left over.
        const used = parts.reduce((sum, { start, end }) => sum + end - start, 0);
        assert(used > size * MIB - (devices * queues + 2 * devices + 1) * PAGE, `${used} bytes`);
      });
    }
  }
}

cleanTest("segment: its header says who has which part", () => {
  using memory = mapAnonymous(2 * MIB);
  const bytes = new Uint8Array(memory.buffer).fill(0xaa);
  // Queues that end within a page.
  using segment = new Segment(busOf({ memory, start: 0x2100 }), undefined, 2);
  const header = new DataView(memory.buffer, 0x3000, PAGE);
  assertEquals([0, 4, 8, 12].map((at) => header.getUint32(at, true)), [0x6773_6d76, 1, 0, 0]);
  assertEquals(new TextDecoder().decode(bytes.subarray(0x3000, 0x3004)), "vmsg");
  const entry = (i: number) => [
    header.getUint32(16 + 24 * i, true),
    header.getUint32(20 + 24 * i, true),
    Number(header.getBigUint64(24 + 24 * i, true)),
    Number(header.getBigUint64(32 + 24 * i, true)),
  ];
  const first = segment.part(0, 2, 1, 256), second = segment.part(1, 2, 0, 256);
  segment.describe(7, 1, first);
  segment.describe(9, 0, second);
  // A ring that starts again is told once.
  segment.describe(7, 1, first);
  assertEquals(header.getUint32(8, true), 2);
  assertEquals([entry(0), entry(1)], [
    [7, 1, first.offset, first.size],
    [9, 0, second.offset, second.size],
  ]);
  // More parts than there are lines are not told, and nothing else is written.
  for (let queue = 0; queue < 300; queue++) segment.describe(11, queue, first);
  assertEquals(header.getUint32(8, true), 170);
  assert(bytes.subarray(0, 0x3000).every((byte) => byte === 0xaa), "the queues are untouched");
  assert(bytes.subarray(0x4000).every((byte) => byte === 0xaa), "parts are untouched");
});

cleanTest("segment: part of a bus's memory, or all of it", () => {
  using memory = mapAnonymous(4 * MIB);
  const bus = busOf({ memory, start: 0x2000 });
  const ends = [undefined, MIB].map((size) => {
    using segment = new Segment(bus, size, 1);
    const { offset, size: length } = segment.share(0);
    assertEquals(offset, 0x3000);
    return offset + length;
  });
  assertEquals(ends, [4 * MIB, 0x2000 + MIB]);
});

const TOO_SMALL: readonly (readonly [string, () => void])[] = [
  ["a segment of 4096 bytes is too small for 1 network cards", () => {
    using _segment = new Segment(WITHOUT_MEMORY, 1, 1);
  }],
  ["a segment of 262144 bytes is too small for 2 network cards; 256K each", () => {
    using _segment = new Segment(WITHOUT_MEMORY, 256 << 10, 2);
  }],
  ["has 516096 bytes of shared memory left, not 1048576", () => {
    using memory = mapAnonymous(MIB / 2);
    using _segment = new Segment(busOf({ memory, start: 0x2000 }), MIB, 1);
  }],
  ["a segment of 0 bytes is too small", () => {
    using memory = mapAnonymous(0x2000);
    using _segment = new Segment(busOf({ memory, start: 0x2000 }), undefined, 1);
  }],
  ["for queue 3 of 16 with 256 entries: give a larger one", () => {
    using segment = new Segment(WITHOUT_MEMORY, MIB, 1);
    segment.part(0, 16, 3, 256);
  }],
  ["for queue 0 of 2 with 32768 entries: give a larger one", () => {
    using segment = new Segment(WITHOUT_MEMORY, MIB, 1);
    segment.part(0, 2, 0, 32768);
  }],
  ["for queue 2 of 3 with 4096 entries: give a larger one", () => {
    using segment = new Segment(WITHOUT_MEMORY, MIB, 1);
    segment.part(0, 3, 2, 4096);
  }],
];

for (const [words, make] of TOO_SMALL) {
  cleanTest(`segment: refused: ${words}`, () => {
    assertThrows(make, VmsgError, words);
  });
}
