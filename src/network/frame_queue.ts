/**
 * Frames that wait for one port of a hub: a fixed ring of slots in memory that never moves, so that
 * system calls and memcpy can work on them. Each slot begins with a virtio-net header that asks for
 * nothing; whatever a sender's header said is left behind. A full queue drops the newest frame.
 */

import { NET_HEADER_SIZE, NUM_BUFFERS_OFFSET } from "../virtio/net_header.ts";
import { mapAnonymous, type Mapping } from "../linux/mapping.ts";
import { type IovecList, MemoryWindow } from "../memory/mod.ts";

/** See the head of this file. */
export class FrameQueue implements Disposable {
  /** All slots, for segment lists. */
  readonly window: MemoryWindow;
  readonly #memory: Mapping;
  readonly #lengths: Uint32Array;
  #tail = 0;
  #count = 0;

  /** Maps `capacity` slots for frames of at most `slotSize` bytes, their virtio-net header among them. */
  constructor(readonly capacity: number, readonly slotSize: number) {
    this.#memory = mapAnonymous(capacity * slotSize);
    this.#lengths = new Uint32Array(capacity);
    this.window = new MemoryWindow(0, capacity * slotSize, this.#memory, 0);
    for (let i = 0; i < capacity; i++) {
      this.window.view.setUint16(i * slotSize + NUM_BUFFERS_OFFSET, 1, true);
    }
  }

  get count(): number {
    return this.#count;
  }

  /** Queues a copy of a frame of `length` bytes, its virtio-net header among them; false if there is no room. */
  push(frame: IovecList, length: number): boolean {
    if (this.#count === this.capacity || length > this.slotSize) return false;
    const slot = (this.#tail + this.#count) % this.capacity;
    const target = this.window.address + BigInt(slot * this.slotSize + NET_HEADER_SIZE);
    frame.copyOut(NET_HEADER_SIZE, target, length - NET_HEADER_SIZE);
    this.#lengths[slot] = length;
    this.#count++;
    return true;
  }

  /** The length of the oldest frame with its header, 0 if there is none. */
  get frontLength(): number {
    return this.#count === 0 ? 0 : this.#lengths[this.#tail];
  }

  /** Where the oldest frame begins in {@link window}. */
  get frontOffset(): number {
    return this.#tail * this.slotSize;
  }

  copyFront(into: IovecList, first: number): number {
    const source = this.window.address + BigInt(this.frontOffset);
    return into.copyIn(0, source, this.frontLength, first);
  }

  shift(): void {
    if (this.#count === 0) return;
    this.#tail = (this.#tail + 1) % this.capacity;
    this.#count--;
  }

  [Symbol.dispose](): void {
    this.#count = 0;
    this.#memory[Symbol.dispose]();
  }
}
