/**
 * How the device side gets to see a driver's memory and rings: one interface, and three ways to do it.
 *
 *     descriptors   the files that hold the memory are sent to the device side, which maps them and works on
 *                   the driver's own rings (descriptors.ts); the default where both sides are on one host
 *     confined      the device side sees one piece of shared memory and nothing else: rings are made there,
 *                   buffers are copied into it and out of it (segment.ts, copied_queue.ts)
 *     direct        the device side sees this machine's RAM (direct.ts). Where the driver's memory lies there in few pieces, it is
 *                   told where, and works on the driver's own rings. Else rings are made in a huge page, and name
 *                   the driver's buffers by physical address (pages.ts, translated_queue.ts)
 *
 * Confined, and direct where memory is scattered, have in common that a ring of the driver's is carried over into one that is
 * made for the device (forwarding.ts). Which rings run, and when, is the same for all and decided by whoever uses a {@link Sharing}
 * (drivers/session.ts). One Sharing serves one device number; drivers may come and go before it. The order is:
 *
 *     mustStopFor, and the rings that run are stopped if it says so
 *     prepare                   the device side knows what it has to know of memory
 *     open, start               per ring, before and after the device has been told of it
 *     available, used, stop     per ring that was started
 *     lost                      the device side is gone; rings that ran are stopped before
 */

import type { AddressSpace, MemoryRegion } from "../memory/mod.ts";
import type { QueueSetup } from "../virtio/device.ts";
import type { RingEvents } from "../transport/remote_private.ts";
import type { DeviceTerms } from "./division.ts";

/** A piece of a driver's memory: where it lies for us, on the bus, and perhaps in a file. */
export interface SharedRegion extends MemoryRegion {
  /**
   * Which memory of the device side's own it is, where no file is sent: MEMORY_SEGMENT or MEMORY_WINDOW, with
   * {@link fileOffset} counted there. A file that is sent may be marked as MEMORY_SEGMENT.
   */
  readonly from?: number;
  /** Why a device side that cannot be told of memory will not do; without it, it knows by its own means. */
  readonly mustBeTold?: string;
  /** What people can do about a device side that refuses it. */
  readonly advice?: string;
  /** Called before the device side may touch it for the first time. */
  exposed?(): void;
}

/** Whose ring it is. */
export interface RingOwner {
  /** Which queue of the device. */
  readonly index: number;
  /** Tells the driver that buffers were used. */
  call(): void;
  /** Tells the driver that the ring is broken. */
  fail(): void;
  /** The driver's memory, where it comes and goes while rings run: what is carried over is looked up here, not in regions. */
  readonly memory?: AddressSpace;
  /** May the driver's memory be touched now? Always unless given. Whoever said no has the ring looked at again. */
  mayTouch?(): boolean;
}

/** A ring that is to run, or does. */
export interface RingPlan {
  /** Which queue of the device. */
  readonly index: number;
  /**
   * Where it lies in the driver's memory.
   *
   * @throws VmsgError if it lies nowhere
   */
  setup(): QueueSetup;
}

/** Whom it is all for. */
export interface SharingTerms extends DeviceTerms {
  /** The features that the device offers by itself, in blocks of 32. */
  readonly offers: Uint32Array;
}

/** What was agreed on when a ring is opened. */
export interface RingTerms {
  /** The features that the driver has accepted, in blocks of 32. */
  readonly features: Uint32Array;
  /** The most entries that the device takes. */
  readonly maxSize: number;
}

/** Which notifications of a ring are out of band. */
export type OutOfBand = "none" | "calls" | "all";

/** A driver's ring as the device side gets to see it. */
export interface SharedRing {
  /** What the device is told of it. */
  readonly setup: QueueSetup;
  /** The device has taken it: buffers move from here on. */
  start(): void;
  /** The driver has made buffers available. */
  available(): void;
  /** The device has used buffers. */
  used(): void;
  /** Is a buffer out that will be written to in this region? Only where buffers are carried over. */
  holdsIn?(region: MemoryRegion): boolean;
  /**
   * Has the device side hear the driver's kicks and call it, out of band, as far as it can. Only where the ring is the
   * driver's own and is started, and again when one of them has become another.
   */
  handOver?: ((events: RingEvents) => Promise<OutOfBand>) | undefined;
  /**
   * The device touches it no more.
   *
   * @returns where the driver's ring goes on; undefined if only the device can tell
   */
  stop(): number | undefined;
}

/** See the head of this file. */
export interface Sharing {
  /** Feature bits that stand for what cannot be carried this way; no driver is offered them. */
  readonly withheld: readonly number[];
  /**
   * Feature bits that it carries out itself: every driver is offered them, no device is told of them. Fewer, once it has
   * prepared for rings that the device itself works on.
   */
  readonly own: readonly number[];
  /**
   * Do the rings that run have to stop before these are the driver's regions, and these its rings?
   *
   * @param rings those that are to run, and those that do so already
   */
  mustStopFor(regions: readonly SharedRegion[], rings: readonly RingPlan[]): boolean;
  /**
   * Makes these the driver's regions, and room for these rings. Without rings the device side learns only
   * what it has to forget or to map.
   *
   * @throws VmsgError if the device side cannot have them; what transport requests throw
   */
  prepare(
    regions: readonly SharedRegion[],
    rings: readonly RingPlan[],
    terms: SharingTerms,
  ): Promise<void>;
  /**
   * Makes what the device is to be told of a ring.
   *
   * @param setup where the ring lies in the driver's regions, and where it goes on
   * @throws VmsgError if the ring is none, or there is no room for it
   */
  open(owner: RingOwner, setup: QueueSetup, terms: RingTerms): SharedRing;
  /**
   * The driver has done with a region.
   *
   * @returns false while the device side or a ring may touch it: it has to stay mapped
   */
  letGo(region: SharedRegion): boolean;
  /** The device side is gone without a word; the next one knows of nothing. */
  lost(): void;
}

/** Do the lists differ in what is in them? */
export function differ(one: readonly SharedRegion[], other: readonly SharedRegion[]): boolean {
  return one.length !== other.length || one.some((region) => !other.includes(region));
}
