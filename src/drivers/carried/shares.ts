/**
 * How devices of bus A get to see the memory of the driver on bus B.
 *
 *     own       they work on the driver's own rings and buffers: where A carries files, the driver's are passed on; where both
 *               buses lie in one file, A's device side is told which part of it
 *     copied    rings and buffers are copied into what A's device side sees, and out of it (sharing/segment.ts): the memory behind
 *               A's queues, or a file that it was given by its command line; always where B is a kernel's own bus
 *
 * A device side of A that cannot be told of memory has to know B's by its own means, if nothing is copied.
 */

import type { Bus } from "../../bus/bus.ts";
import { VmsgError } from "../../linux/errors.ts";
import { BorrowedFd, fileIdentity } from "../../linux/fd.ts";
import type { Reactor } from "../../linux/reactor.ts";
import type { MemoryRegion } from "../../memory/mod.ts";
import { MEMORY_SEGMENT } from "../../message/message.ts";
import type { Log } from "../../observe/log.ts";
import { Descriptors } from "../../sharing/descriptors.ts";
import { Forwarding } from "../../sharing/forwarding.ts";
import { type KnownMemory, Segment } from "../../sharing/segment.ts";
import type { SharedRegion, Sharing } from "../../sharing/sharing.ts";
import type { RemoteDevice } from "../../transport/remote_device.ts";

/** Devices that share a segment unless it is said how many. */
const DEFAULT_LIMIT = 8;
/** Of a segment, for each of them. */
const SHARE = 256 << 10;

/** What it goes by. */
export interface SharesOptions {
  readonly reactor: Reactor;
  readonly log: Log;
  /** Bus A and bus B. */
  readonly from: Bus;
  readonly to: Bus;
  /** May B's driver side know of memory of A's device side by what is said in messages? */
  readonly canBeTold: boolean;
  /** Copy, and how many bytes there are for it at most; undefined: only if it must be. */
  readonly copied: { readonly size?: number | undefined; readonly known?: KnownMemory } | undefined;
  /** How many devices there are at most; undefined: as many as there is room for. */
  readonly limit: number | undefined;
}

/** How one device sees it. */
export interface Share {
  readonly sharing: Sharing;
  /** A is told nothing of the driver's memory. */
  readonly isCopied: boolean;
  /** A region of the driver's, as A is told of it; the same object each time. */
  show(region: MemoryRegion): SharedRegion;
}

/** See the head of this file. */
export class Shares implements Disposable {
  /** How many devices there may be. */
  readonly limit: number;
  readonly #segment: Segment | undefined;
  /** What is to be added to an offset in B's shared memory for that in A's, where they are the same. */
  readonly #between: number | undefined;
  readonly #shown = new WeakMap<MemoryRegion, SharedRegion>();

  /** @throws VmsgError SEGMENT, BUS_MEMORY */
  constructor(readonly options: SharesOptions) {
    const { from, to, copied, limit, canBeTold } = options;
    const between = distance(from, to);
    if (between !== undefined && (copied !== undefined || !canBeTold)) {
      throw new VmsgError(
        "BUS_MEMORY",
        `${from.description} and ${to.description} share memory, which can be neither copied to nor told of here: ` +
          "have the first end (size=) before the second begins (offset=)",
      );
    }
    this.#between = between;
    // A kernel's windows are no files, and come and go.
    const mustCopy = to.kernel !== undefined || (between === undefined && !from.carriesFds);
    const isCopied = copied !== undefined || mustCopy;
    const { known, size } = copied ?? {};
    const room = known?.memory.size ?? roomOf(from, size);
    const most = isCopied ? Math.max(1, Math.floor(room / SHARE)) : DEFAULT_LIMIT;
    this.limit = limit ?? Math.min(DEFAULT_LIMIT, most);
    this.#segment = isCopied ? new Segment(from, size, this.limit, known) : undefined;
  }

  /** For a device. @param position from 0 to below {@link limit} */
  of(device: RemoteDevice, position: number): Share {
    const { reactor, log } = this.options;
    const place = this.#segment;
    if (place === undefined) {
      const show = (region: MemoryRegion) => this.#show(region);
      return { sharing: new Descriptors(device), isCopied: false, show };
    }
    const sharing = new Forwarding({ reactor, device, place, position, log });
    return { sharing, isCopied: true, show: (region) => region };
  }

  #show(region: MemoryRegion): SharedRegion {
    let shown = this.#shown.get(region);
    if (shown === undefined) this.#shown.set(region, shown = this.#shownOf(region));
    return shown;
  }

  #shownOf(region: MemoryRegion): SharedRegion {
    const { fd, memory: { file }, offset } = region;
    if (this.#between !== undefined) {
      return { ...region, from: MEMORY_SEGMENT, fileOffset: offset + this.#between };
    }
    if (fd !== undefined || file === undefined) return region;
    return { ...region, fd: new BorrowedFd(file.fd.number), fileOffset: file.offset + offset };
  }

  [Symbol.dispose](): void {
    this.#segment?.[Symbol.dispose]();
  }
}

function roomOf({ segment }: Bus, size: number | undefined): number {
  return segment === undefined ? size ?? Infinity : segment.memory.size - segment.start;
}

/**
 * How far B's memory begins behind A's, if all of it lies in what A shares behind its queues; undefined where they have
 * nothing in common.
 *
 * @throws VmsgError BUS_MEMORY if they overlap in another way
 */
function distance(from: Bus, to: Bus): number | undefined {
  const [a, b] = [from.segment, to.segment];
  if (a?.memory.file === undefined || b?.memory.file === undefined) return undefined;
  if (fileIdentity(a.memory.file.fd) !== fileIdentity(b.memory.file.fd)) return undefined;
  const between = b.memory.file.offset - a.memory.file.offset;
  if (between >= a.memory.size || between + b.memory.size <= 0) return undefined;
  if (between >= a.start && between + b.memory.size <= a.memory.size) return between;
  throw new VmsgError(
    "BUS_MEMORY",
    `${from.description} and ${to.description} overlap: have all of the second (offset=, size=) lie in what the first shares ` +
      "behind its queues, or behind it",
  );
}
