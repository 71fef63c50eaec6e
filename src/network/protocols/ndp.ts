/**
 * Neighbour discovery (RFC 4861): solicitations in, advertisements out.
 *
 * An answer goes to the station that asked, or to all nodes if it has no address yet.
 */

import { copyBytes, writeU16, writeU32 } from "./byte_order.ts";
import { ETHERNET_SOURCE, EtherType, MAC_SIZE, writeEthernetHeader } from "./ethernet.ts";
import { finishIcmp } from "./icmp.ts";
import {
  ALL_NODES,
  HOP_LIMIT,
  IPV6,
  IPV6_ADDRESS_SIZE,
  IPV6_PAYLOAD,
  IPV6_SOURCE,
  type Ipv6Packet,
  isMulticast6,
  writeIpv6Header,
} from "./ipv6.ts";
import { Protocol, type Station, type Verdict } from "./packet.ts";

/** Types of messages, and code 0, as one number. */
export const Ndp = {
  ROUTER_SOLICITATION: 0x8500,
  ROUTER_ADVERTISEMENT: 0x8600,
  NEIGHBOUR_SOLICITATION: 0x8700,
  NEIGHBOUR_ADVERTISEMENT: 0x8800,
} as const;

/** What messages are sent with, and must be received with: no router has touched them. */
const HOP_LIMIT_MAX = 255;
const SOLICITATION_SIZE = 8;
const TARGET = 8;
const NEIGHBOUR_SIZE = TARGET + IPV6_ADDRESS_SIZE;
const LINK_ADDRESS_SIZE = 8;
const PREFIX_SIZE = 32;
const ROUTER_SIZE = 16;

const Option = { SOURCE_LINK_ADDRESS: 1, TARGET_LINK_ADDRESS: 2, PREFIX: 3 } as const;
const Flag = { ROUTER: 0x80000000, SOLICITED: 0x40000000, OVERRIDE: 0x20000000 } as const;
const PREFIX_LENGTH = 64;
const PREFIX_ON_LINK_AUTONOMOUS = 0xc0;
const VALID_SECONDS = 86400;
const PREFERRED_SECONDS = 14400;

/** 33:33 and the last four bytes of ff02::1 (RFC 2464 7). */
const ALL_NODES_MAC = Uint8Array.of(0x33, 0x33, 0, 0, 0, 1);

/** Checks a neighbour solicitation, which is for the address at {@link neighbourTarget}. */
export function checkNeighbourSolicitation(packet: Ipv6Packet): Verdict {
  const { frame, start, end, fromNobody, toGroup } = packet;
  if (end - start < NEIGHBOUR_SIZE || isMulticast6(frame, start + TARGET)) return "malformed";
  // A probe for a duplicate goes to the solicited-node group (RFC 4861 7.1.1).
  if (fromNobody && !toGroup) return "malformed";
  return checkOptions(packet, NEIGHBOUR_SIZE);
}

/** Where in the frame a neighbour solicitation has the address that is wanted. */
export function neighbourTarget(packet: Ipv6Packet): number {
  return packet.start + TARGET;
}

/**
 * Writes the frame that answers a neighbour solicitation: the wanted address is at this MAC address, that
 * of a router, and whoever knows better is wrong. Returns the frame's length.
 */
export function writeNeighbourAdvertisement(by: Station, packet: Ipv6Packet): number {
  const { slot, mac } = by;
  const { frame, fromNobody } = packet;
  const target = neighbourTarget(packet);
  const length = NEIGHBOUR_SIZE + LINK_ADDRESS_SIZE;
  writeHeaders(by, packet, length, frame, target);
  writeU32(slot, IPV6_PAYLOAD + 4, Flag.ROUTER | Flag.OVERRIDE | (fromNobody ? 0 : Flag.SOLICITED));
  copyBytes(slot, IPV6_PAYLOAD + TARGET, frame, target, IPV6_ADDRESS_SIZE);
  writeLinkAddress(slot, IPV6_PAYLOAD + NEIGHBOUR_SIZE, Option.TARGET_LINK_ADDRESS, mac);
  return finishIcmp(slot, IPV6, Ndp.NEIGHBOUR_ADVERTISEMENT, length);
}

export function checkRouterSolicitation(packet: Ipv6Packet): Verdict {
  return checkOptions(packet, SOLICITATION_SIZE);
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
  by: Station & { readonly linkLocal: Uint8Array; readonly address6: Uint8Array },
  packet: Ipv6Packet,
): number {
  const { slot, mac, linkLocal, address6 } = by;
  const length = ROUTER_SIZE + PREFIX_SIZE + LINK_ADDRESS_SIZE;
  writeHeaders(by, packet, length, linkLocal, 0);
  // What is not written is 0: no flags, no router lifetime; reachable and retransmission times unspecified.
  slot.fill(0, IPV6_PAYLOAD + 4, IPV6_PAYLOAD + length);
  slot[IPV6_PAYLOAD + 4] = HOP_LIMIT;
  const at = IPV6_PAYLOAD + ROUTER_SIZE;
  writeU16(slot, at, Option.PREFIX << 8 | PREFIX_SIZE / 8);
  writeU16(slot, at + 2, PREFIX_LENGTH << 8 | PREFIX_ON_LINK_AUTONOMOUS);
  writeU32(slot, at + 4, VALID_SECONDS);
  writeU32(slot, at + 8, PREFERRED_SECONDS);
  copyBytes(slot, at + 16, address6, 0, PREFIX_LENGTH / 8);
  writeLinkAddress(slot, at + PREFIX_SIZE, Option.SOURCE_LINK_ADDRESS, mac);
  return finishIcmp(slot, IPV6, Ndp.ROUTER_ADVERTISEMENT, length);
}

/**
 * Checks the hop limit and walks over the options behind `size` bytes: none may be empty or reach over the end, and a
 * sender without an address may not say that it has one on the link (RFC 4861 6.1.1, 7.1.1).
 */
function checkOptions(
  { frame, start, end, hopLimit, fromNobody }: Ipv6Packet,
  size: number,
): Verdict {
  if (hopLimit !== HOP_LIMIT_MAX) return "malformed";
  for (let at = start + size, length; at < end; at += length) {
    if (at + 2 > end) return "malformed";
    length = frame[at + 1] * 8;
    if (length === 0 || at + length > end) return "malformed";
    if (fromNobody && frame[at] === Option.SOURCE_LINK_ADDRESS) return "malformed";
  }
  return "done";
}

/** Writes headers from our address at `sourceAt` of `source` to the sender of a packet, or to all. */
function writeHeaders(
  { slot, mac }: Station,
  { frame, fromNobody }: Ipv6Packet,
  length: number,
  source: Uint8Array,
  sourceAt: number,
): void {
  const [toMac, toMacAt] = fromNobody ? [ALL_NODES_MAC, 0] : [frame, ETHERNET_SOURCE];
  writeEthernetHeader(slot, toMac, toMacAt, mac, EtherType.IPV6);
  const [to, toAt] = fromNobody ? [ALL_NODES, 0] : [frame, IPV6_SOURCE];
  writeIpv6Header(slot, length, Protocol.ICMPV6, HOP_LIMIT_MAX, source, sourceAt, to, toAt);
}

function writeLinkAddress(slot: Uint8Array, at: number, option: number, mac: Uint8Array): void {
  writeU16(slot, at, option << 8 | LINK_ADDRESS_SIZE / 8);
  copyBytes(slot, at + 2, mac, 0, MAC_SIZE);
}
