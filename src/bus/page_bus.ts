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
 * `reset` empties both queues, as the prototype's `reset-queues` does; it is for dialects that use the
 * queues as found. In `v1` each side writes its own indices only, and a living peer's queues are safe.
 */

import { VmsgError } from "../linux/errors.ts";
import type { Fd } from "../linux/fd.ts";
import type { Reactor } from "../linux/reactor.ts";
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
  /** This side's own id. */
  readonly id: number;
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
  readonly #named: boolean;
  readonly #id: number;
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
    this.#named = options.named;
    this.#id = options.id;
    this.#own = words(side);
    this.#theirs = words(other);
  }

  /** The id that the other side has named, or -1 if it has not. */
  protected get namedPeer(): number {
    if (!this.#named) return -1;
    const word = loadAcquire32(this.#theirs, PRODUCER_WORD);
    return (word & 0xffff) === MARK ? word >>> 16 : -1;
  }

  /** Names this side, then attaches. */
  protected override attach(): void {
    if (this.#named) storeRelease32(this.#own, PRODUCER_WORD, ((this.#id << 16) | MARK) >>> 0);
    super.attach();
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
    this.listener = undefined;
    this.detach("closed");
  }
}
