/** What a disk owes its driver when the engine is slow, refuses, does half, or ends things in another order. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { type Done, type Engine, Operation } from "../../../src/devices/blk/engine.ts";
import { linuxErrno } from "../../../src/linux/errors.ts";
import type { IovecList } from "../../../src/memory/mod.ts";
import { BlkFeature } from "../../../src/virtio/features.ts";
import {
  DISCARD,
  DiskRig,
  type DiskRigOptions,
  FLUSH,
  IN,
  IOERR,
  OK,
  OUT,
  pattern,
  segment,
  UNSUPP,
  UNTOUCHED,
  WRITE_ZEROES,
} from "./support.ts";

interface Asked {
  readonly tag: number;
  readonly operation: number;
  readonly offset: number;
  readonly length: number;
}

/** Does nothing by itself. */
class HeldEngine implements Engine {
  readonly name = "held";
  readonly asked: Asked[] = [];
  drains = 0;

  constructor(readonly done: Done) {}

  transfer(tag: number, operation: number, list: IovecList, offset: number): void {
    this.asked.push({ tag, operation, offset, length: list.length });
  }
  flush(tag: number): void {
    this.asked.push({ tag, operation: Operation.FLUSH, offset: 0, length: 0 });
  }
  allocate(tag: number, _mode: number, offset: number, length: number): void {
    this.asked.push({ tag, operation: Operation.ALLOCATE, offset, length });
  }
  submit(): void {}
  drain(): void {
    this.drains++;
    while (this.asked.length > 0) this.end(0, -linuxErrno("EIO"));
  }
  [Symbol.dispose](): void {}

  /** Ends what was asked at that place. */
  end(place: number, result?: number): Asked {
    const [asked] = this.asked.splice(place, 1);
    this.done(asked.tag, result ?? asked.length);
    return asked;
  }
}

class HeldRig extends DiskRig {
  readonly engine: HeldEngine;

  constructor(options: DiskRigOptions = {}) {
    let engine!: HeldEngine;
    super({ ...options, engine: () => (done) => engine = new HeldEngine(done) });
    this.engine = engine;
  }
}

Deno.test("blk: what ends in another order is told in the order it was asked", () => {
  using disk = new HeldRig();
  const { engine, rig } = disk;
  const given = [0, 1, 2].map((i) => disk.offer(IN, i, undefined, 512));
  rig.settle();
  assertEquals(engine.asked.map(({ offset }) => offset), [0, 512, 1024]);
  engine.end(2);
  engine.end(1, -linuxErrno("EIO"));
  rig.settle();
  assertEquals([rig.queues[0].takeUsed(), rig.used], [undefined, []]);
  assertEquals(given.map((one) => disk.statusOf(one)), [UNTOUCHED, UNTOUCHED, UNTOUCHED]);
  engine.end(0);
  rig.settle();
  assertEquals(given.map(() => rig.queues[0].takeUsed()?.head), given.map(({ head }) => head));
  assertEquals(given.map((one) => disk.statusOf(one)), [OK, IOERR, OK]);
  // Once for all of them.
  assertEquals(rig.used, [0]);
});

Deno.test("blk: what is done in part is gone on with", () => {
  using disk = new HeldRig();
  const { engine, rig } = disk;
  const given = disk.offer(OUT, 4, pattern(4));
  rig.settle();
  assertEquals(engine.end(0, 700), {
    tag: 0,
    operation: Operation.WRITE,
    offset: 2048,
    length: 2048,
  });
  assertEquals(engine.end(0, 1000), {
    tag: 0,
    operation: Operation.WRITE,
    offset: 2748,
    length: 1348,
  });
  assertEquals(rig.queues[0].takeUsed(), undefined);
  engine.end(0, 348);
  rig.settle();
  assertEquals([rig.queues[0].takeUsed()?.head, disk.statusOf(given)], [given.head, OK]);
});

Deno.test("blk: EIO and ENOSPC reach the guest, and each is told once", () => {
  using disk = new HeldRig();
  const { engine, rig } = disk;
  for (const code of ["EIO", "ENOSPC", "EIO"]) {
    const given = disk.offer(OUT, 0, pattern(1));
    rig.settle();
    engine.end(0, -linuxErrno(code));
    rig.settle();
    assertEquals([rig.queues[0].takeUsed()?.length, disk.statusOf(given)], [1, IOERR]);
  }
  const flush = disk.offer(FLUSH, 0);
  rig.settle();
  engine.end(0, -linuxErrno("EIO"));
  rig.settle();
  assertEquals(disk.statusOf(flush), IOERR);
  assertEquals(disk.warnings.length, 2);
  assertMatch(disk.warnings[1], /^disk \S+: ENOSPC; the guest sees an error$/);
});

