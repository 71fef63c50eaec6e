/**
 * Rings that are carried over: what confined and direct mode have in common.
 *
 * A ring of the driver's is served here as a device would, and its buffers go on in a ring that is made for the
 * device (forwarding_queue.ts). Where that ring lies and what becomes of a buffer is the difference between the
 * modes, and a {@link ForwardingPlace} knows it.
 *
 * A kick of the driver or a used notification of the device has a ring moved, in batches, by a task of the
 * reactor. A ring that stops, also because the device side was lost, gives back what was used and forgets the rest:
 * the driver's ring goes on from where it is. One that breaks, by the driver or by the device, stands still until
 * it is stopped; the driver is told.
 *
 * The room is divided between the rings that are used (division.ts), and not those that the device could have. One
 * that comes unexpectedly, beside others that run, has them stopped for a moment while the room is divided anew.
 */

import { VmsgError } from "../linux/errors.ts";
import type { Reactor } from "../linux/reactor.ts";
import { AddressSpace, type MemoryRegion } from "../memory/mod.ts";
import { retire } from "../observe/counters.ts";
import type { Log } from "../observe/log.ts";
import type { RemoteDevice } from "../transport/remote_device.ts";
import type { QueueSetup } from "../virtio/device.ts";
import { hasFeature, RingFeature } from "../virtio/features.ts";
import { type DeviceQueue, openDeviceQueue } from "../virtio/queue/mod.ts";
import { type DeviceTerms, queuesInUse, type RingPart } from "./division.ts";
import type { ForwardingQueue } from "./forwarding_queue.ts";
import {
  differ,
  type RingOwner,
  type RingPlan,
  type RingTerms,
  type SharedRegion,
  type SharedRing,
  type Sharing,
} from "./sharing.ts";

/** The driver's ring is served here, in either format and in order, whatever the device makes of its own. */
const OWN = [RingFeature.RING_PACKED, RingFeature.IN_ORDER];

/** Where the rings for the device lie, and what becomes of buffers in them. */
export interface ForwardingPlace {
  /** Tells the device side what it has to know of the place. */
  announce(device: RemoteDevice): Promise<void>;
  /**
   * Divides a device number's share between its queues.
   *
   * @param position of the device number among those that share the place
   * @throws VmsgError if there are too many of them
   */
  divide(
    device: RemoteDevice,
    position: number,
    queues: readonly number[],
    terms: DeviceTerms,
  ): ReadonlyMap<number, RingPart>;
  /**
   * Makes a ring for the device.
   *
   * @param queue the driver's ring, of which this is the only user
   * @throws VmsgError if it does not fit
   */
  open(queue: DeviceQueue, part: RingPart, terms: OpenTerms): ForwardingQueue;
  /** Rings may use a region from here on. */
  addRegion(region: SharedRegion): void;
  /** No ring uses it any more. */
  removeRegion(region: SharedRegion): void;
  /** The device side is gone without a word, and may touch for a while what it knew of. */
  doubt(): void;
}

/** What was agreed on, as far as a place has to know. */
export interface OpenTerms {
  /** Whether VIRTIO_F_EVENT_IDX was negotiated. */
  readonly eventIndex: boolean;
  /** Whether VIRTIO_F_INDIRECT_DESC was. */
  readonly indirect: boolean;
  /** The most entries that the device takes. */
  readonly maxSize: number;
  /** Whose ring it is, for its counters. */
  readonly name?: string;
}

/** What a {@link Forwarding} is made of. */
export interface ForwardingOptions {
  /** The loop it runs in. */
  readonly reactor: Reactor;
  /** The device at the other end of the bus. */
  readonly device: RemoteDevice;
  /** Where rings for it lie. */
  readonly place: ForwardingPlace;
  /** Of this device among those that share the place. */
  readonly position: number;
  /** Where lines for people go. */
  readonly log: Log;
}

/** See the head of this file. */
export class Forwarding implements Sharing {
  readonly withheld: readonly number[] = [];
  readonly own: readonly number[] = OWN;
  /** The driver's, of which rings may be served. */
  regions: readonly SharedRegion[] = [];
  /** The regions at the driver's addresses. */
  #space = new AddressSpace();
  #parts: ReadonlyMap<number, RingPart> = new Map();
  /** How many rings run. */
  running = 0;
  /** The device side has been told of the place, in this session of its. */
  announcedTo = -1;

  /** Serves no ring yet. */
  constructor(readonly options: ForwardingOptions) {}

