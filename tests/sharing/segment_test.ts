/** How a segment is cut: parts disjoint, inside, aligned; what its header says; what is too small, in words. */

import { assert, assertEquals, assertThrows } from "@std/assert";
import type { Bus } from "../../src/bus/bus.ts";
import { VmsgError } from "../../src/linux/errors.ts";
import { mapAnonymous } from "../../src/linux/mapping.ts";
import { Segment } from "../../src/sharing/segment.ts";
import type { RemoteDevice } from "../../src/transport/remote_device.ts";
import { commandQueue, type DeviceTerms, queuesInUse } from "../../src/sharing/division.ts";
import { NetFeature } from "../../src/virtio/features.ts";
import type { DeviceQueue } from "../../src/virtio/queue/mod.ts";
import { copiedRingsSize } from "../../src/sharing/copied_queue.ts";
import { cleanTest } from "../support/leaks.ts";

const PAGE = 4096;
const MIB = 1 << 20;
/** The largest frame with its headers. */
const FRAME = 66_048;

/** A network card with so many queues; with an odd number, a driver that uses the last one as control queue. */
function network(maxQueues: number): DeviceTerms {
  const bits = maxQueues % 2 === 1 && maxQueues > 1 ? [NetFeature.CTRL_VQ, NetFeature.MQ] : [];
  const features = Uint32Array.of(bits.reduce((word, bit) => word | (1 << bit), 0), 1);
  return {
    info: { deviceId: 1, vendorId: 0, featureBlocks: 2, configSize: 12, maxQueues },
    features,
  };
}

/** As much of a device as a segment looks at. */
function device(number: number): RemoteDevice {
  return { number } as RemoteDevice;
}

/** The queues 0, 1, ... */
function upTo(count: number): number[] {
  return [...Array(count).keys()];
}

/** A driver's queue of that size, as far as it is looked at when there is no room for it. */
function queueOf(size: number): DeviceQueue {
  return { size } as DeviceQueue;
}

const TERMS = { eventIndex: true, indirect: true, maxSize: 1024 };

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
          const info = network(queues);
          const divided = segment.divide(device(position), position, upTo(queues), info);
          assertEquals([...divided.keys()], upTo(queues));
          for (const [queue, part] of divided) {
            const isControl = queues % 2 === 1 && queues > 1 && queue === queues - 1;
            assertEquals([part.isCommand, part.queue, part.count], [isControl, queue, queues]);
            assertEquals([part.at, part.offset % PAGE, part.size % PAGE], [part.offset, 0, 0]);
            if (!isControl) assert(part.size - copiedRingsSize(256) > FRAME);
            parts.push({ start: part.offset, end: part.offset + part.size });
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
  segment.divide(device(7), 0, [0, 1], network(2));
  const second = segment.divide(device(9), 1, [0], network(2)).get(0)!;
  // What is divided anew is told anew.
  const first = segment.divide(device(7), 0, [1], network(2)).get(1)!;
  assertEquals(header.getUint32(8, true), 2);
  assertEquals([entry(0), entry(1)], [
    [7, 1, first.offset, first.size],
    [9, 0, second.offset, second.size],
  ]);
  // More parts than there are lines are not told, and nothing else is written.
  segment.divide(device(7), 0, upTo(300), network(300));
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

/** Opens a queue of a card in 1 MiB. */
function refuse(queues: number, queue: number, entries: number): void {
  using segment = new Segment(WITHOUT_MEMORY, MIB, 1);
  const parts = segment.divide(device(0), 0, upTo(queues), network(queues));
  segment.open(queueOf(entries), parts.get(queue)!, TERMS);
}

/** What the driver of a device with so many queues uses, once some of its rings are to run. */
function inUse(deviceId: number, maxQueues: number, bits: number[], rings: number[]) {
  const features = Uint32Array.of(0, 0);
  for (const bit of bits) features[bit >> 5]! |= 1 << (bit & 31);
  const info = { deviceId, vendorId: 0, featureBlocks: 2, configSize: 0, maxQueues };
  return [queuesInUse(rings, { info, features }), commandQueue({ info, features })];
}

Deno.test("division: a driver's queues, and those that are sure to follow", () => {
  const { CTRL_VQ, MQ, RSS } = NetFeature;
  assertEquals(inUse(1, 2, [], [0]), [[0, 1], undefined]);
  assertEquals(inUse(1, 3, [CTRL_VQ], [0]), [[0, 1, 2], 2]);
  // The control queue of a card with many pairs is the third one for a driver that uses one pair.
  assertEquals(inUse(1, 129, [CTRL_VQ], [0]), [[0, 1, 2], 2]);
  assertEquals(inUse(1, 129, [CTRL_VQ, MQ], [0, 1, 2, 3]), [[0, 1, 2, 3, 128], 128]);
  assertEquals(inUse(1, 129, [CTRL_VQ, RSS], [5, 0]), [[0, 1, 5, 128], 128]);
  // A device that lies about its queues.
  assertEquals(inUse(1, 2, [CTRL_VQ], [0]), [[0, 1], undefined]);
  assertEquals(inUse(4, 1, [], [0]), [[0], undefined]);
  assertEquals(inUse(2, 3, [CTRL_VQ], [2]), [[2], undefined]);
});

cleanTest("segment: parts are as large as the queues that are used allow", () => {
  using segment = new Segment(WITHOUT_MEMORY, MIB, 1);
  const { size } = segment.share(0);
  const sizes = (queues: number[], terms: DeviceTerms) =>
    [...segment.divide(device(0), 0, queues, terms)].map(([queue, part]) => [queue, part.size]);
  const pages = (bytes: number) => Math.floor(bytes / PAGE) * PAGE;
  const half = pages(size / 2);
  assertEquals(sizes([0, 1], network(2)), [[0, half], [1, half]]);
  const entropy = { ...network(1), info: { ...network(1).info, deviceId: 4 } };
  assertEquals(sizes([0], entropy), [[0, size]]);
  const control = pages(size / 32), data = pages((size - control) / 2);
  assertEquals(sizes([0, 1, 128], network(129)), [[0, data], [1, data], [128, control]]);
  assertEquals(sizes([128], network(129)), [[128, control]]);
});

const TOO_SMALL: readonly (readonly [string, () => void])[] = [
  ["a segment of 4096 bytes is too small for 1 devices", () => {
    using _segment = new Segment(WITHOUT_MEMORY, 1, 1);
  }],
  ["a segment of 262144 bytes is too small for 2 devices; 256K each", () => {
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
  ["for queue 3 of 16 with 256 entries: give a larger one", () => refuse(16, 3, 256)],
  ["for queue 0 of 2 with 32768 entries: give a larger one", () => refuse(2, 0, 32768)],
  ["for queue 2 of 3 with 4096 entries: give a larger one", () => refuse(3, 2, 4096)],
];

for (const [words, make] of TOO_SMALL) {
  cleanTest(`segment: refused: ${words}`, () => {
    assertThrows(make, VmsgError, words);
  });
}
