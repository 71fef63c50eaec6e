/**
 * Where a user-space driver's rings and buffers lie, and how the device side gets to see them.
 *
 *     own       a sealed memfd, sent to the device side: two processes of one host
 *     file      a file that both sides were told of, as dialects need it that announce no memory
 *     segment   part of the shared memory that holds the bus's queues
 *     confined  a segment as confined mode has it, with its header
 *     pages     huge pages of this machine, whose RAM the device side's machine can see
 *
 * The device works on the driver's own rings in all of them, so the sharing is that of descriptors.ts; what differs is
 * what the device side is told. `pages` need not lie in one piece: each run is a region by itself, and the device
 * side puts them together again. A peer that is no vmsg takes addresses as they are, so there the bus address is
 * the physical one and the memory must be one run.
 */

import type { Bus } from "../bus/bus.ts";
import { VmsgError } from "../linux/errors.ts";
import { createSealedMemory } from "../linux/fd.ts";
import { allocateHugePages } from "../linux/huge_pages.ts";
import { mapShared, PAGE_SIZE } from "../linux/mapping.ts";
import { holdPins } from "../linux/pin_holder.ts";
import type { MappedMemory } from "../memory/mod.ts";
import { MEMORY_SEGMENT, MEMORY_WINDOW } from "../message/message.ts";
import type { Place } from "../virtio/place.ts";
import { Segment } from "./segment.ts";
import type { SharedRegion } from "./sharing.ts";
import { SILENCE_MS, waitForSilence } from "./silence.ts";

/** Where memory that is announced lies on the bus; any address would do, 0 could hide a bug. */
const BUS_ADDRESS = 0x4000_0000;

const BOTH_MEMORY =
  "the device side is no vmsg that speaks v1, it must know our memory: give both --memory";

/** See the head of this file. */
export interface DriverMemory extends Place, Disposable {
  /** What the device side is told of; nothing where it knows already. */
  readonly regions: readonly SharedRegion[];
}

/** A memfd of this process. */
export function ownMemory(size: number): DriverMemory {
  using stack = new DisposableStack();
  const fd = stack.use(createSealedMemory("vmsg-driver", size));
  const memory = stack.use(mapShared(fd.number, size));
  const owner = stack.move();
  const place = { memory, offset: 0, size, at: BUS_ADDRESS };
  return {
    ...place,
    regions: [{ ...place, fd, fileOffset: 0, mustBeTold: BOTH_MEMORY }],
    [Symbol.dispose]: () => owner.dispose(),
  };
}

/**
 * Memory that the device side knows already; it stays the caller's.
 *
 * @param at bus address of its first byte; the page at 0 is left out
 */
export function knownMemory(memory: MappedMemory, at: number): DriverMemory {
  if (at % PAGE_SIZE !== 0) {
    throw new VmsgError("MEMORY", `the driver's memory must be at a multiple of ${PAGE_SIZE}`);
  }
  // A ring at address 0 is one that was not set up, for QEMU and others.
  const offset = at === 0 ? PAGE_SIZE : 0;
  const place = { memory, offset, size: memory.size - offset, at: at + offset };
  const region = {
    ...place,
    from: MEMORY_WINDOW,
    fileOffset: place.at,
    advice: "give both sides the same --memory",
  };
  return { ...place, regions: [region], [Symbol.dispose]: () => {} };
}

/**
 * Part of a bus's shared memory; by default all that the queues leave.
 *
 * @param offset of the part in the shared memory; undefined: behind the queues
 * @param size in bytes; 0: up to the end
 */
export function segmentMemory(bus: Bus, offset: number | undefined, size: number): DriverMemory {
  const { segment } = bus;
  if (segment === undefined) {
    throw new VmsgError("MEMORY", `${bus.description} has no shared memory for --memory segment`);
  }
  const start = offset ?? segment.start;
  const length = size || segment.memory.size - start;
  if (start % PAGE_SIZE !== 0 || start < segment.start) {
    throw new VmsgError(
      "MEMORY",
      `--memory segment: offset= must be a multiple of ${PAGE_SIZE}, from ${segment.start} on`,
    );
  }
  if (length <= 0 || start + length > segment.memory.size) {
    const { size } = segment.memory;
    throw new VmsgError(
      "MEMORY",
      `--memory segment: ${bus.description} has ${size} bytes of shared memory, ` +
        (length <= 0 ? `none of them from ${start} on` : `not ${length} from ${start} on`),
    );
  }
  // The two address spaces are the same, so that a trace can be read.
  const place = { memory: segment.memory, offset: start, size: length, at: start };
  const region = {
    ...place,
    from: MEMORY_SEGMENT,
    fileOffset: start,
    mustBeTold: BOTH_MEMORY,
    advice: "its shared memory is smaller than ours: give both sides all of it (size=)",
  };
  return { ...place, regions: [region], [Symbol.dispose]: () => {} };
}

/**
 * Confined mode: the driver's own rings and buffers are in the segment, and nothing is copied.
 *
 * @param size of the segment in bytes; undefined: all that the bus has
 */
export function confinedMemory(bus: Bus, size: number | undefined): DriverMemory {
  const segment = new Segment(bus, size, 1);
  return {
    ...segment.share(0),
    regions: [segment.region],
    [Symbol.dispose]: () => segment[Symbol.dispose](),
  };
}

/**
 * Huge pages of this machine, pinned where the bus has the means; they are not moved without either. Once
 * the device side knows of them it may write until it has missed us for a while, so they are kept as long.
 */
export function pageMemory(size: number, bus: Bus): DriverMemory {
  using stack = new DisposableStack();
  const { mapping: memory, runs } = stack.use(allocateHugePages(size));
  const pin = bus.pin(memory.address, memory.size);
  if (pin !== undefined) stack.use(pin);
  const holder = pin === undefined ? undefined : holdPins(bus.pinHandles, SILENCE_MS);
  let isKnown = false;
  const isWhole = runs.length === 1;
  const at = isWhole ? runs[0]!.physical : BUS_ADDRESS;
  const owner = stack.move();
  const regions = runs.map(({ offset, physical, length }) => {
    const where = `0x${physical.toString(16)} to 0x${(physical + length).toString(16)}`;
    return {
      memory,
      offset,
      size: length,
      at: at + offset,
      from: MEMORY_WINDOW,
      fileOffset: physical,
      ...!isWhole && {
        mustBeTold:
          `the huge pages lie in ${runs.length} pieces, which only a vmsg that speaks v1 ` +
          "can be told: give --memory hugepages=2M, which is one piece",
      },
      advice: `it does not see this machine's memory at ${where}: give vmsg device ` +
        "--memory pci=ADDRESS,at=ADDRESS (or file=PATH), with low= and hole= where RAM has a hole",
      exposed: () => {
        isKnown = true;
      },
    };
  });
  return {
    memory,
    offset: 0,
    size: memory.size,
    at,
    regions,
    [Symbol.dispose]: () => {
      if (isKnown) waitForSilence();
      owner.dispose();
      holder?.[Symbol.dispose]();
    },
  };
}
