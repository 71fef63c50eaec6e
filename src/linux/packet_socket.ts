/**
 * Packet sockets (packet(7)): whole frames of one interface, each behind a struct virtio_net_hdr of 10
 * bytes (PACKET_VNET_HDR).
 *
 *     struct sockaddr_ll: u16 family, u16 protocol (big-endian), s32 ifindex, u16 hatype, u8 pkttype,
 *       u8 halen, u8 address[8]
 *     struct packet_mreq: s32 ifindex, u16 type, u16 alen, u8 address[8]
 *     struct sock_fprog: u16 length, at 8 a pointer to struct sock_filter {u16 code, u8 jt, u8 jf, u32 k}
 *
 * A VLAN tag that the interface took off a frame would be lost with it, and the frame would turn up in
 * the wrong network. So a filter drops frames that had one.
 */

import { allocate } from "./arena.ts";
import { Fd } from "./fd.ts";
import { check, libc } from "./libc.ts";

const AF_PACKET = 17;
const SOCK_RAW = 3;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
/** ETH_P_ALL, big-endian. */
const ALL_PROTOCOLS = 0x0300;
const SOL_SOCKET = 1;
const SO_ATTACH_FILTER = 26;
const SO_RCVBUFFORCE = 33;
const SOL_PACKET = 263;
const PACKET_ADD_MEMBERSHIP = 1;
const PACKET_VNET_HDR = 15;
const PACKET_IGNORE_OUTGOING = 23;
const PACKET_MR_PROMISC = 1;

const BPF_LOAD_WORD = 0x20;
const BPF_JUMP_EQUAL = 0x15;
const BPF_RETURN = 0x06;
/** SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT */
const VLAN_TAG_PRESENT = 0xffff_f030;

/** Size of struct virtio_net_hdr, without num_buffers. */
export const PACKET_HEADER_SIZE = 10;

/** Room for some 64 KiB frames; the system's default has it for three. */
const RECEIVE_BUFFER_SIZE = 4 << 20;

const argument = allocate(64);

function setOption(fd: Fd, level: number, option: number, length: number, what: string): void {
  check(libc.setsockopt(fd.number, level, option, argument.address, length), what);
}

function setWord(fd: Fd, option: number, value: number, what: string): void {
  argument.view.setInt32(0, value, true);
  setOption(fd, SOL_PACKET, option, 4, what);
}

function dropTagged(fd: Fd): void {
  const program: readonly (readonly [number, number, number, number])[] = [
    [BPF_LOAD_WORD, 0, 0, VLAN_TAG_PRESENT],
    [BPF_JUMP_EQUAL, 0, 1, 0],
    [BPF_RETURN, 0, 0, 0xffff_ffff],
    [BPF_RETURN, 0, 0, 0],
  ];
  argument.bytes.fill(0);
  argument.view.setUint16(0, program.length, true);
  argument.view.setBigUint64(8, argument.address + 16n, true);
  program.forEach(([code, jumpTrue, jumpFalse, k], i) => {
    argument.view.setUint16(16 + 8 * i, code, true);
    argument.view.setUint8(16 + 8 * i + 2, jumpTrue);
    argument.view.setUint8(16 + 8 * i + 3, jumpFalse);
    argument.view.setUint32(16 + 8 * i + 4, k, true);
  });
  setOption(fd, SOL_SOCKET, SO_ATTACH_FILTER, 16, "filter of a packet socket");
}

/**
 * Opens a non-blocking packet socket on an interface, promiscuous, which sees nothing the host itself
 * sends. Needs CAP_NET_RAW.
 *
 * @param index the interface's number
 */
export function openPacketSocket(index: number): Fd {
  const type = SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC;
  // Protocol 0: nothing arrives before everything is set and the socket bound.
  const fd = new Fd(check(libc.socket(AF_PACKET, type, 0), "socket AF_PACKET"));
  try {
    setWord(fd, PACKET_VNET_HDR, 1, "PACKET_VNET_HDR");
    setWord(fd, PACKET_IGNORE_OUTGOING, 1, "PACKET_IGNORE_OUTGOING");
    dropTagged(fd);
    argument.view.setInt32(0, RECEIVE_BUFFER_SIZE, true);
    // More than the system's limit needs CAP_NET_ADMIN; without it the default has to do.
    libc.setsockopt(fd.number, SOL_SOCKET, SO_RCVBUFFORCE, argument.address, 4);
    argument.bytes.fill(0);
    argument.view.setUint16(0, AF_PACKET, true);
    argument.view.setUint16(2, ALL_PROTOCOLS, true);
    argument.view.setInt32(4, index, true);
    check(libc.bind(fd.number, argument.address, 20), `bind a packet socket to interface ${index}`);
    argument.bytes.fill(0);
    argument.view.setInt32(0, index, true);
    argument.view.setUint16(4, PACKET_MR_PROMISC, true);
    setOption(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, 16, "PACKET_ADD_MEMBERSHIP");
    return fd;
  } catch (error) {
    fd[Symbol.dispose]();
    throw error;
  }
}
