/**
 * The vrings of one front end: what it has said of each, its eventfds, and when its rings may run.
 *
 * Front ends differ in how they start a ring. With a status it is DRIVER_OK. Without, a ring that is enabled and
 * has been kicked once, or all that are described being enabled, or another one that runs already.
 */

import { VmsgError } from "../../linux/errors.ts";
import type { Fd } from "../../linux/fd.ts";
import { PeerEvent } from "../../linux/peer_event.ts";
import { EPOLLIN, type Reactor } from "../../linux/reactor.ts";
import type { MemoryRegion } from "../../memory/mod.ts";
import type { RingEvents } from "../../transport/remote_private.ts";
import type { QueueSetup } from "../../virtio/device.ts";
import { ringPosition } from "../ring_position.ts";
import type { WantedRing } from "../wanted.ts";

/** Queues a front end may describe of a device that has fewer: DPDK describes more. Each may bring three descriptors. */
const FEW_VRINGS = 16;
/** The same of any device; as many as a network card with 64 pairs and control has. */
const MAX_VRINGS = 129;
/** The largest virtqueue there is (VIRTIO 1.2, 2.7). */
const MAX_QUEUE_SIZE = 32768;

/** In a packed ring's position, which vhost-user has with the wrap counter and we with its reverse (packed/layout.ts). */
const WRAP_COUNTER = 0x8000;

/** Where a ring lies, in the front end's own address space. */
export interface UserAddresses {
  /** Of the descriptor table. */
  readonly descriptor: number;
  /** Of the used ring. */
  readonly used: number;
  /** Of the available ring. */
  readonly available: number;
}

/** What the vrings of a front end need of it. */
export interface VringHost {
  /** The loop they run in. */
  readonly reactor: Reactor;
  /** The bus address behind a user address. @throws VmsgError if there is none */
  busAddress(ring: number, userAddress: number): number;
  /** Has its driver accepted packed rings? */
  readonly isPacked: boolean;
  /** The front end's memory. */
  readonly regions: readonly MemoryRegion[];
  /** Counts {@link Vring.call}. */
  readonly counters: { calls: number };
  /** The front end has kicked. */
  kicked(ring: Vring): void;
}

/** A ring as SET_VRING_NUM, ADDR, BASE, KICK, CALL, ERR and ENABLE describe it. */
export class Vring implements WantedRing, Disposable {
  /** Entries; 0 before SET_VRING_NUM. */
  size = 0;
  /** As the front end gave them; undefined before SET_VRING_ADDR. */
  addresses: UserAddresses | undefined;
  /** Where the ring goes on the next time it starts, as QueueSetup has it; or as SET_VRING_BASE said. */
  #base = 0;
  #said: number | undefined;
  /** SET_VRING_ENABLE. */
  enabled = false;
  /** The front end has kicked since the ring was last stopped. */
  kicked = false;
  events: RingEvents | undefined;
  #kick: PeerEvent | undefined;
  #isHandedOver = false;
  #call: PeerEvent | undefined;
  #error: PeerEvent | undefined;

  /** Nothing is said of it yet. */
  constructor(readonly host: VringHost, readonly index: number) {}

  /** True when everything is there to start the ring: it has been set up and kick is given. */
  get isComplete(): boolean {
    return this.size > 0 && this.addresses !== undefined && this.#kick !== undefined;
  }

  setup(): QueueSetup {
    const { descriptor, available, used } = this.addresses!;
    const find = (address: number) => this.host.busAddress(this.index, address);
    const setup = {
      size: this.size,
      descriptorAddress: find(descriptor),
      driverAddress: find(available),
      deviceAddress: find(used),
      base: this.#start,
    };
    // A front end reads where a split ring has come to when its back end is gone. It cannot do so with a packed one,
    // and names where that was started, mostly its beginning: what a device side of ours has left in it knows better.
    // 0 says nothing: a ring that begins has it, and one that another back end has served may.
    const { isPacked, regions } = this.host;
    const left = isPacked ? ringPosition(regions, setup, true) : undefined;
    return { ...setup, base: left === undefined || left === 0 ? setup.base : left };
  }

  stopped(base: number): void {
    this.#base = base;
    this.#said = undefined;
  }

  /** SET_VRING_BASE. */
  setBase(said: number): void {
    this.#said = said;
  }

  /** What GET_VRING_BASE is answered: of a packed ring both sides' positions, which are one as nothing is in flight. */
  get baseToSay(): number {
    const base = this.#start;
    if (!this.host.isPacked) return base;
    return ((base ^ WRAP_COUNTER) | (base ^ WRAP_COUNTER) << 16) >>> 0;
  }

