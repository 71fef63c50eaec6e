/**
 * A DHCP server (RFC 2131, options of RFC 2132): DISCOVER gets an OFFER, REQUEST gets an ACK or a NAK.
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
 *
 * Where answers go (RFC 2131 4.1): to `ciaddr` if the client has an address, else to all if it set the
 * broadcast flag, else to its new address and MAC; a NAK always goes to all.
 */

import {
  ETHERTYPE_IPV4,
  formatMac,
  isGroupMac,
  MAC_BROADCAST,
  MAC_SIZE,
  writeEthernetHeader,
} from "./ethernet.ts";
import type { Host, Verdict } from "./host.ts";
import { formatIpv4Address, IPV4_LIMITED_BROADCAST } from "./ipv4.ts";
import { copyBytes, readU16, readU32, writeU16, writeU32 } from "./network_order.ts";
import { UDP_PAYLOAD, type UdpDatagram, writeUdpHeaders } from "./udp.ts";

/** The server's port. */
export const DHCP_SERVER_PORT = 67;
/** The client's port. */
export const DHCP_CLIENT_PORT = 68;
/** Clients at most. */
export const DHCP_POOL_SIZE = 64;
/** The first client's place in the subnet, as QEMU's user network has it. */
export const DHCP_POOL_OFFSET = 15;
/** What a client is told. */
export const DHCP_LEASE_SECONDS = 86400;

/** Offsets of the fixed fields (RFC 2131, figure 1). */
const OP = 0;
const HTYPE_HLEN = 1;
const XID = 4;
const FLAGS = 10;
const CIADDR = 12;
const YIADDR = 16;
const GIADDR = 24;
const CHADDR = 28;
const COOKIE = 236;
const OPTIONS = 240;

/** A client may rely on BOOTP's size (RFC 1542 2.1), so short answers are padded to it. */
const MESSAGE_SIZE_MIN = 300;
/** The fixed part, our options and the longest client identifier; below the 548 every client takes. */
const MESSAGE_SIZE_MAX = 540;

const BOOTREQUEST = 1;
const BOOTREPLY = 2;
const ETHERNET_6 = 0x0106;
const FLAG_BROADCAST = 0x8000;
const MAGIC_COOKIE = 0x63825363;

const OPTION_PAD = 0;
const OPTION_SUBNET_MASK = 1;
const OPTION_ROUTER = 3;
const OPTION_DNS = 6;
const OPTION_REQUESTED_ADDRESS = 50;
const OPTION_LEASE_TIME = 51;
const OPTION_MESSAGE_TYPE = 53;
const OPTION_SERVER_IDENTIFIER = 54;
const OPTION_CLIENT_IDENTIFIER = 61;
const OPTION_END = 255;

const DISCOVER = 1;
const OFFER = 2;
const REQUEST = 3;
const ACK = 5;
const NAK = 6;

/** State of an address of the pool. */
const FREE = 0;
const OFFERED = 1;
const LEASED = 2;
/** Ours, or outside the subnet. */
const UNUSABLE = 3;

/** A client and its address, for people and tests. */
export interface DhcpLease {
  /** As in 52:54:00:12:34:56. */
  readonly mac: string;
  /** As in 10.0.2.15. */
  readonly address: string;
  /** False while it is only offered. */
  readonly acknowledged: boolean;
}

/** The server and its leases. */
export class DhcpServer {
  readonly #host: Host;
  /** 0 if there is none to give. */
  readonly #dns: number;
  readonly #first: number;
  readonly #states = new Uint8Array(DHCP_POOL_SIZE);
  readonly #macs = new Uint8Array(DHCP_POOL_SIZE * MAC_SIZE);
  /** The options of the message at hand; 0 for one that is absent. */
  #type = 0;
  #requested = 0;
  #server = 0;
  #clientIdentifierAt = 0;
  #clientIdentifierLength = 0;

  /**
   * A server whose pool is untouched.
   *
   * @param host the server, which is also the router that clients are told
   * @param dns the name server that clients are told, 0 for none
   */
  constructor(host: Host, dns: number) {
    this.#host = host;
    this.#dns = dns;
    this.#first = ((host.broadcast & host.mask) >>> 0) + DHCP_POOL_OFFSET;
    for (let i = 0; i < DHCP_POOL_SIZE; i++) {
      const address = this.#first + i;
      if (address >= host.broadcast || address === host.address) this.#states[i] = UNUSABLE;
    }
  }

