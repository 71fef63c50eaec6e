/**
 * Windows of the driver's memory that the kernel's bridge shows (docs/wire.md 4.7): MAP_ADD and MAP_DEL.
 *
 *     MAP_ADD --mapped, shown to the devices--> live --MAP_DEL, or the session ends--> leaving --no device looks--> unmapped
 *
 * Each request is answered, in the order they came, when what it asks for is done; the kernel waits 5 s. A device that does not let go
 * within {@link PATIENCE_MS} loses the memory all the same: nothing of the kernel's is mapped any more, and what it
 * still looks at are zeros, which go when it does.
 */

import { linuxErrno, LinuxError } from "../linux/errors.ts";
import { type Mapping, PAGE_SIZE, remap } from "../linux/mapping.ts";
import type { MappedPart } from "../linux/memory_file.ts";
import type { Reactor } from "../linux/reactor.ts";
import { MAX_WINDOWS, type MemoryRegion } from "../memory/mod.ts";
import type { BridgeState } from "../observe/state.ts";
import { BridgeId, type MapRequest, mapRequestOf, writeMapAnswer } from "./bridge_frames.ts";
import type { BridgeTrace } from "./bridge_trace.ts";
import type { OutgoingQueue } from "./message_queue.ts";

/** How long a device may take to let go of a window. */
export const PATIENCE_MS = 4000;
/** Requests that are not answered yet: as many as the kernel has open at most. */
const MAX_OPEN = 1024;

const EEXIST = linuxErrno("EEXIST");
const EINVAL = linuxErrno("EINVAL");
const ENOMEM = linuxErrno("ENOMEM");

/** What windows need of their bus. */
export interface WindowsOwner {
  map(offset: number, length: number): MappedPart;
  /** See BusListener. */
  windowAdded(region: MemoryRegion): number;
  windowRemoved(region: MemoryRegion, done: () => void): void;
  /** An answer is ready. */
  answered(): void;
  /** No window of an earlier session is left. */
  emptied(): void;
  /** A window was not taken. */
  refused(): void;
  /** For people; a kernel can have it said as often as it likes. */
  complain(line: string): void;
}

interface Window {
  readonly region: MemoryRegion;
  readonly mapping: Mapping;
}

interface Open {
  readonly request: MapRequest;
  readonly sinceMs: number;
  /** What will be answered; undefined while it is not done. */
  status: number | undefined;
}

/** See the head of this file. */
export class BridgeWindows implements Disposable {
  /** Live ones by the kernel's name for them. */
  readonly #live = new Map<bigint, Window>();
  readonly #leaving = new Set<Window>();
  #open: Open[] = [];
  #bytes = 0;

  constructor(readonly reactor: Reactor, readonly owner: WindowsOwner) {}

  /** Is none left that could be in the way of another session's? */
  get isEmpty(): boolean {
    return this.#live.size === 0 && this.#leaving.size === 0;
  }

  /** Says how many there are, and what waits. */
  show(state: BridgeState): void {
    const count = this.#live.size + this.#leaving.size;
    state.windows(count, this.#bytes, this.#open.length, this.#open[0]?.sinceMs ?? 0);
  }

  /** Does any answer wait for room? */
  get isReady(): boolean {
    return this.#open[0]?.status !== undefined;
  }

  /** Takes a MAP_ADD or MAP_DEL; false if too many are open. */
  take(slot: DataView): boolean {
    if (this.#open.length >= MAX_OPEN) return false;
    const request = mapRequestOf(slot);
    const open: Open = { request, sinceMs: this.reactor.now(), status: undefined };
    this.#open.push(open);
    if (request.id === BridgeId.MAP_ADD) {
      open.status = -this.#add(request);
      return true;
    }
    const window = this.#live.get(request.map);
    const done = () => {
      open.status = 0;
      this.owner.answered();
    };
    if (window === undefined) open.status = 0;
    else this.#release(request.map, window, done);
    return true;
  }

  #add({ map, at, length, offset, mapLength }: MapRequest): number {
    const isPages = [at, length, offset].every((n) =>
      Number.isSafeInteger(n) && n % PAGE_SIZE === 0
    );
    const fits = length > 0 && length <= mapLength && Number.isSafeInteger(at + length);
    if (!isPages || !fits) return this.#refuse(EINVAL, `window ${map} is ${length} bytes at ${at}`);
    if (this.#live.has(map)) return this.#refuse(EEXIST, `window ${map} is there already`);
    if (this.#live.size + this.#leaving.size >= MAX_WINDOWS) {
      return this.#refuse(ENOMEM, `${MAX_WINDOWS} windows are there already`);
    }
    let part: MappedPart;
    try {
      part = this.owner.map(offset, length);
    } catch (error) {
      const number = error instanceof LinuxError ? error.errno : EINVAL;
      return this.#refuse(number, (error as Error).message);
    }
    const region = { at, size: length, memory: part.memory, offset: part.offset };
    const refusal = this.owner.windowAdded(region);
    if (refusal !== 0) {
      part.memory[Symbol.dispose]();
      this.owner.refused();
    } else {
      this.#live.set(map, { region, mapping: part.memory });
      this.#bytes += length;
    }
    return refusal;
  }

  #refuse(number: number, why: string): number {
    this.owner.refused();
    this.owner.complain(`memory of the kernel's is refused: ${why}`);
    return number;
  }

  /** @param done called once: when it is unmapped, or must be so */
  #release(map: bigint, window: Window, done: () => void): void {
    this.#live.delete(map);
    this.#leaving.add(window);
    let isTold = false;
    const tell = () => {
      this.#leaving.delete(window);
      if (isTold) return;
      isTold = true;
      this.#bytes -= window.region.size;
      done();
      if (this.isEmpty) this.owner.emptied();
    };
    const patience = this.reactor.timer(() => {
      remap(window.mapping, undefined);
      this.owner.complain("a device does not let go of the kernel's memory: it is taken away");
      tell();
    });
    patience.arm(PATIENCE_MS);
    this.owner.windowRemoved(window.region, () => {
      this.reactor.dropTimer(patience);
      window.mapping[Symbol.dispose]();
      tell();
    });
  }

  /** Writes the answers that are ready, as far as there is room; true if any was. */
  answer(queue: OutgoingQueue, trace?: BridgeTrace): boolean {
    let count = 0;
    for (; count < this.#open.length; count++) {
      const { request, status } = this.#open[count]!;
      const at = status === undefined ? -1 : queue.claim();
      if (at < 0) break;
      writeMapAnswer(queue.view, at, request, status!);
      trace?.sent(queue.view, at);
      queue.publish();
    }
    this.#open.splice(0, count);
    return count > 0;
  }

  /** The session is over: nothing is answered any more, and all windows go. */
  dropAll(): void {
    this.#open = [];
    for (const [map, window] of this.#live) this.#release(map, window, () => {});
  }

  /** Unmaps everything: no device is left. */
  [Symbol.dispose](): void {
    this.#open = [];
    for (const { mapping } of [...this.#live.values(), ...this.#leaving]) mapping[Symbol.dispose]();
    this.#live.clear();
    this.#leaving.clear();
  }
}
