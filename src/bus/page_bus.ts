/**
 * The message bus of two systems that share memory: two 4 KiB pages, as the prototype QEMU lays them
 * out in the shared memory of an ivshmem function (docs/wire.md 4.3).
 *
 *     0     driver queue: the driver side produces, 62 slots
 *     4096  device queue: the device side produces, 62 slots
 *     8192  not the bus's; {@link QueueBus.segment} begins here
 *
 * Nothing in the memory tells that a peer comes or goes, so the bus is attached from the start, and the
 * transport finds out by what it hears. In `v1` a vmsg side names itself in
 * the unused word behind its queue's head: its id in the upper half, {@link MARK} in the lower; other
 * implementations leave the word alone. Who is rung by id is found by it, whatever id a peer has after it was started anew.
 *
 * A queue has one producer. While it is attached a named one counts in the next word; whoever finds a name
 * that is not its own watches whether that goes on before it takes the place. If it does, one that was never attached
 * ends with BUS_IN_USE. A producer that finds another's name, because it stood still for too long, or because the
 * peer wrote it, detaches and waits until nobody counts: what is in shared memory ends nobody who serves guests.
 *
 * `reset` empties both queues, as the prototype's `reset-queues` does; it is for dialects that use the
 * queues as found. In `v1` each side writes its own indices only, and a living peer's queues are safe.
 */

import { VmsgError } from "../linux/errors.ts";
import type { Fd } from "../linux/fd.ts";
import type { Reactor, Timer } from "../linux/reactor.ts";
import { loadAcquire32, type MappedMemory, storeRelease32 } from "../memory/mod.ts";
import { type BusOptions, QueueBus, type SharedSegment, type Side } from "./bus.ts";
import { SpscQueue } from "./spsc_queue.ts";

/** Bytes of one queue. */
export const QUEUE_PAGE = 4096;
/** Where each side's own queue lies. */
const OFFSET = { driver: 0, device: QUEUE_PAGE } as const;
/** The word behind a queue's head. */
const PRODUCER_WORD = 1;
/** "vm": the word names a producer. */
const MARK = 0x766d;
/** The word in which a named producer counts. */
const BEAT_WORD = 2;
/** How often it does. */
const BEAT_MS = 100;
/** One that has not counted for so long is gone. */
const GONE_MS = 400;

/** The id that names the producer of a queue, or -1. */
function nameIn(words: Uint32Array): number {
  const word = loadAcquire32(words, PRODUCER_WORD);
  return (word & 0xffff) === MARK ? word >>> 16 : -1;
}

/** What a bus of this kind is told. */
export interface PageBusOptions extends BusOptions {
  /** The shared memory. */
  readonly memory: MappedMemory;
  /** Where in it the bus begins, a multiple of 4. */
  readonly offset: number;
  /** See {@link SpscQueue}. */
  readonly isDeviceMemory: boolean;
  /** Empty the queues first. */
  readonly reset: boolean;
  /** Both sides name themselves in the queues. */
  readonly named: boolean;
  /** This side's own id; another one after it has gone to another server. */
  readonly id: () => number;
  /** For messages: the option that gave the memory. */
  readonly where: string;
}

/** See the head of this file. A subclass brings the doorbell. */
export abstract class PageBus extends QueueBus {
  /** Never: the other side is another system. */
  override readonly carriesFds: boolean = false;
  /** Never, see the head of this file. */
  override readonly noticesPeers: boolean = false;
  /** The shared memory behind the queues. */
  override readonly segment: SharedSegment;
  readonly #options: PageBusOptions;
  readonly #beat: Timer;
  /** What a producer with another name had counted when it was looked at first, and until when it may stand still. */
  #seenBeat: number | undefined;
  #waitEndMs = 0;
  #wasAttached = false;
  readonly #own: Uint32Array;
  readonly #theirs: Uint32Array;

