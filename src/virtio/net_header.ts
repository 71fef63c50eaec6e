/** The header before every frame of a network card, struct virtio_net_hdr_v1 (VIRTIO 1.2, 5.1.6). */

/** flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers; in bytes. */
export const NET_HEADER_SIZE = 12;
// Where fields lie in it.
export const FLAGS_OFFSET = 0;
export const GSO_TYPE_OFFSET = 1;
export const CSUM_START_OFFSET = 6;
export const CSUM_OFFSET_OFFSET = 8;
export const NUM_BUFFERS_OFFSET = 10;

/** Of the flags: the checksum is only that of the pseudo header; somebody has to add the rest. */
export const NEEDS_CSUM = 1;

/** What gso_type says of a frame that is to be cut; ECN comes with one of the others. */
export const GsoType = { TCPV4: 1, TCPV6: 4, ECN: 0x80 } as const;

/** Where fields of a network card's configuration space are (struct virtio_net_config, 5.1.4), and its size. */
export const NetConfig = {
  STATUS: 6,
  PAIRS: 8,
  MTU: 10,
  SPEED: 12,
  DUPLEX: 16,
  SIZE: 17,
} as const;
/** Bits of {@link NetConfig.STATUS}. */
export const NetStatus = { LINK_UP: 1, ANNOUNCE: 2 } as const;
