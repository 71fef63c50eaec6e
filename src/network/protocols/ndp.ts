/**
 * Neighbour discovery (RFC 4861): solicitations in, advertisements out.
 *
 * An answer goes to the station that asked, or to all nodes if it has no address yet.
 */

import { ETHERNET_SOURCE, ETHERTYPE_IPV6, MAC_SIZE, writeEthernetHeader } from "./ethernet.ts";
import { finishIcmp } from "./icmp.ts";
import {
  ALL_NODES,
  HOP_LIMIT,
  HOP_LIMIT_MAX,
  IPV6,
  IPV6_ADDRESS_SIZE,
  IPV6_DESTINATION,
  IPV6_PAYLOAD,
  IPV6_SOURCE,
  type Ipv6Packet,
  isMulticast6,
  isUnspecified,
  PROTOCOL_ICMPV6,
  writeIpv6Header,
} from "./ipv6.ts";
import { copyBytes, writeU16, writeU32 } from "./byte_order.ts";
import type { Verdict } from "./packet.ts";

/** Type and code of a router solicitation, as one number; the others likewise. */
export const ROUTER_SOLICITATION = 0x8500;
/** Neighbour solicitation. */
export const NEIGHBOUR_SOLICITATION = 0x8700;
const ROUTER_ADVERTISEMENT = 0x8600;
const NEIGHBOUR_ADVERTISEMENT = 0x8800;

const SOLICITATION_SIZE = 8;
const TARGET = 8;
const NEIGHBOUR_SIZE = TARGET + IPV6_ADDRESS_SIZE;
const LINK_ADDRESS_OPTION_SIZE = 8;
const NEIGHBOUR_ADVERTISEMENT_SIZE = NEIGHBOUR_SIZE + LINK_ADDRESS_OPTION_SIZE;
const PREFIX_OPTION_SIZE = 32;
const ROUTER_SIZE = 16;
const ROUTER_ADVERTISEMENT_SIZE = ROUTER_SIZE + PREFIX_OPTION_SIZE + LINK_ADDRESS_OPTION_SIZE;

const OPTION_SOURCE_LINK_ADDRESS = 1;
const OPTION_TARGET_LINK_ADDRESS = 2;
const OPTION_PREFIX = 3;

const FLAG_ROUTER = 0x80000000;
const FLAG_SOLICITED = 0x40000000;
const FLAG_OVERRIDE = 0x20000000;
const PREFIX_LENGTH = 64;
const PREFIX_ON_LINK_AUTONOMOUS = 0xc0;
const VALID_SECONDS = 86400;
const PREFERRED_SECONDS = 14400;

/** 33:33 and the last four bytes of ff02::1 (RFC 2464 7). */
const ALL_NODES_MAC = Uint8Array.of(0x33, 0x33, 0, 0, 0, 1);

/** Checks a neighbour solicitation, which is for the address at {@link neighbourTarget}. */
export function checkNeighbourSolicitation(frame: Uint8Array, packet: Ipv6Packet): Verdict {
  if (packet.hopLimit !== HOP_LIMIT_MAX || packet.end - packet.start < NEIGHBOUR_SIZE) {
    return "malformed";
  }
  if (isMulticast6(frame, neighbourTarget(packet))) return "malformed";
  const fromNobody = isUnspecified(frame, IPV6_SOURCE);
  // A probe for a duplicate goes to the solicited-node group (RFC 4861 7.1.1).
  if (fromNobody && !isMulticast6(frame, IPV6_DESTINATION)) return "malformed";
  return checkOptions(frame, packet.start + NEIGHBOUR_SIZE, packet.end, fromNobody);
}

/** Where in the frame a neighbour solicitation has the address that is wanted. */
export function neighbourTarget(packet: Ipv6Packet): number {
  return packet.start + TARGET;
}

/**
 * Writes the frame that answers a neighbour solicitation: the wanted address is at this MAC address, that
 * of a router, and whoever knows better is wrong. Returns the frame's length.
 */
export function writeNeighbourAdvertisement(
  reply: Uint8Array,
  mac: Uint8Array,
  frame: Uint8Array,
  packet: Ipv6Packet,
): number {
  const target = neighbourTarget(packet);
  const fromNobody = isUnspecified(frame, IPV6_SOURCE);
  const length = NEIGHBOUR_ADVERTISEMENT_SIZE;
  writeAdvertisementHeaders(reply, mac, frame, length, frame, target);
  const flags = FLAG_ROUTER | FLAG_OVERRIDE | (fromNobody ? 0 : FLAG_SOLICITED);
  writeU32(reply, IPV6_PAYLOAD + 4, flags);
  copyBytes(reply, IPV6_PAYLOAD + TARGET, frame, target, IPV6_ADDRESS_SIZE);
  writeLinkAddress(reply, IPV6_PAYLOAD + NEIGHBOUR_SIZE, OPTION_TARGET_LINK_ADDRESS, mac);
  return finishIcmp(reply, IPV6, NEIGHBOUR_ADVERTISEMENT, length);
}

