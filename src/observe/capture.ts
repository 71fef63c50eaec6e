/**
 * Messages in a capture, and out of it again.
 *
 * Each bus has two interfaces of LINKTYPE_USER0, one for each direction, and each packet begins with a head of
 * {@link HEAD_SIZE} bytes, little-endian:
 *
 *     0 u32 MARK    4 u8 version, 1    5 u8 dialect    6 u8 direction    7 u8 flags    8 u8 bus, from 0
 *     9 u8 why it was not understood, from 1 on (REASONS)    10 reserved, 0
 *
 * Then comes the message, or the slot that was no message ({@link Flag.MALFORMED}), or a text ({@link Flag.NOTE}): what no
 * message shows. The dissector (dissector.ts) reads the same.
 */

import { type Dialect, Message } from "../message/message.ts";
import type { Malformed } from "../message/codec.ts";
import { codecFor } from "../message/codecs.ts";
import type { CaptureFile, CaptureInterface } from "./capture_file.ts";
import { LINKTYPE_USER0, printable, type ReadPacket } from "./pcapng.ts";
import type { Tracer } from "./trace.ts";

/** "vmsg" as it is read. */
export const MARK = 0x67736d76;
export const HEAD_SIZE = 16;
const VERSION = 1;
/** By their number in a head. */
export const DIALECTS: readonly (Dialect | undefined)[] = [
  ...[undefined, "v1", "v1-2025", "proto", "rfc", "rfc-q"] as const,
];
/** Why a slot holds no message, by number, from 1 on. */
export const REASONS: readonly string[] = [
  "not a message",
  "bad size",
  "unknown id",
  "no answer exists",
  "short",
  "long",
  "bad length",
] satisfies ("not a message" | Malformed)[];
/** Which way a message went. */
export const TO_DEVICE = 0;
export const TO_DRIVER = 1;

/** What is said of a packet. */
export const Flag = {
  /** The process that wrote the file sent it; otherwise it received it. */
  SENT: 1,
  /** The codec did not understand it. */
  MALFORMED: 2,
  /** It is a text. */
  NOTE: 4,
} as const;

const MAX_SLOT = 128;
const MAX_NOTE = 1024;
const encoder = new TextEncoder();
/** For slots whose dialect is not known yet. */
const UNKNOWN_DIALECT = 0;

/** What a tracer is for. */
export interface TracedBus {
  readonly side: "driver" | "device";
  readonly description: string;
}

/**
 * A tracer that captures.
 *
 * @param number of the bus, from 0
 */
export function captureMessages(file: CaptureFile, bus: TracedBus, number: number): Tracer {
  const isDriver = bus.side === "driver";
  const interfaces = ["driver to device", "device to driver"].map((way) =>
    file.add({
      linkType: LINKTYPE_USER0,
      name: `bus${number} ${way}`,
      description: `virtio-msg, ${bus.description}`,
    })
  ) as [CaptureInterface, CaptureInterface];
  const claim = (isSent: boolean, flags: number, dialect: number, reason: number, size: number) => {
    const direction = isSent === isDriver ? TO_DEVICE : TO_DRIVER;
    const length = HEAD_SIZE + size;
    const at = interfaces[direction].claim(file.keptOf(length), length);
    if (at < 0) return -1;
    const { view } = file;
    view.setUint32(at, MARK, true);
    view.setUint32(at + 4, VERSION | dialect << 8 | direction << 16 | flags << 24, true);
    view.setUint32(at + 8, number | reason << 8, true);
    view.setUint32(at + 12, 0, true);
    return at + HEAD_SIZE;
  };
  const copy = ({ buffer, byteOffset }: DataView, offset: number, size: number, at: number) => {
    const from = new Uint8Array(buffer, byteOffset + offset, size);
    new Uint8Array(file.view.buffer).set(from, at);
  };
  return {
    message(direction, message, view, offset, length) {
      const isSent = direction === "->";
      const dialect = DIALECTS.indexOf(message.dialect);
      const at = claim(isSent, isSent ? Flag.SENT : 0, dialect, 0, length);
      if (at >= 0) copy(view, offset, length, at);
    },
    malformed(view, offset, length, reason) {
      const number = Math.max(0, REASONS.indexOf(reason)) + 1;
      const at = claim(false, Flag.MALFORMED, UNKNOWN_DIALECT, number, length);
      if (at >= 0) copy(view, offset, length, at);
    },
    note(line) {
      const bytes = encoder.encode(line).subarray(0, MAX_NOTE);
      const at = claim(true, Flag.SENT | Flag.NOTE, UNKNOWN_DIALECT, 0, bytes.length);
      if (at >= 0) new Uint8Array(file.view.buffer).set(bytes, at);
    },
  };
}

const message = new Message();
const slot = new DataView(new ArrayBuffer(MAX_SLOT));

/**
 * Reads a packet's head; undefined where it is none of ours, or a newer one's.
 *
 * What a file says is as little to be believed as what a peer says: a message that the codec does not take is shown as
 * malformed, whatever its head says.
 */
export function readMessage({ interface: { linkType }, data }: ReadPacket) {
  if (linkType !== LINKTYPE_USER0 || data.length < HEAD_SIZE) return undefined;
  const head = new DataView(data.buffer, data.byteOffset, HEAD_SIZE);
  if (head.getUint32(0, true) !== MARK || head.getUint8(4) !== VERSION) return undefined;
  const dialect = DIALECTS[head.getUint8(5)];
  const flags = head.getUint8(7);
  const body = data.subarray(HEAD_SIZE);
  return {
    bus: head.getUint8(8),
    /** Tells a tracer of it. */
    tell(tracer: Tracer) {
      if ((flags & Flag.NOTE) !== 0) return tracer.note(printable(body));
      const size = Math.min(body.length, MAX_SLOT);
      const bytes = new Uint8Array(slot.buffer).fill(0);
      bytes.set(body.subarray(0, size));
      if (dialect === undefined) {
        const reason = REASONS[head.getUint8(9) - 1] ?? REASONS[0]!;
        return tracer.malformed(slot, 0, size, reason);
      }
      const reason = codecFor(dialect, MAX_SLOT).decode(slot, 0, message);
      if (reason !== undefined) return tracer.malformed(slot, 0, size, reason);
      tracer.message((flags & Flag.SENT) !== 0 ? "->" : "<-", message, slot, 0, size);
    },
  };
}
