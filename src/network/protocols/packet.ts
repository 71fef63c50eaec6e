/**
 * What all protocols share: what became of a received frame, who answers it, and what those above the Internet
 * protocol see of a packet of either version.
 */

/** What became of a frame. */
export type Verdict =
  | "done" // whole; answered or consumed
  | "ignored" // well-formed, but not for us, or nothing that we speak
  | "dropped" // for us, but a limit or a full ring forbade it
  | "malformed" // its bytes contradict its protocol
  | "checksum"; // its checksum is wrong

export interface Station {
  readonly mac: Uint8Array;
  /** Its IPv4 address. */
  readonly address: number;
  /** Where it writes the frame. */
  readonly slot: Uint8Array;
}

export const Protocol = { ICMP: 1, UDP: 17, ICMPV6: 58 } as const;

/** A version of the Internet protocol: where things lie in its frames, if its header has no options. */
export interface InternetVersion {
  readonly ethertype: number;
  /** Offset of the source address; the destination follows it, and the payload follows that. */
  readonly addresses: number;
  readonly payload: number;
  /** Protocol number of its control messages, and type and code of some of them as one number. */
  readonly control: number;
  readonly echoRequest: number;
  readonly echoReply: number;
  readonly portUnreachable: number;
}

/** A received packet whose header was checked. One record of each version serves all frames. */
export class Packet {
  /** The frame that it lies in. */
  frame: Uint8Array = new Uint8Array();
  protocol = 0;
  start = 0;
  end = 0;
  /** One's complement sum of both addresses, a part of every pseudo header. */
  addressSum = 0;
  /**
   * The payload's checksum need not be looked at: its field holds a partial sum (VIRTIO 1.2, 5.1.6.2,
   * NEEDS_CSUM), and between this guest and us there is no wire that could corrupt it.
   */
  trusted = false;

  constructor(readonly version: InternetVersion) {}
}
