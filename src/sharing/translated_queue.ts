/**
 * A guest's virtqueue, and a copy of its descriptors with physical addresses: nothing else is copied.
 *
 * Theory of operation, beside that of forwarding_queue.ts. What the proxy puts into a queue of its
 * own, in a huge page of this machine, is where each buffer lies in this machine's RAM, page by page where it
 * is scattered (physical_map.ts). The device in the other machine, which sees this RAM, reads and writes the
 * guest's pages themselves.
 *
 * So the device side needs neither the guest's addresses nor their translation: no request on the data path,
 * no cache that could be stale, and rings that lie in one piece; and a device side that is no vmsg and takes
 * physical addresses, such as the prototype's, is served alike.
 *
 * A buffer of many pages takes many descriptors; one of up to 16 goes through an indirect table where
 * that was negotiated.
 */

import { PAGE_SIZE } from "../linux/mapping.ts";
import type { Place } from "../virtio/place.ts";
import { type ChainBatch, type DeviceQueue, DriverQueue } from "../virtio/queue/mod.ts";
import type { OpenTerms } from "./forwarding.ts";
import { ForwardingQueue } from "./forwarding_queue.ts";
import { type PhysicalMap, PhysicalPieces } from "./physical_map.ts";

/** Pieces of a buffer: 64 KiB in pages of their own, and more. */
const MAX_PIECES = 256;
/** Bytes of a buffer, far beyond any frame: each of its pages is looked up. */
const MAX_BYTES = 16 << 20;
/** Descriptors in the device's ring per entry of the guest's. */
const ENTRIES_PER_BUFFER = 4;
// They hold a buffer only while it is added.
const pieces = new PhysicalPieces(MAX_PIECES);

/** The largest ring of at most `entries` whose parts, indirect tables included, fit into `size` bytes. */
function ringThatFits(entries: number, size: number): number {
  let fitting = 2 ** Math.floor(Math.log2(entries));
  while (fitting > 1 && DriverQueue.bytesNeeded(fitting, true) > size) fitting /= 2;
  return fitting;
}

/** See the head of this file. */
export class TranslatedQueue extends ForwardingQueue {
  /** Pieces given to the device. */
  pieces = 0;

  /**
   * Makes an empty queue; its place is cleared.
   *
   * @param guest the guest's queue, of which this is now the only user
   */
  constructor(
    guest: DeviceQueue,
    readonly physical: PhysicalMap,
    place: Place,
    { maxSize, name = "", ...features }: OpenTerms,
  ) {
    // A buffer may take several descriptors, so there are more of them than the guest has.
    const wanted = Math.max(ENTRIES_PER_BUFFER * guest.size, MAX_PIECES);
    const size = ringThatFits(Math.min(maxSize, wanted), place.size);
    super(guest, new DriverQueue({ place, size, ...features }), name);
  }

  /** Names the buffer's pieces. */
  protected override add({ readable, writable }: ChainBatch, slot: number): boolean {
    const { guest, physical, shadow } = this;
    const length = readable.length + writable.length;
    if (length > MAX_BYTES) {
      guest.refuse(`a buffer of ${length} bytes, at most ${MAX_BYTES} are taken`);
      return false;
    }
    // Each of its pages is looked up.
    guest.charge(Math.floor(length / PAGE_SIZE));
    pieces.count = 0;
    let fits = physical.translate(readable, pieces);
    const reads = pieces.count;
    fits = fits && physical.translate(writable, pieces);
    const { addresses, lengths, count } = pieces;
    if (!fits || count === 0 || count > shadow.size) {
      const most = Math.min(MAX_PIECES, shadow.size);
      guest.refuse(`a buffer in ${fits ? count : "too many"} pieces, 1 to ${most} are taken`);
      return false;
    }
    if (!shadow.add(addresses, lengths, reads, count - reads, slot)) return false;
    this.pieces += count;
    return true;
  }

  /** It lies where the guest wants it. */
  protected override returned(): void {}
}