  mustStopFor(regions: readonly SharedRegion[], rings: readonly RingPlan[]): boolean {
    return differ(regions, this.regions) || rings.some(({ index }) => !this.#parts.has(index));
  }

  async prepare(
    regions: readonly SharedRegion[],
    rings: readonly RingPlan[],
    terms: DeviceTerms,
  ): Promise<void> {
    if (differ(regions, this.regions)) this.#setRegions(regions);
    if (rings.length === 0) return;
    const { place, device, position } = this.options;
    if (this.running === 0) {
      const queues = queuesInUse(rings.map(({ index }) => index), terms);
      this.#parts = place.divide(device, position, queues, terms);
    }
    const { session } = device;
    if (this.announcedTo === session) return;
    await place.announce(device);
    this.announcedTo = session;
  }

  /** Only this process looks at regions, or it says itself where they are. */
  #setRegions(regions: readonly SharedRegion[]): void {
    // Rings stand still. What goes makes room for what comes.
    const stay = this.regions.filter((region) => regions.includes(region));
    for (const region of this.regions) {
      if (!stay.includes(region)) this.options.place.removeRegion(region);
    }
    this.regions = stay;
    const space = new AddressSpace();
    for (const region of regions) {
      const { at, size, memory, offset } = region;
      if (!this.regions.includes(region)) this.options.place.addRegion(region);
      const refusal = space.add(at, size, memory, offset);
      if (refusal !== undefined) throw new RangeError(`memory table: ${refusal}`);
    }
    this.#space = space;
    this.regions = regions;
  }

  open(owner: RingOwner, setup: QueueSetup, { features, maxSize }: RingTerms): SharedRing {
    const eventIndex = hasFeature(features, RingFeature.EVENT_IDX);
    const indirect = hasFeature(features, RingFeature.INDIRECT_DESC);
    const queue = openDeviceQueue(owner.memory ?? this.#space, {
      ...setup,
      eventIndex,
      indirect,
      packed: hasFeature(features, RingFeature.RING_PACKED),
      inOrder: hasFeature(features, RingFeature.IN_ORDER),
    });
    if (typeof queue === "string") throw new VmsgError("BAD_RING", `ring ${owner.index}: ${queue}`);
    const part = this.#parts.get(owner.index)!;
    const name = `device ${this.options.device.number}, ring ${owner.index}`;
    const terms = { eventIndex, indirect, maxSize, name };
    return new ForwardedRing(this, owner, this.options.place.open(queue, part, terms));
  }

  letGo(region: SharedRegion): boolean {
    if (this.regions.includes(region)) return false;
    this.options.place.removeRegion(region);
    return true;
  }

  lost(): void {
    // What it was told of was not taken back.
    if (this.regions.length > 0) this.options.place.doubt();
    this.regions = [];
  }
}

/** A ring that runs, or is about to. */
class ForwardedRing implements SharedRing {
  readonly setup: QueueSetup;
  readonly #task = { run: (): boolean => this.#move() };
  #runs = false;

  constructor(
    readonly forwarding: Forwarding,
    readonly owner: RingOwner,
    readonly queue: ForwardingQueue,
  ) {
    this.setup = queue.setup;
  }

  start(): void {
    this.#runs = true;
    this.forwarding.running++;
  }

  available(): void {
    this.forwarding.options.reactor.schedule(this.#task);
  }

  used(): void {
    this.forwarding.options.reactor.schedule(this.#task);
  }

  holdsIn({ memory, offset, size }: MemoryRegion): boolean {
    const from = Number(memory.address) + offset;
    return this.queue.holdsIn(from, from + size);
  }

  #move(): boolean {
    const { queue, owner } = this;
    if (!this.#runs || queue.broken !== undefined || owner.mayTouch?.() === false) return false;
    const { device, log } = this.forwarding.options;
    if (queue.giveBack()) owner.call();
    if (queue.forward()) device.available(owner.index);
    if (queue.broken === undefined) return queue.more;
    log.warn(
      `device ${device.number}, ring ${owner.index} is broken: ${queue.broken}: ` +
        "restart the guest's driver",
    );
    owner.fail();
    return false;
  }

  stop(): number {
    const { device, log } = this.forwarding.options;
    this.#runs = false;
    this.forwarding.running--;
    const base = this.queue.stop(this.owner.mayTouch?.() ?? true);
    const where = `device ${device.number}, ring ${this.owner.index}`;
    log.debug(`${where} had a shadow: ${JSON.stringify(this.queue.counters)}`);
    retire(this.queue.counters);
    return base;
  }
}
