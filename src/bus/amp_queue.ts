/**
 * Both directions of an AMP layout (docs/wire.md 4.5): each side has an array of elements that it writes, and a head of 8 bytes
 * that only it writes:
 *
 *     0 u16 magic "OQ"   2 u16 status   4 u16 tail: the element of its own that it writes next
 *     6 u16 head: the element of the other side's that it reads next
 *
 * So one object is both queues of a bus. As in spsc_queue.ts each side keeps its own cursors privately, and a cursor of the
 * other side that makes no sense counts as "nothing moved". Here it also says that the other side has begun anew without
 * being seen to ({@link AmpQueue.isAstray}): its cursors are 0 then, and ours are not.
 *
 * Messages are written to a private slot first, for elements need not be aligned. The layout has no word for a grant.
 */

import { loadAcquire16, type MappedMemory, storeRelease16 } from "../memory/mod.ts";
import { type AmpPlace, ELEMENT_SIZE, HEAD_SIZE } from "./amp_block.ts";
import type { Side } from "./bus.ts";
import type { IncomingQueue, OutgoingQueue } from "./message_queue.ts";

const HEAD_MAGIC = 0x514f;
/** Words of a head. */
const [MAGIC, STATUS, TAIL, HEAD] = [0, 1, 2, 3];
const WORDS = ELEMENT_SIZE / 4;

/** What a side says of itself. */
export const AmpStatus = { INIT: 0, READY: 1, RUN: 2, SHUTDOWN: 3, PEER_DEAD: 4 } as const;
/** The others are flags, which whoever writes a status clears. */
const STATUS_BITS = 0x1f;

/** A side's head in a copy of the memory, for people; undefined where it has none. @param at a multiple of 2 */
export function readHead(bytes: Uint8Array, at: number) {
  const [magic, word, tail, head] = new Uint16Array(
    bytes.slice(at, at + HEAD_SIZE).buffer,
  ) as unknown as [number, number, number, number];
  if (magic !== HEAD_MAGIC) return undefined;
  const status = word & STATUS_BITS;
  const name = Object.keys(AmpStatus)[status] ?? `status ${status}`;
  return { status: word === status ? name : `${name} 0x${word.toString(16)}`, tail, head };
}

/** See the head of this file. */
export class AmpQueue implements OutgoingQueue, IncomingQueue {
  readonly slotSize: number = ELEMENT_SIZE;
  readonly view: DataView;
  readonly granted: number = 0;
  readonly grantAddress: bigint = 0n;
  /** Has a cursor of the other side gone where it cannot? */
  isAstray = false;
  readonly #staging = new Uint32Array(WORDS);
  readonly #bytes: Uint8Array;
  readonly #words: Uint16Array;
  readonly #longs: Uint32Array;
  /** Of this side, of which none is used. */
  #notifications = { at: 0, end: 0 };
  #count = 0;
  #elementSize = 0;
  /** Positions of the heads, in words of 16 bits. */
  #own = 0;
  #theirs = 0;
  /** Positions of the elements, in bytes. */
  #ownElements = 0;
  #theirElements = 0;
  #tail = 0;
  #head = 0;
  /** The last sound cursors of the other side. */
  #theirTail = 0;
  #theirHead = 0;

