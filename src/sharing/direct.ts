/**
 * Direct mode of one device number, which goes one of two ways.
 *
 *     own          the device side is told where the driver's memory lies in this machine's RAM, piece by piece, each at the
 *                  addresses that the driver's descriptors hold, and works on the driver's own rings (descriptors.ts)
 *     translated   rings are made for it in a huge page, and name the driver's buffers by physical address (pages.ts)
 *
 * The first is cheaper, since nobody here looks at a ring. It takes a device side that can be told, which is a vmsg; memory
 * in few pieces, as in huge pages; rings of which each lies in one piece; and a device that has all features the driver
 * accepted. Buffers and indirect tables may lie across pieces: the device side puts them together (memory/address_space.ts).
 *
 * The way is chosen whenever no ring runs. A ring that comes beside others, and does not lie in one piece, has all of them
 * stopped, and then carried over. Either way memory is pinned before the device side is told of it, and until it touches
 * it no more (physical_map.ts).
 */

import { VmsgError } from "../linux/errors.ts";
import { AddressSpace } from "../memory/mod.ts";
import { MEMORY_WINDOW } from "../message/message.ts";
import { RequestRefused } from "../transport/requests.ts";
import type { QueueSetup } from "../virtio/device.ts";
import { hasFeature, RingFeature } from "../virtio/features.ts";
import { whyNoQueue } from "../virtio/queue/open.ts";
import { Descriptors } from "./descriptors.ts";
import { Forwarding, type ForwardingOptions } from "./forwarding.ts";
import type { Pages } from "./pages.ts";
import {
  differ,
  type RingOwner,
  type RingPlan,
  type RingTerms,
  type SharedRegion,
  type SharedRing,
  type Sharing,
  type SharingTerms,
} from "./sharing.ts";

/** The most pieces that a device side is told of, with a request each: a quarter of what its address space holds. */
const MAX_PIECES = 128;

/** See the head of this file. */
export class Direct implements Sharing {
  readonly withheld: readonly number[] = [];
  readonly #own: Descriptors;
  readonly #translated: Forwarding;
  #way: "own" | "translated" | undefined;
  /** What the driver's regions consist of. */
  #pieces: readonly SharedRegion[] = [];
  /** The same, to find rings in. */
  #view = new AddressSpace();
  #isPacked = false;
  /** The session in which the device side did not take the pieces, and its words. */
  #refusal: { readonly session: number; readonly why: string } | undefined;
  #said = "";

  /** Nothing is told yet. */
  constructor(readonly options: ForwardingOptions & { readonly place: Pages }) {
    this.#own = new Descriptors(options.device);
    this.#translated = new Forwarding(options);
  }

  get own(): readonly number[] {
    return this.#way === "own" ? this.#own.own : this.#translated.own;
  }

