/** The block device against the mock driver, by io_uring where it is there and by system calls. */

import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import { VmsgError } from "../../../src/linux/errors.ts";
import { BlkConfig } from "../../../src/virtio/blk.ts";
import { BlkFeature, featureNames } from "../../../src/virtio/features.ts";
import { BUFFERS } from "../../support/queue_rig.ts";
import {
  DISCARD,
  DiskRig,
  FLUSH,
  GET_ID,
  IN,
  IOERR,
  OK,
  OUT,
  pattern,
  SECTORS,
  segment,
  UNSUPP,
  UNTOUCHED,
  WITHOUT_RING,
  WRITE_ZEROES,
} from "./support.ts";

const NOTHING = new Uint8Array();

Deno.test("blk: its configuration and features are those of the file", () => {
  using disk = new DiskRig({ queues: 3 });
  const { device } = disk.rig;
  const config = new DataView(device.readConfig(0, device.configSize).slice().buffer);
  assertEquals([device.deviceId, device.queueCount, device.configSize], [2, 3, 60]);
  assertEquals(config.getBigUint64(BlkConfig.CAPACITY, true), BigInt(SECTORS));
  assertEquals(config.getUint32(BlkConfig.SEG_MAX, true), 126);
  assertEquals(config.getUint32(BlkConfig.BLK_SIZE, true), 512);
  assertEquals(config.getUint8(BlkConfig.PHYSICAL_BLOCK_EXP), 3);
  assertEquals(config.getUint16(BlkConfig.NUM_QUEUES, true), 3);
  const names = featureNames(device.features, device.deviceId);
  for (const name of ["SEG_MAX", "FLUSH", "MQ", "CONFIG_WCE", "DISCARD", "WRITE_ZEROES"]) {
    assert(names.includes(name), name);
  }
  assert(!names.includes("RO"));
});

