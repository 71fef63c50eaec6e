/**
 * The message queue that every virtio-msg bus of the prototype uses: one direction, one producer, one
 * consumer, 64-byte slots in shared memory (docs/wire.md 4.1).
 *
 *     0    u32 head: the slot the producer writes next; only the producer writes it
 *     12   u32 grant: between two vmsg sides, and written by the driver side only (docs/wire.md 6)
 *     64   u32 tail: the slot the consumer reads next; only the consumer writes it
 *     128  slots of 64 bytes, capacity = floor((size - 128) / 64)
 *
 * Indices run 0..capacity-1; head == tail is empty; one slot always stays free. Each side keeps its own
 * index privately and only ever stores it; the other's index is read, checked against the capacity, and
 * cached, as in the C implementations. An index that is out of range counts as "nothing moved": the
 * queue stands still instead of following a hostile or broken peer.
 *
 * A message is encoded in place, or, where the memory is a device's (a PCI BAR on arm64, which takes
 * aligned accesses only), in a private slot that is copied word by word.
 */

import type { IncomingQueue, OutgoingQueue } from "./message_queue.ts";
import { loadAcquire32, type MappedMemory, storeRelease32 } from "../memory/mod.ts";

/** Bytes of one slot, and so of the longest message. */
export const SLOT_SIZE = 64;
const GRANT_WORD = 3;
/** The word that has the tail; the head is in the first. */
export const TAIL_WORD = 16;
/** Where slots begin. */
export const SLOTS_OFFSET = 128;
const WORDS = SLOT_SIZE / 4;

/** How many slots fit into `size` bytes. */
export function spscCapacity(size: number): number {
  return Math.max(0, Math.floor((size - SLOTS_OFFSET) / SLOT_SIZE));
}

/** The bytes that `capacity` slots need. */
export function spscSize(capacity: number): number {
  return SLOTS_OFFSET + SLOT_SIZE * capacity;
}

/** One end of one queue. Use it as producer or as consumer, never as both. */
export class SpscQueue implements OutgoingQueue, IncomingQueue {
  /** See {@link OutgoingQueue.slotSize}. */
  readonly slotSize: number = SLOT_SIZE;
  /** Slots; one of them always stays free. */
  readonly capacity: number;
  /** Where messages are encoded, at the offset that {@link claim} gives. */
  readonly view: DataView;
  /** How often the peer's index was out of range. */
  badIndices = 0;
  readonly #words: Uint32Array;
  /** This process's address of the word that {@link granted} reads, for its other threads. */
  readonly grantAddress: bigint;
  /** The private slot, if there is one. */
  readonly #staging: Uint32Array | undefined;
  /** The producer's head or the consumer's tail: this side's index, and its truth. */
  #own = 0;
  /** The last valid index seen of the other side. */
  #other = 0;

