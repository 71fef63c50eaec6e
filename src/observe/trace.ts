/**
 * `--trace`: every message as a line, with time, direction, device and, on an answer, how long it took.
 *
 *     +0.013207 -> dev 0 SET_DEVICE_STATUS? ACKNOWLEDGE
 *     +0.013391 <- dev 0 SET_DEVICE_STATUS = ACKNOWLEDGE   184 us
 *
 * The arrow is seen from the process that prints: `->` was sent, `<-` was received. Time counts from
 * the start of the trace.
 */

import { describe } from "../message/text.ts";
import { isBusMessage } from "../message/table.ts";
import { Kind, type Message } from "../message/message.ts";

/** Sent or received, as seen by this process. */
export type Direction = "->" | "<-";

/** Prints messages. */
export interface Tracer {
  /** A message that was sent or understood. */
  message(direction: Direction, message: Message): void;
  /** A slot that no codec understood, with the reason. */
  malformed(slot: DataView, reason: string): void;
}

/** Requests whose answers are awaited; more are forgotten, a peer may never answer. */
const MAX_OPEN = 256;

/** HELLO comes ten times a second; only those of an attachment's beginning are worth a line. */
const SHOWN_HELLOS = 4;

/** A tracer that writes lines. */
export function createTracer(write: (line: string) => void): Tracer {
  const start = performance.now();
  const open = new Map<number, number>();
  let hellos = 0;
  const stamp = () => `+${((performance.now() - start) / 1000).toFixed(6)}`;
  return {
    message(direction, message) {
      if (message.kind === Kind.HELLO && ++hellos > SHOWN_HELLOS) return;
      if (message.kind === Kind.GET_DEVICE_INFO) hellos = 0;
      const key = (message.token * 64 + message.kind) * 65536 + message.device;
      let latency = "";
      if (message.response) {
        const sent = open.get(key);
        open.delete(key);
        if (sent !== undefined) {
          latency = `   ${Math.round((performance.now() - sent) * 1000)} us`;
        }
      } else {
        if (open.size >= MAX_OPEN) open.clear();
        open.set(key, performance.now());
      }
      const about = isBusMessage(message.kind) ? "bus  " : `dev ${message.device}`;
      write(`${stamp()} ${direction} ${about} ${describe(message)}${latency}`);
    },
    malformed(slot, reason) {
      const bytes = Array.from({ length: 16 }, (_, i) => slot.getUint8(i));
      const hex = bytes.map((b) => b.toString(16).padStart(2, "0")).join(" ");
      write(`${stamp()} <- not understood (${reason}): ${hex} ...`);
    },
  };
}
