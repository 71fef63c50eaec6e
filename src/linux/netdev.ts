/**
 * Network interfaces of the host, asked and set up by ioctl (netdevice(7)); no `ip` program is needed.
 *
 * All calls are for set-up and block for moments at most. They work in the network namespace of the
 * calling thread. Layouts are the same on x86-64 and arm64:
 *
 *     struct ifreq: char name[16], then at 16 a union of 24 bytes: s16 flags, s32 ifindex, s32 mtu,
 *       struct sockaddr_in {u16 family, u16 port, u32 address}, a struct sockaddr {u16 family, u8
 *       address[14]}, or a pointer (40 bytes in all)
 *     struct ethtool_value: u32 cmd, u32 data
 *
 * What is asked once is asked here; what changes later (link up or down, interface gone) is told by
 * link_watch.ts.
 */

import { allocate } from "./arena.ts";
import { UsageError } from "./errors.ts";
import { Fd } from "./fd.ts";
import { check, cString, libc } from "./libc.ts";

const AF_INET = 2;
const SOCK_DGRAM = 2;
const SOCK_CLOEXEC = 0o2000000;

const SIOCGIFFLAGS = 0x8913n;
const SIOCSIFFLAGS = 0x8914n;
const SIOCSIFADDR = 0x8916n;
const SIOCSIFNETMASK = 0x891cn;
const SIOCGIFMTU = 0x8921n;
const SIOCSIFMTU = 0x8922n;
const SIOCSIFHWADDR = 0x8924n;
const SIOCGIFHWADDR = 0x8927n;
const SIOCETHTOOL = 0x8946n;
const SIOCBRADDIF = 0x89a2n;

/** The family of an Ethernet address in a struct sockaddr. */
const ARPHRD_ETHER = 1;
const ETHTOOL_GFLAGS = 0x25;
const ETHTOOL_SFLAGS = 0x26;
const ETHTOOL_GGRO = 0x2b;
const ETHTOOL_SGRO = 0x2c;
const ETH_FLAG_LRO = 1 << 15;

/** Flag of an interface: it was switched on. */
export const IFF_UP = 0x1;
/** Flag of an interface: it can carry frames. */
export const IFF_RUNNING = 0x40;

/** IFNAMSIZ without the NUL. */
const MAX_NAME = 15;
/** Size of struct ifreq. */
export const IFREQ_SIZE = 40;
/** Where its union begins. */
export const IFREQ_UNION = 16;

const request = allocate(IFREQ_SIZE);
const ethtool = allocate(8);

/** Refuses a name that no interface can have. "tap%d" has the kernel choose a number. */
export function checkInterfaceName(name: string): void {
  const bytes = new TextEncoder().encode(name).length;
  if (bytes > MAX_NAME) {
    throw new UsageError(
      `interface name ${name} has ${bytes} bytes, Linux allows ${MAX_NAME}: use a shorter one`,
    );
  }
  if (name === "" || name === "." || name === ".." || /[/:\s\0]/.test(name)) {
    throw new UsageError(`"${name}" is no name for an interface: no blanks, slashes or colons`);
  }
}

/** Writes a name into a struct ifreq, whose other bytes become 0. */
export function fillInterfaceRequest(bytes: Uint8Array, name: string): void {
  bytes.fill(0);
  bytes.set(new TextEncoder().encode(name));
}

/** The name in a struct ifreq. */
export function interfaceRequestName(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes.subarray(0, bytes.indexOf(0)));
}

function call(command: bigint, what: string): void {
  const type = SOCK_DGRAM | SOCK_CLOEXEC;
  using socket = new Fd(check(libc.socket(AF_INET, type, 0), "socket AF_INET"));
  check(libc.ioctl(socket.number, command, request.address), what);
}

/** The interface's number, 0 if there is none of that name. */
export function interfaceIndex(name: string): number {
  return libc.if_nametoindex(cString(name));
}

/** The low 16 flags, such as {@link IFF_UP}. */
export function interfaceFlags(name: string): number {
  fillInterfaceRequest(request.bytes, name);
  call(SIOCGIFFLAGS, `flags of interface ${name}`);
  return request.view.getUint16(IFREQ_UNION, true);
}

/** Switches an interface on; nothing is done (and no privilege needed) if it is on. */
export function bringInterfaceUp(name: string): void {
  const flags = interfaceFlags(name);
  if ((flags & IFF_UP) !== 0) return;
  request.view.setUint16(IFREQ_UNION, flags | IFF_UP, true);
  call(SIOCSIFFLAGS, `bring up interface ${name}`);
}

