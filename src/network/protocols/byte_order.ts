/**
 * Network byte order (RFC 791, appendix B): big-endian numbers at an offset of a frame.
 *
 * Plain indexing instead of a DataView: frames arrive in buffers that are the owner's, and
 * a view of each would be an allocation per frame. An index outside an array reads as 0 and writes
 * nothing, so even a forgotten check cannot throw; the checks belong to the callers all the same.
 */

export function readU16(bytes: Uint8Array, at: number): number {
  return (bytes[at] << 8) | bytes[at + 1];
}

export function readU32(bytes: Uint8Array, at: number): number {
  return ((readU16(bytes, at) << 16) | readU16(bytes, at + 2)) >>> 0;
}

export function writeU16(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >>> 8;
  bytes[at + 1] = value;
}

export function writeU32(bytes: Uint8Array, at: number, value: number): void {
  writeU16(bytes, at, value >>> 16);
  writeU16(bytes, at + 2, value);
}

/** Copies bytes from one frame to another; a loop, because set() would need a view of the part. */
export function copyBytes(
  target: Uint8Array,
  targetAt: number,
  source: Uint8Array,
  sourceAt: number,
  length: number,
): void {
  for (let i = 0; i < length; i++) target[targetAt + i] = source[sourceAt + i];
}
