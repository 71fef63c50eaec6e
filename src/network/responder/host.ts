/**
 * What the protocols of the responder share: who it is, where answers go, what is counted.
 *
 * A protocol's file gets a {@link Host} and a frame, and returns a verdict. The answer, if there
 * is one, is in the host's ring by then. Counting by verdict happens in one place, responder.ts.
 */

import { counterShape } from "../../observe/counters.ts";
import { isAddress, parseMac } from "../protocols/ethernet.ts";
import { isMartian, parseIpv4Address } from "../protocols/ipv4.ts";
import {
  ALL_NODES,
  ALL_ROUTERS,
  isMulticast6,
  linkLocalOf,
  parseIpv6Address,
  solicitedNodeOf,
} from "../protocols/ipv6.ts";
import type { Station, Verdict } from "../protocols/packet.ts";
import { FrameRing } from "./frame_ring.ts";

/** The first DHCP client's place in the subnet, as QEMU's user network has it. */
export const DHCP_POOL_OFFSET = 15;

export interface ResponderOptions {
  /** Its IPv4 address; default 10.0.2.2. */
  address?: string | undefined;
  /** Length of the subnet's prefix, 8 to 27; default 24. */
  prefix?: number;
  /** Its IPv6 address, in a prefix of 64 bits that it advertises; default fd00::2. */
  address6?: string | undefined;
  mac?: string;
  /** Broadcast frames a second that nobody asked for; default 0. */
  floodFramesPerSecond?: number;
}

/** Counts since the responder was made. Bytes of frames include the Ethernet header. */
const Counts = counterShape(
  "framesIn", // from the guest, whatever became of them
  "bytesIn",
  "framesOut", // handed to the guest
  "bytesOut",
  "dropped", // in either direction, by a limit, a full ring or a wrong checksum
  "malformed", // from the guest: their bytes contradict their protocol
  "ignored", // well-formed, but not for us, or in a protocol that we do not speak
  "checksumErrors", // of the dropped ones
  "discardedFrames", // datagrams to the discard port
  "discardedBytes", // their payload
  "echoReplies",
  "arpReplies",
  "neighbourAdvertisements",
  "routerAdvertisements",
  "dhcpReplies", // OFFER, ACK and NAK
  "dhcpLeases", // clients that hold one
  "portUnreachables",
  "chargenFrames",
  "floodFrames",
);

export type ResponderCounters = InstanceType<typeof Counts>;

export class Host implements Station {
  readonly mac: Uint8Array;
  /** Its global IPv6 address, 16 bytes; the first 64 bits are the prefix that it advertises. */
  readonly address6: Uint8Array;
  readonly linkLocal: Uint8Array;
  readonly groups6: readonly Uint8Array[];
  /** IPv4 address; this and the next two are numbers, most significant byte first. */
  readonly address: number;
  readonly mask: number;
  readonly broadcast: number;
  readonly ring: FrameRing = new FrameRing();
  readonly counters: ResponderCounters;

  /** Throws a TypeError with one line for people if an option is wrong. */
  constructor(options: ResponderOptions) {
    const { address = "10.0.2.2", prefix = 24, address6 = "fd00::2" } = options;
    // 27 is the longest prefix that has the pool's first address in it.
    if (!(Number.isInteger(prefix) && prefix >= 8 && prefix <= 27)) {
      throw new TypeError(`prefix ${prefix} is not a whole number from 8 to 27`);
    }
    this.address = parseIpv4Address(address);
    this.mask = (-1 << (32 - prefix)) >>> 0;
    const network = (this.address & this.mask) >>> 0;
    this.broadcast = (network | ~this.mask) >>> 0;
    const isHost = this.address !== network && this.address !== this.broadcast;
    if (!isHost || isMartian(this.address) || this.address === 0) {
      throw new TypeError(`${address}/${prefix} is not an address of one host`);
    }
    this.mac = parseMac(options.mac ?? "52:55:0a:00:02:02");
    const bytes = this.address6 = parseIpv6Address(address6);
    // RFC 4862 5.5.3: nobody configures an address from a prefix of these.
    const isLinkLocal = bytes[0] === 0xfe && (bytes[1] & 0xc0) === 0x80;
    const isZero = bytes.subarray(0, 8).every((byte) => byte === 0);
    if (isMulticast6(bytes, 0) || isLinkLocal || isZero) {
      throw new TypeError(`${address6} is not a global IPv6 address of one host`);
    }
    this.linkLocal = linkLocalOf(this.mac);
    const solicited = [solicitedNodeOf(this.address6), solicitedNodeOf(this.linkLocal)];
    this.groups6 = [ALL_NODES, ALL_ROUTERS, ...solicited];
    this.counters = new Counts("port", `responder ${address}`);
  }

  /** Where the next answer is written. */
  get slot(): Uint8Array {
    return this.ring.slot;
  }

  /** Whether one of its IPv6 addresses is at `at` of a frame. */
  has6(frame: Uint8Array, at: number): boolean {
    return isAddress(frame, at, this.address6) || isAddress(frame, at, this.linkLocal);
  }

  /** Whether a group that it is in is at `at` of a frame. */
  isIn(frame: Uint8Array, at: number): boolean {
    for (const group of this.groups6) if (isAddress(frame, at, group)) return true;
    return false;
  }

  /** Queues the frame of `length` bytes that was written into the ring's slot, and counts it. */
  answer(length: number, name: keyof ResponderCounters): Verdict {
    if (!this.ring.commit(length)) return "dropped";
    this.counters[name]++;
    return "done";
  }
}
