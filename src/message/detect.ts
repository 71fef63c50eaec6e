/**
 * Which dialect a driver side speaks, from the first message it sends (docs/wire.md 1.4).
 *
 * The rows of revision 1 are tried first: a `v1` token can look like an `rfc` size, while what an
 * `rfc` message has in the place of the `v1` size is payload or zero.
 *
 * `v1` and `v1-2025` begin with the same bytes, as do `proto`, `alpha` and `p1`: the first of each group is
 * reported. What gives `v1-2025` away comes long after GET_DEVICE_INFO must have been answered in one form or
 * the other. A driver side sees it by the size of that answer (docs/wire.md 3.7).
 *
 * The bytes behind a `proto` message are of no interest, since QEMU leaves an older message there.
 */

import type { Malformed } from "./codec.ts";
import type { Dialect } from "./message.ts";

export type DetectedDialect = "v1" | "proto" | "rfc" | "rfc1-spec" | "unknown";

const GET_DEVICE_INFO = 0x02;
const BUS_GET_DEVICES = 0x02;
const BUS_HELLO = 0x90;
const PROTO_DEVICE_INFO = 0x03;
const PROTO_SIZE = 40;
/** Bytes of `v1`'s answer to GET_DEVICE_INFO; that of `v1-2025` is shorter. */
const V1_DEVICE_INFO_SIZE = 52;

/** Judges the first message; `view` holds at least 40 bytes from `offset`, a private copy. */
export function detectDialect(view: DataView, offset: number): DetectedDialect {
  const type = view.getUint8(offset);
  const id = view.getUint8(offset + 1);
  const at4 = view.getUint16(offset + 4, true);
  const at6 = view.getUint16(offset + 6, true);
  // Revision 1 ignores type bits 2-7 (rule G4).
  const messageClass = type & 0x03;
  if (messageClass === 0x00 && id === GET_DEVICE_INFO && at6 === 8) return "v1";
  if (messageClass === 0x02 && id === BUS_GET_DEVICES && at6 === 12) return "v1";
  if (messageClass === 0x02 && id === BUS_HELLO && at6 >= 8 && at6 <= 64) return "v1";
  if (type === 0x00 && id === GET_DEVICE_INFO && at4 === 6) return "rfc";
  if (type === 0x02 && id === BUS_GET_DEVICES && at4 === 10) return "rfc";
  if (type !== 0x00 || !isZero(view, offset + 4, offset + PROTO_SIZE)) return "unknown";
  if (id === PROTO_DEVICE_INFO) return "proto";
  return id === GET_DEVICE_INFO ? "rfc1-spec" : "unknown";
}

/**
 * The dialect of an answer that the codec of another one refused, where that can be told: the size of
 * GET_DEVICE_INFO's answer is the one thing that tells the two forms of revision 1 apart.
 */
export function dialectOfAnswer(
  spoken: Dialect,
  view: DataView,
  reason: Malformed,
): Dialect | undefined {
  if (view.getUint8(1) !== GET_DEVICE_INFO) return undefined;
  if (spoken === "v1-2025") return reason === "long" ? "v1" : undefined;
  const isAnswer = view.getUint8(0) === 1;
  const isShort = view.getUint16(6, true) < V1_DEVICE_INFO_SIZE;
  return spoken === "v1" && isAnswer && isShort ? "v1-2025" : undefined;
}

function isZero(view: DataView, from: number, to: number): boolean {
  for (let at = from; at < to; at++) {
    if (view.getUint8(at) !== 0) return false;
  }
  return true;
}