  /**
   * Touches nothing.
   *
   * @param offset of the layout, a multiple of 4
   */
  constructor(readonly side: Side, readonly memory: MappedMemory, readonly offset: number) {
    this.#bytes = new Uint8Array(memory.buffer);
    this.#words = new Uint16Array(memory.buffer, 0, memory.size >> 1);
    this.#longs = new Uint32Array(memory.buffer, 0, memory.size >> 2);
    this.view = new DataView(this.#staging.buffer);
  }

  /** Takes up a layout. */
  place(place: AmpPlace): void {
    const [own, theirs] = this.side === "device"
      ? [place.device, place.driver]
      : [place.driver, place.device];
    const at = this.offset + own.notifications;
    this.#notifications = { at, end: at + place.notificationSize };
    this.#count = place.count;
    this.#elementSize = place.elementSize;
    this.#own = (this.offset + own.head) / 2;
    this.#theirs = (this.offset + theirs.head) / 2;
    this.#ownElements = this.offset + own.elements;
    this.#theirElements = this.offset + theirs.elements;
  }

  /** This side's status; undefined before it has a head. */
  get status(): number | undefined {
    return this.#statusAt(this.#own);
  }

  /** Writes this side's status, and makes its head one. */
  set status(status: number) {
    storeRelease16(this.#words, this.#own + STATUS, status);
    storeRelease16(this.#words, this.#own + MAGIC, HEAD_MAGIC);
  }

  /** The other side's status. */
  get theirStatus(): number | undefined {
    return this.#statusAt(this.#theirs);
  }

  #statusAt(head: number): number | undefined {
    if (loadAcquire16(this.#words, head + MAGIC) !== HEAD_MAGIC) return undefined;
    return loadAcquire16(this.#words, head + STATUS) & STATUS_BITS;
  }

  /** Begins anew: both cursors, all notifications and all elements of this side become 0. */
  clear(): void {
    const zero = (at: number, end: number) => {
      for (; at < end; at++) this.#bytes[at] = 0;
    };
    zero(this.#notifications.at, this.#notifications.end);
    zero(this.#ownElements, this.#ownElements + this.#count * this.#elementSize);
    this.isAstray = false;
    storeRelease16(this.#words, this.#own + TAIL, 0);
    storeRelease16(this.#words, this.#own + HEAD, 0);
  }

  /** The other side writes from its first element on. */
  readAnew(): void {
    this.isAstray = false;
    storeRelease16(this.#words, this.#own + HEAD, 0);
  }

  attachProducer(): void {
    this.#tail = this.#sound(this.#own + TAIL, 0);
    storeRelease16(this.#words, this.#own + TAIL, this.#tail);
    this.#theirHead = this.#sound(this.#theirs + HEAD, this.#tail);
  }

  attachConsumer(discard: boolean, slot?: Uint32Array): boolean {
    const start = this.#sound(this.#own + HEAD, 0);
    this.#theirTail = this.#sound(this.#theirs + TAIL, start);
    this.#head = discard ? this.#theirTail : start;
    storeRelease16(this.#words, this.#own + HEAD, this.#head);
    if (this.#head === start) return false;
    if (slot !== undefined) this.#read((this.#head + this.#count - 1) % this.#count, slot);
    return true;
  }

  /** A cursor as it is found, if there is such an element. */
  #sound(position: number, otherwise: number): number {
    const cursor = loadAcquire16(this.#words, position);
    return cursor < this.#count ? cursor : otherwise;
  }

  get free(): number {
    this.look();
    return (this.#theirHead - this.#tail - 1 + this.#count) % this.#count;
  }

  /** What the other side has read: between what it had and what was written. */
  look(): void {
    const head = loadAcquire16(this.#words, this.#theirs + HEAD);
    const moved = (head - this.#theirHead + this.#count) % this.#count;
    const most = (this.#tail - this.#theirHead + this.#count) % this.#count;
    if (head < this.#count && moved <= most) this.#theirHead = head;
    else this.isAstray = true;
  }

  claim(): number {
    const next = this.#next(this.#tail);
    if (next === this.#theirHead) {
      this.look();
      if (next === this.#theirHead) return -1;
    }
    return 0;
  }

  withhold(): void {
    this.#write(this.#tail);
    this.#tail = this.#next(this.#tail);
  }

  publish(): void {
    this.withhold();
    // Release: the element's bytes are there before the cursor that announces them.
    storeRelease16(this.#words, this.#own + TAIL, this.#tail);
  }

  retract(): void {
    this.look();
    this.#tail = this.#theirHead;
    storeRelease16(this.#words, this.#own + TAIL, this.#tail);
  }

  grant(_number: number): void {}

  receive(slot: Uint32Array): boolean {
    if (this.#head === this.#theirTail) {
      // One who begins anew moves its cursors before it says more.
      if (!this.theirStatus) return false;
      this.look();
      const tail = loadAcquire16(this.#words, this.#theirs + TAIL);
      if (tail >= this.#count) this.isAstray = true;
      if (this.isAstray || this.#head === tail) return false;
      this.#theirTail = tail;
    }
    this.#read(this.#head, slot);
    this.#head = this.#next(this.#head);
    // Release: the element has been read before its writer may write it again.
    storeRelease16(this.#words, this.#own + HEAD, this.#head);
    return true;
  }

  #next(cursor: number): number {
    return cursor + 1 === this.#count ? 0 : cursor + 1;
  }

  #read(index: number, slot: Uint32Array): void {
    const from = this.#theirElements + this.#elementSize * index;
    const bytes = this.#bytes;
    for (let i = 0, at = from; i < WORDS; i++, at += 4) {
      slot[i] = from % 4 === 0
        ? this.#longs[at / 4]
        : bytes[at]! | bytes[at + 1]! << 8 | bytes[at + 2]! << 16 | bytes[at + 3]! << 24;
    }
  }

  #write(index: number): void {
    const to = this.#ownElements + this.#elementSize * index;
    const bytes = this.#bytes;
    for (let i = 0, at = to; i < WORDS; i++, at += 4) {
      const word = this.#staging[i]!;
      if (to % 4 === 0) this.#longs[at / 4] = word;
      else for (let n = 0; n < 4; n++) bytes[at + n] = word >>> 8 * n;
    }
  }
}
