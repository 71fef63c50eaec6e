/**
 * The responder: a tiny host behind a virtio-net device, so that a guest can ping something with nothing
 * installed.
 *
 * Theory of operation. The owner hands in each frame that the guest sent ({@link Responder.handle}) and
 * takes frames for the guest when the guest has room for them ({@link Responder.next}). Answers wait in a
 * fixed ring; generated traffic (chargen.ts, flood.ts) is not stored at all but made when it is taken, and
 * only when no answer waits. There are no timers inside: {@link Responder.floodDelayMs} is for the owner's.
 *
 * It speaks ARP (RFC 826), IPv4 (RFC 791) with ICMP echo (RFC 792), and UDP (RFC 768) with DHCP (RFC
 * 2131), discard (RFC 863) and an adapted chargen (RFC 864); a datagram to another port gets "port
 * unreachable". Over IPv6 (RFC 8200) it speaks ICMPv6 echo (RFC 4443), neighbour discovery (RFC 4861) with
 * an advertised prefix, and the same UDP services. There is no TCP: whoever wants a whole transfer has passt
 * or a TAP. It forwards nothing, learns nothing and opens nothing.
 *
 * The guest is hostile. Every length is checked before a byte behind it is read; every field is read once;
 * what is wrong is counted and dropped. Each frame has one verdict, and {@link Responder.handle} never
 * throws. Nothing is allocated per frame.
 */

import { DHCP_SERVER_PORT } from "../protocols/dhcp.ts";
import {
  ETHERNET_DESTINATION,
  ETHERNET_HEADER_SIZE,
  ETHERNET_SOURCE,
  EtherType,
  isAddress,
  isGroupMac,
  readEthertype,
} from "../protocols/ethernet.ts";
import {
  IPV4,
  IPV4_LIMITED_BROADCAST,
  Ipv4Packet,
  isMartian,
  parseIpv4,
} from "../protocols/ipv4.ts";
import { IPV6_DESTINATION, IPV6_SOURCE, Ipv6Packet, parseIpv6 } from "../protocols/ipv6.ts";
import { type Packet, Protocol, type Verdict } from "../protocols/packet.ts";
import { CHARGEN_PORT, DISCARD_PORT } from "../protocols/traffic.ts";
import { parseUdp, UdpDatagram } from "../protocols/udp.ts";
import { answerArp, answerIcmp, answerIcmpv6, answerWithUnreachable } from "./answers.ts";
import { Chargen } from "./chargen.ts";
import { DhcpServer } from "./dhcp_server.ts";
import { Flood } from "./flood.ts";
import { Host, type ResponderCounters, type ResponderOptions } from "./host.ts";
import { TokenBucket } from "./token_bucket.ts";

export type { ResponderOptions } from "./host.ts";

/** "Port unreachable" messages a second, and at once. */
const UNREACHABLES = 10;

/** See the head of this file. */
export class Responder {
  readonly #host: Host;
  readonly #packet = new Ipv4Packet();
  readonly #packet6 = new Ipv6Packet();
  readonly #datagram = new UdpDatagram();
  readonly #dhcp: DhcpServer;
  readonly #chargen: Chargen;
  readonly #flood: Flood;
  readonly #unreachableLimit: TokenBucket;

  /** Throws a TypeError with one line for people if an option is wrong. @param now milliseconds */
  constructor(options: ResponderOptions, now: () => number) {
    const host = this.#host = new Host(options);
    this.#dhcp = new DhcpServer(host);
    this.#chargen = new Chargen(host);
    this.#unreachableLimit = new TokenBucket(UNREACHABLES, UNREACHABLES, UNREACHABLES, now);
    const rate = options.floodFramesPerSecond ?? 0;
    if (!(rate >= 0 && rate < Infinity)) {
      throw new TypeError(`${rate} is not a number of flood frames a second, 0 or more`);
    }
    this.#flood = new Flood(host, rate, now);
  }

  get counters(): Readonly<ResponderCounters> {
    return this.#host.counters;
  }

  /**
   * Takes a frame from the guest: Ethernet, no virtio header, no check sequence.
   *
   * @param trusted the checksum of the packet's payload need not be right: the virtio header said that it
   * is partial (NEEDS_CSUM), or valid
   */
  handle(frame: Uint8Array, length: number, trusted = false): void {
    const counters = this.#host.counters;
    counters.framesIn++;
    if (!(length >= ETHERNET_HEADER_SIZE && length <= frame.length)) {
      counters.malformed++;
      return;
    }
    counters.bytesIn += length;
    this.#packet.trusted = this.#packet6.trusted = trusted;
    const verdict = this.#receive(frame, length);
    // By name: a property that is looked for by its name's value costs more than all the rest.
    if (verdict === "ignored") counters.ignored++;
    else if (verdict === "malformed") counters.malformed++;
    else if (verdict !== "done") counters.dropped++;
    if (verdict === "checksum") counters.checksumErrors++;
  }

