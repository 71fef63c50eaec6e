/**
 * What a kernel's bridge and the process behind it say about the bridge itself (docs/wire.md 4.7): memory that comes and goes, the
 * endpoint, which devices there are. The bus takes and sends these frames (bus/bridge_frames.ts); they are in the table so that traces, captures
 * and the dissector have words for them. Only slots of the bridge's size hold them.
 */

import type { Kind } from "./message.ts";
import { type Definition, event, type Layout, layout, request } from "./layout.ts";

const WINDOW = "0 u64 epoch, 8 u64 sequence, 16 u64 map";
const PLACE = "24 u64 address, 32 u64 length";
const ANSWER: Layout = layout(32, WINDOW, "24 s32 result, 28 u32 reserved");
const BUS = { bus: true } as const;

export const BRIDGE_MESSAGES: readonly Definition[] = [
  request("MAP_ADD", {
    v1: {
      id: 0x89,
      request: layout(
        64,
        WINDOW,
        PLACE,
        "40 u64 offset, 48 u64 mapLength, 56 u32 flags, 60 u32 reserved",
      ),
      response: ANSWER,
    },
  }, BUS),
  request("MAP_DEL", {
    v1: { id: 0x8a, request: layout(48, WINDOW, PLACE, "40 u64 reserved"), response: ANSWER },
  }, BUS),
  event("ENDPOINT_ONLINE", "driver", {
    v1: {
      id: 0xc0,
      request: {
        ...layout(32, "0 u64 epoch, 8 bytes[16] bytes, 24 u32 maxMessage, 28 u32 reserved"),
        implied: ["length", 16],
      },
    },
  }, BUS),
  event("ENDPOINT_OFFLINE", "driver", {
    v1: { id: 0xc1, request: layout(16, "0 u64 epoch, 8 u32 reason, 12 u32 reserved") },
  }, BUS),
  event("TOPOLOGY_RESET", "device", {
    v1: { id: 0xc2, request: layout(16, "0 u64 epoch, 8 u64 reserved") },
  }, BUS),
  event("TOPOLOGY_DEV_ADD", "device", {
    v1: {
      id: 0xc3,
      request: layout(16, "0 u64 epoch, 8 u16 number, 10 u16 reserved, 12 u32 reserved"),
    },
  }, BUS),
  event("TOPOLOGY_COMMIT", "device", {
    v1: {
      id: 0xc4,
      request: layout(16, "0 u64 epoch, 8 u16 count, 10 u16 reserved, 12 u32 reserved"),
    },
  }, BUS),
];

const FIRST: number = BRIDGE_MESSAGES[0]!.kind;
const LAST: number = BRIDGE_MESSAGES.at(-1)!.kind;

/** Whether it is about a kernel's bridge itself. */
export function isOfBridge(kind: Kind): boolean {
  return kind >= FIRST && kind <= LAST;
}