  /** The addresses that are offered or leased. */
  leases(): DhcpLease[] {
    const leases: DhcpLease[] = [];
    this.#states.forEach((state, place) => {
      if (state !== OFFERED && state !== LEASED) return;
      leases.push({
        mac: formatMac(this.#macs, place * MAC_SIZE),
        address: formatIpv4Address(this.#first + place),
        acknowledged: state === LEASED,
      });
    });
    return leases;
  }

  /** Takes a datagram to the server's port. */
  receive(frame: Uint8Array, datagram: UdpDatagram): Verdict {
    const at = datagram.start;
    if (datagram.end - at < OPTIONS) return "malformed";
    if (frame[at + OP] !== BOOTREQUEST) return "ignored";
    if (readU16(frame, at + HTYPE_HLEN) !== ETHERNET_6) return "malformed";
    if (isGroupMac(frame, at + CHADDR)) return "malformed";
    if (readU32(frame, at + GIADDR) !== 0) return "ignored";
    if (readU32(frame, at + COOKIE) !== MAGIC_COOKIE) return "ignored";
    if (!this.#parseOptions(frame, at + OPTIONS, datagram.end)) return "malformed";
    if (this.#server !== 0 && this.#server !== this.#host.address) return "ignored";
    if (this.#type === DISCOVER) return this.#discover(frame, at);
    if (this.#type === REQUEST) return this.#request(frame, at);
    return "ignored";
  }

  #discover(frame: Uint8Array, at: number): Verdict {
    let place = this.#placeOf(frame, at + CHADDR);
    if (place < 0) place = this.#freePlace(this.#requested);
    if (place < 0) return "dropped";
    if (!this.#reply(frame, at, OFFER, place)) return "dropped";
    if (this.#states[place] === FREE) this.#assign(place, OFFERED, frame, at);
    return "done";
  }

  #request(frame: Uint8Array, at: number): Verdict {
    const wanted = this.#requested !== 0 ? this.#requested : readU32(frame, at + CIADDR);
    if (wanted === 0) return "malformed";
    let place = this.#placeOf(frame, at + CHADDR);
    if (place < 0) {
      place = this.#freePlace(wanted);
      // Only a client for whom there is no room at all is left to others.
      if (place < 0) return "dropped";
    }
    if (this.#first + place !== wanted) {
      return this.#reply(frame, at, NAK, place) ? "done" : "dropped";
    }
    if (!this.#reply(frame, at, ACK, place)) return "dropped";
    if (this.#states[place] !== LEASED) {
      this.#assign(place, LEASED, frame, at);
      this.#host.counters.dhcpLeases++;
    }
    return "done";
  }

  /** Reads the options that matter; false if one of them is cut off or has the wrong length. */
  #parseOptions(frame: Uint8Array, start: number, end: number): boolean {
    this.#type =
      this.#requested =
      this.#server =
      this.#clientIdentifierLength =
        0;
    let at = start;
    while (at < end) {
      const option = frame[at++];
      if (option === OPTION_PAD) continue;
      if (option === OPTION_END) return true;
      if (at >= end) return false;
      const length = frame[at++];
      if (length > end - at) return false;
      switch (option) {
        case OPTION_MESSAGE_TYPE:
          if (length !== 1) return false;
          this.#type = frame[at];
          break;
        case OPTION_REQUESTED_ADDRESS:
          if (length !== 4) return false;
          this.#requested = readU32(frame, at);
          break;
        case OPTION_SERVER_IDENTIFIER:
          if (length !== 4) return false;
          this.#server = readU32(frame, at);
          break;
        case OPTION_CLIENT_IDENTIFIER:
          this.#clientIdentifierAt = at;
          this.#clientIdentifierLength = length;
          break;
      }
      at += length;
    }
    // Without an end option: RFC 2131 4.1 wants one, but nothing is lost without.
    return true;
  }

  /** The client's place in the pool, -1 if it has none. */
  #placeOf(frame: Uint8Array, macAt: number): number {
    for (let place = 0; place < DHCP_POOL_SIZE; place++) {
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
    if (place >= 0 && place < DHCP_POOL_SIZE && this.#states[place] === FREE) return place;
    return this.#states.indexOf(FREE);
  }

  #assign(place: number, state: number, frame: Uint8Array, at: number): void {
    this.#states[place] = state;
    copyBytes(this.#macs, place * MAC_SIZE, frame, at + CHADDR, MAC_SIZE);
  }

  /** Queues an answer to the message at `at`; false if the ring is full. */
  #reply(frame: Uint8Array, at: number, type: number, place: number): boolean {
    const host = this.#host;
    const reply = host.ring.reserve();
    if (reply === undefined) return false;
    const address = this.#first + place;
    const flags = readU16(frame, at + FLAGS);
    const clientAddress = readU32(frame, at + CIADDR);

    const to = UDP_PAYLOAD;
    reply.fill(0, to, to + MESSAGE_SIZE_MAX);
    reply[to + OP] = BOOTREPLY;
    writeU16(reply, to + HTYPE_HLEN, ETHERNET_6);
    writeU32(reply, to + XID, readU32(frame, at + XID));
    writeU16(reply, to + FLAGS, flags);
    if (type === ACK) writeU32(reply, to + CIADDR, clientAddress);
    if (type !== NAK) writeU32(reply, to + YIADDR, address);
    copyBytes(reply, to + CHADDR, frame, at + CHADDR, MAC_SIZE);
    writeU32(reply, to + COOKIE, MAGIC_COOKIE);
    const end = this.#writeOptions(reply, to + OPTIONS, frame, type);
    const size = Math.max(end - to, MESSAGE_SIZE_MIN);

    let destination = address;
    let toAll = false;
    if (type === NAK) toAll = true;
    else if (clientAddress !== 0) destination = clientAddress;
    else toAll = (flags & FLAG_BROADCAST) !== 0;
    if (toAll) {
      destination = IPV4_LIMITED_BROADCAST;
      writeEthernetHeader(reply, MAC_BROADCAST, 0, host.mac, ETHERTYPE_IPV4);
    } else {
      writeEthernetHeader(reply, frame, at + CHADDR, host.mac, ETHERTYPE_IPV4);
    }
    writeUdpHeaders(reply, size, host.address, DHCP_SERVER_PORT, destination, DHCP_CLIENT_PORT);
    host.ring.commit(UDP_PAYLOAD + size);
    host.counters.dhcpReplies++;
    return true;
  }

  /** Writes the options of an answer (RFC 2131, table 3) and returns the offset after them. */
  #writeOptions(reply: Uint8Array, start: number, frame: Uint8Array, type: number): number {
    const host = this.#host;
    let at = start;
    reply[at++] = OPTION_MESSAGE_TYPE;
    reply[at++] = 1;
    reply[at++] = type;
    at = writeU32Option(reply, at, OPTION_SERVER_IDENTIFIER, host.address);
    if (type !== NAK) {
      at = writeU32Option(reply, at, OPTION_LEASE_TIME, DHCP_LEASE_SECONDS);
      at = writeU32Option(reply, at, OPTION_SUBNET_MASK, host.mask);
      at = writeU32Option(reply, at, OPTION_ROUTER, host.address);
      if (this.#dns !== 0) at = writeU32Option(reply, at, OPTION_DNS, this.#dns);
    }
    // RFC 6842: a client identifier comes back as it was sent.
    if (this.#clientIdentifierLength > 0) {
      reply[at++] = OPTION_CLIENT_IDENTIFIER;
      reply[at++] = this.#clientIdentifierLength;
      copyBytes(reply, at, frame, this.#clientIdentifierAt, this.#clientIdentifierLength);
      at += this.#clientIdentifierLength;
    }
    reply[at++] = OPTION_END;
    return at;
  }
}

function writeU32Option(reply: Uint8Array, at: number, option: number, value: number): number {
  reply[at] = option;
  reply[at + 1] = 4;
  writeU32(reply, at + 2, value);
  return at + 6;
}
