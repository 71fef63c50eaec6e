/**
 * What the host answers to a frame at once: ARP, neighbour discovery, echo requests, and datagrams for ports
 * where nobody listens.
 *
 * Nothing is learnt: every answer goes to the station that asked. An ARP probe (RFC 5227, sender address 0)
 * and another station's announcement of our address are answered too, which is how one defends it; so is
 * duplicate address detection for an address of ours (RFC 4862 5.4), and for no other, so that a guest's own
 * is not disturbed. There are no unsolicited advertisements: a guest solicits when its interface comes up.
 *
 * ICMP errors and all that is not asked for are ignored, which also rules out errors about errors.
 */

import { checkArpRequest, writeArpReply } from "../protocols/arp.ts";
import {
  ETHERNET_DESTINATION,
  ETHERNET_SOURCE,
  ETHERTYPE_IPV4,
  ETHERTYPE_IPV6,
  isGroupMac,
  writeEthernetHeader,
} from "../protocols/ethernet.ts";
import {
  checkIcmp,
  ECHO_REQUEST,
  readIcmpKind,
  writeEchoReply,
  writePortUnreachable,
} from "../protocols/icmp.ts";
import {
  checkIcmpv6,
  ECHO6_REQUEST,
  readIcmpv6Kind,
  writeEchoReply6,
  writePort6Unreachable,
} from "../protocols/icmpv6.ts";
import type { Ipv4Packet } from "../protocols/ipv4.ts";
import { IPV6_SOURCE, type Ipv6Packet, isIpv6, isUnspecified } from "../protocols/ipv6.ts";
import {
  checkNeighbourSolicitation,
  checkRouterSolicitation,
  NEIGHBOUR_SOLICITATION,
  neighbourTarget,
  ROUTER_SOLICITATION,
  writeNeighbourAdvertisement,
  writeRouterAdvertisement,
} from "../protocols/ndp.ts";
import type { Verdict } from "../protocols/packet.ts";
import type { Host } from "./host.ts";
import type { TokenBucket } from "./token_bucket.ts";

/** Answers an ARP request for the host's address. */
export function answerArp(host: Host, frame: Uint8Array, length: number): Verdict {
  const verdict = checkArpRequest(frame, length, host.address);
  if (verdict !== "done") return verdict;
  const reply = host.ring.reserve();
  if (reply === undefined) return "dropped";
  host.ring.commit(writeArpReply(reply, host.mac, host.address, frame));
  host.counters.arpReplies++;
  return "done";
}

/** Answers an echo request. */
export function answerIcmp(host: Host, frame: Uint8Array, packet: Ipv4Packet): Verdict {
  const verdict = checkIcmp(frame, packet);
  if (verdict !== "done") return verdict;
  if (readIcmpKind(frame, packet) !== ECHO_REQUEST) return "ignored";
  const reply = host.ring.reserve();
  if (reply === undefined) return "dropped";
  const length = writeEchoReply(reply, host.address, frame, packet);
  if (length === 0) return "dropped";
  writeEthernetHeader(reply, frame, ETHERNET_SOURCE, host.mac, ETHERTYPE_IPV4);
  host.ring.commit(length);
  host.counters.echoReplies++;
  return "done";
}

/**
 * Tells the sender of a UDP datagram that nobody listens (RFC 1122 4.1.3.1), at most as often as `limit`
 * allows. A datagram in a broadcast frame is never answered with an error (RFC 1122 3.2.2).
 */
export function answerWithUnreachable(
  host: Host,
  frame: Uint8Array,
  packet: Ipv4Packet,
  limit: TokenBucket,
): Verdict {
  if (isGroupMac(frame, ETHERNET_DESTINATION)) return "ignored";
  if (!limit.take()) return "dropped";
  const reply = host.ring.reserve();
  if (reply === undefined) return "dropped";
  writeEthernetHeader(reply, frame, ETHERNET_SOURCE, host.mac, ETHERTYPE_IPV4);
  host.ring.commit(writePortUnreachable(reply, host.address, frame, packet));
  host.counters.portUnreachables++;
  return "done";
}

/** Answers an ICMPv6 message: echo request, neighbour or router solicitation. */
export function answerIcmpv6(
  host: Host,
  frame: Uint8Array,
  packet: Ipv6Packet,
  toGroup: boolean,
): Verdict {
  const verdict = checkIcmpv6(frame, packet);
  if (verdict !== "done") return verdict;
  switch (readIcmpv6Kind(frame, packet)) {
    case NEIGHBOUR_SOLICITATION:
      return answerNeighbourSolicitation(host, frame, packet);
    case ROUTER_SOLICITATION:
      return answerRouterSolicitation(host, frame, packet);
    case ECHO6_REQUEST:
      if (toGroup || isUnspecified(frame, IPV6_SOURCE)) return "ignored";
      return answerEcho6(host, frame, packet);
    default:
      return "ignored";
  }
}

function answerNeighbourSolicitation(
  host: Host,
  frame: Uint8Array,
  packet: Ipv6Packet,
): Verdict {
  const verdict = checkNeighbourSolicitation(frame, packet);
  if (verdict !== "done") return verdict;
  const target = neighbourTarget(packet);
  if (!isIpv6(frame, target, host.linkLocal) && !isIpv6(frame, target, host.address6)) {
    return "ignored";
  }
  const reply = host.ring.reserve();
  if (reply === undefined) return "dropped";
  host.ring.commit(writeNeighbourAdvertisement(reply, host.mac, frame, packet));
  host.counters.neighbourAdvertisements++;
  return "done";
}

function answerRouterSolicitation(host: Host, frame: Uint8Array, packet: Ipv6Packet): Verdict {
  const verdict = checkRouterSolicitation(frame, packet);
  if (verdict !== "done") return verdict;
  const reply = host.ring.reserve();
  if (reply === undefined) return "dropped";
  const { mac, linkLocal, address6 } = host;
  host.ring.commit(writeRouterAdvertisement(reply, mac, linkLocal, address6, frame));
  host.counters.routerAdvertisements++;
  return "done";
}

function answerEcho6(host: Host, frame: Uint8Array, packet: Ipv6Packet): Verdict {
  const reply = host.ring.reserve();
  if (reply === undefined) return "dropped";
  const length = writeEchoReply6(reply, frame, packet);
  if (length === 0) return "dropped";
  writeEthernetHeader(reply, frame, ETHERNET_SOURCE, host.mac, ETHERTYPE_IPV6);
  host.ring.commit(length);
  host.counters.echoReplies++;
  return "done";
}

/** The same as {@link answerWithUnreachable} over IPv6 (RFC 4443 2.4 e). */
export function answerWithUnreachable6(
  host: Host,
  frame: Uint8Array,
  packet: Ipv6Packet,
  limit: TokenBucket,
): Verdict {
  if (isGroupMac(frame, ETHERNET_DESTINATION)) return "ignored";
  if (!limit.take()) return "dropped";
  const reply = host.ring.reserve();
  if (reply === undefined) return "dropped";
  writeEthernetHeader(reply, frame, ETHERNET_SOURCE, host.mac, ETHERTYPE_IPV6);
  host.ring.commit(writePort6Unreachable(reply, frame, packet));
  host.counters.portUnreachables++;
  return "done";
}
