/**
 * ARP (RFC 826): who has our address? We have.
 *
 * Nothing is learnt: every answer goes to the station that asked. A probe (RFC 5227, sender address 0)
 * and another station's announcement of our address are answered too, which is how one defends it.
 */

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
import type { Host, Verdict } from "./host.ts";
import { copyBytes, readU16, readU32, writeU16, writeU32 } from "./network_order.ts";

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

/** Answers a request for the host's address. */
export function receiveArp(host: Host, frame: Uint8Array, length: number): Verdict {
  if (length < FRAME_SIZE) return "malformed";
  if (readU16(frame, HARDWARE_TYPE) !== HARDWARE_ETHERNET) return "ignored";
  if (readU16(frame, PROTOCOL_TYPE) !== ETHERTYPE_IPV4) return "ignored";
  if (readU16(frame, ADDRESS_LENGTHS) !== LENGTHS_ETHERNET_IPV4) return "malformed";
  if (readU16(frame, OPERATION) !== REQUEST) return "ignored";
  if (readU32(frame, TARGET_ADDRESS) !== host.address) return "ignored";

  const reply = host.ring.reserve();
  if (reply === undefined) return "dropped";
  writeEthernetHeader(reply, frame, ETHERNET_SOURCE, host.mac, ETHERTYPE_ARP);
  writeU16(reply, HARDWARE_TYPE, HARDWARE_ETHERNET);
  writeU16(reply, PROTOCOL_TYPE, ETHERTYPE_IPV4);
  writeU16(reply, ADDRESS_LENGTHS, LENGTHS_ETHERNET_IPV4);
  writeU16(reply, OPERATION, REPLY);
  copyBytes(reply, SENDER_MAC, host.mac, 0, MAC_SIZE);
  writeU32(reply, SENDER_ADDRESS, host.address);
  copyBytes(reply, TARGET_MAC, frame, SENDER_MAC, MAC_SIZE + 4);
  host.ring.commit(FRAME_SIZE);
  host.counters.arpReplies++;
  return "done";
}

/** The client's half: asks who has an address. Returns the frame's length. */
export function writeArpRequest(
  frame: Uint8Array,
  mac: Uint8Array,
  address: number,
  wanted: number,
): number {
  writeEthernetHeader(frame, MAC_BROADCAST, 0, mac, ETHERTYPE_ARP);
  writeU16(frame, HARDWARE_TYPE, HARDWARE_ETHERNET);
  writeU16(frame, PROTOCOL_TYPE, ETHERTYPE_IPV4);
  writeU16(frame, ADDRESS_LENGTHS, LENGTHS_ETHERNET_IPV4);
  writeU16(frame, OPERATION, REQUEST);
  copyBytes(frame, SENDER_MAC, mac, 0, MAC_SIZE);
  writeU32(frame, SENDER_ADDRESS, address);
  frame.fill(0, TARGET_MAC, TARGET_ADDRESS);
  writeU32(frame, TARGET_ADDRESS, wanted);
  return FRAME_SIZE;
}

/** The client's half: the MAC address in an answer about `wanted`, or undefined for another frame. */
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
