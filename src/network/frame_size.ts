/**
 * What a network device negotiated of offloads (VIRTIO 1.2, 5.1.3), and how large frames may be by it. "Guest"
 * bits are about frames for the guest, "host" bits and CSUM about frames from it.
 */

import { hasFeature, NetFeature } from "../virtio/features.ts";
import { NET_HEADER_SIZE } from "../virtio/net_header.ts";

/** The offloads of every kernel behind a port. */
export const KERNEL_OFFLOADS: readonly number[] = [
  NetFeature.CSUM,
  NetFeature.GUEST_CSUM,
  NetFeature.GUEST_TSO4,
  NetFeature.GUEST_TSO6,
  NetFeature.GUEST_ECN,
  NetFeature.HOST_TSO4,
  NetFeature.HOST_TSO6,
  NetFeature.HOST_ECN,
];

/** Room for any frame with segmentation offload and its header (VIRTIO 1.2, 5.1.6.3.1), in bytes. */
export const LARGE_FRAME_ROOM = 65562;

/** Room for a frame of an MTU: virtio-net header, Ethernet header, one VLAN tag. */
export function frameRoom(mtu: number): number {
  return NET_HEADER_SIZE + 18 + mtu;
}

export function takesLargeFrames(words: Uint32Array): boolean {
  const { GUEST_TSO4, GUEST_TSO6, GUEST_USO4, GUEST_USO6 } = NetFeature;
  return [GUEST_TSO4, GUEST_TSO6, GUEST_USO4, GUEST_USO6].some((bit) => hasFeature(words, bit));
}
