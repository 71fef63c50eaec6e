/**
 * Where traffic goes to and comes from: discard (RFC 863), which throws datagrams away, and the character
 * generator (RFC 864), made into a source on request.
 *
 * RFC 864 answers every datagram with one datagram of characters. A datagram of at least 8 bytes to that port
 * is our own request for more:
 *
 *     u32  how many datagrams
 *     u16  UDP payload bytes of each, 18 to 1472 (over IPv6: 1452)
 *     u16  0
 *
 * all big-endian. Their first four payload bytes are a sequence number from 0, the rest is RFC 864's pattern.
 */

import { writeU16, writeU32 } from "./byte_order.ts";
import { ETHERNET_FRAME_MAX } from "./ethernet.ts";
import { UDP_PAYLOAD } from "./udp.ts";

export const [DISCARD_PORT, CHARGEN_PORT] = [9, 19];
export const CHARGEN_REQUEST_SIZE = 8;
/** UDP payload bytes at least: a frame of 60 bytes, the shortest on an Ethernet. */
export const NUMBERED_SIZE_MIN = 18;
/** UDP payload bytes at most, over IPv4; over IPv6 it is 20 less. */
export const NUMBERED_SIZE_MAX: number = ETHERNET_FRAME_MAX - UDP_PAYLOAD;

const LINE_CHARACTERS = 72;
const PRINTABLE_CHARACTERS = 95;
const [SPACE, CARRIAGE_RETURN, LINE_FEED] = [0x20, 0x0d, 0x0a];

export function writeChargenRequest(frame: Uint8Array, at: number, count: number, size: number) {
  writeU32(frame, at, count);
  writeU16(frame, at + 4, size);
  writeU16(frame, at + 6, 0);
}

/** Writes the pattern of RFC 864: lines of 72 characters, each line starting one character later. */
export function writePattern(target: Uint8Array, start: number, end: number): void {
  for (let at = start, line = 0; at < end; line++) {
    const length = Math.min(LINE_CHARACTERS, end - at);
    for (let i = 0; i < length; i++) target[at++] = SPACE + (line + i) % PRINTABLE_CHARACTERS;
    if (at < end) target[at++] = CARRIAGE_RETURN;
    if (at < end) target[at++] = LINE_FEED;
  }
}
