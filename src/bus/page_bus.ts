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
 * With the layout `amp1` (docs/wire.md 4.5) the same pages hold one block that says where in them each side has what, and a
 * head with cursors and a status for each side (amp_queue.ts). The bus is attached while both say that they run
 * (amp_handshake.ts), and nobody names itself.
 *
 * `reset` empties both queues, as the prototype's `reset-queues` does; it is for dialects that use the
 * queues as found. In `v1` each side writes its own indices only, and a living peer's queues are safe.
 */

import { VmsgError } from "../linux/errors.ts";
import type { Reactor, Timer } from "../linux/reactor.ts";
import { loadAcquire32, type MappedMemory, storeRelease32 } from "../memory/mod.ts";
import { AmpHandshake } from "./amp_handshake.ts";
import { AmpQueue } from "./amp_queue.ts";
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

/** How the queues lie in the memory: as the prototype has them, or self-describing (docs/wire.md 4.5). */
export type PageLayout = "spsc" | "amp1";

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
  /** {@link PageLayout}; "spsc" unless given. */
  readonly layout?: PageLayout | undefined;
  /** For people, where something is worth a line. */
  readonly log?: (line: string) => void;
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
  readonly #handshake: AmpHandshake | undefined;

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
    const amp = options.layout === "amp1" ? new AmpQueue(side, memory, offset) : undefined;
    const queue = (of: Side) =>
      amp ?? new SpscQueue(memory, offset + OFFSET[of], QUEUE_PAGE, isDeviceMemory);
    const words = (of: Side) => new Uint32Array(memory.buffer, offset + OFFSET[of], QUEUE_PAGE / 4);
    const emptied = options.reset && amp === undefined ? [side, other] as const : [];
    for (const whose of emptied) words(whose).fill(0);
    super(side, reactor, options, queue(side), queue(other));
    this.segment = { memory, start: offset + 2 * QUEUE_PAGE };
    this.#options = amp === undefined ? options : { ...options, named: false };
    this.#handshake = amp && new AmpHandshake(reactor, amp, 2 * QUEUE_PAGE, options.reset, {
      running: () => super.attach(),
      lost: (reason) => this.detach(reason),
      ring: () => this.ring(),
      tell: (line) => options.log?.(`${options.where}: ${line}`),
    });
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

  /** With a handshake only what a predecessor of this process has not read is old. */
  protected override get discards(): boolean {
    return super.discards && this.#handshake?.goesOn !== false;
  }

  /** Attaches now, or when this side's place is free, or both sides run; names this side before. */
  protected override attach(): void {
    if (this.#handshake !== undefined) return this.#handshake.begin();
    if (this.#options.named) {
      this.#beat.arm(BEAT_MS);
      if (!this.#isFree()) return;
      this.#nameOurselves();
      this.#wasAttached = true;
    }
    super.attach();
  }

  /** The peer is gone: nothing is looked at any more before {@link attach}. */
  protected override detach(reason: string): void {
    this.#handshake?.pause();
    super.detach(reason);
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
    this.#handshake?.[Symbol.dispose]();
    this.detach("closed");
  }
}