  /**
   * Views a queue area, without touching it.
   *
   * @param memory shared with the peer
   * @param offset of the queue area, a multiple of 4
   * @param size of the queue area in bytes
   * @param isDeviceMemory only aligned accesses of words are sure to work
   */
  constructor(memory: MappedMemory, offset: number, size: number, isDeviceMemory = false) {
    this.capacity = spscCapacity(size);
    if (this.capacity < 2) throw new Error(`a queue of ${size} bytes has no room for two messages`);
    this.#words = new Uint32Array(memory.buffer, offset, spscSize(this.capacity) / 4);
    this.grantAddress = memory.address + BigInt(offset + 4 * GRANT_WORD);
    this.#staging = isDeviceMemory ? new Uint32Array(WORDS) : undefined;
    this.view = this.#staging === undefined
      ? new DataView(memory.buffer, offset, size)
      : new DataView(this.#staging.buffer);
  }

  /**
   * Producer: continues where the head in memory says; one that is out of range, left by whoever had
   * the memory before, starts at 0.
   */
  attachProducer(): void {
    const head = loadAcquire32(this.#words, 0);
    this.#own = head < this.capacity ? head : 0;
    storeRelease32(this.#words, 0, this.#own);
    const tail = loadAcquire32(this.#words, TAIL_WORD);
    this.#other = tail < this.capacity ? tail : this.#own;
  }

  /**
   * Consumer: continues where the tail in memory says.
   *
   * @param discard drop what is queued: a living peer of ours sends its messages again, and what an
   * earlier one left is not for us. The prototype's queues are used as found.
   * @param slot takes the newest message that was dropped, if it is wanted
   * @returns whether there was one
   */
  attachConsumer(discard: boolean, slot?: Uint32Array): boolean {
    const head = loadAcquire32(this.#words, 0);
    const tail = loadAcquire32(this.#words, TAIL_WORD);
    const start = tail < this.capacity ? tail : 0;
    // A head out of range announces nothing.
    this.#other = head < this.capacity ? head : start;
    this.#own = discard ? this.#other : start;
    storeRelease32(this.#words, TAIL_WORD, this.#own);
    if (this.#own === start) return false;
    if (slot !== undefined) this.#copySlot((this.#own + this.capacity - 1) % this.capacity, slot);
    return true;
  }

  #copySlot(index: number, slot: Uint32Array): void {
    let from = (SLOTS_OFFSET + SLOT_SIZE * index) / 4;
    for (let i = 0; i < WORDS; i++) slot[i] = this.#words[from++];
  }

  /** Producer: takes back what was not read, while there is no consumer: the next one begins with its own. */
  retract(): void {
    this.#other = this.#read(TAIL_WORD);
    this.#own = this.#other;
    storeRelease32(this.#words, 0, this.#own);
  }

  /** Producer: how many messages there is room for. */
  get free(): number {
    this.#other = this.#read(TAIL_WORD);
    return (this.#other - this.#own - 1 + this.capacity) % this.capacity;
  }

  /**
   * Producer: the byte offset in {@link view} of the slot to write, or -1 when the queue is full.
   * Nothing is sent before {@link publish}.
   */
  claim(): number {
    const next = this.#next();
    if (next === this.#other) {
      this.#other = this.#read(TAIL_WORD);
      if (next === this.#other) return -1;
    }
    return this.#staging === undefined ? SLOTS_OFFSET + SLOT_SIZE * this.#own : 0;
  }

  /** Producer: the claimed slot is written, but the consumer sees it only with the next one. */
  withhold(): void {
    this.#copyStaged();
    this.#own = this.#next();
  }

  #copyStaged(): void {
    const staging = this.#staging;
    if (staging === undefined) return;
    let to = (SLOTS_OFFSET + SLOT_SIZE * this.#own) / 4;
    for (let i = 0; i < WORDS; i++) this.#words[to++] = staging[i];
  }

  /** Producer: hands the claimed slot to the consumer. */
  publish(): void {
    this.#copyStaged();
    this.#own = this.#next();
    // Release: the slot's bytes are there before the head that announces them.
    storeRelease32(this.#words, 0, this.#own);
  }

  /**
   * Consumer: copies the next message into `slot`. One copy, so that what is checked is what is used.
   *
   * @param slot 16 words that nobody else sees
   * @returns false when the queue is empty
   */
  receive(slot: Uint32Array): boolean {
    if (this.#own === this.#other) {
      this.#other = this.#read(0);
      if (this.#own === this.#other) return false;
    }
    this.#copySlot(this.#own, slot);
    this.#own = this.#next();
    // Release: the slot has been read before the producer may write it again.
    storeRelease32(this.#words, TAIL_WORD, this.#own);
    return true;
  }

  /** Producer: says what is granted, before what follows here. What is said already is not stored again. */
  grant(number: number): void {
    if (loadAcquire32(this.#words, GRANT_WORD) !== number) {
      storeRelease32(this.#words, GRANT_WORD, number);
    }
  }

  /** Consumer: what the producer grants at this moment. */
  get granted(): number {
    return loadAcquire32(this.#words, GRANT_WORD);
  }

  #next(): number {
    const next = this.#own + 1;
    return next === this.capacity ? 0 : next;
  }

  /** The peer's index with acquire: its slot writes (or reads) come before what follows here. */
  #read(word: number): number {
    const index = loadAcquire32(this.#words, word);
    if (index < this.capacity) return index;
    this.badIndices++;
    return this.#other;
  }
}
