/**
 * What the protocols of the responder share: who it is, where answers go, what is counted.
 *
 * A protocol's file gets a {@link Host} and a frame, and returns a {@link Verdict}. The answer, if there
 * is one, is in the host's ring by then. Counting by verdict happens in one place, responder.ts.
 */

import type { FrameRing } from "./frame_ring.ts";

/**
 * What became of a frame from the guest:
 *
 * - `done`: answered or consumed
 * - `ignored`: well-formed, but not for us, or nothing that we speak
 * - `dropped`: for us, but a limit or a full ring forbade it
 * - `malformed`: its bytes contradict its protocol
 * - `checksum`: its checksum is wrong
 */
export type Verdict = "done" | "ignored" | "dropped" | "malformed" | "checksum";

/** Counts since the responder was made. */
export interface ResponderCounters {
  /** Frames from the guest, whatever became of them. */
  framesIn: number;
  /** Their bytes, Ethernet header included. */
  bytesIn: number;
  /** Frames handed to the guest. */
  framesOut: number;
  /** Their bytes, Ethernet header included. */
  bytesOut: number;
  /** Frames in either direction that a limit, a full ring, or a wrong checksum took. */
  dropped: number;
  /** Frames from the guest whose bytes contradict their protocol. */
  malformed: number;
  /** Well-formed frames that were not for us, or in a protocol that we do not speak. */
  ignored: number;
  /** Of the dropped ones, those with a wrong IPv4, ICMP, ICMPv6, UDP or TCP checksum. */
  checksumErrors: number;
  /** Datagrams to the discard port. */
  discardedFrames: number;
  /** Their UDP payload bytes. */
  discardedBytes: number;
  /** Echo replies. */
  echoReplies: number;
  /** ARP replies. */
  arpReplies: number;
  /** IPv6 neighbour advertisements. */
  neighbourAdvertisements: number;
  /** IPv6 router advertisements. */
  routerAdvertisements: number;
  /** OFFER, ACK and NAK messages. */
  dhcpReplies: number;
  /** Clients that hold a lease. */
  dhcpLeases: number;
  /** ICMP "port unreachable" messages. */
  portUnreachables: number;
  /** Datagrams of the character generator. */
  chargenFrames: number;
  /** Frames of the flood. */
  floodFrames: number;
  /** TCP connections that were opened. */
  tcpConnections: number;
  /** Segments from the guest, whole ones. */
  tcpSegmentsIn: number;
  /** Their payload bytes, each once. */
  tcpBytesIn: number;
  /** Segments to the guest, resets not counted. */
  tcpSegmentsOut: number;
  /** Their payload bytes, each once. */
  tcpBytesOut: number;
  /** Segments that were sent again. */
  tcpRetransmits: number;
  /** Connections that were given up because the peer fell silent. */
  tcpTimeouts: number;
  /** Connections that the peer reset. */
  tcpResetsIn: number;
  /** Segments that were answered with a reset. */
  tcpResetsOut: number;
}

/** All counts at 0. */
export function createCounters(): ResponderCounters {
  return {
    framesIn: 0,
    bytesIn: 0,
    framesOut: 0,
    bytesOut: 0,
    dropped: 0,
    malformed: 0,
    ignored: 0,
    checksumErrors: 0,
    discardedFrames: 0,
    discardedBytes: 0,
    echoReplies: 0,
    arpReplies: 0,
    neighbourAdvertisements: 0,
    routerAdvertisements: 0,
    dhcpReplies: 0,
    dhcpLeases: 0,
    portUnreachables: 0,
    chargenFrames: 0,
    floodFrames: 0,
    tcpConnections: 0,
    tcpSegmentsIn: 0,
    tcpBytesIn: 0,
    tcpSegmentsOut: 0,
    tcpBytesOut: 0,
    tcpRetransmits: 0,
    tcpTimeouts: 0,
    tcpResetsIn: 0,
    tcpResetsOut: 0,
  };
}

/** The responder's identity, its outgoing ring and its counters. */
export interface Host {
  /** Six bytes. */
  readonly mac: Uint8Array;
  /** Its global IPv6 address, 16 bytes; the first 64 bits are the prefix that it advertises. */
  readonly address6: Uint8Array;
  /** Its link-local IPv6 address. */
  readonly linkLocal: Uint8Array;
  /** IPv4 address; this and the next two are numbers, most significant byte first. */
  readonly address: number;
  /** Subnet mask. */
  readonly mask: number;
  /** The subnet's broadcast address. */
  readonly broadcast: number;
  /** Answers for the guest. */
  readonly ring: FrameRing;
  /** What happened so far. */
  readonly counters: ResponderCounters;
}
