/** ARP (RFC 826), for Ethernet and IPv4: who has an address, and at which MAC address it is. */

import {
  ETHERNET_HEADER_SIZE,
  ETHERNET_SOURCE,
  ETHERTYPE_ARP,
  ETHERTYPE_IPV4,
  MAC_BROADCAST,
  MAC_SIZE,
  readEthertype,
  writeEthernetHeader,
} from "./ethernet.ts";
import type { Verdict } from "./packet.ts";
import { copyBytes, readU16, readU32, writeU16, writeU32 } from "./byte_order.ts";

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
const REQUEST = 1;
const REPLY = 2;

/** Checks a frame: "done" if it is a request for an address. */
export function checkArpRequest(frame: Uint8Array, length: number, address: number): Verdict {
  if (length < FRAME_SIZE) return "malformed";
  if (readU16(frame, HARDWARE_TYPE) !== HARDWARE_ETHERNET) return "ignored";
  if (readU16(frame, PROTOCOL_TYPE) !== ETHERTYPE_IPV4) return "ignored";
  if (readU16(frame, ADDRESS_LENGTHS) !== LENGTHS_ETHERNET_IPV4) return "malformed";
  if (readU16(frame, OPERATION) !== REQUEST) return "ignored";
  return readU32(frame, TARGET_ADDRESS) === address ? "done" : "ignored";
}

/** Answers a request: the address is at this MAC address. Returns the frame's length. */
export function writeArpReply(
  reply: Uint8Array,
  mac: Uint8Array,
  address: number,
  request: Uint8Array,
): number {
  writeEthernetHeader(reply, request, ETHERNET_SOURCE, mac, ETHERTYPE_ARP);
  writeFixedFields(reply, REPLY, mac, address);
  copyBytes(reply, TARGET_MAC, request, SENDER_MAC, MAC_SIZE + 4);
  return FRAME_SIZE;
}

/** Asks who has an address. Returns the frame's length. */
export function writeArpRequest(
  frame: Uint8Array,
  mac: Uint8Array,
  address: number,
  wanted: number,
): number {
  writeEthernetHeader(frame, MAC_BROADCAST, 0, mac, ETHERTYPE_ARP);
  writeFixedFields(frame, REQUEST, mac, address);
  frame.fill(0, TARGET_MAC, TARGET_ADDRESS);
  writeU32(frame, TARGET_ADDRESS, wanted);
  return FRAME_SIZE;
}

function writeFixedFields(
  frame: Uint8Array,
  operation: number,
  mac: Uint8Array,
  address: number,
): void {
  writeU16(frame, HARDWARE_TYPE, HARDWARE_ETHERNET);
  writeU16(frame, PROTOCOL_TYPE, ETHERTYPE_IPV4);
  writeU16(frame, ADDRESS_LENGTHS, LENGTHS_ETHERNET_IPV4);
  writeU16(frame, OPERATION, operation);
  copyBytes(frame, SENDER_MAC, mac, 0, MAC_SIZE);
  writeU32(frame, SENDER_ADDRESS, address);
}

/** The MAC address in an answer about `wanted`, or undefined for another frame. */
export function readArpReply(
  frame: Uint8Array,
  length: number,
  wanted: number,
): Uint8Array | undefined {
  if (length < FRAME_SIZE || readEthertype(frame) !== ETHERTYPE_ARP) return undefined;
  if (readU16(frame, OPERATION) !== REPLY || readU32(frame, SENDER_ADDRESS) !== wanted) {
    return undefined;
  }
  return frame.slice(SENDER_MAC, SENDER_MAC + MAC_SIZE);
}