/** Checks a router solicitation. */
export function checkRouterSolicitation(frame: Uint8Array, packet: Ipv6Packet): Verdict {
  if (packet.hopLimit !== HOP_LIMIT_MAX) return "malformed";
  const fromNobody = isUnspecified(frame, IPV6_SOURCE);
  return checkOptions(frame, packet.start + SOLICITATION_SIZE, packet.end, fromNobody);
}

/**
 * Writes the frame that answers a router solicitation: a prefix of 64 bits, on the link and for
 * autoconfiguration (RFC 4862 5.5), and a router lifetime of 0, so that nobody makes us its default router.
 * Returns the frame's length.
 *
 * @param linkLocal our address with this MAC address
 * @param address begins with the prefix
 */
export function writeRouterAdvertisement(
  reply: Uint8Array,
  mac: Uint8Array,
  linkLocal: Uint8Array,
  address: Uint8Array,
  frame: Uint8Array,
): number {
  const length = ROUTER_ADVERTISEMENT_SIZE;
  writeAdvertisementHeaders(reply, mac, frame, length, linkLocal, 0);
  let at = IPV6_PAYLOAD + 4;
  // Hop limit, no flags, router lifetime 0; reachable and retransmission times unspecified.
  writeU32(reply, at, HOP_LIMIT << 24);
  writeU32(reply, at + 4, 0);
  writeU32(reply, at + 8, 0);
  at += 12;
  reply[at] = OPTION_PREFIX;
  reply[at + 1] = PREFIX_OPTION_SIZE / 8;
  reply[at + 2] = PREFIX_LENGTH;
  reply[at + 3] = PREFIX_ON_LINK_AUTONOMOUS;
  writeU32(reply, at + 4, VALID_SECONDS);
  writeU32(reply, at + 8, PREFERRED_SECONDS);
  writeU32(reply, at + 12, 0);
  copyBytes(reply, at + 16, address, 0, PREFIX_LENGTH / 8);
  reply.fill(0, at + 16 + PREFIX_LENGTH / 8, at + PREFIX_OPTION_SIZE);
  at += PREFIX_OPTION_SIZE;
  writeLinkAddress(reply, at, OPTION_SOURCE_LINK_ADDRESS, mac);
  return finishIcmp(reply, IPV6, ROUTER_ADVERTISEMENT, length);
}

/**
 * Walks over the options: none may be empty or reach over the end, and a sender without an address may
 * not say that it has one on the link (RFC 4861 6.1.1, 7.1.1).
 */
function checkOptions(
  frame: Uint8Array,
  start: number,
  end: number,
  fromNobody: boolean,
): Verdict {
  let at = start;
  while (at < end) {
    if (at + 2 > end) return "malformed";
    const size = frame[at + 1] * 8;
    if (size === 0 || at + size > end) return "malformed";
    if (fromNobody && frame[at] === OPTION_SOURCE_LINK_ADDRESS) return "malformed";
    at += size;
  }
  return "done";
}

/** Writes headers from our address at `sourceAt` of `source` to the sender of `frame`, or to all. */
function writeAdvertisementHeaders(
  reply: Uint8Array,
  mac: Uint8Array,
  frame: Uint8Array,
  length: number,
  source: Uint8Array,
  sourceAt: number,
): void {
  const toAll = isUnspecified(frame, IPV6_SOURCE);
  const toMac = toAll ? ALL_NODES_MAC : frame;
  writeEthernetHeader(reply, toMac, toAll ? 0 : ETHERNET_SOURCE, mac, ETHERTYPE_IPV6);
  const [to, toAt] = toAll ? [ALL_NODES, 0] : [frame, IPV6_SOURCE];
  writeIpv6Header(reply, length, PROTOCOL_ICMPV6, HOP_LIMIT_MAX, source, sourceAt, to, toAt);
}

function writeLinkAddress(reply: Uint8Array, at: number, option: number, mac: Uint8Array): void {
  writeU16(reply, at, option << 8 | LINK_ADDRESS_OPTION_SIZE / 8);
  copyBytes(reply, at + 2, mac, 0, MAC_SIZE);
}
