/**
 * Discard (RFC 863): a datagram to port 9 is counted and thrown away; there is no answer.
 *
 * The cheapest thing to aim a throughput test at.
 */

import type { Host, Verdict } from "./host.ts";
import type { UdpDatagram } from "./udp.ts";

/** The port. */
export const DISCARD_PORT = 9;

/** Counts a datagram. */
export function receiveDiscard(host: Host, datagram: UdpDatagram): Verdict {
  host.counters.discardedFrames++;
  host.counters.discardedBytes += datagram.end - datagram.start;
  return "done";
}
