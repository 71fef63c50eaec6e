/**
 * A DHCP server (RFC 2131): DISCOVER gets an OFFER, REQUEST gets an ACK or a NAK.
 *
 * Theory of operation. A client is its MAC address (chaddr). The pool is 64 addresses from the subnet's
 * 15th on; a client gets the one it asks for if that is in the pool and free (so a restart of ours moves
 * nobody), otherwise the first free one, and keeps it as long as we run: leases have a time for the
 * client's sake, but do not expire here. When the pool is used up, further clients are ignored.
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

/** Clients at most. */
const POOL_SIZE = 64;
/** What a client is told. */
const LEASE_SECONDS = 86400;

/** State of an address of the pool. */
const FREE = 0;
const OFFERED = 1;
const LEASED = 2;
/** Ours, or outside the subnet. */
const UNUSABLE = 3;

/** The server and its leases. */
export class DhcpServer {
  readonly #host: Host;
  readonly #first: number;
  readonly #states = new Uint8Array(POOL_SIZE);
  readonly #macs = new Uint8Array(POOL_SIZE * MAC_SIZE);
  readonly #message = new DhcpMessage();

  /** A server whose pool is untouched; the host is also the router that clients are told. */
  constructor(host: Host) {
    this.#host = host;
    this.#first = ((host.broadcast & host.mask) >>> 0) + DHCP_POOL_OFFSET;
    for (let i = 0; i < POOL_SIZE; i++) {
      const address = this.#first + i;
      if (address >= host.broadcast || address === host.address) this.#states[i] = UNUSABLE;
    }
  }

  /** Takes a datagram to the server's port. */
  receive(frame: Uint8Array, datagram: UdpDatagram): Verdict {
    const verdict = parseDhcp(this.#message, frame, datagram);
    if (verdict !== "done") return verdict;
    const { server, type } = this.#message;
    if (server !== 0 && server !== this.#host.address) return "ignored";
    if (type === DhcpType.DISCOVER) return this.#discover(frame);
    if (type === DhcpType.REQUEST) return this.#request(frame);
    return "ignored";
  }

  #discover(frame: Uint8Array): Verdict {
    const { macAt, requested } = this.#message;
    let place = this.#placeOf(frame, macAt);
    if (place < 0) place = this.#freePlace(requested);
    if (place < 0) return "dropped";
    if (!this.#reply(frame, DhcpType.OFFER, place)) return "dropped";
    if (this.#states[place] === FREE) this.#assign(place, OFFERED, frame);
    return "done";
  }

  #request(frame: Uint8Array): Verdict {
    const { macAt, requested, clientAddress } = this.#message;
    const wanted = requested !== 0 ? requested : clientAddress;
    if (wanted === 0) return "malformed";
    let place = this.#placeOf(frame, macAt);
    if (place < 0) {
      place = this.#freePlace(wanted);
      // Only a client for whom there is no room at all is left to others.
      if (place < 0) return "dropped";
    }
    if (this.#first + place !== wanted) {
      return this.#reply(frame, DhcpType.NAK, place) ? "done" : "dropped";
    }
    if (!this.#reply(frame, DhcpType.ACK, place)) return "dropped";
    if (this.#states[place] !== LEASED) {
      this.#assign(place, LEASED, frame);
      this.#host.counters.dhcpLeases++;
    }
    return "done";
  }

  /** The client's place in the pool, -1 if it has none. */
  #placeOf(frame: Uint8Array, macAt: number): number {
    for (let place = 0; place < POOL_SIZE; place++) {
      const state = this.#states[place];
      if (state !== OFFERED && state !== LEASED) continue;
      let i = 0;
      while (i < MAC_SIZE && this.#macs[place * MAC_SIZE + i] === frame[macAt + i]) i++;
      if (i === MAC_SIZE) return place;
    }
    return -1;
  }

  /** The place of the wanted address if that is free, else the first free one, -1 if there is none. */
  #freePlace(wanted: number): number {
    const place = wanted - this.#first;
    if (place >= 0 && place < POOL_SIZE && this.#states[place] === FREE) return place;
    return this.#states.indexOf(FREE);
  }

  #assign(place: number, state: number, frame: Uint8Array): void {
    this.#states[place] = state;
    copyBytes(this.#macs, place * MAC_SIZE, frame, this.#message.macAt, MAC_SIZE);
  }

  /** Queues an answer to the message at hand; false if the ring is full. */
  #reply(frame: Uint8Array, type: number, place: number): boolean {
    const host = this.#host;
    const [slot, address] = [host.ring.slot, this.#first + place];
    const message = this.#message;
    const length = writeDhcpReply(slot, type, host, address, LEASE_SECONDS, frame, message);
    return host.answer(length, "dhcpReplies") === "done";
  }
}
