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
  readIcmpKind,
  writeEchoReply,
  writePortUnreachable,
} from "../protocols/icmp.ts";
import type { Ipv4Packet } from "../protocols/ipv4.ts";
import type { Ipv6Packet } from "../protocols/ipv6.ts";
import * as ndp from "../protocols/ndp.ts";
import type { Packet, Verdict } from "../protocols/packet.ts";
import type { Host } from "./host.ts";
import type { TokenBucket } from "./token_bucket.ts";

export function answerArp(host: Host, frame: Uint8Array, length: number): Verdict {
  const verdict = checkArpRequest(frame, length, host.address);
  return verdict === "done" ? host.answer(writeArpReply(host, frame), "arpReplies") : verdict;
}

export function answerIcmp(host: Host, packet: Ipv4Packet): Verdict {
  const verdict = checkIcmp(packet);
  return verdict === "done" ? answerEcho(host, packet) : verdict;
}

function answerEcho(host: Host, packet: Packet): Verdict {
  if (readIcmpKind(packet) !== packet.version.echoRequest) return "ignored";
  const length = writeEchoReply(host, packet);
  return length === 0 ? "dropped" : host.answer(length, "echoReplies");
}

/**
 * Tells the sender of a UDP datagram that nobody listens (RFC 1122 4.1.3.1, RFC 4443 2.4 e), at most as often
 * as `limit` allows. A datagram in a broadcast frame is never answered with an error (RFC 1122 3.2.2).
 */
export function answerWithUnreachable(host: Host, packet: Packet, limit: TokenBucket): Verdict {
  if (isGroupMac(packet.frame, ETHERNET_DESTINATION)) return "ignored";
  if (!limit.take()) return "dropped";
  return host.answer(writePortUnreachable(host, packet), "portUnreachables");
}

export function answerIcmpv6(host: Host, packet: Ipv6Packet): Verdict {
  const verdict = checkIcmp(packet);
  if (verdict !== "done") return verdict;
  const kind = readIcmpKind(packet);
  if (kind === ndp.Ndp.NEIGHBOUR_SOLICITATION) return answerNeighbourSolicitation(host, packet);
  if (kind === ndp.Ndp.ROUTER_SOLICITATION) return answerRouterSolicitation(host, packet);
  return packet.toGroup || packet.fromNobody ? "ignored" : answerEcho(host, packet);
}

function answerNeighbourSolicitation(host: Host, packet: Ipv6Packet): Verdict {
  const verdict = ndp.checkNeighbourSolicitation(packet);
  if (verdict !== "done") return verdict;
  if (!host.has6(packet.frame, ndp.neighbourTarget(packet))) return "ignored";
  return host.answer(ndp.writeNeighbourAdvertisement(host, packet), "neighbourAdvertisements");
}

function answerRouterSolicitation(host: Host, packet: Ipv6Packet): Verdict {
  const verdict = ndp.checkRouterSolicitation(packet);
  if (verdict !== "done") return verdict;
  return host.answer(ndp.writeRouterAdvertisement(host, packet), "routerAdvertisements");
}
