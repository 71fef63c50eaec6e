/**
 * How large frames may be, by what a network device negotiated (VIRTIO 1.2, 5.1.3). "Guest" bits are about
 * frames for the guest, "host" bits and CSUM about frames from it.
 */

import { hasFeature, NetFeature } from "../virtio/features.ts";

/** Room for any frame with segmentation offload and its header (VIRTIO 1.2, 5.1.6.3.1), in bytes. */
export const LARGE_FRAME_ROOM = 65562;

/** What a frame may have beyond its MTU: Ethernet header, one VLAN tag. */
export const FRAME_OVERHEAD = 18;

/** Whether frames for the guest may be larger than the MTU. */
export function takesLargeFrames(words: Uint32Array): boolean {
  return hasFeature(words, NetFeature.GUEST_TSO4) || hasFeature(words, NetFeature.GUEST_TSO6) ||
    hasFeature(words, NetFeature.GUEST_USO4) || hasFeature(words, NetFeature.GUEST_USO6);
}
