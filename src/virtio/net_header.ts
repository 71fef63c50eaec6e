/** The header before every frame of a network card, struct virtio_net_hdr_v1 (VIRTIO 1.2, 5.1.6). */

/** flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers; in bytes. */
export const NET_HEADER_SIZE = 12;
/** Where num_buffers lies in it. */
export const NUM_BUFFERS_OFFSET = 10;
