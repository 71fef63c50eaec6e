/**
 * `--trace`: every message as a line, with time, direction, device and, on an answer, how long it took.
 *
 *     +0.013207 -> dev 0 SET_DEVICE_STATUS? ACKNOWLEDGE
 *     +0.013391 <- dev 0 SET_DEVICE_STATUS = ACKNOWLEDGE   184 us
 *     +0.014102 dev 0 queue 1: notifications out of band
 *
 * The arrow is seen from the process that prints: `->` was sent, `<-` was received. Time counts from
 * the start of the trace. Where other lines are between an answer and its request, the answer says when that was:
 * `184 us after +0.013207`. As JSON a line is an object, see {@link jsonLine}; there each message has a number, and an
 * answer names its request's.
 */

import type { Clock } from "../linux/clock.ts";
import { codecFor } from "../message/codecs.ts";
import { Kind, MAX_MESSAGE, type Message } from "../message/message.ts";
import { isBusMessage, MESSAGES } from "../message/table.ts";
import { describe, fieldsOf } from "../message/text.ts";
import { parseTraceFilter } from "./trace_filter.ts";

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

/** How lines are written. */
export type TraceFormat = "text" | "json";
/** All of them. */
export const TRACE_FORMATS: readonly TraceFormat[] = ["text", "json"];

/** What is traced, and how. */
export interface TraceOptions {
  /** What is shown (trace_filter.ts); all unless given, but each HELLO only if it names them. */
  readonly filter?: string | undefined;
  /** Text unless given. */
  readonly format?: TraceFormat | undefined;
  /** In front of each line, where several buses are in one trace. */
  readonly bus?: string | undefined;
  /** When time began; now unless given. */
  readonly startMs?: number | undefined;
}

/** A tracer that writes lines. */
export interface LineTracer extends Tracer {
  /** Says which requests were not answered so far. */
  unanswered(): void;
}

/** Requests whose answers are awaited; more are forgotten, a peer may never answer. */
const MAX_OPEN = 256;
/** There are fewer kinds of messages than 64, and 65536 devices. */
const SORTS = 64 * 65536 * 2;
/** HELLO comes ten times a second; only those of an attachment's beginning are worth a line. */
const SHOWN_HELLOS = 4;
/** Bytes of a slot that was not understood that a line shows. */
const SHOWN_BYTES = 16;

/** A request that is not answered yet. */
interface Open {
  /** Kind, device and direction as a number. */
  readonly sort: number;
  readonly number: number;
  readonly ms: number;
  /** Direction, device and what was said, for people. */
  readonly text: string;
}

const stampOf = (ms: number) => `+${(ms / 1000).toFixed(6)}`;
const microseconds = (ms: number) => Math.round(ms * 1000);

/** What a message says by name, as JSON. */
function objectOf(message: Message) {
  const { kind, device, token, dialect, response } = message;
  const { name, event, bus } = MESSAGES[kind];
  const sort = response ? "answer" : event ? "event" : "request";
  const fields = fieldsOf(message);
  return { device: bus ? undefined : device, message: name, sort, dialect, token, fields };
}

/**
 * A tracer that writes lines: text, or objects of JSON with seconds since the start, what the table of messages calls
 * things, and the words of the text. There an answer has `latency`, in microseconds, and `request`, the number of the
 * message that it answers.
 *
 * @param clock the reactor
 */
export function createTracer(
  write: (line: string) => void,
  clock: Pick<Clock, "now">,
  options: TraceOptions = {},
): LineTracer {
  const { filter: wanted = "", format = "text", bus, startMs = clock.now() } = options;
  const filter = parseTraceFilter(wanted);
  const isHeartbeatShown = /hello/i.test(wanted);
  const isJson = format === "json";
  const open = new Map<number, Open>();
  const deviceIds = new Map<number, number>();
  let hellos = 0;
  let number = 0;
  const line = (nowMs: number, text: string, rest: Record<string, unknown>) => {
    const time = microseconds(nowMs - startMs) / 1e6;
    const front = bus === undefined ? "" : `${bus} `;
    write(
      isJson ? JSON.stringify({ time, bus, ...rest }) : `${stampOf(1000 * time)} ${front}${text}`,
    );
  };
  /** The request that an answer belongs to; a request itself is kept until its answer comes. */
  const requestOf = (direction: Direction, message: Message, nowMs: number, text: string) => {
    const { kind, device, token, response, dialect } = message;
    const isAnswered = dialect === undefined || codecFor(dialect, MAX_MESSAGE).answered(kind);
    if (MESSAGES[kind].event || !isAnswered) return undefined;
    // Both sides may ask the same.
    const isOurs = (direction === "->") !== response;
    const sort = (kind * 65536 + device) * 2 + (isOurs ? 1 : 0);
    const key = token * SORTS + sort;
    const found = open.get(key);
    open.delete(key);
    if (response) {
      // What was asked before the same was asked again and answered, is not waited for any more.
      for (const [other, { sort: same, number }] of open) {
        if (found !== undefined && same === sort && number < found.number) open.delete(other);
      }
      return found;
    }
    if (open.size >= MAX_OPEN) open.clear();
    open.set(key, { sort, number, ms: nowMs, text });
    return undefined;
  };
  return {
    message(direction, message) {
      const { kind, device, response } = message;
      const nowMs = clock.now();
      number++;
      if (kind === Kind.GET_DEVICE_INFO) {
        hellos = 0;
        if (response) deviceIds.set(device, message.deviceId);
      }
      const isBus = isBusMessage(kind);
      const deviceId = isBus ? undefined : deviceIds.get(device);
      const isShown = filter({ message, deviceId });
      if (!isShown && MESSAGES[kind].event) return;
      const words = describe(message, deviceId);
      const text = `${direction} ${isBus ? "bus  " : `dev ${device}`} ${words}`;
      const request = requestOf(direction, message, nowMs, text);
      if (kind === Kind.HELLO && ++hellos > SHOWN_HELLOS && !isHeartbeatShown) return;
      if (!isShown) return;
      const latency = request && microseconds(nowMs - request.ms);
      const isNext = request?.number === number - 1;
      const after = request && !isNext ? ` after ${stampOf(request.ms - startMs)}` : "";
      line(
        nowMs,
        text + (latency === undefined ? "" : `   ${latency} us${after}`),
        isJson
          ? { number, direction, ...objectOf(message), words, latency, request: request?.number }
          : {},
      );
    },
    malformed(view, offset, length, reason) {
      if (!filter({ message: undefined, sort: "malformed", deviceId: undefined })) return;
      const hex = Array.from(
        { length },
        (_, i) => view.getUint8(offset + i).toString(16).padStart(2, "0"),
      );
      const text = `<- not understood (${reason}): ${hex.slice(0, SHOWN_BYTES).join(" ")} ...`;
      line(clock.now(), text, { malformed: reason, bytes: hex.join("") });
    },
    note(text) {
      if (!filter({ message: undefined, sort: "note", deviceId: undefined })) return;
      line(clock.now(), text, { note: text });
    },
    unanswered() {
      for (const { ms, text, number } of open.values()) {
        const when = stampOf(ms - startMs);
        line(clock.now(), `not answered: ${when} ${text}`, { unanswered: number });
      }
    },
  };
}

/** One tracer for two. */
export function bothTracers(one: Tracer, other: Tracer): Tracer {
  return {
    message: (...seen) => [one, other].forEach((tracer) => tracer.message(...seen)),
    malformed: (...seen) => [one, other].forEach((tracer) => tracer.malformed(...seen)),
    note: (line) => [one, other].forEach((tracer) => tracer.note(line)),
  };
}
