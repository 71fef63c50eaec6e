/**
 * The device's side of a virtqueue, whichever its format: what a device sees of it, and what split (split/device_queue.ts)
 * and packed rings (packed/device_queue.ts) have in common, which is all but the walk of the ring.
 *
 * Life: `openDeviceQueue` (open.ts) checks where the ring lies and makes views over exactly its three areas. Then
 * the queue is open; it is broken for good by the first thing in its memory that cannot be right
 * (`broken` says what, the device answers with DEVICE_NEEDS_RESET), and stopped by `stop`. A broken
 * queue still takes `complete` and `publish` for the buffers popped before, so that a batch has no
 * special end; a stopped queue touches memory no more.
 *
 * Buffers are completed in the order they were made available. Hence `rewind` and `stop` are exact, a successor of a
 * device that died finds out from the ring where to go on, and `complete` can assert its arguments. What is in
 * flight is remembered here, because the driver can rewrite its ring. A split queue that was opened with `anyOrder` gives all
 * that up for devices that keep buffers: see split/open_buffers.ts.
 *
 * Hostile drivers: each word is read once into a local, checked, then used. A chain has at most as
 * many descriptors as the queue has entries, which also ends every loop (2.7.5.3.1; the descriptor that
 * names an indirect table is not counted, the table's are). An indirect table must lie in one window.
 * Descriptors of length zero are skipped: the specification allows them, and they hold nothing.
 * Readable after writable, INDIRECT with NEXT or without the feature, a chain of
 * 2^32 bytes or more, an index out of range, an address outside: the queue is broken. Areas may overlap
 * one another; that harms the driver alone.
 */

import type { AddressSpace } from "../../memory/address_space.ts";
import type { IovecList } from "../../memory/iovec_list.ts";
import type { MemoryWindow } from "../../memory/window.ts";
import type { Chain, ChainBatch } from "./chain.ts";
import type { QueueConfig } from "./config.ts";
import { Pop, SEGMENT_BUDGET } from "./pop.ts";

const TWO_TO_32 = 0x1_0000_0000;
/** Of a descriptor, in either format and in indirect tables. */
const DESCRIPTOR_SIZE = 16;

/** The device's side of one virtqueue; an example is at the head of mod.ts. */
export abstract class DeviceQueue {
  /** Entries. */
  readonly size: number;
  /** Why the last {@link pop} popped no more: one of {@link Pop}. */
  outcome: number = Pop.EMPTY;
  /** Why the queue is broken; undefined while it is not. */
  broken: string | undefined = undefined;
  /** How many buffers are popped and not completed. */
  inFlight = 0;
  /** How often buffers were shown to a driver that did not want to hear of it; who counts them sets it back. */
  suppressed = 0;
  /** Where buffers lie. */
  protected readonly space: AddressSpace;
  /** Whether EVENT_IDX was negotiated. */
  protected readonly eventIndex: boolean;
  /** Whether a chain may end in an indirect table. */
  protected readonly mayBeIndirect: boolean;
  /** Nothing of its memory may be touched any more. */
  protected stopped = false;
  /** In this batch: the next buffer cannot be popped before its addresses are known. */
  protected parked = false;
  /** In this batch: segments that were popped, and what else was charged. */
  protected spent = 0;
  #charged = 0;

  /** Use `openDeviceQueue`, which checks everything first. */
  constructor(space: AddressSpace, config: QueueConfig) {
    this.size = config.size;
    this.space = space;
    this.eventIndex = config.eventIndex;
    this.mayBeIndirect = config.indirect;
  }

  /** The next buffer to pop, as {@link QueueConfig.base} says it; after {@link stop} where a successor begins. */
  abstract get base(): number;

  /** Has this batch had its segments? Then no more buffers are in it: others come first. */
  get isSpent(): boolean {
    return this.spent >= SEGMENT_BUDGET;
  }

  /** The batch does other work for each piece of a buffer, as if it had so many more segments. */
  charge(segments: number): void {
    this.spent += segments;
    this.#charged += segments;
  }

  /** Is that alone all a batch may have? Then buffers that are popped already are not in it either. */
  get isCharged(): boolean {
    return this.#charged >= SEGMENT_BUDGET;
  }

  /**
   * Looks into the ring.
   *
   * @returns 0 if no buffer can be popped, also because the queue is broken or stopped; else how many, or at least some
   */
  abstract pending(): number;

  /**
   * Pops the next buffer into `chain`, which forgets what it held.
   *
   * @returns one of {@link Pop}, never FULL: a buffer that alone does not fit breaks the queue (2.7.4.1
   * lets a device limit a chain's descriptors)
   */
  next(chain: Chain): number {
    chain.clear();
    if (this.pop(chain, 1) === 0) return this.outcome;
    chain.select(0);
    return Pop.CHAIN;
  }

  /**
   * Pops the next buffers and appends them to those `batch` holds.
   *
   * Each format has this as one function because it is the path of every frame: what it needs of the queue, the batch
   * and the window found last is in locals from the first chain to the last. A segment in that window is checked and
   * written right there; whatever else a descriptor may be is somewhere below.
   *
   * @param most how many
   * @returns how many were popped; if not as many, {@link outcome} says why
   */
  abstract pop(batch: ChainBatch, most: number): number;

  /**
   * Gives the oldest buffer in flight back, or with `anyOrder` any of them. The driver sees it after
   * {@link publish}.
   *
   * @param head of that buffer
   * @param written how many bytes were written, from the first writable one on
   */
  abstract complete(head: number, written: number): void;

