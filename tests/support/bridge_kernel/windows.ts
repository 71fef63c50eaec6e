/**
 * The guest's memory, of which the process sees what is announced to it: windows (MAP_ADD, MAP_DEL).
 *
 * A window is a range of bus addresses and a range of the memory file, which have nothing to do with each other:
 * bus addresses are anywhere, offsets of the file are given out once, from one page on. What was a window is
 * filled with a pattern, so that a store through a mapping that should be gone is seen.
 */

import { mapFile, memoryFile, type SharedMemory } from "./libc.ts";
import type { Choices } from "./random.ts";

export const PAGE = 4096;
/** The memory file's name, as /proc/PID/maps has it. */
export const MEMORY_NAME = "bridge-guest-memory";
/** As large as all windows of one test ever; pages that nobody touches cost nothing. */
const MEMORY_BYTES = 1 << 30;
/** Bus addresses are below this. */
const BUS_PAGES = 1 << 28;
const GONE_BYTE = 0xd1;
const GONE_WORD = 0xd1d1_d1d1_d1d1_d1d1n;

export interface Window {
  readonly mapId: number;
  mapSeq: number;
  readonly busAddr: number;
  readonly length: number;
  readonly offset: number;
  readonly keep: boolean;
}

/** How a window is to be. */
export interface WindowShape {
  readonly length: number;
  readonly keep?: boolean;
  readonly busAddr?: number;
  /** An offset of the file; none that was given out, for windows that cannot be mapped. */
  readonly offset?: number;
}

/** The memory file and all windows there are. */
export class GuestMemory implements Disposable {
  readonly fd = memoryFile(MEMORY_NAME, MEMORY_BYTES);
  readonly #memory: SharedMemory = mapFile(this.fd, MEMORY_BYTES);
  readonly #bytes: Uint8Array<ArrayBuffer> = new Uint8Array(this.#memory.buffer);
  readonly #view: DataView = new DataView(this.#memory.buffer);
  readonly windows = new Set<Window>();
  readonly #forgotten = new Set<Window>();
  readonly #gone = new Set<Window>();
  #nextOffset = PAGE;
  #nextId = 1;

  constructor(readonly choices: Choices) {}

  /** A window that nobody has been told of. */
  make({ length, keep = true, busAddr, offset }: WindowShape): Window {
    const window: Window = {
      mapId: this.#nextId++,
      mapSeq: 0,
      busAddr: busAddr ?? this.#freeAddress(length),
      length,
      offset: offset ?? this.#nextOffset,
      keep,
    };
    if (offset === undefined) this.#nextOffset += length;
    if (this.#nextOffset > MEMORY_BYTES) throw new Error("the test has no memory left");
    this.windows.add(window);
    return window;
  }

  #freeAddress(length: number): number {
    for (;;) {
      const at = (1 + this.choices.below(BUS_PAGES)) * PAGE;
      // A page between any two: who reads beyond a window reads nothing.
      const isFree = [...this.windows].every((other) =>
        at + length + PAGE <= other.busAddr || other.busAddr + other.length + PAGE <= at
      );
      if (isFree) return at;
    }
  }

  /** Takes a window out that is unmapped; what it was made of must not change any more. */
  forget(window: Window): void {
    if (this.windows.delete(window)) this.#watch(window);
  }

  /** Takes all windows out, which may still be mapped until {@link watchForgotten}. */
  forgetAll(): void {
    for (const window of this.windows) this.#forgotten.add(window);
    this.windows.clear();
  }

  /** From now on none of what was taken out must change. */
  watchForgotten(): void {
    for (const window of this.#forgotten) this.#watch(window);
    this.#forgotten.clear();
  }

  /** Takes a window in again that may be announced anew. */
  revive(window: Window): void {
    this.#gone.delete(window);
    this.#forgotten.delete(window);
    this.windows.add(window);
  }

  #watch(window: Window): void {
    const { offset, length } = window;
    if (offset + length > MEMORY_BYTES) return;
    this.#bytes.fill(GONE_BYTE, offset, offset + length);
    this.#gone.add(window);
  }

  /** Whether somebody stored to what was a window. */
  storesToGone(): string[] {
    return [...this.#gone].flatMap(({ mapId, offset, length }) => {
      const words = new BigUint64Array(this.#memory.buffer, offset, length / 8);
      let at = 0;
      while (at < words.length && words[at] === GONE_WORD) at++;
      return at === words.length ? [] : [`window ${mapId} was stored to at ${8 * at} when gone`];
    });
  }

  /** Where a bus address is in the file, and how far its window goes on. */
  #find(address: number): { at: number; room: number } {
    for (const { busAddr, length, offset } of this.windows) {
      if (address >= busAddr && address < busAddr + length) {
        return { at: offset + address - busAddr, room: busAddr + length - address };
      }
    }
    throw new Error(`the test has no memory at ${address.toString(16)}`);
  }

  /** Copies bytes out; a range may span windows. */
  read(address: number, length: number): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(length);
    for (let done = 0; done < length;) {
      const { at, room } = this.#find(address + done);
      const count = Math.min(room, length - done);
      bytes.set(this.#bytes.subarray(at, at + count), done);
      done += count;
    }
    return bytes;
  }

  write(address: number, bytes: Uint8Array): void {
    for (let done = 0; done < bytes.length;) {
      const { at, room } = this.#find(address + done);
      this.#bytes.set(bytes.subarray(done, done + room), at);
      done += Math.min(room, bytes.length - done);
    }
  }

  read16(address: number): number {
    return this.#view.getUint16(this.#find(address).at, true);
  }

  /** Orders with all stores before: an atomic access beside it is a fence on every machine of ours. */
  write16(address: number, value: number): void {
    const { at } = this.#find(address);
    this.fence();
    this.#view.setUint16(at, value, true);
    this.fence();
  }

  read32(address: number): number {
    return this.#view.getUint32(this.#find(address).at, true);
  }

  readonly #fence = new Int32Array(1);

  fence(): void {
    Atomics.add(this.#fence, 0, 1);
  }

  [Symbol.dispose](): void {
    this.#memory.unmap();
  }
}
