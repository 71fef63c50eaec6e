/** The guest of a vhost-user front end: memory in a file, two rings, and buffers whose bytes tell who may have them. */

import { assert } from "@std/assert";
import { createEventFd, signalEventFd } from "../../src/linux/eventfd.ts";
import { createSealedMemory, type Fd } from "../../src/linux/fd.ts";
import { mapShared, PAGE_SIZE } from "../../src/linux/mapping.ts";
import { MEMORY_SIZE } from "../support/front_end.ts";
import { MockDriver, MockMemory, type Random } from "../support/mock_driver.ts";

/** MockMemory's guard, and so where its window begins in the file. */
export const GUARD = PAGE_SIZE;
const RINGS = [0, 1];
/** As RawFrontEnd.startRing has it. */
const ringAt = (index: number) => 0x4000 * index + 0x1000;
/** The guest's buffers, a page each: what is read, and what may be written. */
const BUFFERS = 0x1_0000, COUNT = 64, LENT_AT = 2048, LENT = 1000;
const SHOWN = 0x11, WRITTEN = 0x22, SECRET = 0x5e;
/** The guest of a front end: memory in a file, two rings, buffers in them. */
export class Guest implements Disposable {
  readonly file: Fd = createSealedMemory("vmsg-fuzz-guest", MEMORY_SIZE + 2 * GUARD);
  readonly memory = new MockMemory(
    [{ at: 0, size: MEMORY_SIZE }],
    0,
    (size) => mapShared(this.file.number, size),
  );
  readonly rings: readonly MockDriver[] = RINGS.map((index) =>
    new MockDriver(this.memory, { size: 64, at: ringAt(index) })
  );
  readonly kick: Fd = createEventFd();
  #offered = 0;

  constructor() {
    this.memory.bytes(BUFFERS, COUNT * PAGE_SIZE).fill(SECRET);
  }

  /** Offers a buffer on one of the rings, if there is one left, and kicks. */
  offer(index: number): void {
    const ring = this.rings[index]!;
    if (this.#offered < COUNT && ring.free >= 2) {
      const at = BUFFERS + PAGE_SIZE * this.#offered++;
      this.memory.bytes(at, LENT).fill(SHOWN);
      this.memory.bytes(at + LENT_AT, LENT).fill(WRITTEN);
      ring.add([{ address: at, length: LENT }], [{ address: at + LENT_AT, length: LENT }]);
      ring.publish();
    }
    signalEventFd(this.kick);
  }

  /** One word of the rings, descriptors included, becomes another. */
  scribble(random: Random): void {
    const at = ringAt(random.below(2)) + 2 * random.below(0x1800);
    this.memory.write16(at, random.chance(0.5) ? random.below(0x100) : random.u32());
  }

  /** Of the buffers' memory only what was lent has changed, and nothing around all of it. */
  check(): void {
    this.memory.checkGuards();
    for (let n = 0; n < this.#offered; n++) {
      this.memory.bytes(BUFFERS + PAGE_SIZE * n + LENT_AT, LENT).fill(WRITTEN);
    }
    const bytes = this.memory.bytes(BUFFERS, COUNT * PAGE_SIZE);
    const odd = bytes.findIndex((byte) => byte !== SECRET && byte !== SHOWN && byte !== WRITTEN);
    assert(odd < 0, `byte ${odd} of the guest's was not lent`);
  }

  [Symbol.dispose](): void {
    this.memory[Symbol.dispose]();
    this.file[Symbol.dispose]();
    this.kick[Symbol.dispose]();
  }
}