  nextLength(): number {
    return this.#host.ring.peekLength() || this.#chargen.nextLength() || this.#flood.nextLength();
  }

  /**
   * Copies the next frame for the guest into `target` and returns its length, 0 if there is none. A frame
   * that is longer than `target` is dropped and counted, and 0 returned.
   */
  next(target: Uint8Array): number {
    const { ring, counters } = this.#host;
    let length = 0;
    if (ring.count > 0) {
      length = ring.shift(target);
    } else if (this.#chargen.nextLength() > 0) {
      length = this.#chargen.next(target);
      if (length > 0) counters.chargenFrames++;
    } else if (this.#flood.nextLength() > 0) {
      length = this.#flood.next(target);
      if (length > 0) counters.floodFrames++;
    } else return 0;
    if (length === 0) counters.dropped++;
    else counters.framesOut++;
    counters.bytesOut += length;
    return length;
  }

  /** Milliseconds until the next flood frame is due: 0 if one is, Infinity if the flood is off. */
  floodDelayMs(): number {
    return this.#flood.delayMs();
  }

  stopDatagrams(): void {
    this.#chargen.clear();
  }

  /** Answers that wait for the guest. */
  get queuedFrames(): number {
    return this.#host.ring.count;
  }

  /** Datagrams that chargen still owes. */
  get chargenPending(): number {
    return this.#chargen.pending;
  }

  #receive(frame: Uint8Array, length: number): Verdict {
    const isForUs = isGroupMac(frame, ETHERNET_DESTINATION) ||
      isAddress(frame, ETHERNET_DESTINATION, this.#host.mac);
    if (!isForUs) return "ignored";
    // An answer to a group would be a storm.
    if (isGroupMac(frame, ETHERNET_SOURCE)) return "malformed";
    const ethertype = readEthertype(frame);
    if (ethertype === EtherType.ARP) return answerArp(this.#host, frame, length);
    if (ethertype === EtherType.IPV4) return this.#receiveIpv4(frame, length);
    return ethertype === EtherType.IPV6 ? this.#receiveIpv6(frame, length) : "ignored";
  }

  #receiveIpv4(frame: Uint8Array, length: number): Verdict {
    const host = this.#host;
    const packet = this.#packet;
    const verdict = parseIpv4(packet, frame, length);
    if (verdict !== "done") return verdict;
    const { source, destination, protocol } = packet;
    if (isMartian(source) || source === host.address || source === host.broadcast) {
      return "malformed";
    }
    const toAll = destination === IPV4_LIMITED_BROADCAST || destination === host.broadcast;
    if (!toAll && destination !== host.address) return "ignored";
    // A broadcast ping may be ignored (RFC 1122 3.2.2.6), and a sender without an address not answered.
    const silent = toAll || source === 0;
    if (protocol === Protocol.UDP) return this.#receiveUdp(packet, silent);
    return silent || protocol !== Protocol.ICMP ? "ignored" : answerIcmp(host, packet);
  }

  #receiveIpv6(frame: Uint8Array, length: number): Verdict {
    const host = this.#host;
    const packet = this.#packet6;
    const verdict = parseIpv6(packet, frame, length);
    if (verdict !== "done") return verdict;
    if (host.has6(frame, IPV6_SOURCE)) return "malformed";
    const isForUs = packet.toGroup
      ? host.isIn(frame, IPV6_DESTINATION)
      : host.has6(frame, IPV6_DESTINATION);
    if (!isForUs) return "ignored";
    if (packet.protocol === Protocol.ICMPV6) return answerIcmpv6(host, packet);
    // Nobody else has a reason to speak to a group, or without an address.
    const isUdp = packet.protocol === Protocol.UDP && !packet.toGroup && !packet.fromNobody;
    return isUdp ? this.#receiveUdp(packet, false) : "ignored";
  }

  /** Takes a datagram; a `silent` one was sent to all or by nobody, and only DHCP answers such. */
  #receiveUdp(packet: Packet, silent: boolean): Verdict {
    const datagram = this.#datagram;
    const verdict = parseUdp(datagram, packet);
    if (verdict !== "done") return verdict;
    const port = datagram.destinationPort;
    if (port === DHCP_SERVER_PORT && packet.version === IPV4) return this.#dhcp.receive(datagram);
    if (silent) return "ignored";
    if (port === DISCARD_PORT) {
      this.#host.counters.discardedFrames++;
      this.#host.counters.discardedBytes += datagram.end - datagram.start;
      return "done";
    }
    if (port === CHARGEN_PORT) return this.#chargen.receive(packet, datagram);
    return answerWithUnreachable(this.#host, packet, this.#unreachableLimit);
  }
}