  get #start(): number {
    const said = this.#said;
    if (said === undefined) return this.#base;
    if (!this.host.isPacked) return said & 0xffff;
    // User-Mode Linux says 0 of every ring that begins. Of the two positions that of what was seen counts, as in DPDK,
    // whose driver names no other.
    return said === 0 ? 0 : (said & 0xffff) ^ WRAP_COUNTER;
  }

  call(): void {
    this.host.counters.calls++;
    this.#call?.signal();
  }

  fail(): void {
    this.#error?.signal();
  }

  /** SET_VRING_CALL; takes the descriptor, unless it throws. */
  setCall(fd: Fd | undefined): void {
    const event = fd && new PeerEvent(fd, "signal", `the call of ring ${this.index}`);
    this.#call?.[Symbol.dispose]();
    this.#call = event;
    this.#setEvents();
  }

  #setEvents(): void {
    this.events = this.#kick && { kick: this.#kick.fd, call: this.#call?.fd };
  }

  /** SET_VRING_ERR; takes the descriptor, unless it throws. */
  setError(fd: Fd | undefined): void {
    const event = fd && new PeerEvent(fd, "signal", `the error descriptor of ring ${this.index}`);
    this.#error?.[Symbol.dispose]();
    this.#error = event;
  }

  /** SET_VRING_KICK; takes the descriptor, unless it throws. Without one the ring is stopped. */
  setKick(fd: Fd | undefined): void {
    const { reactor } = this.host;
    const event = fd && new PeerEvent(fd, "wait", `the kick of ring ${this.index}`);
    const old = this.#kick;
    if (old !== undefined) {
      if (!this.#isHandedOver) reactor.unwatch(old.fd);
      old[Symbol.dispose]();
    }
    this.#kick = undefined;
    this.#isHandedOver = false;
    if (event !== undefined) this.#watch(event);
    // Not before it is watched, or it would be taken though that threw.
    this.#kick = event;
    this.#setEvents();
  }

  #watch(event: PeerEvent): void {
    this.host.reactor.watch(event.fd, EPOLLIN, () => {
      const isKicked = event.clear();
      if (isKicked) this.host.kicked(this);
      return isKicked;
    });
  }

  handedOver(isSo: boolean): void {
    const kick = this.#kick;
    if (kick === undefined || this.#isHandedOver === isSo) return;
    this.#isHandedOver = isSo;
    if (isSo) return this.host.reactor.unwatch(kick.fd);
    this.#watch(kick);
    // The count is of kicks that the device side has heard, too: of a ring that has stopped they are no first kick. Of
    // one that runs on they are looked for.
    kick.clear();
  }

  [Symbol.dispose](): void {
    this.setKick(undefined);
    this.setCall(undefined);
    this.setError(undefined);
  }
}

/** See the head of this file. */
export class Vrings implements Disposable {
  readonly #all: Vring[] = [];

  /** None yet: a front end describes as many as it has. */
  constructor(readonly host: VringHost) {}

  /** All that were named so far. */
  get all(): readonly Vring[] {
    return this.#all;
  }

  /**
   * One that a front end names.
   *
   * @param enabled whether a new one begins enabled
   * @param queues how many the device has
   * @throws VmsgError BAD_REQUEST if there can be no such ring
   */
  named(index: number, enabled: boolean, queues: number): Vring {
    if (index >= Math.min(MAX_VRINGS, Math.max(FEW_VRINGS, queues))) {
      throw new VmsgError("BAD_REQUEST", `front end: no ring ${index}`);
    }
    for (let i = this.#all.length; i <= index; i++) {
      const vring = new Vring(this.host, i);
      vring.enabled = enabled;
      this.#all.push(vring);
    }
    return this.#all[index]!;
  }

  /** Those that may run as far as each of them is concerned. */
  get wanted(): Vring[] {
    return this.#all.filter((vring) => vring.isComplete && vring.enabled);
  }

  /** Is the guest's driver at work, as far as its rings tell? */
  get areUsed(): boolean {
    const described = this.#all.filter((vring) => vring.isComplete);
    const allEnabled = described.length > 0 && described.every((vring) => vring.enabled);
    return allEnabled || described.some((vring) => vring.enabled && vring.kicked);
  }

  /** Closes their descriptors. */
  [Symbol.dispose](): void {
    for (const vring of this.#all) vring[Symbol.dispose]();
  }
}

/**
 * What the device takes is asked when a ring starts. One of size 0 is not used, and never starts: DPDK describes
 * those beyond what a device has.
 *
 * @throws VmsgError BAD_REQUEST for a size that no virtqueue has
 */
export function checkSize(index: number, size: number): void {
  if (size <= MAX_QUEUE_SIZE) return;
  throw new VmsgError("BAD_REQUEST", `front end: ring ${index} cannot have ${size} entries`);
}