  mustStopFor(regions: readonly SharedRegion[], rings: readonly RingPlan[]): boolean {
    if (this.#way !== "own") return this.#translated.mustStopFor(regions, rings);
    return differ(regions, this.#translated.regions) || rings.some((ring) => !this.#fits(ring));
  }

  async prepare(
    regions: readonly SharedRegion[],
    rings: readonly RingPlan[],
    terms: SharingTerms,
  ): Promise<void> {
    if (differ(regions, this.#translated.regions)) {
      // What goes is pinned until the device side has forgotten it.
      await this.#own.prepare([]);
      this.#way = undefined;
      await this.#translated.prepare(regions, [], terms);
      this.#locate(regions);
    }
    if (rings.length === 0) return;
    if (this.#own.running + this.#translated.running === 0) await this.#choose(rings, terms);
    if (this.#way === "translated") await this.#translated.prepare(regions, rings, terms);
  }

  #locate(regions: readonly SharedRegion[]): void {
    const { physical } = this.options.place;
    this.#pieces = regions.flatMap((region) => piecesOf(region, physical.runsOf(region)));
    this.#view = new AddressSpace();
    if (this.#pieces.length > MAX_PIECES) return;
    for (const { at, size, memory, offset } of this.#pieces) {
      this.#view.add(at, size, memory, offset);
    }
  }

  async #choose(rings: readonly RingPlan[], terms: SharingTerms): Promise<void> {
    this.#isPacked = hasFeature(terms.features, RingFeature.RING_PACKED);
    const why = this.#whyNotOwn(rings, terms) ?? await this.#tellPieces();
    this.#way = why === undefined ? "own" : "translated";
    if (this.#way === "translated") await this.#own.prepare([]);
    const said = why === undefined
      ? "the device works on the guest's own rings"
      : `the guest's rings are carried over: ${why}`;
    const { device, log } = this.options;
    if (said !== this.#said) log.info(`device ${device.number}: ${said}`);
    this.#said = said;
  }

  #whyNotOwn(rings: readonly RingPlan[], { features, offers }: SharingTerms): string | undefined {
    const { device } = this.options;
    const { length } = this.#pieces;
    if (device.side.peer !== "vmsg") return "the device side is no vmsg that speaks v1";
    if (length > MAX_PIECES) return `its memory lies in ${length} pieces, more than ${MAX_PIECES}`;
    if (this.#refusal?.session === device.session) return this.#refusal.why;
    const lacks = this.#translated.own.some((bit) =>
      hasFeature(features, bit) && !hasFeature(offers, bit)
    );
    if (lacks) return "the device does not have their format";
    const unfit = rings.find((ring) => !this.#fits(ring));
    return unfit && `ring ${unfit.index} does not lie in one piece`;
  }

  /** Is all of a ring where the device side finds it? */
  #fits(ring: RingPlan): boolean {
    try {
      const config = {
        ...ring.setup(),
        packed: this.#isPacked,
        eventIndex: false,
        indirect: false,
      };
      return whyNoQueue(this.#view, config) === undefined;
    } catch (error) {
      if (error instanceof VmsgError) return false;
      throw error;
    }
  }

  /** Tells the device side where the memory lies; why it does not take that, if so. */
  async #tellPieces(): Promise<string | undefined> {
    const { device } = this.options;
    const { session } = device;
    // All of its memory at its own addresses, for rings that were carried over (pages.ts).
    if (this.#translated.announcedTo === session) await device.removeMemory(0, 0);
    this.#translated.announcedTo = -1;
    const failure = await this.#own.prepare(this.#pieces).catch((error: unknown) => error);
    if (failure === undefined) return undefined;
    if (!(failure instanceof RequestRefused)) throw failure;
    this.#refusal = { session, why: failure.message };
    return failure.message;
  }

  open(owner: RingOwner, setup: QueueSetup, terms: RingTerms): SharedRing {
    if (this.#way !== "own") return this.#translated.open(owner, setup, terms);
    return this.#own.open(owner, setup);
  }

  letGo(region: SharedRegion): boolean {
    return this.#translated.letGo(region);
  }

  lost(): void {
    this.#own.lost();
    this.#translated.lost();
    this.#way = undefined;
  }
}

/** The pieces of a region, as the device side finds them in this machine's RAM. */
function piecesOf(
  region: SharedRegion,
  runs: ReturnType<Pages["physical"]["runsOf"]>,
): SharedRegion[] {
  const { memory, offset: first, size, at } = region;
  const pieces: SharedRegion[] = [];
  // The runs are of all that is mapped, of which the region may be a part.
  for (const { offset: start, physical, length } of runs) {
    const offset = Math.max(start, first);
    const end = Math.min(start + length, first + size);
    if (end <= offset) continue;
    pieces.push({
      memory,
      offset,
      size: end - offset,
      at: at + offset - first,
      from: MEMORY_WINDOW,
      fileOffset: physical + offset - start,
    });
  }
  return pieces;
}