/** The largest payload of a frame, in bytes. */
export function interfaceMtu(name: string): number {
  fillInterfaceRequest(request.bytes, name);
  call(SIOCGIFMTU, `MTU of interface ${name}`);
  return request.view.getInt32(IFREQ_UNION, true);
}

/** Sets the largest payload of a frame, in bytes; nothing is done if it is set. */
export function setInterfaceMtu(name: string, mtu: number): void {
  if (interfaceMtu(name) === mtu) return;
  request.view.setInt32(IFREQ_UNION, mtu, true);
  call(SIOCSIFMTU, `set MTU ${mtu} of interface ${name}`);
}

/**
 * Gives an interface its IPv4 address.
 *
 * @param address as a number, 10.0.2.2 is 0x0a000202
 * @param prefix bits of the network part
 */
export function setInterfaceAddress(name: string, address: number, prefix: number): void {
  setAddress(SIOCSIFADDR, name, address, "address");
  // The mask that came with the address is that of its class.
  const mask = prefix === 0 ? 0 : (-1 << (32 - prefix)) >>> 0;
  setAddress(SIOCSIFNETMASK, name, mask, "network mask");
}

function setAddress(command: bigint, name: string, value: number, what: string): void {
  fillInterfaceRequest(request.bytes, name);
  request.view.setUint16(IFREQ_UNION, AF_INET, true);
  request.view.setUint32(IFREQ_UNION + 4, value, false);
  call(command, `set ${what} of interface ${name}`);
}

/** Gives an Ethernet interface its MAC address, six bytes; nothing is done if it has it. */
export function setInterfaceMac(name: string, mac: Uint8Array): void {
  fillInterfaceRequest(request.bytes, name);
  call(SIOCGIFHWADDR, `MAC address of interface ${name}`);
  const at = IFREQ_UNION + 2;
  if (mac.every((byte, i) => request.bytes[at + i] === byte)) return;
  request.view.setUint16(IFREQ_UNION, ARPHRD_ETHER, true);
  request.bytes.set(mac.subarray(0, 6), at);
  call(SIOCSIFHWADDR, `set MAC address of interface ${name}`);
}

/** Adds an interface to a bridge. */
export function addToBridge(bridge: string, name: string): void {
  const index = interfaceIndex(name);
  fillInterfaceRequest(request.bytes, bridge);
  request.view.setInt32(IFREQ_UNION, index, true);
  call(SIOCBRADDIF, `add interface ${name} to bridge ${bridge}`);
}

/** Whether a network card or its driver merges received frames, each undefined if not known. */
export interface ReceiveMerging {
  /** In software (generic receive offload). */
  readonly gro: boolean | undefined;
  /** In hardware (large receive offload). */
  readonly lro: boolean | undefined;
}

function ethtoolValue(name: string, command: number, data: number): number | undefined {
  fillInterfaceRequest(request.bytes, name);
  request.view.setBigUint64(IFREQ_UNION, ethtool.address, true);
  ethtool.view.setUint32(0, command, true);
  ethtool.view.setUint32(4, data, true);
  try {
    call(SIOCETHTOOL, "ethtool");
    return ethtool.view.getUint32(4, true);
  } catch {
    return undefined;
  }
}

/** Asks how received frames are merged. */
export function receiveMerging(name: string): ReceiveMerging {
  const gro = ethtoolValue(name, ETHTOOL_GGRO, 0);
  const flags = ethtoolValue(name, ETHTOOL_GFLAGS, 0);
  return {
    gro: gro === undefined ? undefined : gro !== 0,
    lro: flags === undefined ? undefined : (flags & ETH_FLAG_LRO) !== 0,
  };
}

/** Switches merging; what the interface cannot switch, and what is undefined, stays as it is. */
export function setReceiveMerging(name: string, wanted: ReceiveMerging): void {
  const now = receiveMerging(name);
  if (wanted.gro !== undefined && wanted.gro !== now.gro) {
    ethtoolValue(name, ETHTOOL_SGRO, wanted.gro ? 1 : 0);
  }
  if (wanted.lro !== undefined && now.lro !== undefined && wanted.lro !== now.lro) {
    const flags = ethtoolValue(name, ETHTOOL_GFLAGS, 0) ?? 0;
    const others = flags & ~ETH_FLAG_LRO;
    ethtoolValue(name, ETHTOOL_SFLAGS, wanted.lro ? others | ETH_FLAG_LRO : others);
  }
}
