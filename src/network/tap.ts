/**
 * A TAP of the kernel as a network port: the guest's frames enter the host's network there.
 *
 * Theory of operation. A frame goes out by one writev straight from the guest's pages and comes in by
 * one readv straight into them, each with its virtio-net header, which the kernel reads and writes itself.
 * So whatever the driver accepted of checksum and segmentation offload is the kernel's: a TCP stream
 * passes in frames of up to 64 KiB.
 *
 * The length of the next frame is not known before it is read; room for the largest is asked for: the
 * MTU's, or 64 KiB if the driver takes segmentation offload. A frame that is longer all the same (the MTU
 * was raised) is cut by the kernel where the guest's buffers end, and the guest's IP drops it.
 *
 * States of the link, as the guest sees it: up while the host's interface is switched on (IFF_UP), down
 * otherwise and for good when it was deleted. An interface that was moved to another network namespace
 * keeps its state: from here its flags cannot be seen, but frames pass.
 *
 * The interface goes with the process, however that ends, unless it was made persistent or had been
 * there before. The bridge, the address and the MTU it was given go or stay with it.
 *
 * A card with several queue pairs has a TAP with as many queues, each a descriptor. The kernel remembers on which of them
 * a flow was sent last and answers there; queues that the driver does not use are detached, so that it sends nothing there.
 *
 * When features are given up (a reset, another driver) the frames that wait are dropped: they may have
 * been made for what the driver took before.
 */

import { NET_HEADER_SIZE } from "../virtio/net_header.ts";
import { hasFeature, NetFeature } from "../virtio/features.ts";
import { LinuxError, UsageError, VmsgError } from "../linux/errors.ts";
import type { Fd } from "../linux/fd.ts";
import { LinkWatch } from "../linux/link_watch.ts";
import * as netdev from "../linux/netdev.ts";
import type { Reactor } from "../linux/reactor.ts";
import { directoryNames, linkName, readAttribute, SYSFS } from "../linux/sysfs.ts";
import * as tun from "../linux/tun.ts";
import type { IovecList } from "../memory/mod.ts";
import { frameRoom, KERNEL_OFFLOADS, LARGE_FRAME_ROOM, takesLargeFrames } from "./frame_size.ts";
import type { NetworkPort, PortListener, PortQueue } from "./port.ts";
import { parseIpv4Address } from "./protocols/ipv4.ts";
import { TapQueue } from "./tap_queue.ts";

/** What the TAP is. */
export interface TapOptions {
  /**
   * The interface's name, at most 15 bytes; made if it is not there. "tap%d", the default, takes the
   * first number that is free.
   */
  readonly name?: string | undefined;
  /** Whether an interface stays after the process; what it was before unless given. */
  readonly persistent?: boolean | undefined;
  /** A bridge to add it to. */
  readonly bridge?: string | undefined;
  /** The host's IPv4 address on it, with prefix: "10.0.2.2/24". */
  readonly address?: string | undefined;
  /**
   * The interface's own MAC address if it is made here: without it the kernel draws one. An interface that
   * is made again under another address is not found by peers that have the old one in their ARP caches.
   */
  readonly mac?: Uint8Array;
  /** The largest payload of a frame; the interface's (1500) unless given. */
  readonly mtu?: number | undefined;
  /** False to offer the guest no checksum and segmentation offloads; default true. */
  readonly offloads?: boolean;
  /** How many queues; 1 unless given. */
  readonly queues?: number | undefined;
}

const BASIC_TUN_BITS = tun.TUN_F_CSUM | tun.TUN_F_TSO4 | tun.TUN_F_TSO6 | tun.TUN_F_TSO_ECN;
const USO_TUN_BITS = tun.TUN_F_USO4 | tun.TUN_F_USO6;

/** What kernels since 6.2 do besides. */
const USO_FEATURES = [NetFeature.GUEST_USO4, NetFeature.GUEST_USO6, NetFeature.HOST_USO];

