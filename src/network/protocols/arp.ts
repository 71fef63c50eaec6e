/** ARP (RFC 826), for Ethernet and IPv4: who has an address, and at which MAC address it is. */

import { copyBytes, readU16, readU32, writeU16, writeU32 } from "./byte_order.ts";
import {
  ETHERNET_HEADER_SIZE,
  ETHERNET_SOURCE,
  EtherType,
  MAC_BROADCAST,
  MAC_SIZE,
  readEthertype,
  writeEthernetHeader,
} from "./ethernet.ts";
import type { Station, Verdict } from "./packet.ts";

const HARDWARE_TYPE = ETHERNET_HEADER_SIZE;
const PROTOCOL_TYPE = HARDWARE_TYPE + 2;
const ADDRESS_LENGTHS = HARDWARE_TYPE + 4;
const OPERATION = HARDWARE_TYPE + 6;
const SENDER_MAC = HARDWARE_TYPE + 8;
const SENDER_ADDRESS = HARDWARE_TYPE + 14;
const TARGET_MAC = HARDWARE_TYPE + 18;
const TARGET_ADDRESS = HARDWARE_TYPE + 24;
const FRAME_SIZE = HARDWARE_TYPE + 28;

const HARDWARE_ETHERNET = 1;
const LENGTHS_ETHERNET_IPV4 = 0x0604;
const [REQUEST, REPLY] = [1, 2];

/** Checks a frame: "done" if it is a request for an address. */
export function checkArpRequest(frame: Uint8Array, length: number, address: number): Verdict {
  if (length < FRAME_SIZE) return "malformed";
  if (readU16(frame, HARDWARE_TYPE) !== HARDWARE_ETHERNET) return "ignored";
  if (readU16(frame, PROTOCOL_TYPE) !== EtherType.IPV4) return "ignored";
  if (readU16(frame, ADDRESS_LENGTHS) !== LENGTHS_ETHERNET_IPV4) return "malformed";
  if (readU16(frame, OPERATION) !== REQUEST) return "ignored";
  return readU32(frame, TARGET_ADDRESS) === address ? "done" : "ignored";
}

/** Answers a request: the address is at this MAC address. Returns the frame's length. */
export function writeArpReply(by: Station, request: Uint8Array): number {
  writeEthernetHeader(by.slot, request, ETHERNET_SOURCE, by.mac, EtherType.ARP);
  copyBytes(by.slot, TARGET_MAC, request, SENDER_MAC, MAC_SIZE + 4);
  return writeFields(by, REPLY);
}

export function writeArpRequest(by: Station, wanted: number): number {
  writeEthernetHeader(by.slot, MAC_BROADCAST, 0, by.mac, EtherType.ARP);
  by.slot.fill(0, TARGET_MAC, TARGET_ADDRESS);
  writeU32(by.slot, TARGET_ADDRESS, wanted);
  return writeFields(by, REQUEST);
}

function writeFields({ slot, mac, address }: Station, operation: number): number {
  writeU16(slot, HARDWARE_TYPE, HARDWARE_ETHERNET);
  writeU16(slot, PROTOCOL_TYPE, EtherType.IPV4);
  writeU16(slot, ADDRESS_LENGTHS, LENGTHS_ETHERNET_IPV4);
  writeU16(slot, OPERATION, operation);
  copyBytes(slot, SENDER_MAC, mac, 0, MAC_SIZE);
  writeU32(slot, SENDER_ADDRESS, address);
  return FRAME_SIZE;
}

/** The MAC address in an answer about `wanted`, or undefined for another frame. */
export function readArpReply(frame: Uint8Array, length: number, wanted: number) {
  if (length < FRAME_SIZE || readEthertype(frame) !== EtherType.ARP) return undefined;
  const isIt = readU16(frame, OPERATION) === REPLY && readU32(frame, SENDER_ADDRESS) === wanted;
  return isIt ? frame.slice(SENDER_MAC, SENDER_MAC + MAC_SIZE) : undefined;
}
