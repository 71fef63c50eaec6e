/**
 * The driver side's memory as one device sees it.
 *
 * ADD_MEMORY brings a *table*: usually one region, several where it lies in several pieces of what was given
 * by `--memory`. A table goes in steps, because a device may take its time (see device_slot.ts):
 *
 *     shown --unwant--> unwanted --hideNext--> hidden --unmapHidden--> gone
 *
 * An unwanted table waits until the queues stand still. A hidden one is in no address space any more, the
 * device is told so, and only when it has answered is the memory unmapped and its file closed.
 */

import { linuxErrno } from "../linux/errors.ts";
import type { Fd } from "../linux/fd.ts";
import type { Mapping } from "../linux/mapping.ts";
import { mapMemoryFile } from "../linux/memory_file.ts";
import { AddressSpace, type MemoryRegion } from "../memory/mod.ts";
import { MemoryState } from "../observe/state.ts";
import type { DeviceModel } from "../virtio/device.ts";
import { areasOf } from "../virtio/queue/config.ts";
import type { DeviceContext } from "./device_context.ts";
import type { QueueRecord } from "./queue_operation.ts";

const EBADF = linuxErrno("EBADF");
const EEXIST = linuxErrno("EEXIST");
const EFAULT = linuxErrno("EFAULT");
const EINVAL = linuxErrno("EINVAL");
const ENOMEM = linuxErrno("ENOMEM");

/** What one ADD_MEMORY brought. */
export interface MemoryTable {
  /** Bus address that names it. */
  readonly address: number;
  /** In bytes; 0 for all that was given by `--memory`. */
  readonly length: number;
  /** What it consists of. */
  readonly regions: readonly MemoryRegion[];
  /** Its own mapping; none where the memory was mapped before. */
  readonly mapping: Mapping | undefined;
  /** A window that comes and goes under running queues, which is not the device's to be told of. */
  readonly isLent: boolean;
  /** See the head of this file. */
  state: "shown" | "unwanted" | "hidden";
  /** Called when it is gone. */
  whenGone?: () => void;
}

const WINDOW_ADVICE =
  "the kernel has shown no window there, or taken it away (MAP_ADD, MAP_DEL: --trace bridge)";

function hex(address: number): string {
  return `0x${address.toString(16)}`;
}

/** See the head of this file. Methods that add return 0 or an errno, and then have changed nothing. */
export class SlotMemory {
  /** What the device finds bus addresses in. */
  readonly space: AddressSpace;
  /** The same as a list. */
  readonly regions: MemoryRegion[] = [];
  /** By address, in the order they came. */
  readonly #tables = new Map<number, MemoryTable>();
  readonly #seen: MemoryState;

  /**
   * @param number the device number, for people
   * @param fixed memory that was given by `--memory`
   */
  constructor(
    readonly number: number,
    readonly fixed: readonly MemoryRegion[],
    readonly owner: DeviceContext,
  ) {
    this.#seen = new MemoryState(number);
    this.space = new AddressSpace(owner.link.bus.kernel && WINDOW_ADVICE);
  }

  /** The table with this address. */
  table(address: number): MemoryTable | undefined {
    return this.#tables.get(address);
  }

  /** Maps part of a file; the table owns `fd` if it was added. */
  addFile(fd: Fd, address: number, length: number, fileOffset: number): number {
    if (![address, length, fileOffset].every(Number.isSafeInteger) || length === 0) return EINVAL;
    try {
      const refusal = this.#refusal(length);
      if (refusal !== undefined) return refusal;
      const { memory, offset } = mapMemoryFile(fd, fileOffset, length);
      const region = { at: address, size: length, memory, offset, fd, fileOffset };
      const result = this.#add(address, length, [region], memory);
      if (result !== 0) memory[Symbol.dispose]();
      else this.owner.quota.mapped(length);
      return result;
    } catch (error) {
      this.owner.complain(`device ${this.number}: memory refused: ${(error as Error).message}`);
      return EINVAL;
    }
  }

  /** Is a table of so many bytes that are to be mapped one too much? */
  #refusal(fresh: number): number | undefined {
    const sizes = [...this.#tables.values()].map((table) => table.mapping ? table.length : 0);
    const refusal = this.owner.quota.refusal([...sizes, fresh], [fresh]);
    if (refusal === undefined) return undefined;
    this.owner.complain(`device ${this.number} refuses ${refusal} (--memory-limit)`);
    return ENOMEM;
  }

  /** A window of a kernel's memory, which the bus has mapped and unmaps when it is gone here ({@link takeBack}). */
  lend(region: MemoryRegion): number {
    return this.#add(region.at, region.size, [region], undefined, true);
  }

  /** The window is to go, `done` is called when it has; {@link hideNext} goes on. */
  takeBack({ at, memory }: MemoryRegion, done: () => void): void {
    const table = this.#tables.get(at);
    // One that the driver side gave before, and took back, can have been at the same address.
    if (table === undefined || table.regions[0]!.memory !== memory) return done();
    table.whenGone = done;
    this.unwant(table);
  }

