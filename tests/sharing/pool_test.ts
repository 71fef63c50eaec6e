/**
 * The pool against a model: a list of pieces, oldest first. Pieces never overlap, lie inside the space and
 * begin at multiples of 64; a piece is refused only where a ring has no room for it. The seed is printed; SEED=...
 * repeats a run.
 */

import { assert, assertEquals } from "@std/assert";
import { POOL_ALIGNMENT, RingPool } from "../../src/sharing/pool.ts";
import { Random } from "../support/mock_driver.ts";

interface Piece {
  readonly at: number;
  readonly size: number;
}

/** A pool and the list of what is out. */
class Modelled {
  readonly pool: RingPool;
  readonly pieces: Piece[] = [];

  constructor(readonly size: number) {
    this.pool = new RingPool(size);
  }

  /** Where a ring has room for so many bytes: behind the newest piece, or at the beginning; -1: nowhere. */
  #expected(size: number): number {
    const oldest = this.pieces[0], newest = this.pieces.at(-1);
    if (oldest === undefined || newest === undefined) return 0;
    const end = newest.at + newest.size;
    if (newest.at < oldest.at) return end + size <= oldest.at ? end : -1;
    if (end + size <= this.size) return end;
    return size <= oldest.at ? 0 : -1;
  }

  take(length: number): number {
    const size = Math.ceil(length / POOL_ALIGNMENT) * POOL_ALIGNMENT;
    const expected = this.#expected(size);
    const at = this.pool.take(length);
    assertEquals(at, expected);
    if (at < 0) return at;
    assert(at % POOL_ALIGNMENT === 0 && at + size <= this.size);
    for (const other of this.pieces) {
      assert(at + size <= other.at || other.at + other.size <= at, "pieces overlap");
    }
    this.pieces.push({ at, size });
    return at;
  }

  giveBack(): void {
    this.pieces.shift();
    // What it is given for the last piece does not matter.
    this.pool.giveBack(this.pieces[0]?.at ?? 64);
  }
}

Deno.test("pool: random pieces agree with the model", () => {
  const seed = Random.seed();
  console.log(`SEED=${seed}`);
  const random = new Random(seed);
  let full = 0, wraps = 0;
  for (let round = 0; round < 200; round++) {
    const size = POOL_ALIGNMENT * (1 + random.below(random.pick([4, 64, 4096])));
    const modelled = new Modelled(size);
    const largest = random.pick([64, 1500, size]);
    for (let step = 0; step < 400; step++) {
      if (random.chance(0.45) && modelled.pieces.length > 0) modelled.giveBack();
      else {
        const at = modelled.take(1 + random.below(Math.min(largest, size)));
        if (at < 0) full++;
        if (at === 0 && modelled.pieces.length > 1) wraps++;
      }
    }
    while (modelled.pieces.length > 0) modelled.giveBack();
    // All of it is there again, in one piece.
    assertEquals(modelled.take(size), 0);
  }
  assert(full > 1000 && wraps > 100, `the test tests something: ${full} full, ${wraps} wraps`);
});

Deno.test("pool: exact fit, at the end and after it", () => {
  const modelled = new Modelled(256);
  assertEquals([modelled.take(128), modelled.take(128), modelled.take(1)], [0, 128, -1]);
  modelled.giveBack();
  assertEquals([modelled.take(129), modelled.take(128), modelled.take(1)], [-1, 0, -1]);
  modelled.giveBack();
  assertEquals([modelled.take(65), modelled.take(1), modelled.take(64)], [128, -1, -1]);
});

Deno.test("pool: a piece that does not fit at the end waits for room at the beginning", () => {
  const modelled = new Modelled(256);
  assertEquals([modelled.take(64), modelled.take(128), modelled.take(128)], [0, 64, -1]);
  modelled.giveBack();
  assertEquals(modelled.take(128), -1);
  modelled.giveBack();
  assertEquals(modelled.take(256), 0);
});
