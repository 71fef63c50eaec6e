/**
 * A driver's split virtqueue, from VIRTIO 1.3, section 2.7: descriptor table, available ring, and the used ring on
 * a page of its own, as Linux lays them out, in one window.
 */

import type { Buffer } from "./pool.ts";
import type { Session } from "./session.ts";
import { type GuestMemory, PAGE, type Window } from "./windows.ts";

const NEXT = 1, WRITE = 2, INDIRECT = 4;

interface Chain {
  readonly descriptors: readonly number[];
  readonly writable: number;
  resolve(length: number): void;
  reject(error: Error): void;
}

/** A buffer's elements: what the device reads, then what it writes. */
export interface Elements {
  readonly readable: readonly Buffer[];
  readonly writable: readonly Buffer[];
}

export class SplitQueue {
  readonly descriptors: number;
  readonly available: number;
  readonly used: number;
  readonly #memory: GuestMemory;
  readonly #free: number[];
  readonly #chains = new Map<number, Chain>();
  #offered = 0;
  #published = 0;
  #seen = 0;

  private constructor(
    readonly session: Session,
    readonly rings: Window,
    readonly size: number,
    readonly hasEventIndex: boolean,
  ) {
    this.#memory = session.owner.memory;
    this.#free = Array.from({ length: size }, (_, i) => size - 1 - i);
    this.descriptors = rings.busAddr;
    this.available = this.descriptors + 16 * size;
    this.used = this.descriptors + SplitQueue.#usedOffset(size);
  }

  static #usedOffset(size: number): number {
    return Math.ceil((16 * size + 6 + 2 * size) / PAGE) * PAGE;
  }

  static async make(
    session: Session,
    size: number,
    hasEventIndex: boolean,
    within?: Window,
  ): Promise<SplitQueue> {
    const length = this.#usedOffset(size) + Math.ceil((6 + 8 * size) / PAGE) * PAGE;
    const rings = within ?? await session.add({ length });
    if (rings.length < length) throw new Error("the window is too small for the rings");
    return new SplitQueue(session, rings, size, hasEventIndex);
  }

  /** Buffers that the device has. */
  get outstanding(): number {
    return this.#chains.size;
  }

  get room(): number {
    return this.#free.length;
  }

  #write(address: number, value: number, size: 4 | 8): void {
    const bytes = new DataView(new ArrayBuffer(8));
    bytes.setBigUint64(0, BigInt(value), true);
    this.#memory.write(address, new Uint8Array(bytes.buffer, 0, size));
  }

  #describe(table: number, index: number, buffer: Buffer, flags: number, next: number): void {
    const at = table + 16 * index;
    this.#write(at, buffer.address, 8);
    this.#write(at + 8, buffer.length, 4);
    this.#memory.write16(at + 12, flags);
    this.#memory.write16(at + 14, next);
  }

  /**
   * Offers a buffer; resolves with how many bytes the device wrote.
   *
   * @param table where an indirect table may be
   */
  add({ readable, writable }: Elements, table?: Buffer): Promise<number> {
    const elements = [...readable, ...writable];
    const needed = table === undefined ? elements.length : 1;
    const taken = this.#free.splice(-needed);
    if (taken.length < needed) throw new Error("the test offers more than the queue has room for");
    elements.forEach((element, i) => {
      const isLast = i === elements.length - 1;
      const flags = (i < readable.length ? 0 : WRITE) | (isLast ? 0 : NEXT);
      const next = table === undefined ? taken[i + 1] ?? 0 : i + 1;
      if (table === undefined) this.#describe(this.descriptors, taken[i]!, element, flags, next);
      else this.#describe(table.address, i, element, flags, next);
    });
    if (table !== undefined) {
      const length = 16 * elements.length;
      this.#describe(this.descriptors, taken[0]!, { ...table, length }, INDIRECT, 0);
    }
    const head = taken[0]!;
    const { promise, resolve, reject } = Promise.withResolvers<number>();
    promise.catch(() => {});
    const sum = writable.reduce((all, { length }) => all + length, 0);
    this.#chains.set(head, { descriptors: taken, writable: sum, resolve, reject });
    this.#memory.write16(this.available + 4 + 2 * (this.#offered % this.size), head);
    this.#offered = (this.#offered + 1) & 0xffff;
    return promise;
  }

  /** Shows what was offered; whether the device wants to be told. */
  publish(): boolean {
    const before = this.#published;
    this.#memory.write16(this.available + 2, this.#offered);
    this.#published = this.#offered;
    if (!this.hasEventIndex) return (this.#memory.read16(this.used) & 1) === 0;
    const event = this.#memory.read16(this.used + 4 + 8 * this.size);
    const past = (this.#offered - event - 1) & 0xffff;
    return past < ((this.#offered - before) & 0xffff);
  }

  /** Takes back what was used; what is wrong with it. */
  takeUsed(): string | undefined {
    for (;;) {
      this.#memory.fence();
      const index = this.#memory.read16(this.used + 2);
      if (((index - this.#seen) & 0xffff) > this.#chains.size) {
        return `used index ${index}, ${this.#chains.size} are out`;
      }
      while (this.#seen !== index) {
        const at = this.used + 4 + 8 * (this.#seen % this.size);
        const head = this.#memory.read32(at), length = this.#memory.read32(at + 4);
        const chain = this.#chains.get(head);
        if (chain === undefined) return `used head ${head} was not offered`;
        if (length > chain.writable) return `${length} bytes written of ${chain.writable}`;
        this.#chains.delete(head);
        this.#free.push(...chain.descriptors);
        this.#seen = (this.#seen + 1) & 0xffff;
        chain.resolve(length);
      }
      if (!this.hasEventIndex) return undefined;
      this.#memory.write16(this.available + 4 + 2 * this.size, this.#seen);
      if (this.#memory.read16(this.used + 2) === this.#seen) return undefined;
    }
  }

  ended(error: Error): void {
    for (const { reject } of this.#chains.values()) reject(error);
    this.#chains.clear();
  }
}