/** See the head of this file. */
export class TapPort implements NetworkPort {
  /** The interface's name. */
  readonly name: string;
  readonly description: string;
  readonly features: readonly number[];
  /** The largest payload of a frame, in bytes: what the device should tell its driver. */
  readonly mtu: number;
  readonly queues: readonly PortQueue[];
  readonly #queues: readonly TapQueue[];
  readonly #fd: Fd;
  readonly #bridged: boolean;
  #tunBits = 0;
  readonly #watch: LinkWatch;
  #isUp = true;
  #listener: PortListener | undefined;

  /**
   * Makes or attaches to the interface and sets it up.
   *
   * @throws VmsgError with a line for people
   */
  constructor(options: TapOptions, readonly reactor: Reactor) {
    const { name = "tap%d", queues = 1 } = options;
    netdev.checkInterfaceName(name);
    if (options.bridge !== undefined) netdev.checkInterfaceName(options.bridge);
    const address = options.address === undefined ? undefined : parseAddress(options.address);
    this.#bridged = options.bridge !== undefined;
    using opened = new DisposableStack();
    const isNew = netdev.interfaceIndex(name) === 0;
    const fds = [opened.use(open())];
    this.#fd = fds[0]!;
    this.name = attach(this.#fd, name, queues > 1);
    while (fds.length < queues) {
      const fd = opened.use(open());
      attach(fd, this.name, true);
      fds.push(fd);
    }
    // Two processes would have a part of the frames each.
    if (!isNew && queues > 1 && hasMore(this.name, queues)) throw inUse(this.name);
    this.description = `tap ${this.name}`;
    setUp(this.#fd, this.name, options, address, isNew ? options.mac : undefined);
    this.mtu = netdev.interfaceMtu(this.name);
    this.features = options.offloads === false ? [] : probeFeatures(this.#fd);
    this.#watch = new LinkWatch(
      reactor,
      this.name,
      netdev.interfaceIndex(this.name),
      (flags) => this.#flagsChanged(flags),
    );
    opened.move();
    const queueName = (i: number) =>
      queues === 1 ? this.description : `${this.description} queue ${i}`;
    this.queues = this.#queues = fds.map((fd, i) => new TapQueue(fd, reactor, queueName(i)));
    this.#setRoom(frameRoom(this.mtu));
    this.setQueues(1);
  }

  #setRoom(room: number): void {
    for (const queue of this.#queues) queue.room = room;
  }

  setQueues(count: number): void {
    for (const [i, queue] of this.#queues.entries()) {
      const used = i < count;
      if (used === queue.used) continue;
      // It fails when the interface was deleted, and then nothing comes anyway.
      tun.useTapQueue(queue.fd, used);
      queue.used = used;
    }
  }

  #flagsChanged(flags: number | undefined): void {
    // Undefined: it was deleted, or moved to another network namespace.
    this.#isUp = flags === undefined
      ? this.#isUp && tun.tapExists(this.#fd)
      : (flags & netdev.IFF_UP) !== 0;
    this.#listener?.link(this.#isUp);
  }

  /** What went through, and what the kernel refused. */
  get counters(): Readonly<Record<string, number>> {
    return this.#queues[0]!.frames.counters;
  }

  setFeatures(words: Uint32Array): void {
    const bits = tunBits(words);
    this.#setRoom(takesLargeFrames(words) ? LARGE_FRAME_ROOM : frameRoom(this.mtu));
    if (bits === this.#tunBits) return;
    tun.setTapOffloads(this.#fd, bits);
    if ((this.#tunBits & ~bits) !== 0) { for (const { frames } of this.#queues) frames.drain(); }
    this.#tunBits = bits;
  }

  /** For a driver whose kernel is behind this TAP; the address of a bridge's port means nothing. */
  setMac(mac: Uint8Array): void {
    if (this.#bridged || !tun.tapExists(this.#fd)) return;
    try {
      netdev.setInterfaceMac(this.name, mac);
    } catch (error) {
      if (!(error instanceof LinuxError)) throw error;
      // Moved to another network namespace.
      if (error.code === "ENODEV") return;
      throw new VmsgError("TAP_PERMISSION", `${error.message}: give it that address before`);
    }
  }

  open(listener: PortListener): void {
    for (const [i, queue] of this.#queues.entries()) {
      queue.open({
        readable: () => listener.readable(i),
        writable: () => listener.writable(i),
      });
    }
    this.#listener = listener;
    listener.link(this.#isUp);
  }

  send(frame: IovecList): boolean {
    return this.#queues[0]!.send(frame);
  }

  nextLength(): number {
    return this.#queues[0]!.nextLength();
  }

  receive(into: IovecList, first: number): number {
    return this.#queues[0]!.receive(into, first);
  }

  discard(): void {
    this.#queues[0]!.discard();
  }

  /** Closes the TAP; the interface goes with it unless it is persistent. */
  [Symbol.dispose](): void {
    this.#watch[Symbol.dispose]();
    for (const queue of this.#queues) queue[Symbol.dispose]();
  }
}

function tunBits(words: Uint32Array): number {
  if (!hasFeature(words, NetFeature.GUEST_CSUM)) return 0;
  let bits = tun.TUN_F_CSUM;
  if (hasFeature(words, NetFeature.GUEST_TSO4)) bits |= tun.TUN_F_TSO4;
  if (hasFeature(words, NetFeature.GUEST_TSO6)) bits |= tun.TUN_F_TSO6;
  const tso = (bits & (tun.TUN_F_TSO4 | tun.TUN_F_TSO6)) !== 0;
  if (tso && hasFeature(words, NetFeature.GUEST_ECN)) bits |= tun.TUN_F_TSO_ECN;
  const uso = hasFeature(words, NetFeature.GUEST_USO4) && hasFeature(words, NetFeature.GUEST_USO6);
  return uso ? bits | USO_TUN_BITS : bits;
}

function probeFeatures(fd: Fd): readonly number[] {
  let features: readonly number[] = [];
  if (tun.setTapOffloads(fd, BASIC_TUN_BITS | USO_TUN_BITS)) {
    features = [...KERNEL_OFFLOADS, ...USO_FEATURES];
  } else if (tun.setTapOffloads(fd, BASIC_TUN_BITS)) {
    features = KERNEL_OFFLOADS;
  }
  tun.setTapOffloads(fd, 0);
  return features;
}

function open(): Fd {
  return advising(tun.openTun, ({ code }) => {
    if (["ENOENT", "ENODEV", "ENXIO"].includes(code)) {
      const advice = "which a TAP needs: load the module tun (modprobe tun)";
      return new VmsgError("NO_TUN", `this system has no ${tun.TUN_PATH}, ${advice}`);
    }
    if (code !== "EACCES" && code !== "EPERM") return undefined;
    const advice = "run as root or grant access to that file";
    return new VmsgError("TAP_PERMISSION", `no permission to open ${tun.TUN_PATH}: ${advice}`);
  });
}

/** Has an interface more than so many queues, as far as sysfs, which may be another network namespace's, shows it? */
function hasMore(name: string, queues: number): boolean {
  const directory = `${SYSFS}/class/net/${name}`;
  if (readAttribute(`${directory}/ifindex`) !== String(netdev.interfaceIndex(name))) return false;
  return directoryNames(`${directory}/queues`).includes(`tx-${queues}`);
}

function inUse(name: string): VmsgError {
  return new VmsgError("TAP_IN_USE", `TAP ${name} is in use by another process: end that first`);
}

function attach(fd: Fd, name: string, hasQueues: boolean): string {
  return advising(() => tun.attachTap(fd, name, NET_HEADER_SIZE, hasQueues), ({ code }) => {
    const exists = netdev.interfaceIndex(name) !== 0;
    if (code === "EPERM") {
      const made = "made for this user " +
        `(ip tuntap add ${name.replace("%d", "0")} mode tap user NAME vnet_hdr)`;
      return new VmsgError(
        "TAP_PERMISSION",
        exists
          ? `no permission to use TAP ${name}: it needs CAP_NET_ADMIN, or to be ${made}`
          : `no permission to make TAP ${name}: it needs CAP_NET_ADMIN (run as root), or a TAP that was ${made}`,
      );
    }
    if (code === "EBUSY") return inUse(name);
    if (code !== "EINVAL" || !exists) return undefined;
    const what = hasQueues
      ? "is there and is no TAP with several queues: use another name, or " +
        `make it so (ip tuntap add ${name} mode tap vnet_hdr multi_queue)`
      : "is there and is no TAP with one queue: use another name, or queues=N for one with several";
    return new VmsgError("NOT_A_TAP", `interface ${name} ${what}`);
  });
}

function setUp(
  fd: Fd,
  name: string,
  options: TapOptions,
  address: readonly [number, number] | undefined,
  mac: Uint8Array | undefined,
): void {
  advising(() => {
    if (mac !== undefined) netdev.setInterfaceMac(name, mac);
    if (options.persistent !== undefined) tun.setTapPersistent(fd, options.persistent);
    if (options.mtu !== undefined) netdev.setInterfaceMtu(name, options.mtu);
    if (options.bridge !== undefined) joinBridge(options.bridge, name);
    if (address !== undefined) netdev.setInterfaceAddress(name, address[0], address[1]);
    netdev.bringInterfaceUp(name);
  }, ({ code, message }) => {
    if (code !== "EPERM") return undefined;
    const advice = "it needs CAP_NET_ADMIN, or everything set up and the interface up before";
    return new VmsgError("TAP_PERMISSION", `cannot set up TAP ${name} (${message}): ${advice}`);
  });
}

function joinBridge(bridge: string, name: string): void {
  if (netdev.interfaceIndex(bridge) === 0) {
    const advice = `make it (ip link add ${bridge} type bridge; ip link set ${bridge} up)`;
    throw new VmsgError("NO_BRIDGE", `there is no bridge ${bridge}: ${advice}`);
  }
  // Its own place in this bridge is what was wanted.
  if (bridgeOf(name) === bridge) return;
  advising(() => netdev.addToBridge(bridge, name), ({ code }) => {
    if (code === "EBUSY") {
      const what = `is in another bridge than ${bridge} already`;
      return new VmsgError("TAP_IN_USE", `TAP ${name} ${what}`);
    }
    if (!["EOPNOTSUPP", "EINVAL", "ENOTTY"].includes(code)) return undefined;
    return new VmsgError("NO_BRIDGE", `interface ${bridge} is no bridge that can take ${name}`);
  });
}

/** Calls; an error of Linux that `advice` has a line for becomes that. */
function advising<T>(
  call: () => T,
  advice: (error: LinuxError) => VmsgError | undefined,
): T {
  try {
    return call();
  } catch (error) {
    throw error instanceof LinuxError ? advice(error) ?? error : error;
  }
}

/** The bridge an interface is in, if sysfs shows it. */
function bridgeOf(name: string): string | undefined {
  try {
    return linkName(`/sys/class/net/${name}/master`);
  } catch {
    return undefined;
  }
}

function parseAddress(text: string): readonly [number, number] {
  const [address, prefix, ...rest] = text.split("/");
  const bits = Number(prefix);
  if (rest.length > 0 || !/^\d{1,2}$/.test(prefix ?? "") || bits < 1 || bits > 32) {
    throw new UsageError(`"${text}" is not an address with a prefix, as in 10.0.2.2/24`);
  }
  try {
    return [parseIpv4Address(address), bits];
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
}
