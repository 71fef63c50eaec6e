/**
 * The feature bits of a network device that concern its frames (VIRTIO 1.2, 5.1.3): checksums left to
 * the other side, and frames larger than the MTU. "Guest" bits are about frames for the guest, "host"
 * bits and CSUM about frames from it.
 */

/** Bit numbers; the same as in message/features.ts, which this room does not import. */
export const Offload = {
  CSUM: 0,
  GUEST_CSUM: 1,
  GUEST_TSO4: 7,
  GUEST_TSO6: 8,
  GUEST_ECN: 9,
  HOST_TSO4: 11,
  HOST_TSO6: 12,
  HOST_ECN: 13,
  GUEST_USO4: 54,
  GUEST_USO6: 55,
  HOST_USO: 56,
} as const;

/** Room for any frame with segmentation offload and its header (VIRTIO 1.2, 5.1.6.3.1), in bytes. */
export const LARGE_FRAME_ROOM = 65562;

/** What a frame may have beyond its MTU: Ethernet header, one VLAN tag. */
export const FRAME_OVERHEAD = 18;

/** Is a feature bit set in blocks of 32? */
export function hasFeature(words: Uint32Array, bit: number): boolean {
  return (words[bit >> 5] & (1 << (bit & 31))) !== 0;
}

/** Whether frames for the guest may be larger than the MTU. */
export function takesLargeFrames(words: Uint32Array): boolean {
  return hasFeature(words, Offload.GUEST_TSO4) || hasFeature(words, Offload.GUEST_TSO6) ||
    hasFeature(words, Offload.GUEST_USO4) || hasFeature(words, Offload.GUEST_USO6);
}
