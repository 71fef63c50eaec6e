/** A driver of an entropy device (VIRTIO 1.3, section 5.4): it asks for bytes until it has as many as are wanted. */

import { VmsgError } from "../linux/errors.ts";
import { DEVICE_RNG } from "../virtio/features.ts";
import type { RequestDriver, RequestDriverOptions } from "./request_driver.ts";

const PIECE = 4096;
/** Answers without a byte, one after another: a device may have none for now, but not for ever. */
const MOST_EMPTY = 100;
const RETRY_MS = 10;

/** For a {@link RequestDriver}. One request is under way at a time, so that the bytes have an order. */
export const RNG_DRIVER = {
  deviceId: DEVICE_RNG,
  what: "an entropy device",
  features: [],
  slotSize: PIECE,
  depth: 1,
} as const satisfies Partial<RequestDriverOptions>;

/**
 * Asks for so many bytes.
 *
 * @param take gets each piece, valid until it is through
 * @throws VmsgError NO_ENTROPY
 */
export async function readEntropy(
  driver: RequestDriver,
  bytes: number,
  take: (piece: Uint8Array) => void | Promise<void>,
): Promise<void> {
  const slot = driver.slots[0]!;
  const addresses = Float64Array.of(slot.at);
  let empty = 0;
  for (let done = 0; done < bytes;) {
    const lengths = Uint32Array.of(Math.min(PIECE, bytes - done));
    const length = await driver.ask(slot, { addresses, lengths, readable: 0, writable: 1 });
    await take(slot.bytes.subarray(0, length));
    done += length;
    if (length > 0) {
      empty = 0;
    } else if (++empty < MOST_EMPTY) {
      await driver.reactor.sleep(RETRY_MS);
    } else {
      const what = `device ${driver.options.number} gave no byte ${empty} times in a row`;
      throw new VmsgError("NO_ENTROPY", what);
    }
  }
}