Deno.test("blk: what the file system cannot do is a hint that was heard, or is said to be unsupported", () => {
  using disk = new HeldRig();
  const refuse = (type: number, times: number) => {
    const given = disk.offer(type, 0, segment(3, 8));
    disk.rig.settle();
    const asked = Array.from(
      { length: times },
      () => disk.engine.end(0, -linuxErrno("EOPNOTSUPP")),
    );
    disk.rig.settle();
    assertEquals(
      asked.map(({ offset, length }) => [offset, length]),
      asked.map(() => [1536, 4096]),
    );
    return disk.statusOf(given);
  };
  assertEquals(refuse(DISCARD, 1), OK);
  // Zeros by a hole, where there is no other way to make them; nor that.
  assertEquals(refuse(WRITE_ZEROES, 2), UNSUPP);
  assertEquals(refuse(WRITE_ZEROES, 1), UNSUPP);
  assertEquals(disk.warnings, []);
});

Deno.test("blk: written through, a write is told of when it was flushed", () => {
  using disk = new HeldRig({ features: [BlkFeature.CONFIG_WCE] });
  const { engine, rig } = disk;
  rig.device.writeConfig(32, new Uint8Array([0]));
  const given = disk.offer(OUT, 0, pattern(1));
  rig.settle();
  engine.end(0);
  rig.settle();
  assertEquals(rig.queues[0].takeUsed(), undefined);
  assertEquals(engine.end(0, 0).operation, Operation.FLUSH);
  rig.settle();
  assertEquals([rig.queues[0].takeUsed()?.head, disk.statusOf(given)], [given.head, OK]);
  // Reads need none.
  disk.offer(IN, 0, undefined, 512);
  rig.settle();
  engine.end(0);
  rig.settle();
  assert(rig.queues[0].takeUsed() !== undefined);
});

Deno.test("blk: a queue stops when nothing of it is under way, and nothing is begun meanwhile", async () => {
  using disk = new HeldRig({ queues: 2 });
  const { engine, rig } = disk;
  const other = disk.offer(IN, 9, undefined, 512, 1);
  const given = [0, 1].map((i) => disk.offer(IN, i, undefined, 512));
  rig.settle();
  assertEquals(engine.asked.length, 3);
  let base: number | undefined;
  const stopped = Promise.resolve(rig.device.stopQueue(0)).then((answer) => base = answer);
  disk.offer(IN, 2, undefined, 512);
  rig.settle();
  engine.end(engine.asked.findIndex(({ offset }) => offset === 0));
  rig.settle();
  await Promise.resolve();
  assertEquals([base, engine.asked.length], [undefined, 2]);
  engine.end(engine.asked.findIndex(({ offset }) => offset === 512));
  await rig.reactor.until(stopped);
  // Both were told of, the third was not looked at; the other queue goes on.
  assertEquals(base, 2);
  assertEquals(given.map((one) => disk.statusOf(one)), [OK, OK]);
  assertEquals(given.map(() => rig.queues[0].takeUsed()?.head), given.map(({ head }) => head));
  engine.end(0);
  rig.settle();
  assertEquals(rig.queues[1].takeUsed()?.head, other.head);
});

Deno.test("blk: stopped without leave to touch memory, what was done is taken back to be done again", async () => {
  using disk = new HeldRig();
  const { engine, rig } = disk;
  const given = [0, 1].map((i) => disk.offer(OUT, i, pattern(1)));
  rig.settle();
  rig.touch = false;
  const stopped = Promise.resolve(rig.device.stopQueue(0));
  engine.end(0);
  engine.end(0);
  assertEquals(await rig.reactor.until(stopped), 0);
  assertEquals(rig.queues[0].takeUsed(), undefined);
  assertEquals(given.map((one) => disk.statusOf(one)), [UNTOUCHED, UNTOUCHED]);
});

Deno.test("blk: one that is disposed of waits for its disk", () => {
  const disk = new HeldRig();
  disk.offer(IN, 0, undefined, 512);
  disk.rig.settle();
  disk[Symbol.dispose]();
  assertEquals([disk.engine.drains > 0, disk.engine.asked.length], [true, 0]);
});

Deno.test("blk: what is under way is held where it lies, until the driver is told", () => {
  using disk = new HeldRig();
  const { engine, rig: { device, memory } } = disk;
  const regionAt = (at: number, size: number) => {
    const { offset } = memory.windows[0]!;
    return { at, size, memory: memory.memory, offset: offset + at - memory.windows[0]!.at };
  };
  const first = disk.offer(IN, 0, undefined, 512);
  const second = disk.offer(IN, 1, undefined, 512);
  disk.rig.settle();
  const regions = [first, second].map(({ dataAt }) => regionAt(dataAt, 512));
  const held = () => regions.map((region) => device.holdsIn(region));
  assertEquals(held(), [0, 0]);
  assertEquals(device.holdsIn(regionAt(second.dataAt + 0x1_0000, 512)), -1);
  // Its status is not told before that of the one in front.
  engine.end(1, 512);
  disk.rig.settle();
  assertEquals(held(), [0, 0]);
  assertEquals(device.holdsIn(regionAt(second.statusAt, 1)), 0);
  engine.end(0, 512);
  disk.rig.settle();
  assertEquals(held(), [-1, -1]);
});
