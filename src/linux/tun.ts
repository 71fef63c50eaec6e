/**
 * TAP devices (linux/if_tun.h; Documentation/networking/tuntap.rst).
 *
 * A TAP made here begins every frame with struct virtio_net_hdr_v1, 12 bytes, little-endian. Requests
 * are the same numbers on x86-64 and arm64: _IOW('T', n, int) = 0x400454nn, _IOR = 0x800454nn.
 */

import { allocate } from "./arena.ts";
import { type Fd, openFile } from "./fd.ts";
import { check, libc } from "./libc.ts";
import { fillInterfaceRequest, IFREQ_SIZE, IFREQ_UNION, interfaceRequestName } from "./netdev.ts";

const TUNSETIFF = 0x400454can;
const TUNSETPERSIST = 0x400454cbn;
const TUNSETOFFLOAD = 0x400454d0n;
const TUNGETIFF = 0x800454d2n;
const TUNSETVNETHDRSZ = 0x400454d8n;
const TUNSETQUEUE = 0x400454d9n;
const TUNSETVNETLE = 0x400454dcn;

const IFF_TAP = 0x0002;
const IFF_NO_PI = 0x1000;
const IFF_VNET_HDR = 0x4000;
const IFF_MULTI_QUEUE = 0x0100;
const IFF_ATTACH_QUEUE = 0x0200;
const IFF_DETACH_QUEUE = 0x0400;
const O_NONBLOCK = 0o4000;

/** The reader of a TAP takes frames whose checksum is left to it. */
export const TUN_F_CSUM = 0x01;
/** It takes TCP over IPv4 in frames larger than the MTU. */
export const TUN_F_TSO4 = 0x02;
/** It takes TCP over IPv6 in frames larger than the MTU. */
export const TUN_F_TSO6 = 0x04;
/** It takes such frames with ECN bits. */
export const TUN_F_TSO_ECN = 0x08;
/** It takes UDP over IPv4 in large frames; the kernel (6.2 and later) wants both USO bits or none. */
export const TUN_F_USO4 = 0x20;
/** It takes UDP over IPv6 in large frames. */
export const TUN_F_USO6 = 0x40;

/** The device every TAP is made from. */
export const TUN_PATH = "/dev/net/tun";

const request = allocate(IFREQ_SIZE);
const word = allocate(4);

function setWord(fd: Fd, command: bigint, value: number, what: string): void {
  word.view.setInt32(0, value, true);
  check(libc.ioctl(fd.number, command, word.address), what);
}

/** Opens {@link TUN_PATH}, non-blocking. */
export function openTun(): Fd {
  return openFile(TUN_PATH, O_NONBLOCK);
}

/**
 * Turns an open tun descriptor into a TAP: attaches to the one of that name, or makes it.
 *
 * @param headerSize of the virtio-net header, in bytes
 * @param hasQueues may several descriptors attach to it, each as a queue?
 * @returns the name, which the kernel completes if it has "%d" in it
 */
export function attachTap(fd: Fd, name: string, headerSize: number, hasQueues: boolean): string {
  fillInterfaceRequest(request.bytes, name);
  const flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (hasQueues ? IFF_MULTI_QUEUE : 0);
  request.view.setUint16(IFREQ_UNION, flags, true);
  check(libc.ioctl(fd.number, TUNSETIFF, request.address), `make TAP ${name}`);
  const actual = interfaceRequestName(request.bytes);
  setWord(fd, TUNSETVNETHDRSZ, headerSize, `set the header size of TAP ${actual}`);
  setWord(fd, TUNSETVNETLE, 1, `set the header's byte order of TAP ${actual}`);
  return actual;
}

/** Has a queue of a TAP get frames, or none; frames that wait in it are dropped by the kernel then. */
export function useTapQueue(fd: Fd, used: boolean): boolean {
  request.view.setUint16(IFREQ_UNION, used ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE, true);
  return libc.ioctl(fd.number, TUNSETQUEUE, request.address) >= 0;
}

/** Has the interface stay when the descriptor is closed, or not. */
export function setTapPersistent(fd: Fd, persistent: boolean): void {
  // The value is the argument itself, not behind a pointer.
  check(libc.ioctl(fd.number, TUNSETPERSIST, persistent ? 1n : 0n), "make a TAP persistent");
}

/**
 * Tells the kernel which frames the reader takes (TUN_F_ bits).
 *
 * @returns false if it does not know one of them; nothing is changed then
 */
export function setTapOffloads(fd: Fd, bits: number): boolean {
  // The bits are the argument itself, not behind a pointer.
  return libc.ioctl(fd.number, TUNSETOFFLOAD, BigInt(bits)) >= 0;
}

/** Whether the descriptor still has its interface; not so after `ip link del`. */
export function tapExists(fd: Fd): boolean {
  return libc.ioctl(fd.number, TUNGETIFF, request.address) >= 0;
}
