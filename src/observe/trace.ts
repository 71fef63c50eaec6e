/**
 * `--trace`: every message as a line, with time, direction, device and, on an answer, how long it took.
 *
 *     +0.013207 -> dev 0 SET_DEVICE_STATUS? ACKNOWLEDGE
 *     +0.013391 <- dev 0 SET_DEVICE_STATUS = ACKNOWLEDGE   184 us
 *     +0.014102 dev 0 queue 1: notifications out of band
 *
 * The arrow is seen from the process that prints: `->` was sent, `<-` was received. Time counts from
 * the start of the trace.
 */

import type { Clock } from "../linux/clock.ts";
import { describe } from "../message/text.ts";
import { isBusMessage } from "../message/table.ts";
import { Kind, type Message } from "../message/message.ts";

/** Sent or received, as seen by this process. */
export type Direction = "->" | "<-";

/**
 * Sees every message of a process, as words and as bytes: the bytes are the `length` of `view` from
 * `offset`. They are those of a slot, which holds another message soon, and of one that was sent may lie in
 * memory that the peer writes: a tracer copies what it keeps, and believes only the words.
 */
export interface Tracer {
  /** A message about to be sent, or one that was received and understood; `length` is its own. */
  message(
    direction: Direction,
    message: Message,
    view: DataView,
    offset: number,
    length: number,
  ): void;
  /** A received slot that the codec did not understand, with the reason; `length` is the slot's. */
  malformed(view: DataView, offset: number, length: number, reason: string): void;
  /** What no message shows. */
  note(line: string): void;
}

/** Requests whose answers are awaited; more are forgotten, a peer may never answer. */
const MAX_OPEN = 256;

/** HELLO comes ten times a second; only those of an attachment's beginning are worth a line. */
const SHOWN_HELLOS = 4;

/** Bytes of a slot that was not understood that a line shows. */
const SHOWN_BYTES = 16;

/**
 * A tracer that writes lines.
 *
 * @param clock the reactor
 */
export function createTracer(write: (line: string) => void, clock: Pick<Clock, "now">): Tracer {
  const startMs = clock.now();
  const open = new Map<number, number>();
  let hellos = 0;
  const stamp = () => `+${((clock.now() - startMs) / 1000).toFixed(6)}`;
  return {
    message(direction, message) {
      if (message.kind === Kind.HELLO && ++hellos > SHOWN_HELLOS) return;
      if (message.kind === Kind.GET_DEVICE_INFO) hellos = 0;
      const key = (message.token * 64 + message.kind) * 65536 + message.device;
      let latency = "";
      if (message.response) {
        const sentMs = open.get(key);
        open.delete(key);
        if (sentMs !== undefined) {
          latency = `   ${Math.round((clock.now() - sentMs) * 1000)} us`;
        }
      } else {
        if (open.size >= MAX_OPEN) open.clear();
        open.set(key, clock.now());
      }
      const about = isBusMessage(message.kind) ? "bus  " : `dev ${message.device}`;
      write(`${stamp()} ${direction} ${about} ${describe(message)}${latency}`);
    },
    malformed(view, offset, length, reason) {
      const shown = { length: Math.min(length, SHOWN_BYTES) };
      const bytes = Array.from(shown, (_, i) => view.getUint8(offset + i));
      const hex = bytes.map((b) => b.toString(16).padStart(2, "0")).join(" ");
      write(`${stamp()} <- not understood (${reason}): ${hex} ...`);
    },
    note: (line) => write(`${stamp()} ${line}`),
  };
}
