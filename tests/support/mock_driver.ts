/**
 * The mock driver: memory that looks like a guest's, and split virtqueues in it, written word by word
 * from VIRTIO 1.2, section 2.7. It shares no code with src/virtqueue, so that a misreading there shows.
 * Every test, benchmark and fuzz target of rings uses it; it does right things, and wrong ones on demand.
 */

import { mapAnonymous, type Mapping } from "../../src/linux/mapping.ts";
import { AddressSpace, type MappedMemory } from "../../src/memory/mod.ts";
import type { QueueConfig } from "../../src/virtio/queue/config.ts";
import type { IovecList } from "../../src/memory/iovec_list.ts";

const GUARD_SIZE = 4096;
const GUARD_BYTE = 0xa5;

/** Bus addresses [at, at + size). */
export interface MockWindow {
  readonly at: number;
  readonly size: number;
}

interface PlacedWindow extends MockWindow {
  readonly offset: number;
}

/** One element of a buffer. */
export interface MockElement {
  readonly address: number;
  readonly length: number;
}

/** Memory behind bus addresses, with guard bytes before, between and after the windows. */
export class MockMemory implements Disposable {
  readonly space: AddressSpace = new AddressSpace();
  readonly windows: readonly PlacedWindow[];
  readonly #mapping: Mapping;
  readonly #bytes: Uint8Array;
  readonly #view: DataView;

