/**
 * Bus addresses: what the other side's descriptors hold, and where that lies in this process.
 *
 * An address space is a short list of windows. A window (window.ts) maps the bus addresses [at, at + size) onto
 * mapped memory. `translate` is the only way from a bus address to memory: it rejects what lies outside every window,
 * follows a range over adjacent windows, and never wraps: addresses are Numbers, and everything that would reach 2^53
 * is refused first. (A hostile 64-bit value decodes to an inexact Number above that limit, so it is refused as well.)
 *
 * Limits: {@link MAX_WINDOWS} windows, as many as a vhost-user front end may send (8 without, 509 with
 * configurable memory slots), and IovecList's capacity for one translation.
 */

import type { IovecList } from "./iovec_list.ts";
import { type MappedMemory, MemoryWindow } from "./window.ts";

/** Here and not imported: compiled code loads an imported Number anew, half a nanosecond a descriptor. */
const TWO_TO_32 = 0x1_0000_0000;

/** The longest indirect table that is copied: as many descriptors as our queues have entries. */
export const MAX_COPIED_TABLE: number = 16 * 1024;

/** The most windows one address space holds. */
export const MAX_WINDOWS = 509;

/**
 * Why a window cannot be added: it reaches outside 2^53 or outside the memory it is to show, it lies over
 * another window, or there are {@link MAX_WINDOWS} already.
 */
export type WindowRefusal = "range" | "overlap" | "too many";

/**
 * Where in an ascending list of ranges that do not overlap the first one is that ends behind an address; the list's
 * length if none does. A driver chooses how many there are and which it uses, so it is found by halving.
 */
export function firstBehind(ranges: readonly { readonly end: number }[], address: number): number {
  let low = 0, high = ranges.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (ranges[middle]!.end > address) high = middle;
    else low = middle + 1;
  }
  return low;
}

const GUEST_ADVICE =
  "is all of a guest's memory shared (QEMU: share=on, also for a DIMM that is plugged in later)?";

/** The windows through which one device sees the other side's memory. */
export class AddressSpace {
  readonly #windows: MemoryWindow[] = [];
  /** The window found last; consecutive buffers nearly always lie in the same one. */
  last: MemoryWindow | undefined;
  /** How many pages were looked for that are not known yet; see translated_space.ts. */
  missed = 0;
  /** Where a table is copied to. */
  #table: ArrayBuffer | undefined;
  /** Pages that are not known are asked for and passed over, to find all that a chain lacks. */
  collects = false;

  /** Without windows. @param advice what people can do about what is missing */
  constructor(readonly advice: string = GUEST_ADVICE) {}

  /** The windows in ascending order. */
  get windows(): readonly MemoryWindow[] {
    return this.#windows;
  }