  /** Views the queues; throws VmsgError if there is no room for them. */
  constructor(side: Side, reactor: Reactor, options: PageBusOptions) {
    const { memory, offset, isDeviceMemory } = options;
    if (offset + 2 * QUEUE_PAGE > memory.size) {
      throw new VmsgError(
        "BUS_MEMORY",
        `${options.where}: ${memory.size} bytes of shared memory are too few, the bus needs ` +
          `${2 * QUEUE_PAGE}${offset > 0 ? ` from ${offset} on` : ""}: share more`,
      );
    }
    const other = side === "driver" ? "device" : "driver";
    const queue = (of: Side) =>
      new SpscQueue(memory, offset + OFFSET[of], QUEUE_PAGE, isDeviceMemory);
    const words = (of: Side) => new Uint32Array(memory.buffer, offset + OFFSET[of], QUEUE_PAGE / 4);
    for (const whose of options.reset ? [side, other] as const : []) words(whose).fill(0);
    super(side, reactor, options, queue(side), queue(other));
    this.segment = { memory, start: offset + 2 * QUEUE_PAGE };
    this.#options = options;
    this.#beat = reactor.timer(() => this.#goOn());
    this.#own = words(side);
    this.#theirs = words(other);
  }

  /** The id that the other side has named, or -1 if it has not. */
  protected get namedPeer(): number {
    return this.#options.named ? nameIn(this.#theirs) : -1;
  }

  /** Is there nothing that says that this peer is not there? */
  protected mayBeThere(_peer: number): boolean {
    return true;
  }

  /** Attaches if there is anybody to attach to; also called when the place has become free. */
  protected attachIfThere(): void {
    this.attach();
  }

  /** Attaches now, or when this side's place is free; names this side before. */
  protected override attach(): void {
    if (this.#options.named) {
      this.#beat.arm(BEAT_MS);
      if (!this.#isFree()) return;
      this.#nameOurselves();
      this.#wasAttached = true;
    }
    super.attach();
  }

  #nameOurselves(): void {
    storeRelease32(this.#own, PRODUCER_WORD, ((this.#options.id() << 16) | MARK) >>> 0);
  }

  /** The producer that has this side's place and is not this one, or -1. */
  get #other(): number {
    const name = nameIn(this.#own);
    return name === this.#options.id() ? -1 : name;
  }

  #isFree(): boolean {
    const other = this.#other;
    if (other < 0 || !this.mayBeThere(other)) {
      this.#seenBeat = undefined;
      return true;
    }
    const before = this.#seenBeat;
    const beat = loadAcquire32(this.#own, BEAT_WORD);
    if (beat !== before) {
      if (before !== undefined && !this.#wasAttached) this.#fail(other);
      this.#seenBeat = beat;
      this.#waitEndMs = this.reactor.now() + GONE_MS;
      return false;
    }
    if (this.reactor.now() < this.#waitEndMs) return false;
    this.#seenBeat = undefined;
    return true;
  }

  /** Counts while attached, looks again while the place is not free. */
  #goOn(): void {
    if (this.#seenBeat !== undefined) return this.attachIfThere();
    if (!this.isAttached) return;
    const other = this.#other;
    if (other >= 0) {
      this.detach(`${this.#taken(other)}: this one waits until nobody is, end one of the two`);
      return this.attachIfThere();
    }
    // Where somebody emptied the queues, the name as well.
    this.#nameOurselves();
    storeRelease32(this.#own, BEAT_WORD, (loadAcquire32(this.#own, BEAT_WORD) + 1) >>> 0);
    this.#beat.arm(BEAT_MS);
  }

  #taken(other: number): string {
    return `peer ${other} is its ${this.side} side, this is peer ${this.#options.id()}`;
  }

  #fail(other: number): void {
    const what = `${this.description}: ${this.#taken(other)}: end one of the two`;
    this.reactor.fail(new VmsgError("BUS_IN_USE", what));
  }

  /** Descriptors do not travel between systems. */
  override sendFd(_fd: Fd): number {
    return -1;
  }

  /** See {@link sendFd}. */
  override takeFd(_ordinal: number): Fd | undefined {
    return undefined;
  }

  /** Starts over with whoever is there: a peer cannot be sent away. */
  override drop(reason: string): void {
    if (!this.isAttached) return;
    this.detach(reason);
    this.attach();
  }

  /** The queues go away with their memory. */
  override [Symbol.dispose](): void {
    this.reactor.dropTimer(this.#beat);
    this.listener = undefined;
    this.detach("closed");
  }
}