  /**
   * @param windows as many as wanted, anywhere below 2^53
   * @param skew moves each window in the mapping by so many bytes off its alignment
   * @param map makes the mapping, for memory that others see too
   */
  constructor(
    windows: readonly MockWindow[] = [{ at: 0x4000_0000, size: 1 << 20 }],
    skew = 0,
    map: (size: number) => Mapping = mapAnonymous,
  ) {
    let end = GUARD_SIZE;
    this.windows = windows.map(({ at, size }) => {
      const offset = end + skew;
      end = ((offset + size + 4095) & ~4095) + GUARD_SIZE;
      return { at, size, offset };
    });
    this.#mapping = map(end);
    this.#bytes = new Uint8Array(this.#mapping.buffer);
    this.#view = new DataView(this.#mapping.buffer);
    this.#bytes.fill(GUARD_BYTE);
    for (const { at, size, offset } of this.windows) {
      this.#bytes.fill(0, offset, offset + size);
      const refused = this.space.add(at, size, this.#mapping, offset);
      if (refused !== undefined) throw new Error(`window at ${at}: ${refused}`);
    }
  }

  [Symbol.dispose](): void {
    this.#mapping[Symbol.dispose]();
  }

  /** The mapping, for those who work with offsets (see {@link offset}). */
  get memory(): MappedMemory {
    return this.#mapping;
  }

  /** The mapping's offset of a bus address; throws outside the windows, for that is a test's error. */
  offset(address: number, length = 1): number {
    for (const { at, size, offset } of this.windows) {
      if (address >= at && address + length <= at + size) return offset + (address - at);
    }
    throw new Error(`the mock has no ${length} bytes at 0x${address.toString(16)}`);
  }

  /** The bus address of an address of this process; undefined outside the windows. */
  busAddress(address: bigint, length: number): number | undefined {
    const position = Number(address - this.#mapping.address);
    for (const { at, size, offset } of this.windows) {
      if (position >= offset && position + length <= offset + size) return at + (position - offset);
    }
    return undefined;
  }

  read16(address: number): number {
    return this.#view.getUint16(this.offset(address, 2), true);
  }

  read32(address: number): number {
    return this.#view.getUint32(this.offset(address, 4), true);
  }

  write16(address: number, value: number): void {
    this.#view.setUint16(this.offset(address, 2), value & 0xffff, true);
  }

  write32(address: number, value: number): void {
    this.#view.setUint32(this.offset(address, 4), value, true);
  }

  write64(address: number, value: bigint): void {
    this.#view.setBigUint64(this.offset(address, 8), value, true);
  }

  /** The bytes at a bus address, in place. */
  bytes(address: number, length: number): Uint8Array {
    const offset = this.offset(address, length);
    return this.#bytes.subarray(offset, offset + length);
  }

  /** Throws if a byte outside the windows was written. */
  checkGuards(): void {
    let position = 0;
    for (const { size, offset } of [...this.windows, { size: 0, offset: this.#bytes.length }]) {
      for (; position < offset; position++) {
        if (this.#bytes[position] !== GUARD_BYTE) throw new Error(`guard byte ${position} written`);
      }
      position += size;
    }
  }

  /**
   * The bus ranges a segment list names, neighbours joined, read from its iovecs as the kernel would.
   * Throws if one lies outside the windows.
   */
  ranges(list: IovecList): MockElement[] {
    const ranges: { address: number; length: number }[] = [];
    if (list.count === 0) return ranges;
    const iovec = new Deno.UnsafePointerView(Deno.UnsafePointer.create(list.address)!);
    for (let i = 0; i < list.count; i++) {
      const length = Number(iovec.getBigUint64(16 * i + 8));
      const address = this.busAddress(iovec.getBigUint64(16 * i), length);
      if (address === undefined) throw new Error(`iovec ${i} lies outside the windows`);
      const last = ranges.at(-1);
      if (last !== undefined && last.address + last.length === address) last.length += length;
      else ranges.push({ address, length });
    }
    return ranges;
  }
}

/** How a mock queue is made. */
export interface MockDriverOptions {
  readonly size: number;
  /** Bus address of the descriptor table; the two rings follow it, each on a new 4 KiB page. */
  readonly at?: number;
  readonly eventIndex?: boolean;
  readonly indirect?: boolean;
  /** What both indices begin at. */
  readonly start?: number;
}

/** What a model of a ring needs of its driver, whichever the format. */
export interface RingDriver {
  readonly size: number;
  readonly eventIndex: boolean;
  readonly indirect: boolean;
  readonly config: QueueConfig;
  /** The first bus address behind the rings. */
  readonly end: number;
  /** How many descriptors {@link add} can still take. */
  readonly free: number;
  /** Makes a buffer; its head or id, or undefined if descriptors are short. The device sees it after publish. */
  add(
    readable: readonly MockElement[],
    writable: readonly MockElement[],
    tableAddress?: number,
    direct?: number,
  ): number | undefined;
  /** Whether the device must be kicked. */
  publish(): boolean;
  /** Takes back the next used buffer; undefined if there is none. */
  takeUsed(): { head: number; length: number } | undefined;
  /** Whether the device must call when it has used these buffers, which follow those it showed before. */
  mustCall(heads: readonly number[]): boolean;
  /** Wants to be called with the next used buffer, or not for now. */
  wantCalls(): void;
  maskCalls(): void;
}

/** A driver's queue in {@link MockMemory}. */
export class MockDriver implements RingDriver {
  readonly size: number;
  readonly eventIndex: boolean;
  readonly indirect: boolean;
  readonly descriptorAddress: number;
  readonly driverAddress: number;
  readonly deviceAddress: number;
  /** The first bus address behind the rings, on a page of its own. */
  readonly end: number;
  /** The available index the next {@link publish} writes. */
  available: number;
  /** The available index last published. */
  published: number;
  /** The used index up to which buffers were taken back. */
  seen: number;
  readonly #start: number;
  readonly #free: number[] = [];
  readonly #chains: Map<number, number[]> = new Map();

  constructor(readonly memory: MockMemory, options: MockDriverOptions) {
    const { size, at = memory.windows[0].at, eventIndex = false, indirect = false, start = 0 } =
      options;
    const page = (address: number) => Math.ceil(address / 4096) * 4096;
    this.size = size;
    this.eventIndex = eventIndex;
    this.indirect = indirect;
    this.descriptorAddress = at;
    this.driverAddress = page(at + 16 * size);
    this.deviceAddress = page(this.driverAddress + 6 + 2 * size);
    this.end = page(this.deviceAddress + 6 + 8 * size);
    this.available = start;
    this.published = start;
    this.seen = start;
    this.#start = start;
    for (let i = 0; i < size; i++) this.#free.push(i);
    memory.write16(this.driverAddress + 2, start);
    memory.write16(this.deviceAddress + 2, start);
    memory.write16(this.driverAddress + 4 + 2 * size, start);
    memory.write16(this.deviceAddress + 4 + 8 * size, start);
  }

  /** What a device is told about this queue. */
  get config() {
    const { size, descriptorAddress, driverAddress, deviceAddress, eventIndex, indirect } = this;
    const base = this.published;
    return { size, descriptorAddress, driverAddress, deviceAddress, base, eventIndex, indirect };
  }

  /** Writes a descriptor of the queue's table. */
  desc(index: number, address: number | bigint, length: number, flags: number, next = 0): void {
    this.tableDesc(this.descriptorAddress, index, address, length, flags, next);
  }

  /** Writes a descriptor of the table at a bus address. */
  tableDesc(
    table: number,
    index: number,
    address: number | bigint,
    length: number,
    flags: number,
    next = 0,
  ): void {
    const at = table + 16 * index;
    this.memory.write64(at, BigInt(address));
    this.memory.write32(at + 8, length);
    this.memory.write16(at + 12, flags);
    this.memory.write16(at + 14, next);
  }

  /** Writes an indirect table with one buffer: elements to read, then elements to write. */
  table(at: number, readable: readonly MockElement[], writable: readonly MockElement[]): void {
    const elements = [...readable, ...writable];
    elements.forEach(({ address, length }, i) => {
      const flags = (i < elements.length - 1 ? 1 : 0) | (i < readable.length ? 0 : 2);
      this.tableDesc(at, i, address, length, flags, i + 1);
    });
  }

  /** Puts a head into the available ring; the device sees it after {@link publish}. */
  offer(head: number): void {
    this.memory.write16(this.driverAddress + 4 + 2 * (this.available % this.size), head);
    this.available = (this.available + 1) & 0xffff;
  }

  /**
   * Writes the available index.
   *
   * @returns whether the device must be kicked, by the letter of 2.7.10.1
   */
  publish(): boolean {
    let wanted = false;
    const event = this.availEvent;
    for (let i = this.published; i !== this.available; i = (i + 1) & 0xffff) {
      if (this.eventIndex ? i === event : this.usedFlags === 0) wanted = true;
    }
    this.memory.write16(this.driverAddress + 2, this.available);
    this.published = this.available;
    return wanted;
  }

  /** Writes any available index. */
  setAvailableIndex(index: number): void {
    this.memory.write16(this.driverAddress + 2, index);
  }

  /** Writes the available ring's flags. */
  setAvailFlags(flags: number): void {
    this.memory.write16(this.driverAddress, flags);
  }

  /** Writes used_event. */
  setUsedEvent(index: number): void {
    this.memory.write16(this.driverAddress + 4 + 2 * this.size, index);
  }

  get usedEvent(): number {
    return this.memory.read16(this.driverAddress + 4 + 2 * this.size);
  }

  get availFlags(): number {
    return this.memory.read16(this.driverAddress);
  }

  get usedFlags(): number {
    return this.memory.read16(this.deviceAddress);
  }

  get usedIndex(): number {
    return this.memory.read16(this.deviceAddress + 2);
  }

  /** The used element at a used index. */
  usedElement(index: number): { head: number; length: number } {
    const at = this.deviceAddress + 4 + 8 * (index % this.size);
    return { head: this.memory.read32(at), length: this.memory.read32(at + 4) };
  }

  get availEvent(): number {
    return this.memory.read16(this.deviceAddress + 4 + 8 * this.size);
  }

  /** Buffers that {@link mustCall} was asked about. */
  #shown = 0;

  /** By the letter of 2.7.7.2, entry by entry. */
  mustCall(heads: readonly number[]): boolean {
    let wanted = false;
    for (let i = 0; i < heads.length; i++) {
      const entry = (this.#start + this.#shown++) & 0xffff;
      if (this.eventIndex ? entry === this.usedEvent : this.availFlags === 0) wanted = true;
    }
    return wanted;
  }

  wantCalls(): void {
    this.setUsedEvent(this.seen);
    this.setAvailFlags(0);
  }

  maskCalls(): void {
    if (!this.eventIndex) this.setAvailFlags(1);
  }

  /** How many descriptors {@link add} can still take. */
  get free(): number {
    return this.#free.length;
  }

  /**
   * Makes a chain of free descriptors and offers it.
   *
   * @param tableAddress with it the last element but `direct` ones go through an indirect table there
   * @returns the head, or undefined if descriptors are short
   */
  add(
    readable: readonly MockElement[],
    writable: readonly MockElement[],
    tableAddress?: number,
    direct = 0,
  ): number | undefined {
    const elements = [...readable, ...writable];
    const inTable = tableAddress === undefined ? 0 : elements.length - direct;
    const count = elements.length - inTable + (inTable > 0 ? 1 : 0);
    if (count > this.#free.length) return undefined;
    const taken = this.#free.splice(0, count);
    for (let i = 0; i < elements.length - inTable; i++) {
      const { address, length } = elements[i];
      const flags = (i < count - 1 ? 1 : 0) | (i < readable.length ? 0 : 2);
      this.desc(taken[i], address, length, flags, taken[i + 1] ?? 0);
    }
    if (tableAddress !== undefined) {
      this.table(
        tableAddress,
        readable.slice(direct),
        writable.slice(Math.max(0, direct - readable.length)),
      );
      this.desc(taken[count - 1], tableAddress, 16 * inTable, 4);
    }
    this.#chains.set(taken[0], taken);
    this.offer(taken[0]);
    return taken[0];
  }

  /** Takes back the next used buffer; undefined if there is none. */
  takeUsed(): { head: number; length: number } | undefined {
    if (this.seen === this.usedIndex) return undefined;
    const element = this.usedElement(this.seen);
    const chain = this.#chains.get(element.head);
    if (chain === undefined) throw new Error(`used head ${element.head} was not offered`);
    this.#chains.delete(element.head);
    this.#free.push(...chain);
    this.seen = (this.seen + 1) & 0xffff;
    return element;
  }
}

/** Random numbers from a seed (mulberry32), so that a failed run can be repeated. */
export class Random {
  #state: number;

  constructor(readonly seed: number) {
    this.#state = seed >>> 0;
  }

  /** A seed from the environment (`SEED=...`), or a fresh one. */
  static seed(): number {
    return Number(Deno.env.get("SEED") ?? Math.floor(Math.random() * 2 ** 32));
  }

  u32(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return (t ^ (t >>> 14)) >>> 0;
  }

  /** An integer from 0 to limit - 1. */
  below(limit: number): number {
    return Math.floor(this.u32() / 2 ** 32 * limit);
  }

  chance(probability: number): boolean {
    return this.u32() < probability * 2 ** 32;
  }

  pick<T>(values: readonly T[]): T {
    return values[this.below(values.length)];
  }
}