  /**
   * Adds a window, see {@link MemoryWindow} for the arguments.
   *
   * @returns undefined if it was added
   */
  add(at: number, size: number, memory: MappedMemory, offset = 0): WindowRefusal | undefined {
    const numbers = [at, size, offset, at + size];
    if (!numbers.every((n) => Number.isSafeInteger(n) && n >= 0) || size === 0) return "range";
    if (offset + size > memory.size) return "range";
    if (this.#windows.length >= MAX_WINDOWS) return "too many";
    const index = firstBehind(this.#windows, at);
    const next = this.#windows[index];
    if (next !== undefined && next.at < at + size) return "overlap";
    this.#windows.splice(index, 0, new MemoryWindow(at, size, memory, offset));
    this.last = undefined;
    return undefined;
  }

  /** Removes the window that starts at `at` and has `size` bytes; false if there is none. */
  remove(at: number, size: number): boolean {
    const index = firstBehind(this.#windows, at);
    const window = this.#windows[index];
    if (window?.at !== at || window.size !== size) return false;
    this.#windows.splice(index, 1);
    this.last = undefined;
    return true;
  }

  /** Removes every window. */
  clear(): void {
    this.#windows.length = 0;
    this.last = undefined;
  }

  /** The window that contains all of [address, address + length), or undefined. For rings, which are viewed in place. */
  find(address: number, length: number): MemoryWindow | undefined {
    const last = this.last;
    if (last !== undefined && address >= last.at && address + length <= last.end) return last;
    const window = this.containing(address);
    if (window === undefined || address + length > window.end) return undefined;
    return window;
  }

  /**
   * The same for an indirect table, whose address is in two halves of 32 bits, as descriptors hold it. Where the window
   * found last is the right one this is quicker: compiled code keeps halves in registers as integers, while putting
   * them together goes through floating point. A table that lies across windows is copied; the copy is good until
   * the next one.
   */
  findHalves(high: number, low: number, length: number): MemoryWindow | undefined {
    const last = this.last;
    if (
      last !== undefined && high === last.atHigh && low >= last.atLow &&
      low + length <= last.endLow
    ) {
      return last;
    }
    const at = high * TWO_TO_32 + low;
    return this.find(at, length) ?? this.copyOf(at, length);
  }

  /** A copy of a table that one window does not contain, which is rare: allocators align them. */
  protected copyOf(at: number, length: number): MemoryWindow | undefined {
    if (!(at + length <= Number.MAX_SAFE_INTEGER) || length > MAX_COPIED_TABLE) return undefined;
    const buffer = this.#table ??= new ArrayBuffer(MAX_COPIED_TABLE);
    const bytes = new Uint8Array(buffer);
    for (let done = 0; done < length;) {
      const window = this.containing(at + done);
      if (window === undefined) return undefined;
      const from = at + done - window.at;
      const part = Math.min(length - done, window.size - from);
      bytes.set(new Uint8Array(window.buffer, window.byteOffset + from, part), done);
      done += part;
    }
    // It is read through its view alone; an address for system calls it has not.
    return new MemoryWindow(at, length, { address: 0n, buffer, size: buffer.byteLength }, 0);
  }

  /**
   * Appends the segments that hold [address, address + length) to `into`.
   *
   * @returns false if a byte lies outside every window, or `into` is full; `into` then holds a part.
   * No bytes are no segment, wherever they are.
   */
  translate(address: number, length: number, into: IovecList): boolean {
    if (length === 0) return true;
    const last = this.last;
    if (last !== undefined && address >= last.at && address + length <= last.end) {
      return into.push(last, address - last.at, length);
    }
    return this.translateAny(address, length, into);
  }

  /** {@link translate} for an address in two halves, see {@link findHalves}, and a length that is not 0. */
  translateHalves(high: number, low: number, length: number, into: IovecList): boolean {
    const last = this.last;
    if (
      last !== undefined && high === last.atHigh && low >= last.atLow &&
      low + length <= last.endLow
    ) {
      return into.push(last, low - last.atLow, length);
    }
    return this.translate(high * TWO_TO_32 + low, length, into);
  }

  /** Why {@link translate} did not find all of a range; goes on from "0x1000 (16 bytes)". */
  explain(_address: number, _length: number): string {
    return `is outside of memory: ${this.advice}`;
  }

  /** The same for {@link findHalves}. */
  explainTable(address: number, length: number): string {
    return length > MAX_COPIED_TABLE ? "is too long" : this.explain(address, length);
  }

  /** The rest of {@link translate}, apart, so that its usual case is compiled into its callers. */
  protected translateAny(address: number, length: number, into: IovecList): boolean {
    if (!(address + length <= Number.MAX_SAFE_INTEGER)) return false;
    while (length > 0) {
      const window = this.containing(address);
      if (window === undefined) return false;
      const part = Math.min(length, window.end - address);
      if (!into.push(window, address - window.at, part)) return false;
      address += part;
      length -= part;
    }
    return true;
  }

  /** The window that contains an address. */
  protected containing(address: number): MemoryWindow | undefined {
    const window = this.#windows[firstBehind(this.#windows, address)];
    if (window === undefined || address < window.at) return undefined;
    this.last = window;
    return window;
  }
}