for (const [name, options] of [["io_uring", {}], ["system calls", WITHOUT_RING]] as const) {
  Deno.test(`blk by ${name}: sectors are written and read, and nothing beside them`, () => {
    using disk = new DiskRig(options);
    assertEquals(disk.ask(OUT, 8, pattern(16, 8)).status, OK);
    const expected = new Uint8Array(SECTORS * 512);
    expected.set(pattern(16, 8), 8 * 512);
    assertEquals(disk.file, expected);
    const { status, length, bytes } = disk.ask(IN, 6, NOTHING, 20 * 512);
    assertEquals([status, length], [OK, 20 * 512 + 1]);
    assertEquals(bytes, expected.subarray(6 * 512, 26 * 512));
    assertEquals(disk.ask(FLUSH, 0), { status: OK, length: 1, bytes: NOTHING });
  });

  Deno.test(`blk by ${name}: buffers in pieces of any form, header and status inside of data's`, () => {
    using disk = new DiskRig(options);
    disk.fill(pattern(SECTORS));
    const { memory } = disk.rig;
    // Header in two pieces; 1024 bytes in pieces that no sector fits, the last of which ends in the status.
    memory.write32(BUFFERS, IN);
    memory.write64(BUFFERS + 8, 3n);
    const pieces = [700, 1, 323 + 1].map((length, i) => ({
      address: BUFFERS + 0x1000 * (i + 1),
      length,
    }));
    const read = disk.add(
      [{ address: BUFFERS, length: 5 }, { address: BUFFERS + 5, length: 11 }],
      pieces,
    );
    assertEquals(disk.used().length, 1025);
    assertEquals(disk.statusOf(read), OK);
    const bytes = pieces.flatMap(({ address, length }) => [...memory.bytes(address, length)]);
    assertEquals(new Uint8Array(bytes.slice(0, 1024)), pattern(2, 3));
    // Header and data in one piece.
    memory.write32(BUFFERS, OUT);
    memory.write64(BUFFERS + 8, 100n);
    memory.bytes(BUFFERS + 16, 512).fill(0xab);
    const write = disk.add(
      [{ address: BUFFERS, length: 528 }],
      [{ address: BUFFERS + 0x800, length: 1 }],
    );
    disk.used();
    assertEquals(disk.statusOf(write), OK);
    assertEquals(disk.file.subarray(100 * 512, 101 * 512), new Uint8Array(512).fill(0xab));
    assertEquals(disk.file.subarray(101 * 512, 102 * 512), pattern(1, 101));
  });

  Deno.test(`blk by ${name}: what cannot be is answered so, and the next request is served`, () => {
    using disk = new DiskRig(options);
    const cases: [string, number, number, Uint8Array, number, number][] = [
      ["a read beyond the end", IN, SECTORS, NOTHING, 512, IOERR],
      ["a read across the end", IN, SECTORS - 1, NOTHING, 1024, IOERR],
      ["a write across the end", OUT, SECTORS - 1, pattern(2), 0, IOERR],
      ["sector 2^32", IN, 2 ** 32, NOTHING, 512, IOERR],
      ["sector 2^53", OUT, 2 ** 53, pattern(1), 0, IOERR],
      ["half a sector read", IN, 0, NOTHING, 100, IOERR],
      ["half a sector written", OUT, 0, new Uint8Array(513), 0, IOERR],
      ["a read with data to be read", IN, 0, pattern(1), 512, IOERR],
      ["a write with room for data", OUT, 0, pattern(1), 512, IOERR],
      ["an unknown type", 77, 0, NOTHING, 0, UNSUPP],
      ["a secure erase", 14, 0, segment(0, 1), 0, UNSUPP],
      ["a discard beyond the end", DISCARD, 0, segment(SECTORS - 1, 2), 0, IOERR],
      ["a discard of 2^32 sectors", DISCARD, 0, segment(0, 0xffff_ffff), 0, IOERR],
      ["a discard with a flag", DISCARD, 0, segment(0, 1, 1), 0, UNSUPP],
      ["a discard of half a segment", DISCARD, 0, new Uint8Array(8), 0, IOERR],
      ["a discard of two segments", DISCARD, 0, new Uint8Array(32), 0, IOERR],
      ["zeroes with an unknown flag", WRITE_ZEROES, 0, segment(0, 1, 2), 0, UNSUPP],
      ["zeroes beyond the end", WRITE_ZEROES, 0, segment(SECTORS, 1), 0, IOERR],
    ];
    for (const [what, type, sector, out, room, expected] of cases) {
      const { status, length, bytes } = disk.ask(type, sector, out, room);
      assertEquals(status, expected, what);
      assertEquals(length, room === 0 ? 1 : 0, what);
      assert(bytes.every((byte, i) => byte === (out[i] ?? UNTOUCHED)), what);
    }
    assertEquals(disk.file, new Uint8Array(SECTORS * 512));
    // Nothing to do is done; a read of nothing too.
    assertEquals(disk.ask(IN, 5).status, OK);
    assertEquals(disk.ask(DISCARD, 0, segment(0, 0)).status, OK);
    assertEquals(disk.ask(IN, 0, NOTHING, 512).status, OK);
    assertEquals(disk.rig.resets, []);
  });

  Deno.test(`blk by ${name}: zeros are written, and discarded room is given back`, () => {
    using disk = new DiskRig(options);
    disk.fill(pattern(SECTORS).fill(7));
    const blocks = () => Deno.statSync(disk.path).blocks!;
    const full = blocks();
    assertEquals(disk.ask(WRITE_ZEROES, 0, segment(16, 16)).status, OK);
    const expected = new Uint8Array(SECTORS * 512).fill(7).fill(0, 16 * 512, 32 * 512);
    assertEquals(disk.file, expected);
    assertEquals(disk.ask(WRITE_ZEROES, 0, segment(32, 8, 1)).status, OK);
    assertEquals(disk.ask(DISCARD, 0, segment(128, 64)).status, OK);
    assertEquals(disk.file, expected.fill(0, 32 * 512, 40 * 512).fill(0, 128 * 512, 192 * 512));
    assert(blocks() <= full - 64, `${blocks()} of ${full} blocks`);
  });

  Deno.test(`blk by ${name}: more requests than there is room for, on two queues, all of them right`, () => {
    using disk = new DiskRig({ ...options, queues: 2, sectors: 4096 });
    disk.fill(pattern(4096));
    // Each read alone is a chain of two; 128 are more than the device has at work.
    const made = Array.from({ length: 60 }, (_, i) => {
      const at = BUFFERS + 0x400 * i;
      disk.rig.memory.write32(at, IN);
      disk.rig.memory.write64(at + 8, BigInt(7 * i));
      const read = [{ address: at, length: 16 }];
      const write = [{ address: at + 16, length: 512 + 1 }];
      return { ...disk.add(read, write, i % 2), at, queue: i % 2 };
    });
    for (const [i, { head, at, queue, ...given }] of made.entries()) {
      assertEquals(disk.used(queue), { head: head!, length: 513 });
      assertEquals(disk.statusOf({ head, ...given }), OK);
      assertEquals(disk.rig.memory.bytes(at + 16, 512), pattern(1, 7 * i));
    }
  });

  Deno.test(`blk by ${name}: a file that became shorter is an error for its guest`, () => {
    using disk = new DiskRig(options);
    disk.fill(pattern(SECTORS));
    Deno.truncateSync(disk.path, 10 * 512);
    assertEquals(disk.ask(IN, 20, NOTHING, 512).status, IOERR);
    const { status, length } = disk.ask(IN, 9, NOTHING, 1024);
    assertEquals([status, length], [IOERR, 512]);
    assertMatch(
      disk.warnings.join("\n"),
      /^disk \S+: it is shorter than it was; the guest sees an error$/,
    );
  });
}

