/**
 * A real network card as a network port, by a packet socket: the guest is one more station on its wire.
 *
 * Theory of operation. The socket is promiscuous, sees every frame that comes in and none that the host
 * itself sends (so the two cannot talk to one another through it; a TAP in a bridge can). The kernel's header has
 * 10 bytes, without num_buffers: prefixed_segments.ts puts it in front of the guest's pages.
 *
 * Offloads. Towards the wire the kernel does what the header asks for. From the wire come
 *
 *   - frames whose checksum is left to the receiver (from containers and VMs on this host): a driver
 *     that did not accept GUEST_CSUM gets it filled in here;
 *   - frames merged by the kernel (GRO) or the card (LRO), up to 64 KiB: a driver that accepted GUEST_TSO4 or
 *     GUEST_TSO6 gets them whole. For any other one merging is switched off while the port is open; what is
 *     large all the same (a veth peer sends such) is dropped, counted in `tooLarge`, and told once.
 *
 * VLAN tags that the card takes off would be lost: tagged frames are not received (packet_socket.ts).
 *
 * States of the link: up while the interface has a carrier, down otherwise and for good when it is gone;
 * frames that the guest sends then are lost, as on a cable.
 */

import {
  CSUM_OFFSET_OFFSET,
  CSUM_START_OFFSET,
  FLAGS_OFFSET,
  GSO_TYPE_OFFSET,
  GsoType,
  NEEDS_CSUM,
  NET_HEADER_SIZE,
  NUM_BUFFERS_OFFSET,
} from "../virtio/net_header.ts";
import { hasFeature, NetFeature } from "../virtio/features.ts";
import { LinuxError, VmsgError } from "../linux/errors.ts";
import type { Fd } from "../linux/fd.ts";
import { LinkWatch } from "../linux/link_watch.ts";
import { mapAnonymous, type Mapping } from "../linux/mapping.ts";
import * as netdev from "../linux/netdev.ts";
import { openPacketSocket, PACKET_HEADER_SIZE } from "../linux/packet_socket.ts";
import type { Reactor } from "../linux/reactor.ts";
import type { IovecList } from "../memory/mod.ts";
import { counterShape, snapshot } from "../observe/counters.ts";
import { limitedLog, type Log } from "../observe/log.ts";
import { FrameDescriptor } from "./frame_descriptor.ts";
import { frameRoom, KERNEL_OFFLOADS, LARGE_FRAME_ROOM, takesLargeFrames } from "./frame_size.ts";
import type { NetworkPort, PortListener } from "./port.ts";
import { PrefixedSegments } from "./prefixed_segments.ts";
import { addBytes, checksumOf } from "./protocols/checksum.ts";

export interface PacketOptions {
  readonly name: string;
  /** False to offer the guest no checksum and segmentation offloads; default true. */
  readonly offloads?: boolean;
}

/** Frames dropped in a row before others get their turn. */
const MAX_DROPS = 16;
const BOUNCE_SIZE = 65536;

const PacketCounters = counterShape("tooLarge", "checksums");

/** See the head of this file. */
export class PacketPort implements NetworkPort {
  readonly description: string;
  readonly features: readonly number[];
  /** The largest payload of a frame, in bytes: what the device should tell its driver. */
  readonly mtu: number;
  readonly #name: string;
  readonly #fd: Fd;
  readonly #frames: FrameDescriptor;
  readonly #out = new PrefixedSegments(PACKET_HEADER_SIZE);
  readonly #in = new PrefixedSegments(PACKET_HEADER_SIZE);
  readonly #bounce: Mapping = mapAnonymous(BOUNCE_SIZE);
  readonly #bounceBytes: Uint8Array = new Uint8Array(this.#bounce.buffer);
  readonly #counters: InstanceType<typeof PacketCounters>;
  readonly #warn: (line: string) => void;
  #merging: netdev.ReceiveMerging | undefined;
  #room: number;
  /** What the driver accepted. */
  #accepted = new Uint32Array(2);
  #listener: PortListener | undefined;
  readonly #watch: LinkWatch;
  #isUp = false;

  /**
   * Opens the socket and brings the interface up if it is not.
   *
   * @throws VmsgError with a line for people
   */
  constructor(options: PacketOptions, readonly reactor: Reactor, log: Log) {
    const name = options.name;
    netdev.checkInterfaceName(name);
    this.#name = name;
    this.description = `interface ${name}`;
    this.features = options.offloads === false ? [] : KERNEL_OFFLOADS;
    this.#warn = limitedLog((line) => log.warn(line), reactor, 60_000);
    const index = netdev.interfaceIndex(name);
    if (index === 0) {
      throw new VmsgError("NO_INTERFACE", `there is no interface ${name}: see ip link`);
    }
    this.mtu = netdev.interfaceMtu(name);
    this.#room = frameRoom(this.mtu);
    this.#fd = open(name, index);
    this.#frames = new FrameDescriptor(this.#fd, reactor, this.description);
    this.#counters = new PacketCounters("port", this.description);
    try {
      this.#watch = new LinkWatch(reactor, name, index, (flags) => this.#flagsChanged(flags));
      bringUp(name, log);
      this.#flagsChanged(netdev.interfaceFlags(name));
    } catch (error) {
      this.#fd[Symbol.dispose]();
      throw error;
    }
  }

