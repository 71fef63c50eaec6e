/** What ICMPv6, UDP and TCP see of a packet of either Internet protocol: where it lies, and from whom. */

/** A received packet whose header was checked. One record of each version serves all frames. */
export interface Packet {
  /** 4 or 6; tells where its addresses are. */
  readonly version: 4 | 6;
  /** Protocol number of the payload. */
  protocol: number;
  /** Offset of the payload in the frame. */
  start: number;
  /** Offset of the first byte after the payload. */
  end: number;
  /** One's complement sum of both addresses, a part of every pseudo header. */
  addressSum: number;
  /**
   * The payload's checksum need not be looked at: its field holds a partial sum (VIRTIO 1.2, 5.1.6.2,
   * NEEDS_CSUM), and between this guest and us there is no wire that could corrupt it.
   */
  trusted: boolean;
}
