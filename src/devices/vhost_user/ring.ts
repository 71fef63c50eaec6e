/**
 * A ring that a vhost-user back end works on: where it is, its eventfds, and how far it has come.
 *
 * The eventfds are ours, and the back end has them too, so nothing it does with them may block us (linux/peer_event.ts). The
 * call is watched edge-triggered and never read. They stay the same when the back end is replaced: what the driver kicked
 * meanwhile is still in the kick's count.
 */

import { createEventFd } from "../../linux/eventfd.ts";
import type { Fd } from "../../linux/fd.ts";
import { PeerEvent } from "../../linux/peer_event.ts";
import { EPOLLET, EPOLLIN, type Reactor } from "../../linux/reactor.ts";
import type { AddressSpace } from "../../memory/mod.ts";
import type { QueueSetup } from "../../virtio/device.ts";
import { findAreas } from "../../virtio/queue/config.ts";

/** Of the index in an available or used ring (VIRTIO 1.3, 2.7.6 and 2.7.8). */
const RING_INDEX = 2;

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

  /**
   * Use {@link openRing}.
   *
   * @param available the index of what the driver made available
   * @param used the index of what the back end has used
   */
  constructor(
    readonly reactor: Reactor,
    readonly index: number,
    readonly setup: QueueSetup,
    readonly available: DataView,
    readonly used: DataView,
    whenUsed: () => void,
    whenWrong: () => void,
  ) {
    reactor.watch(this.#call, EPOLLIN | EPOLLET, whenUsed);
    reactor.watch(this.#error, EPOLLIN | EPOLLET, whenWrong);
  }

  /** What a back end is given. */
  get events(): { kick: Fd; call: Fd; error: Fd } {
    return { kick: this.#kick, call: this.#call, error: this.#error };
  }

  /** The driver made buffers available. */
  kick(): void {
    this.#kicks.signal();
  }

  /** How many buffers have come back, in 16 bits: where a back end that completes in order has come to. */
  get usedIndex(): number {
    return this.used.getUint16(0, true);
  }

  /**
   * Where it begins: where the driver side says, unless more was used meanwhile. What was taken when a device side died is
   * completed by its back end, which the driver side cannot have seen.
   */
  get begin(): number {
    const { usedIndex, setup: { base } } = this;
    return ((usedIndex - base) & 0xffff) < 0x8000 ? usedIndex : base;
  }

  /** Has every buffer come back that the driver made available? */
  get isEmpty(): boolean {
    return this.usedIndex === this.available.getUint16(0, true);
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
  whenUsed: () => void,
  whenWrong: () => void,
): Ring | string {
  const areas = findAreas(space, { ...setup, eventIndex: false, indirect: false });
  if (typeof areas === "string") return areas;
  if (!(setup.base >= 0 && setup.base <= 0xffff)) return `no ring goes on at ${setup.base}`;
  const [available, used] = [areas.driver, areas.device].map(({ buffer, offset }) =>
    new DataView(buffer, offset + RING_INDEX, 2)
  );
  return new Ring(reactor, index, setup, available!, used!, whenUsed, whenWrong);
}