  /** What went through, what the kernel refused, and what was dropped or mended here. */
  get counters(): Readonly<Record<string, number>> {
    return { ...snapshot(this.#frames.counters), ...snapshot(this.#counters) };
  }

  setFeatures(words: Uint32Array): void {
    const large = takesLargeFrames(words);
    this.#room = large ? LARGE_FRAME_ROOM : frameRoom(this.mtu);
    this.#accepted = words.slice();
    if (!large && this.#merging === undefined) {
      this.#merging = netdev.receiveMerging(this.#name);
      netdev.setReceiveMerging(this.#name, { gro: false, lro: false });
    } else if (large) this.#restoreMerging();
  }

  #restoreMerging(): void {
    if (this.#merging === undefined) return;
    // Only what this port switched off is switched on again.
    const { gro, lro } = this.#merging;
    netdev.setReceiveMerging(this.#name, { gro: gro || undefined, lro: lro || undefined });
    this.#merging = undefined;
  }

  open(listener: PortListener): void {
    this.#listener = listener;
    this.#frames.open(listener);
    listener.link(this.#isUp);
  }

  #flagsChanged(flags: number | undefined): void {
    const wanted = netdev.IFF_UP | netdev.IFF_RUNNING;
    this.#isUp = flags !== undefined && (flags & wanted) === wanted;
    this.#listener?.link(this.#isUp);
    if (flags === undefined) this.#warn(`${this.description} is gone`);
  }

  send(frame: IovecList): boolean {
    if (frame.length <= NET_HEADER_SIZE) return true;
    const count = this.#out.assemble(frame, 0);
    if (count === 0) return true;
    frame.copyOut(0, this.#out.prefix.address, PACKET_HEADER_SIZE);
    return this.#frames.write(this.#out.address, count);
  }

  nextLength(): number {
    return this.#frames.readable ? this.#room : 0;
  }

  receive(into: IovecList, first: number): number {
    const count = this.#in.assembleWithSuffix(into, first);
    if (count === 0) return 0;
    for (let drops = 0; drops < MAX_DROPS; drops++) {
      const read = this.#frames.read(this.#in.address, count);
      if (read === 0) return 0;
      const length = read + NET_HEADER_SIZE - PACKET_HEADER_SIZE;
      if (length > this.#room || !this.#isTaken()) {
        this.#counters.tooLarge++;
        this.#warn(
          `${this.description}: frames larger than the guest takes are dropped; ` +
            `switch merging off where they come from (ethtool -K ... tso off gro off lro off)`,
        );
        continue;
      }
      if (!hasFeature(this.#accepted, NetFeature.GUEST_CSUM)) {
        this.#finishChecksum(into, first, length);
      }
      into.copyIn(0, this.#in.prefix.address, PACKET_HEADER_SIZE, first);
      into.setUint16(NUM_BUFFERS_OFFSET, 1, first);
      return length;
    }
    this.#listener?.readable();
    return 0;
  }

  /** Whether the driver accepted frames of the kind that was read. */
  #isTaken(): boolean {
    const type = this.#in.prefix.view.getUint8(GSO_TYPE_OFFSET);
    if (type === 0) return true;
    const accepted = this.#accepted;
    if ((type & GsoType.ECN) !== 0 && !hasFeature(accepted, NetFeature.GUEST_ECN)) return false;
    const protocol = type & ~GsoType.ECN;
    return (protocol === GsoType.TCPV4 && hasFeature(accepted, NetFeature.GUEST_TSO4)) ||
      (protocol === GsoType.TCPV6 && hasFeature(accepted, NetFeature.GUEST_TSO6));
  }

  /** Fills in the checksum that the sender left to us; the header then says nothing. */
  #finishChecksum(into: IovecList, first: number, length: number): void {
    const header = this.#in.prefix.view;
    const needed = (header.getUint8(FLAGS_OFFSET) & NEEDS_CSUM) !== 0;
    header.setUint8(FLAGS_OFFSET, 0);
    if (!needed) return;
    const start = NET_HEADER_SIZE + header.getUint16(CSUM_START_OFFSET, true);
    const field = start + header.getUint16(CSUM_OFFSET_OFFSET, true);
    const size = length - start;
    if (size <= 0 || size > BOUNCE_SIZE || field + 2 > length) return;
    into.copyOut(start, this.#bounce.address, size, first);
    // The field holds the pseudo header's sum already. A UDP checksum of 0 would mean none.
    const checksum = checksumOf(addBytes(0, this.#bounceBytes, 0, size)) || 0xffff;
    into.setUint16(field, (checksum >>> 8) | ((checksum & 0xff) << 8), first);
    this.#counters.checksums++;
  }

  discard(): void {
    this.#frames.discard();
  }

  [Symbol.dispose](): void {
    this.#restoreMerging();
    this.#watch[Symbol.dispose]();
    this.#frames[Symbol.dispose]();
    this.#fd[Symbol.dispose]();
    this.#bounce[Symbol.dispose]();
  }
}

function open(name: string, index: number): Fd {
  try {
    return openPacketSocket(index);
  } catch (error) {
    if (error instanceof LinuxError && ["EPERM", "EACCES"].includes(error.code)) {
      throw new VmsgError(
        "PACKET_PERMISSION",
        `no permission for a packet socket on interface ${name}: it needs CAP_NET_RAW (run as root)`,
      );
    }
    throw error;
  }
}

function bringUp(name: string, log: Log): void {
  try {
    netdev.bringInterfaceUp(name);
  } catch (error) {
    if (!(error instanceof LinuxError)) throw error;
    log.warn(`${error.message}: the link stays down until somebody does it`);
  }
}
