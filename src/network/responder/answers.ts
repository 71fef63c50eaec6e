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
import { ETHERNET_DESTINATION, isGroupMac } from "../protocols/ethernet.ts";
import {
  checkIcmp,
  ECHO6_REQUEST,
  ECHO_REQUEST,
  readIcmpKind,
  writeEchoReply,
  writePortUnreachable,
} from "../protocols/icmp.ts";
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
import type { Packet, Verdict } from "../protocols/packet.ts";
import type { Host } from "./host.ts";
import type { TokenBucket } from "./token_bucket.ts";

/** Answers an ARP request for the host's address. */
export function answerArp(host: Host, frame: Uint8Array, length: number): Verdict {
  const verdict = checkArpRequest(frame, length, host.address);
  if (verdict !== "done") return verdict;
  const { ring, mac, address } = host;
  return host.answer(writeArpReply(ring.slot, mac, address, frame), "arpReplies");
}

/** Answers an echo request. */
export function answerIcmp(host: Host, frame: Uint8Array, packet: Ipv4Packet): Verdict {
  const verdict = checkIcmp(frame, packet);
  if (verdict !== "done") return verdict;
  return readIcmpKind(frame, packet) === ECHO_REQUEST ? answerEcho(host, frame, packet) : "ignored";
}

function answerEcho(host: Host, frame: Uint8Array, packet: Packet): Verdict {
  const length = writeEchoReply(host.ring.slot, host.mac, frame, packet);
  return length === 0 ? "dropped" : host.answer(length, "echoReplies");
}

/**
 * Tells the sender of a UDP datagram that nobody listens (RFC 1122 4.1.3.1, RFC 4443 2.4 e), at most as often
 * as `limit` allows. A datagram in a broadcast frame is never answered with an error (RFC 1122 3.2.2).
 */
export function answerWithUnreachable(
  host: Host,
  frame: Uint8Array,
  packet: Packet,
  limit: TokenBucket,
): Verdict {
  if (isGroupMac(frame, ETHERNET_DESTINATION)) return "ignored";
  if (!limit.take()) return "dropped";
  const length = writePortUnreachable(host.ring.slot, host.mac, frame, packet);
  return host.answer(length, "portUnreachables");
}

/** Answers an ICMPv6 message: echo request, neighbour or router solicitation. */
export function answerIcmpv6(
  host: Host,
  frame: Uint8Array,
  packet: Ipv6Packet,
  toGroup: boolean,
): Verdict {
  const verdict = checkIcmp(frame, packet);
  if (verdict !== "done") return verdict;
  switch (readIcmpKind(frame, packet)) {
    case NEIGHBOUR_SOLICITATION:
      return answerNeighbourSolicitation(host, frame, packet);
    case ROUTER_SOLICITATION:
      return answerRouterSolicitation(host, frame, packet);
    case ECHO6_REQUEST:
      if (toGroup || isUnspecified(frame, IPV6_SOURCE)) return "ignored";
      return answerEcho(host, frame, packet);
    default:
      return "ignored";
  }
}

function answerNeighbourSolicitation(host: Host, frame: Uint8Array, packet: Ipv6Packet): Verdict {
  const verdict = checkNeighbourSolicitation(frame, packet);
  if (verdict !== "done") return verdict;
  const target = neighbourTarget(packet);
  const isOurs = isIpv6(frame, target, host.linkLocal) || isIpv6(frame, target, host.address6);
  if (!isOurs) return "ignored";
  const length = writeNeighbourAdvertisement(host.ring.slot, host.mac, frame, packet);
  return host.answer(length, "neighbourAdvertisements");
}

function answerRouterSolicitation(host: Host, frame: Uint8Array, packet: Ipv6Packet): Verdict {
  const verdict = checkRouterSolicitation(frame, packet);
  if (verdict !== "done") return verdict;
  const { ring, mac, linkLocal, address6 } = host;
  const length = writeRouterAdvertisement(ring.slot, mac, linkLocal, address6, frame);
  return host.answer(length, "routerAdvertisements");
}
