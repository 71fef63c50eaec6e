/**
 * A guest's memory whose pages are scattered over a machine's RAM that is made up, and a device that knows them by
 * their physical addresses only.
 */

import type { Fd } from "../../src/linux/fd.ts";
import { PAGE_SIZE } from "../../src/linux/mapping.ts";
import type { PhysicalRun } from "../../src/linux/page_map.ts";
import { PhysicalMap } from "../../src/sharing/physical_map.ts";
import type { PagesBus } from "../../src/sharing/pages.ts";
import { TranslatedQueue } from "../../src/sharing/translated_queue.ts";
import type { SharedRegion } from "../../src/sharing/sharing.ts";
import { openDeviceQueue } from "../../src/virtio/queue/mod.ts";
import type { MockDriver, MockElement, MockMemory, Random } from "./mock_driver.ts";
import type { segmentOf } from "./shadow_rig.ts";

/** Where the RAM begins that the pages are in: above 4 GiB, so that an address cut to 32 bits shows. */
const RAM_AT = 0x1_4000_0000;

/** A bus that pins, and counts what is pinned. */
export class FakePins implements PagesBus {
  readonly description: string = "bus test";
  readonly pinHandles: readonly Fd[] = [];
  /** By address, the size. */
  readonly pinned: Map<bigint, number> = new Map();

  pin(address: bigint, size: number): Disposable {
    if (this.pinned.has(address)) throw new Error("pinned twice");
    this.pinned.set(address, size);
    return {
      [Symbol.dispose]: () => {
        if (!this.pinned.delete(address)) throw new Error("let go twice");
      },
    };
  }
}

/** A region as far as a physical map looks at it. */
export function regionOf(
  { address, size }: { readonly address: bigint; readonly size: number },
): SharedRegion {
  return { memory: { address, size } } as unknown as SharedRegion;
}

/** All of a mock memory, guards included, in frames in no order. */
export class ScatteredMemory {
  readonly pins: FakePins = new FakePins();
  readonly map: PhysicalMap;
  readonly region: SharedRegion;
  readonly runs: readonly PhysicalRun[];
  readonly #bytes: Uint8Array;
  /** The offset in the memory of each frame; frames that are no part of it are missing. */
  readonly #offsets: Map<number, number> = new Map();

  /** @param longest the most pages that lie one after another */
  constructor(memory: MockMemory, random: Random, longest: number) {
    const { memory: mapping } = memory;
    const { address, buffer, size } = mapping as typeof mapping & { readonly size: number };
    this.#bytes = new Uint8Array(buffer);
    this.runs = scatter(size / PAGE_SIZE, random, longest);
    for (const { offset, physical, length } of this.runs) {
      for (let at = 0; at < length; at += PAGE_SIZE) this.#offsets.set(physical + at, offset + at);
    }
    this.map = new PhysicalMap(this.pins, () => [...this.runs]);
    this.region = regionOf({ address, size });
    this.map.add(this.region);
  }

  /** The parts of an element, each in a page; throws outside the memory. */
  *#parts({ address, length }: MockElement): Generator<Uint8Array> {
    for (let done = 0; done < length;) {
      const inPage = (address + done) % PAGE_SIZE;
      const offset = this.#offsets.get(address + done - inPage);
      if (offset === undefined) throw new Error(`0x${(address + done).toString(16)} is not ours`);
      const part = Math.min(length - done, PAGE_SIZE - inPage);
      yield this.#bytes.subarray(offset + inPage, offset + inPage + part);
      done += part;
    }
  }

  /** The bytes at elements with physical addresses, one after another. */
  read(elements: readonly MockElement[]): Uint8Array {
    const bytes = new Uint8Array(elements.reduce((sum, { length }) => sum + length, 0));
    let at = 0;
    for (const element of elements) {
      for (const part of this.#parts(element)) {
        bytes.set(part, at);
        at += part.length;
      }
    }
    return bytes;
  }

  /** Writes bytes to elements with physical addresses, as far as they go. */
  write(elements: readonly MockElement[], bytes: Uint8Array): void {
    let at = 0;
    for (const element of elements) {
      for (const part of this.#parts(element)) {
        const some = bytes.subarray(at, at + part.length);
        part.set(some);
        at += some.length;
      }
    }
  }
}

/** Runs of 1 to `longest` pages, in frames in no order, no two of which touch. */
function scatter(pages: number, random: Random, longest: number): PhysicalRun[] {
  const lengths: number[] = [];
  for (let left = pages; left > 0; left -= lengths.at(-1)!) {
    lengths.push(Math.min(left, 1 + random.below(longest)));
  }
  const order = lengths.map((_, i) => i);
  for (let i = order.length - 1; i > 0; i--) {
    const other = random.below(i + 1);
    [order[i], order[other]] = [order[other], order[i]];
  }
  const frames: number[] = [];
  let physical = RAM_AT;
  for (const i of order) {
    frames[i] = physical;
    physical += (lengths[i] + 1) * PAGE_SIZE;
  }
  let offset = 0;
  return lengths.map((count, i) => {
    const run = { offset, physical: frames[i], length: count * PAGE_SIZE };
    offset += run.length;
    return run;
  });
}

/** A queue with physical addresses for a mock driver's queue. */
export function translatedOf(
  driver: MockDriver,
  map: PhysicalMap,
  { place }: ReturnType<typeof segmentOf>,
  maxSize: number,
  base?: number,
): TranslatedQueue {
  const config = { ...driver.config, base: base ?? driver.config.base };
  const queue = openDeviceQueue(driver.memory.space, config);
  if (typeof queue === "string") throw new Error(queue);
  const { eventIndex, indirect } = driver;
  return new TranslatedQueue(queue, map, place, { maxSize, eventIndex, indirect });
}
