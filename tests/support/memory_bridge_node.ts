/** A bridge's node in this process, for the bus alone: what a kernel's would be as far as the bus can tell. */

import { BridgeNode } from "../../src/bus/bridge_node.ts";
import type { Block } from "../../src/linux/arena.ts";
import { clearEventFd, signalEventFd } from "../../src/linux/eventfd.ts";
import type { Fd } from "../../src/linux/fd.ts";
import { mapAnonymous, type Mapping, mapShared } from "../../src/linux/mapping.ts";
import type { MappedPart } from "../../src/linux/memory_file.ts";

const NAMES: Readonly<Record<number, string>> = {
  0xc0a8b900: "ATTACH",
  0x0000b901: "DETACH",
  0xc058b90a: "RESOLVE",
  0x4010b90b: "RELEASE",
};
const HEADER = 24, SLOT = 128, ENTRIES = 256;
const PROD = 0, CONS = 1;

/** See the head of this file. */
export class MemoryNode extends BridgeNode {
  override readonly path = "memory";
  override readonly isOpen = true;
  readonly asked: string[] = [];
  /** What ATTACH answers, 0 or an errno; its epoch, or 0 for offline. */
  refusal = 0;
  epoch = 1n;
  limit = 128;
  abi = 1;
  /** Online, whatever the epoch. */
  isOnline = false;
  isWatched = false;
  faulted: () => void = () => {};
  gone: () => void = () => {};
  opened: () => void = () => {};
  /** Windows that were mapped. */
  readonly mappings: Mapping[] = [];
  #memory: Mapping | undefined;
  #kick: Fd | undefined;
  #call: Fd | undefined;
  #rx = 0;

  constructor(override readonly isKernel = true) {
    super();
  }

  override open(opened: () => void): void {
    this.opened = opened;
    opened();
  }

  protected override request(number: number, { view }: Block, fds: readonly Fd[]): number {
    const name = NAMES[number]!;
    this.asked.push(name);
    if (name === "RESOLVE") view.setUint32(64, 2, true);
    if (name === "DETACH") this.#forget();
    if (name !== "ATTACH") return 0;
    if (this.refusal !== 0) return this.refusal;
    this.#rx = Number(view.getBigUint64(56, true));
    this.#memory = mapShared(fds[0]!.number, this.#rx + HEADER + ENTRIES * SLOT);
    this.#kick = fds[1];
    this.#call = fds[2];
    view.setUint32(88, this.abi, true);
    view.setUint32(96, this.limit, true);
    view.setUint32(100, this.isOnline || this.epoch > 0n ? 1 : 0, true);
    view.setBigUint64(120, this.epoch, true);
    return 0;
  }

  #forget(): void {
    this.#memory?.[Symbol.dispose]();
    this.#memory = undefined;
  }

  override map(_offset: number, length: number): MappedPart {
    const memory = mapAnonymous(length);
    this.mappings.push(memory);
    return { memory, offset: 0, size: length };
  }

  override watch(faulted: () => void, gone: () => void): void {
    this.isWatched = true;
    this.faulted = faulted;
    this.gone = gone;
  }

  override unwatch(): void {
    this.isWatched = false;
  }

  /** The header of a ring. */
  header(which: "tx" | "rx"): Uint32Array {
    return new Uint32Array(this.#memory!.buffer, which === "tx" ? 0 : this.#rx, 6);
  }

  #slot(which: "tx" | "rx", cursor: number): Uint8Array<ArrayBuffer> {
    const at = (which === "tx" ? 0 : this.#rx) + HEADER + SLOT * (cursor % ENTRIES);
    return new Uint8Array(this.#memory!.buffer, at, SLOT);
  }

  /** Puts frames into the ring of the process, and calls it. */
  put(...frames: readonly Uint8Array[]): void {
    const header = this.header("rx");
    for (const frame of frames) {
      const slot = this.#slot("rx", header[PROD]!);
      slot.fill(0xee);
      slot.set(frame);
      header[PROD]! += 1;
    }
    signalEventFd(this.#call!);
  }

  /** How often it was kicked since this was last asked. */
  kicks(): number {
    const path = `/proc/self/fdinfo/${this.#kick!.number}`;
    const count = /^eventfd-count:\s*([0-9a-f]+)$/m.exec(Deno.readTextFileSync(path))![1]!;
    clearEventFd(this.#kick!);
    return parseInt(count, 16);
  }

  /** Takes what the process sent, as hexadecimal of as many bytes as each says it has. */
  take(most = Infinity): string[] {
    const header = this.header("tx");
    const frames: string[] = [];
    while (header[CONS] !== header[PROD] && frames.length < most) {
      const slot = this.#slot("tx", header[CONS]!);
      frames.push(slot.slice(0, slot[6]! | slot[7]! << 8).toHex());
      header[CONS]! += 1;
    }
    return frames;
  }

  /** Takes all that is there, if the cursors make sense; how many frames there were. */
  takeSafely(): number {
    const header = this.header("tx");
    const count = (header[PROD]! - header[CONS]!) >>> 0;
    return count <= ENTRIES ? this.take().length : 0;
  }

  /** Cursors of the ring to the process as it has them. */
  startAnew(): void {
    const header = this.header("rx");
    header[PROD] = header[CONS]!;
  }

  /** Is there a session? */
  get isAttached(): boolean {
    return this.#memory !== undefined;
  }

  override [Symbol.dispose](): void {
    this.asked.push("close");
    this.#forget();
  }
}