  /** The first queue that the device works on in a window that is to go, or whose buffers it has there, or -1. */
  undermined(model: DeviceModel, queues: readonly QueueRecord[], isPacked: boolean): number {
    const going = [...this.#tables.values()].filter(({ isLent, state }) =>
      isLent && state === "unwanted"
    );
    if (going.length === 0) return -1;
    const isGoing = (at: number, size: number) =>
      going.some(({ address, length }) => at < address + length && address < at + size);
    for (const { regions } of going) {
      const index = model.holdsIn?.(regions[0]!) ?? -1;
      if (index >= 0 && queues[index]!.isHeld) return index;
    }
    const { descriptor, driver, device } = areasOf(isPacked);
    return queues.findIndex(({ isHeld, stored: { size, ...stored } }) =>
      isHeld && (isGoing(stored.descriptorAddress, descriptor.sizeFor(size)) ||
        isGoing(stored.driverAddress, driver.sizeFor(size)) ||
        isGoing(stored.deviceAddress, device.sizeFor(size)))
    );
  }

  /** Part of the memory that holds the bus's queues, and none of the queues' own. */
  addSegment(address: number, length: number, offset: number): number {
    const { segment } = this.owner.link.bus;
    if (segment === undefined) return EBADF;
    if (!(offset >= segment.start)) return EINVAL;
    const region = { at: address, size: length, memory: segment.memory, offset };
    return this.#add(address, length, [region]);
  }

  /** Part of what was given by `--memory`, which may be in several pieces there; all of it for zeros. */
  addFixed(address: number, length: number, from: number): number {
    const { fixed } = this;
    if (address === 0 && length === 0 && from === 0) {
      if (fixed.length > 0) return this.#add(0, 0, fixed);
      this.#complainUnseen("anywhere in RAM");
      return EFAULT;
    }
    if (![address, length, from].every(Number.isSafeInteger) || length === 0) return EINVAL;
    const regions: MemoryRegion[] = [];
    for (let done = 0; done < length; done += regions.at(-1)!.size) {
      const start = from + done;
      const whole = fixed.find(({ at, size }) => start >= at && start < at + size);
      if (whole === undefined) {
        this.#complainUnseen(`at ${hex(from)} to ${hex(from + length)}`);
        return EFAULT;
      }
      regions.push(partOf(whole, start - whole.at, length - done, address + done));
    }
    return this.#add(address, length, regions);
  }

  #complainUnseen(where: string): void {
    const { number, fixed, owner: { complain } } = this;
    complain(
      `device ${number}: the driver side's memory is ${where} of its machine, ` +
        (fixed.length === 0 ? "give --memory to see it" : "which no --memory covers"),
    );
  }

  #add(
    address: number,
    length: number,
    regions: readonly MemoryRegion[],
    mapping?: Mapping,
    isLent = false,
  ): number {
    for (const [n, { at, size, memory, offset }] of regions.entries()) {
      const refusal = this.space.add(at, size, memory, offset);
      if (refusal === undefined) continue;
      for (const added of regions.slice(0, n)) this.space.remove(added.at, added.size);
      return refusal === "overlap" ? EEXIST : EINVAL;
    }
    this.regions.push(...regions);
    this.#seen.show(this.regions);
    this.#tables.set(address, { address, length, regions, mapping, isLent, state: "shown" });
    return 0;
  }

  /**
   * Shows the memory that a foreign driver side has and cannot announce; in confined mode that is the
   * segment, where addresses are offsets in it.
   */
  addForForeign(): readonly MemoryRegion[] {
    const { fixed, owner: { link: { bus: { segment } }, confined, log } } = this;
    if (confined) {
      if (segment !== undefined) {
        this.addSegment(segment.start, segment.memory.size - segment.start, segment.start);
      }
    } else if (fixed.length > 0 && this.#add(0, 0, fixed) !== 0) {
      log.error(`device ${this.number}: the pieces of --memory do not fit together`);
    }
    return this.regions;
  }

  /** A table is to go; see the head of this file. */
  unwant(table: MemoryTable): void {
    if (table.state === "shown") table.state = "unwanted";
  }

  /** All of them are to go. */
  unwantAll(): void {
    for (const table of this.#tables.values()) this.unwant(table);
  }

  /** Hides an unwanted table; undefined if there is none. */
  hideNext(): MemoryTable | undefined {
    for (const table of this.#tables.values()) {
      if (table.state === "unwanted") return this.#hide(table);
    }
    return undefined;
  }

  #hide(table: MemoryTable): MemoryTable {
    table.state = "hidden";
    for (const region of table.regions) {
      this.space.remove(region.at, region.size);
      this.regions.splice(this.regions.indexOf(region), 1);
    }
    this.#seen.show(this.regions);
    return table;
  }

  /** Unmaps what is hidden: the device has said that it does not use it any more. */
  unmapHidden(): void {
    for (const table of this.#tables.values()) {
      if (table.state !== "hidden") continue;
      this.#tables.delete(table.address);
      table.whenGone?.();
      if (table.mapping === undefined) continue;
      table.mapping[Symbol.dispose]();
      this.owner.quota.unmapped(table.length);
      for (const { fd } of table.regions) fd?.[Symbol.dispose]();
    }
  }

  /** Takes a table away that the device does not use. */
  drop(table: MemoryTable): void {
    this.#hide(table);
    this.unmapHidden();
  }

  /** Takes everything away; the device is gone. */
  dropAll(): void {
    for (const table of this.#tables.values()) if (table.state !== "hidden") this.#hide(table);
    this.unmapHidden();
  }
}

/** At most `most` bytes of a region from its byte `skip` on, as they are to appear at `at`. */
function partOf(whole: MemoryRegion, skip: number, most: number, at: number): MemoryRegion {
  const part = {
    at,
    size: Math.min(most, whole.size - skip),
    memory: whole.memory,
    offset: whole.offset + skip,
  };
  const { fd, fileOffset } = whole;
  return fd === undefined || fileOffset === undefined
    ? part
    : { ...part, fd, fileOffset: fileOffset + skip };
}
