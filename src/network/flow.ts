/**
 * Which flow a frame belongs to, as a small number: the same in both directions, and for every frame of a connection.
 *
 * It is a hash of the two addresses, and of the ports where there are any and no frame of the connection lacks them
 * (fragments do). Connections may share a number; then they are treated alike, which is all that is lost.
 */

import { allocate } from "../linux/arena.ts";
import type { IovecList } from "../memory/mod.ts";
import { NET_HEADER_SIZE } from "../virtio/net_header.ts";
import { ETHERNET_HEADER_SIZE, EtherType } from "./protocols/ethernet.ts";

/** How many there are. */
export const FLOWS = 1024;
/** Of a frame that is in no flow. */
export const NO_FLOW = -1;

const ETHERTYPE = 12;
const VLAN_TAG = 4;
const ETHERTYPE_VLAN = 0x8100;
const [TCP, UDP] = [6, 17];
/** More fragments follow, or the offset is not 0. */
const IPV4_FRAGMENT = 0x3fff;
const IPV6_HEADER = 40;
/** Ethernet, a VLAN tag, the longest IPv4 header, ports: IPv6 has less. */
const HEADERS = ETHERNET_HEADER_SIZE + VLAN_TAG + 60 + 4;

const headers = allocate(HEADERS);

/** A number below {@link FLOWS}, or {@link NO_FLOW}, for a frame behind its virtio-net header. */
export function flowOf(frame: IovecList): number {
  const length = frame.copyOut(NET_HEADER_SIZE, headers.address, HEADERS);
  const { view } = headers;
  if (length < ETHERNET_HEADER_SIZE + VLAN_TAG) return NO_FLOW;
  const tag = view.getUint16(ETHERTYPE) === ETHERTYPE_VLAN ? VLAN_TAG : 0;
  const type = view.getUint16(ETHERTYPE + tag);
  const ip = ETHERNET_HEADER_SIZE + tag;
  let hash = 0, protocol = 0, ports = 0;
  if (type === EtherType.IPV4 && length >= ip + 20) {
    hash = view.getUint32(ip + 12) ^ view.getUint32(ip + 16);
    protocol = (view.getUint16(ip + 6) & IPV4_FRAGMENT) === 0 ? view.getUint8(ip + 9) : 0;
    ports = ip + 4 * (view.getUint8(ip) & 15);
  } else if (type === EtherType.IPV6 && length >= ip + IPV6_HEADER) {
    for (let at = ip + 8; at < ip + IPV6_HEADER; at += 4) hash ^= view.getUint32(at);
    protocol = view.getUint8(ip + 6);
    ports = ip + IPV6_HEADER;
  } else {
    return NO_FLOW;
  }
  if ((protocol === TCP || protocol === UDP) && length >= ports + 4) {
    hash ^= (view.getUint16(ports) ^ view.getUint16(ports + 2)) * 0x1_0001;
  }
  // Neighbours differ in few bits, all of which shall count.
  hash = Math.imul(hash ^ hash >>> 16, 0x45d9f3b);
  return (hash ^ hash >>> 16) & (FLOWS - 1);
}