Deno.test("blk: behind a proxy that forwards, requests are of a size that it has room for", () => {
  const limits = (disk: DiskRig) => {
    const { device } = disk.rig;
    const config = new DataView(device.readConfig(0, device.configSize).slice().buffer);
    const isLimited = featureNames(device.features, device.deviceId).includes("SIZE_MAX");
    const [size, count] = [BlkConfig.SIZE_MAX, BlkConfig.SEG_MAX].map((at) =>
      config.getUint32(at, true)
    );
    return [isLimited, size, count];
  };
  using forwarded = new DiskRig({ forwarded: true });
  using other = new DiskRig();
  assertEquals([limits(forwarded), limits(other)], [[true, 4096, 30], [false, 0, 126]]);
});

Deno.test("blk: GET_ID tells the serial, in as much room as there is", () => {
  using disk = new DiskRig();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  const id = disk.ask(GET_ID, 0, NOTHING, 20);
  assertEquals([id.status, id.length, text(id.bytes)], [OK, 21, "serial 1" + "\0".repeat(12)]);
  const short = disk.ask(GET_ID, 0, NOTHING, 4);
  assertEquals([short.length, text(short.bytes)], [5, "seri"]);
  assertEquals(disk.ask(GET_ID, 0, NOTHING, 30).length, 20);
});

Deno.test("blk: a header that is too short is answered; without room for a status the device needs a reset", () => {
  using disk = new DiskRig();
  const short = disk.add([{ address: BUFFERS, length: 15 }], [{
    address: BUFFERS + 64,
    length: 1,
  }]);
  disk.used();
  assertEquals(disk.statusOf(short), IOERR);
  const none = disk.add([], [{ address: BUFFERS + 64, length: 1 }]);
  disk.used();
  assertEquals(disk.statusOf(none), IOERR);
  disk.add([{ address: BUFFERS, length: 16 }], []);
  disk.rig.settle();
  assertMatch(disk.rig.resets.join(), /^queue 0: request \d+ has no room for a status$/);
});

