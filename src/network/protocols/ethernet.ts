/**
 * Ethernet II framing (RFC 894): destination, source, ethertype, payload.
 *
 * Frames come without the 4-byte check sequence, and without padding to 60 bytes: a virtio device neither
 * needs nor checks either. 802.3 lengths (a type field below 1536) and VLAN tags are other ethertypes
 * here, and nobody answers those.
 */

import { copyBytes, readU16, writeU16 } from "./byte_order.ts";

export const ETHERNET_HEADER_SIZE = 14;
/** The longest frame on an Ethernet, without its check sequence: the header and 1500 bytes. */
export const ETHERNET_FRAME_MAX = 1514;
export const [ETHERNET_DESTINATION, ETHERNET_SOURCE] = [0, 6];
export const EtherType = { IPV4: 0x0800, ARP: 0x0806, IPV6: 0x86dd } as const;
export const MAC_SIZE = 6;
export const MAC_BROADCAST: Uint8Array = new Uint8Array(MAC_SIZE).fill(0xff);

const ETHERTYPE = 12;

/** The ethertype of a frame of at least {@link ETHERNET_HEADER_SIZE} bytes. */
export function readEthertype(frame: Uint8Array): number {
  return readU16(frame, ETHERTYPE);
}

export function isGroupMac(frame: Uint8Array, at: number): boolean {
  return (frame[at] & 1) !== 0;
}

/** Whether the `address.length` bytes at `at` are this address, of any protocol. */
export function isAddress(frame: Uint8Array, at: number, address: Uint8Array): boolean {
  // Addresses differ in their last bytes, if they do.
  for (let i = address.length - 1; i >= 0; i--) if (frame[at + i] !== address[i]) return false;
  return true;
}

/** Writes the header; the destination is the address at `destinationAt` of another frame or array. */
export function writeEthernetHeader(
  frame: Uint8Array,
  destination: Uint8Array,
  destinationAt: number,
  source: Uint8Array,
  ethertype: number,
): void {
  copyBytes(frame, ETHERNET_DESTINATION, destination, destinationAt, MAC_SIZE);
  copyBytes(frame, ETHERNET_SOURCE, source, 0, MAC_SIZE);
  writeU16(frame, ETHERTYPE, ethertype);
}

/** "52:55:0a:00:02:02" as six bytes; throws a TypeError for what is not a station's address. */
export function parseMac(text: string): Uint8Array {
  const bytes = Uint8Array.from(text.split(":"), (part) => parseInt(part, 16));
  if (!/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i.test(text) || isGroupMac(bytes, 0)) {
    throw new TypeError(`"${text}" is not a MAC address of one station, as in 52:55:0a:00:02:02`);
  }
  return bytes;
}
