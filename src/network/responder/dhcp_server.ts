/**
 * A DHCP server (RFC 2131): DISCOVER gets an OFFER, REQUEST gets an ACK or a NAK.
 *
 * A client is its MAC address (chaddr). The pool is 64 addresses from the subnet's 15th on; a client gets the
 * one it asks for if that is in the pool and free (so a restart of ours moves nobody), otherwise the first free
 * one, and keeps it as long as we run. When the pool is used up, further clients are ignored.
 *
 * A REQUEST that names another server is none of our business; one for an address that is not the
 * client's gets a NAK, whichever state of RFC 2131 4.3.2 it comes from: there is no other server on this
 * link that could know better. DECLINE, RELEASE, INFORM, BOOTP without a message type, and messages
 * through a relay are ignored.
 */

import { copyBytes } from "../protocols/byte_order.ts";
import { DhcpMessage, DhcpType, parseDhcp, writeDhcpReply } from "../protocols/dhcp.ts";
import { MAC_SIZE } from "../protocols/ethernet.ts";
import type { Verdict } from "../protocols/packet.ts";
import type { UdpDatagram } from "../protocols/udp.ts";
import { DHCP_POOL_OFFSET, type Host } from "./host.ts";

const POOL_SIZE = 64;
const LEASE_SECONDS = 86400;

/** States of an address of the pool; one that is unusable is ours, or outside the subnet. */
const [FREE, OFFERED, LEASED, UNUSABLE] = [0, 1, 2, 3];

export class DhcpServer {
  readonly #host: Host;
  readonly #first: number;
  readonly #states = new Uint8Array(POOL_SIZE);
  readonly #macs = new Uint8Array(POOL_SIZE * MAC_SIZE);
  readonly #message = new DhcpMessage();

  constructor(host: Host) {
    this.#host = host;
    this.#first = ((host.broadcast & host.mask) >>> 0) + DHCP_POOL_OFFSET;
    for (let i = 0; i < POOL_SIZE; i++) {
      const address = this.#first + i;
      if (address >= host.broadcast || address === host.address) this.#states[i] = UNUSABLE;
    }
  }

  receive(datagram: UdpDatagram): Verdict {
    const verdict = parseDhcp(this.#message, datagram);
    if (verdict !== "done") return verdict;
    const { server, type, requested, clientAddress } = this.#message;
    if (server !== 0 && server !== this.#host.address) return "ignored";
    if (type === DhcpType.DISCOVER) return this.#discover(requested);
    return type === DhcpType.REQUEST ? this.#request(requested || clientAddress) : "ignored";
  }

  #discover(wanted: number): Verdict {
    const place = this.#placeFor(wanted);
    const verdict = this.#reply(DhcpType.OFFER, place);
    if (verdict === "done" && this.#states[place] === FREE) this.#assign(place, OFFERED);
    return verdict;
  }

  #request(wanted: number): Verdict {
    if (wanted === 0) return "malformed";
    const place = this.#placeFor(wanted);
    // A client for whom there is no room at all is left to others.
    const isNak = place >= 0 && this.#first + place !== wanted;
    const verdict = this.#reply(isNak ? DhcpType.NAK : DhcpType.ACK, place);
    if (verdict === "done" && !isNak && this.#states[place] !== LEASED) {
      this.#assign(place, LEASED);
      this.#host.counters.dhcpLeases++;
    }
    return verdict;
  }

  /** The client's place in the pool, else that of the wanted address or the first one that is free; or -1. */
  #placeFor(wanted: number): number {
    const { frame, macAt } = this.#message;
    for (let place = 0; place < POOL_SIZE; place++) {
      const state = this.#states[place];
      if (state !== OFFERED && state !== LEASED) continue;
      let i = 0;
      while (i < MAC_SIZE && this.#macs[place * MAC_SIZE + i] === frame[macAt + i]) i++;
      if (i === MAC_SIZE) return place;
    }
    const place = wanted - this.#first;
    return this.#states[place] === FREE ? place : this.#states.indexOf(FREE);
  }

  #assign(place: number, state: number): void {
    const { frame, macAt } = this.#message;
    this.#states[place] = state;
    copyBytes(this.#macs, place * MAC_SIZE, frame, macAt, MAC_SIZE);
  }

  #reply(type: number, place: number): Verdict {
    if (place < 0) return "dropped";
    const host = this.#host;
    const message = this.#message;
    const length = writeDhcpReply(host, type, this.#first + place, LEASE_SECONDS, message);
    return host.answer(length, "dhcpReplies");
  }
}