Deno.test("blk: one that is read-only takes no writes", () => {
  using disk = new DiskRig({ readonly: true });
  const { device } = disk.rig;
  const names = featureNames(device.features, device.deviceId);
  assert(names.includes("RO"));
  for (const name of ["CONFIG_WCE", "DISCARD", "WRITE_ZEROES"]) assert(!names.includes(name), name);
  assertEquals(disk.ask(OUT, 0, pattern(1)).status, IOERR);
  assertEquals(disk.ask(IN, 0, NOTHING, 512).status, OK);
  assertEquals(disk.file, new Uint8Array(SECTORS * 512));
});

Deno.test("blk: discards are refused where they were not offered", () => {
  using disk = new DiskRig({ discard: false });
  const { device } = disk.rig;
  assert(!featureNames(device.features, device.deviceId).includes("DISCARD"));
  assertEquals(device.readConfig(BlkConfig.WRITE_ZEROES_MAY_UNMAP, 1)[0], 0);
  // Zeros are written where the driver lets them be unmapped, and room is kept.
  disk.fill(pattern(SECTORS).fill(7));
  const { blocks } = Deno.statSync(disk.path);
  assertEquals(disk.ask(WRITE_ZEROES, 0, segment(0, SECTORS, 1)).status, OK);
  assertEquals(disk.file, new Uint8Array(SECTORS * 512));
  assertEquals(Deno.statSync(disk.path).blocks, blocks);
});

Deno.test("blk: the driver chooses how writes are kept, where it has agreed to", () => {
  using agreed = new DiskRig({ features: [BlkFeature.CONFIG_WCE] });
  const { device } = agreed.rig;
  assertEquals(device.readConfig(BlkConfig.WRITEBACK, 1)[0], 1);
  for (const [offset, bytes] of [[0, [0]], [32, [2]], [32, [0, 0]], [33, [0]]] as const) {
    assert(!device.writeConfig(offset, new Uint8Array(bytes)));
  }
  assert(device.writeConfig(BlkConfig.WRITEBACK, new Uint8Array([0])));
  assertEquals(device.readConfig(BlkConfig.WRITEBACK, 1)[0], 0);
  assertEquals(agreed.ask(OUT, 1, pattern(1)).status, OK);
  using other = new DiskRig();
  assert(!other.rig.device.writeConfig(BlkConfig.WRITEBACK, new Uint8Array([0])));
});

Deno.test("blk: a disk whose file has another size is another one when it is looked at", () => {
  using disk = new DiskRig();
  const { device } = disk.rig;
  const capacity = () =>
    new DataView(device.readConfig(0, 8).slice().buffer).getBigUint64(BlkConfig.CAPACITY, true);
  device.refresh();
  assertEquals([capacity(), disk.rig.configChanges], [BigInt(SECTORS), 0]);
  Deno.truncateSync(disk.path, 2 * SECTORS * 512 + 511);
  // Not before: a driver is told first.
  assertEquals(disk.ask(OUT, SECTORS, pattern(1)).status, IOERR);
  device.refresh();
  assertEquals([capacity(), disk.rig.configChanges], [BigInt(2 * SECTORS), 1]);
  assertEquals(disk.ask(OUT, 2 * SECTORS - 1, pattern(1)).status, OK);
  assertEquals(disk.ask(OUT, 2 * SECTORS, pattern(1)).status, IOERR);
  Deno.truncateSync(disk.path, 512);
  device.refresh();
  assertEquals([capacity(), disk.rig.configChanges], [1n, 2]);
  assertEquals(disk.ask(IN, 1, NOTHING, 512).status, IOERR);
  Deno.truncateSync(disk.path, 0);
  assertThrows(() => device.refresh(), VmsgError, "is empty");
  assertEquals([capacity(), disk.rig.configChanges], [1n, 2]);
});
