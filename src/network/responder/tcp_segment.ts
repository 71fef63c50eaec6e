/**
 * A TCP segment (RFC 9293 3.1): header, two options, checksum over a pseudo header.
 *
 * Of the options, maximum segment size (RFC 9293 3.7.1) and window scale (RFC 7323 2) are read, from SYN
 * segments only; all others are skipped. An option list that contradicts itself ends there, as everywhere.
 */

import { addBytes, foldSum } from "./checksum.ts";
import type { Verdict } from "./host.ts";
import { PROTOCOL_TCP } from "./ipv4.ts";
import { readU16, readU32 } from "./network_order.ts";
import type { Packet } from "./packet.ts";

/** Bytes of a header without options. */
export const TCP_HEADER_SIZE = 20;
/** Control bits. */
export const FIN = 0x01;
/** Synchronise. */
export const SYN = 0x02;
/** Reset. */
export const RST = 0x04;
/** Push. */
export const PSH = 0x08;
/** Acknowledgement. */
export const ACK = 0x10;
/** Kind of an option: maximum segment size. */
export const OPTION_MSS = 2;
/** Window scale. */
export const OPTION_WINDOW_SCALE = 3;
/** No operation. */
export const OPTION_NOP = 1;

const OPTION_END = 0;
/** RFC 7323 2.3. */
const WINDOW_SHIFT_MAX = 14;

/** The fields of a received header. One record serves all segments, one after the other. */
export class TcpSegment {
  /** The peer's port. */
  sourcePort = 0;
  /** Ours. */
  destinationPort = 0;
  /** Number of the first byte, or of the SYN. */
  sequence = 0;
  /** The next byte that the peer expects, if ACK is set. */
  acknowledgement = 0;
  /** Control bits. */
  flags = 0;
  /** The window field, not scaled. */
  window = 0;
  /** Offset of the payload in the frame. */
  start = 0;
  /** Offset of the first byte after the payload. */
  end = 0;
  /** Maximum segment size, 0 if the option is absent. */
  mss = 0;
  /** Window shift, -1 if the option is absent. */
  windowShift: number = -1;

  /** Sequence numbers that it takes: its bytes, SYN and FIN. */
  get span(): number {
    return this.end - this.start + ((this.flags & SYN) !== 0 ? 1 : 0) +
      ((this.flags & FIN) !== 0 ? 1 : 0);
  }
}

/** Checks header and checksum and fills the record in; "done" means that it is whole. */
export function parseTcp(segment: TcpSegment, frame: Uint8Array, packet: Packet): Verdict {
  const { start, end } = packet;
  const length = end - start;
  if (length < TCP_HEADER_SIZE) return "malformed";
  const headerSize = (frame[start + 12] >>> 4) * 4;
  if (headerSize < TCP_HEADER_SIZE || headerSize > length) return "malformed";
  if (!packet.trusted) {
    const sum = packet.addressSum + PROTOCOL_TCP + length;
    if (foldSum(addBytes(sum, frame, start, end)) !== 0xffff) return "checksum";
  }
  segment.sourcePort = readU16(frame, start);
  segment.destinationPort = readU16(frame, start + 2);
  if (segment.sourcePort === 0) return "malformed";
  segment.sequence = readU32(frame, start + 4);
  segment.acknowledgement = readU32(frame, start + 8);
  segment.flags = frame[start + 13];
  segment.window = readU16(frame, start + 14);
  segment.start = start + headerSize;
  segment.end = end;
  segment.mss = 0;
  segment.windowShift = -1;
  if ((segment.flags & SYN) !== 0) readOptions(segment, frame, start + TCP_HEADER_SIZE);
  return "done";
}

function readOptions(segment: TcpSegment, frame: Uint8Array, start: number): void {
  const end = segment.start;
  let at = start;
  while (at < end) {
    const kind = frame[at];
    if (kind === OPTION_END) return;
    if (kind === OPTION_NOP) {
      at++;
      continue;
    }
    const size = at + 1 < end ? frame[at + 1] : 0;
    if (size < 2 || at + size > end) return;
    if (kind === OPTION_MSS && size === 4) segment.mss = readU16(frame, at + 2);
    if (kind === OPTION_WINDOW_SCALE && size === 3) {
      segment.windowShift = Math.min(frame[at + 2], WINDOW_SHIFT_MAX);
    }
    at += size;
  }
}
