/** The node's system calls as bytes (wire document 8.12): the argument structures of its four ioctls. */

import { MAX_FRAME, RING_BYTES } from "./ring.ts";

export const ATTACH = 0xc0a8_b900;
export const DETACH = 0x0000_b901;
export const RESOLVE = 0xc058_b90a;
export const RELEASE = 0x4010_b90b;
export const NAMES: ReadonlyMap<number, string> = new Map([
  [ATTACH, "ATTACH"],
  [DETACH, "DETACH"],
  [RESOLVE, "RESOLVE_ENDPOINT"],
  [RELEASE, "RELEASE_ENDPOINT"],
]);

export const EPERM = 1, ENOENT = 2, EBUSY = 16, ENODEV = 19, EINVAL = 22, ENOTTY = 25;
export const ENOTCONN = 107;

/** Bytes of the structure, as the number itself has them. */
export function argumentSize(number: number): number {
  return (number >>> 16) & 0x3fff;
}

function text(bytes: Uint8Array): string | undefined {
  const end = bytes.indexOf(0);
  if (end < 0 || bytes.subarray(end).some((byte) => byte !== 0)) return undefined;
  return new TextDecoder().decode(bytes.subarray(0, end));
}

/** Names of an endpoint; undefined if they are none. */
export function readResolve(bytes: Uint8Array): { name: string; id: string } | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const name = text(bytes.subarray(0, 16)), id = text(bytes.subarray(16, 64));
  const isZero = bytes.subarray(72).every((byte) => byte === 0);
  if (!name || id === undefined || !isZero || view.getUint32(68, true) > 1) return undefined;
  return { name, id };
}

export interface AttachRequest {
  readonly handle: number;
  readonly txOffset: number;
  readonly rxOffset: number;
}

/** What ATTACH asks for; a string says what is wrong with it. Slots are {@link MAX_FRAME} bytes here. */
export function readAttach(bytes: Uint8Array, fileSize: number): AttachRequest | string {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const size = view.getUint32(20, true);
  if (size !== MAX_FRAME) return `vmm_max_msg_size is ${size}`;
  const ring = (at: number) => {
    const offset = Number(view.getBigUint64(at, true));
    const length = Number(view.getBigUint64(at + 8, true));
    const wrong = view.getUint32(at + 16, true) !== 256 ||
      view.getUint32(at + 20, true) !== MAX_FRAME || view.getBigUint64(at + 24, true) !== 0n ||
      length < RING_BYTES || offset + length > fileSize || offset % 8 !== 0;
    return { offset, end: offset + length, wrong };
  };
  const tx = ring(24), rx = ring(56);
  if (tx.wrong || rx.wrong) return "the geometry of a ring";
  if (tx.offset < rx.end && rx.offset < tx.end) return "the rings overlap";
  if (view.getUint32(4, true) !== 0) return "a word that must be zero";
  // Capabilities are the kernel's to fill in.
  if (bytes.subarray(88).some((byte) => byte !== 0)) return "what must be zero behind the rings";
  return { handle: view.getUint32(0, true), txOffset: tx.offset, rxOffset: rx.offset };
}

/** Fills the capabilities in; all of it is zero while the endpoint is offline. */
export function writeCapabilities(bytes: Uint8Array, epoch: number): void {
  if (epoch === 0) return;
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  view.setUint32(88, 1, true);
  view.setUint32(92, 1, true);
  view.setUint32(96, MAX_FRAME, true);
  view.setUint32(100, 1, true);
  view.setBigUint64(120, BigInt(epoch), true);
}