  /** Gives the `count` oldest buffers in flight back with nothing written, of a queue without `anyOrder`. */
  abstract completeOldest(count: number): void;

  /**
   * Takes the `count` buffers popped last back, as if they had not been popped. With `anyOrder` none of them
   * may be completed.
   */
  abstract rewind(count: number): void;

  /**
   * Shows the completed buffers to the driver.
   *
   * @returns whether the driver wants a used buffer notification now
   */
  abstract publish(): boolean;

  /**
   * Asks the driver for a notification (a kick) with the next buffer it makes available. A ring is also
   * looked at when it starts: until this was called once, nobody promised a kick.
   *
   * @returns true if there are buffers already, for which the driver may not kick, or may be, because this batch
   * {@link isSpent}: pop them first. Also false where the next one is parked, which no kick changes
   */
  abstract wantKicks(): boolean;

  /**
   * Tells the driver that kicks are not needed for now. In a split ring with EVENT_IDX nothing is to be done: the
   * driver kicks once, when it passes the buffer of the last {@link wantKicks}. To be called when a batch begins.
   */
  noKicks(): void {
    this.parked = false;
    this.spent = 0;
    this.#charged = 0;
  }

  /**
   * Stops the queue: publishes what is completed, takes back what is in flight, so that {@link base} is
   * exact. Nothing can be popped any more; chains that hold buffers of this queue must be forgotten. With
   * `anyOrder` those that were overtaken cannot be taken back: {@link inFlight} says how many that are.
   *
   * @returns whether the driver wants a last notification
   */
  stop(): boolean {
    this.rewind(this.mayTakeBack());
    this.stopped = true;
    return this.publish();
  }

  /** How many of the buffers popped last are in flight. */
  protected mayTakeBack(): number {
    return this.inFlight;
  }

  /**
   * Declares the queue broken: the driver put something into a buffer, or made a buffer of a kind,
   * that the device cannot go on with.
   *
   * @param reason one line for people
   */
  refuse(reason: string): void {
    if (this.broken === undefined) this.break(reason);
  }

  /** From here on it is broken, and this is why. @returns {@link Pop.BROKEN} */
  protected break(reason: string): number {
    this.broken = reason;
    return Pop.BROKEN;
  }

  /** A walk met an address that is not known yet; another one has all asked for that the chain lacks. */
  protected park(batch: ChainBatch): void {
    const { count, segments } = batch;
    const { count: segmentCount, length } = segments;
    const spent = this.spent;
    this.spent = 0;
    this.space.collects = true;
    this.rewind(this.pop(batch, 1));
    this.space.collects = false;
    this.space.missed = 0;
    this.spent = spent;
    batch.count = count;
    segments.count = segmentCount;
    segments.length = length;
    // What else is wrong with the chain is wrong all the same.
    if (this.broken !== undefined) return;
    this.parked = true;
    this.outcome = Pop.PARKED;
  }

  /**
   * The indirect table (2.7.5.3, 2.8.7) that a descriptor names; if it is none, `outcome` says what that comes to.
   *
   * @param misplaced what is wrong with an indirect descriptor in this place, if anything is
   */
  protected table(
    index: number,
    high: number,
    low: number,
    length: number,
    misplaced: string | undefined,
  ): MemoryWindow | undefined {
    let problem: string | undefined;
    if (!this.mayBeIndirect) problem = `descriptor ${index} is indirect, which was not negotiated`;
    else if (misplaced !== undefined) problem = `descriptor ${index} ${misplaced}`;
    else if (length === 0 || length % DESCRIPTOR_SIZE !== 0) {
      problem = `indirect table of ${length} bytes`;
    } else {
      const { space } = this, window = space.findHalves(high, low, length);
      if (window !== undefined) return window;
      const at = high * TWO_TO_32 + low;
      problem = `indirect table at 0x${at.toString(16)} (${length} bytes) ` +
        space.explainTable(at, length);
      if (space.missed !== 0) {
        this.outcome = Pop.PARKED;
        return undefined;
      }
    }
    this.outcome = this.break(problem);
    return undefined;
  }

  /** A descriptor that could not be translated: no room in the array, or not in memory. */
  protected lost(
    index: number,
    high: number,
    low: number,
    length: number,
    list: IovecList,
  ): number {
    // An array that ran full says nothing about the address; the next attempt, with room, will.
    if (list.count === list.capacity) return Pop.FULL;
    // A walk that collects passes over what is missing, so this is refused.
    if (this.space.missed !== 0 && !this.space.collects) return Pop.PARKED;
    const address = high * TWO_TO_32 + low;
    const where = `0x${address.toString(16)} (${length} bytes)`;
    return this.break(`descriptor ${index}: ${where} ${this.space.explain(address, length)}`);
  }

  // Sentences stand apart, so that the code around them is short enough to be compiled into its callers.
  /** For `complete`. */
  protected notOldest(head: number): Error {
    return new Error(`head ${head} is not the oldest of ${this.inFlight} buffers in flight`);
  }

  /** For `complete`. */
  protected tooMuch(written: number, capacity: number): Error {
    return new Error(`${written} bytes written to a buffer of ${capacity}`);
  }

  /** For `completeOldest`. */
  protected notSoMany(count: number): Error {
    return new Error(`cannot complete ${count} of ${this.inFlight} buffers in flight`);
  }

  /** For `rewind`. */
  protected notBack(count: number): Error {
    return new Error(`cannot take back ${count} of ${this.inFlight} buffers in flight`);
  }
}
