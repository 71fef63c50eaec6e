/**
 * A ring of the kernel's bridge (docs/wire.md 4.7): one direction, 256 slots behind a header.
 *
 *     0     u32 prod: free-running, written by whoever writes slots
 *     4     u32 cons: free-running, written by whoever reads them
 *     8     u32 entries, u32 bytes of a slot, u32 flags 0, u32 0: written once, before the kernel has it
 *     24    slots
 *
 * The cursors here are private and the truth; the memory has copies. The kernel publishes its cursor by writing the whole header as
 * it read it before it handled a slot, so ours may be set back meanwhile: {@link BridgeProducer.lags} tells, and stores it again.
 * A cursor of the kernel's that is further away than the ring is long counts as "nothing moved".
 */

import { loadAcquire32, type MappedMemory, storeRelease32 } from "../memory/mod.ts";
import type { IncomingQueue, OutgoingQueue } from "./message_queue.ts";

/** Slots of a ring. */
export const BRIDGE_ENTRIES = 256;
/** Bytes of a slot: what 128 bytes of message are rounded up to. */
export const BRIDGE_SLOT = 128;
/** Bytes before the first slot. */
export const BRIDGE_HEADER = 24;
/** Bytes of a ring. */
export const BRIDGE_RING: number = BRIDGE_HEADER + BRIDGE_ENTRIES * BRIDGE_SLOT;

const PROD = 0, CONS = 1, ENTRIES = 2, ENTRY_SIZE = 3;
const SLOT_WORDS = BRIDGE_SLOT / 4;

function offsetOf(cursor: number): number {
  return BRIDGE_HEADER + BRIDGE_SLOT * (cursor % BRIDGE_ENTRIES);
}

/** What both ends have: cursors, of which one is this side's. */
abstract class BridgeRing {
  /** See {@link OutgoingQueue.slotSize}. */
  readonly slotSize: number = BRIDGE_SLOT;
  /** How often a cursor of the kernel's made no sense. */
  badIndices = 0;
  /** How often one of this side's had been set back. */
  restored = 0;
  protected words: Uint32Array<ArrayBuffer> = new Uint32Array(BRIDGE_RING / 4);
  protected own = 0;
  protected other = 0;

  /** @param word this side's cursor */
  constructor(readonly word: number) {}

  /** Begins anew in other memory, which is all zeros and which nobody else has yet. */
  begin(memory: MappedMemory, offset: number): void {
    this.words = new Uint32Array(memory.buffer, offset, BRIDGE_RING / 4);
    this.words[ENTRIES] = BRIDGE_ENTRIES;
    this.words[ENTRY_SIZE] = BRIDGE_SLOT;
    this.own = 0;
    this.other = 0;
  }

  /** The memory goes away: what is left is empty, and nobody's. */
  end(): void {
    this.words = new Uint32Array(BRIDGE_RING / 4);
    this.own = 0;
    this.other = 0;
  }

  /** This side's cursor, and the other's as it was last seen. */
  get ours(): number {
    return this.shown;
  }
  get theirs(): number {
    return this.other;
  }

  /** Stores this side's cursor again if it was set back; was it? */
  lags(): boolean {
    if (loadAcquire32(this.words, this.word) === this.shown) return false;
    storeRelease32(this.words, this.word, this.shown);
    this.restored++;
    return true;
  }

  /** The cursor that the memory should have. */
  protected abstract readonly shown: number;

  /** Looks at the kernel's cursor: what it read or wrote comes before what follows here. */
  protected look(ahead: number, behind: number): boolean {
    if ((ahead - behind) >>> 0 <= BRIDGE_ENTRIES) return true;
    this.badIndices++;
    return false;
  }
}

/** The end that writes. */
export class BridgeProducer extends BridgeRing implements OutgoingQueue {
  view: DataView = new DataView(this.words.buffer);
  /** What the kernel may read; {@link own} is ahead of it by what is withheld. */
  protected shown = 0;

  constructor() {
    super(PROD);
  }

  override begin(memory: MappedMemory, offset: number): void {
    super.begin(memory, offset);
    this.#view();
  }

  override end(): void {
    super.end();
    this.#view();
  }

  #view(): void {
    this.shown = 0;
    this.view = new DataView(this.words.buffer, this.words.byteOffset, BRIDGE_RING);
  }

  #look(): void {
    const cons = loadAcquire32(this.words, CONS);
    if (this.look(this.own, cons)) this.other = cons;
  }

  get free(): number {
    this.#look();
    return BRIDGE_ENTRIES - ((this.own - this.other) >>> 0);
  }

  /** Has the kernel read all that was written? */
  get isRead(): boolean {
    this.#look();
    return this.other === this.shown;
  }

  claim(): number {
    if ((this.own - this.other) >>> 0 >= BRIDGE_ENTRIES && this.free === 0) return -1;
    return offsetOf(this.own);
  }

  withhold(): void {
    this.own = (this.own + 1) >>> 0;
  }

  publish(): void {
    this.withhold();
    this.shown = this.own;
    // Release: the slot's bytes are there before the cursor that announces them.
    storeRelease32(this.words, PROD, this.shown);
  }

  /** A session begins with an empty ring. */
  attachProducer(): void {}
  /** What the kernel did not read goes with the session. */
  retract(): void {}
  /** There is no word for it: the kernel's memory is the kernel's. */
  grant(_number: number): void {}
}

/** The end that reads. */
export class BridgeConsumer extends BridgeRing implements IncomingQueue {
  /** The cursor when {@link wasFull} was last asked. */
  #asked = 0;
  readonly granted = 0;
  readonly grantAddress = 0n;

  constructor() {
    super(CONS);
  }

  protected get shown(): number {
    return this.own;
  }

  override begin(memory: MappedMemory, offset: number): void {
    super.begin(memory, offset);
    this.#asked = 0;
  }

  #look(): void {
    const prod = loadAcquire32(this.words, PROD);
    if (this.look(prod, this.own)) this.other = prod;
  }

  receive(slot: Uint32Array): boolean {
    if (this.own === this.other) {
      this.#look();
      if (this.own === this.other) return false;
    }
    let from = offsetOf(this.own) / 4;
    for (let i = 0; i < SLOT_WORDS; i++) slot[i] = this.words[from++]!;
    this.own = (this.own + 1) >>> 0;
    // Release: the slot has been read before the kernel may write it again.
    storeRelease32(this.words, CONS, this.own);
    return true;
  }

  /** Can the ring have been full since this was last asked, so that the kernel waits to be told of room? */
  wasFull(): boolean {
    const isPossible = (this.other - this.#asked) >>> 0 >= BRIDGE_ENTRIES;
    if (isPossible) this.#asked = this.own;
    return isPossible;
  }

  /** Does a frame wait that begins with these two bytes, of this epoch or a later one? Nothing is taken. */
  awaits(head: number, epoch: bigint): boolean {
    this.#look();
    for (let at = this.own; at !== this.other; at = (at + 1) >>> 0) {
      const from = offsetOf(at) / 4;
      if ((this.words[from]! & 0xffff) !== head) continue;
      const [low, high] = [this.words[from + 2]!, this.words[from + 3]!];
      if ((BigInt(high) << 32n | BigInt(low)) >= epoch) return true;
    }
    return false;
  }

  /** A session begins with an empty ring. */
  attachConsumer(_discard: boolean): boolean {
    return false;
  }
}
