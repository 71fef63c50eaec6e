/**
 * The Internet checksum (RFC 1071): the one's complement of the one's complement sum of 16-bit words.
 *
 * Sums are kept wide and folded at the end, so parts can be added in any order (RFC 1071, section 2). A sum of
 * 65535 bytes and a few folded parts stays below 2^32, which is what the unsigned shift in {@link foldSum} needs.
 */

import { readU16 } from "./byte_order.ts";

/** Adds the bytes in [start, end), an odd last byte padded with 0, to a sum. At most 65535 bytes. */
export function addBytes(sum: number, bytes: Uint8Array, start: number, end: number): number {
  let at = start;
  // Four at a time: half of the additions and of the jumps.
  for (; at + 3 < end; at += 4) sum += readU16(bytes, at) + readU16(bytes, at + 2);
  if (at + 1 < end) {
    sum += readU16(bytes, at);
    at += 2;
  }
  return at < end ? sum + (bytes[at] << 8) : sum;
}

export function addU32(sum: number, value: number): number {
  return sum + (value >>> 16) + (value & 0xffff);
}

/** Folds the carries in: 16 bits. 0xffff is what a region with a correct checksum in it sums up to. */
export function foldSum(sum: number): number {
  const once = (sum & 0xffff) + (sum >>> 16);
  return (once & 0xffff) + (once >>> 16);
}

/** The checksum field for a sum that was taken with 0 in that field. */
export function checksumOf(sum: number): number {
  return foldSum(sum) ^ 0xffff;
}
