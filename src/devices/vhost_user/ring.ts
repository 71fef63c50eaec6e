/**
 * A ring that a vhost-user back end works on: where it is, its eventfds, and which buffers the back end has.
 *
 * The eventfds are ours, and the back end has them too, so nothing it does with them may block us (linux/peer_event.ts). The
 * call is watched edge-triggered and never read. They stay the same when the back end is replaced: what the driver kicked
 * meanwhile is still in the kick's count.
 *
 * Buffers are counted by their heads: one that appears in the available ring is the back end's until it appears in the
 * used ring. At every kick and every call both rings are looked at from where they were seen last, so that when a back end dies it is
 * known which buffers it had, in whatever order it completes. The order of the two is not needed: of each head the difference
 * counts. Only if a ring has gone round between two looks is it not known, until the ring is empty again.
 */

import { createEventFd } from "../../linux/eventfd.ts";
import type { Fd } from "../../linux/fd.ts";
import { PeerEvent } from "../../linux/peer_event.ts";
import { EPOLLET, EPOLLIN, type Reactor } from "../../linux/reactor.ts";
import type { AddressSpace } from "../../memory/mod.ts";
import type { QueueSetup } from "../../virtio/device.ts";
import { AVAIL_HEADS, RING_INDEX, USED_ELEMENTS } from "../../virtio/split/layout.ts";
import { type RingViews, ringViews } from "../../virtio/split/ring_views.ts";

/** What a ring tells. */
export interface RingListener {
  /** The back end has used buffers, and the driver wants to know. */
  used(): void;
  /** The back end says that something is wrong with it. */
  wrong(): void;
}

/** See the head of this file. */
export class Ring implements Disposable {
  /** Has this back end been given it? */
  isGiven = false;
  /** May this back end work on it? */
  isEnabled = false;
  readonly #kick = createEventFd();
  readonly #call = createEventFd();
  readonly #error = createEventFd();
  readonly #kicks = new PeerEvent(this.#kick, "signal", "a kick");
  /** By head: how often it is with the back end, which is once or not. */
  readonly #held: Int8Array;
  #availableSeen: number;
  #usedSeen: number;
  #isKnown = true;

  /** Use {@link openRing}. @param isCounted is it to be known which buffers the back end has? */
  constructor(
    readonly reactor: Reactor,
    readonly index: number,
    readonly setup: QueueSetup,
    readonly views: RingViews,
    readonly isCounted: boolean,
    listener: RingListener,
  ) {
    this.#held = new Int8Array(isCounted ? setup.size : 0);
    this.#availableSeen = this.#usedSeen = this.begin;
    reactor.watch(this.#call, EPOLLIN | EPOLLET, () => {
      this.look();
      listener.used();
    });
    reactor.watch(this.#error, EPOLLIN | EPOLLET, () => listener.wrong());
  }

  /** What a back end is given. */
  get events(): { kick: Fd; call: Fd; error: Fd } {
    return { kick: this.#kick, call: this.#call, error: this.#error };
  }

  /** The driver made buffers available. */
  kick(): void {
    this.look();
    this.#kicks.signal();
  }

  /** How many buffers have come back, in 16 bits. */
  get usedIndex(): number {
    return this.views.used[RING_INDEX]!;
  }

  /** How many buffers were made available, in 16 bits. */
  get availableIndex(): number {
    return this.views.avail[RING_INDEX]!;
  }

  /**
   * Where it begins: where the driver side says, unless more was used meanwhile. What was taken when a device side died is
   * completed by its back end, which the driver side cannot have seen.
   */
  get begin(): number {
    const { usedIndex, setup: { base } } = this;
    return ((usedIndex - base) & 0xffff) < 0x8000 ? usedIndex : base;
  }

  /** Takes note of what has changed; see the head of this file. */
  look(): void {
    if (!this.isCounted) return;
    const used = this.usedIndex;
    const available = this.availableIndex;
    if (used === available) return this.#forget(used);
    const { views: { avail, usedElements }, setup: { size } } = this;
    const mask = size - 1;
    this.#isKnown &&= this.#isInTime(used, available);
    if (this.#isKnown) {
      for (let i = this.#usedSeen; i !== used; i = (i + 1) & 0xffff) {
        this.#count(usedElements[USED_ELEMENTS + 2 * (i & mask)]!, -1);
      }
      for (let i = this.#availableSeen; i !== available; i = (i + 1) & 0xffff) {
        this.#count(avail[AVAIL_HEADS + (i & mask)]!, 1);
      }
      // Entries may have been written over while they were read.
      this.#isKnown &&= this.#isInTime(this.usedIndex, this.availableIndex);
    }
    this.#usedSeen = used;
    this.#availableSeen = available;
  }

  /** Has the ring not gone round since it was looked at last, by these indices? */
  #isInTime(used: number, available: number): boolean {
    const { size } = this.setup;
    return ((used - this.#usedSeen) & 0xffff) <= size &&
      ((available - this.#availableSeen) & 0xffff) <= size;
  }

  #count(head: number, by: 1 | -1): void {
    if (head < this.#held.length) this.#held[head]! += by;
    else this.#isKnown = false;
  }

  /** Every buffer has come back. */
  #forget(index: number): void {
    if (!this.#isKnown || this.#usedSeen !== index) this.#held.fill(0);
    this.#isKnown = true;
    this.#usedSeen = this.#availableSeen = index;
  }

  /**
   * The heads of the buffers that a back end had which is gone, and of those that came since; undefined if they are
   * not known.
   */
  heldBack(): number[] | undefined {
    this.look();
    const count = (this.availableIndex - this.usedIndex) & 0xffff;
    if (count === 0) return [];
    const heads = [...this.#held.keys()].filter((head) => this.#held[head] === 1);
    return this.#isKnown && heads.length === count && this.#held.every((n) => n === 0 || n === 1)
      ? heads
      : undefined;
  }

  /** Are these the buffers that were made available last, so that a ring that goes on at its used index has them? */
  hasAsLast(heads: readonly number[]): boolean {
    const { views: { avail }, availableIndex, setup: { size } } = this;
    const last = new Set(
      heads.map((_, i) => avail[AVAIL_HEADS + ((availableIndex - 1 - i) & (size - 1))]),
    );
    return heads.every((head) => last.has(head));
  }

  /** Its back end is gone. */
  leave(): void {
    this.isGiven = false;
    this.isEnabled = false;
  }

  /** Closes what is ours; the back end may still have its own. */
  [Symbol.dispose](): void {
    this.reactor.unwatch(this.#call);
    this.reactor.unwatch(this.#error);
    this.#kicks[Symbol.dispose]();
    this.#call[Symbol.dispose]();
    this.#error[Symbol.dispose]();
  }
}

/** Makes a ring for where a driver set it up; or says in one line why it cannot be there. */
export function openRing(
  reactor: Reactor,
  space: AddressSpace,
  index: number,
  setup: QueueSetup,
  isCounted: boolean,
  listener: RingListener,
): Ring | string {
  const views = ringViews(space, { ...setup, eventIndex: false, indirect: false });
  if (typeof views === "string") return views;
  return new Ring(reactor, index, setup, views, isCounted, listener);
}
