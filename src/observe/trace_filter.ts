/**
 * What of a trace is shown, as in `--trace net0,!event`.
 *
 * A filter is a list of terms with commas. A term says either whom a message is about or what it is:
 *
 *     0, dev0          the device with that number
 *     net, net0        devices of that kind, the device with that number if it is of that kind
 *     bus              what is about the bus and no device
 *     request, answer, event, private (between two vmsg processes), bridge (a kernel's own), malformed, note
 *     SET_VQUEUE       messages of that name, request and answer; with `*` for any letters: GET_*
 *
 * Shown is what one of the first sort and one of the second say, where there are any of that sort; and never what a
 * term behind a `!` says. What kind a device is tells its answer to GET_DEVICE_INFO: before, it may be any.
 */

import { UsageError } from "../linux/errors.ts";
import { isOfBridge } from "../message/bridge_messages.ts";
import { Kind, type Message } from "../message/message.ts";
import { isPrivate } from "../message/private.ts";
import { isBusMessage, kindName, MESSAGES } from "../message/table.ts";
import { DEVICE_KINDS } from "../message/text.ts";

/** What may be shown or not. */
export interface Shown {
  /** The message; undefined for what is none. */
  readonly message: Message | undefined;
  /** What it is, if it is no message. */
  readonly sort?: "malformed" | "note";
  /** The device's id (1 = net), if it is known. */
  readonly deviceId: number | undefined;
}

/** Tells whether something is shown. */
export type TraceFilter = (shown: Shown) => boolean;

type Term = TraceFilter;

/** Messages that name the device they are about in their payload. */
function deviceOf(message: Message): number | undefined {
  if (!isBusMessage(message.kind)) return message.device;
  switch (message.kind) {
    case Kind.ADD_MEMORY:
    case Kind.REMOVE_MEMORY:
    case Kind.STOP_VQUEUE:
    case Kind.SET_VQUEUE_STATE:
    case Kind.SET_NOTIFIER:
      return message.response ? undefined : message.memoryDevice;
    case Kind.EVENT_DEVICE:
    case Kind.TOPOLOGY_DEV_ADD:
      return message.number;
    default:
      return undefined;
  }
}

const SORTS: Readonly<Record<string, Term>> = {
  request: ({ message }) => message !== undefined && !message.response && !isEvent(message),
  answer: ({ message }) => message?.response === true,
  event: ({ message }) => message !== undefined && isEvent(message),
  private: ({ message }) => message !== undefined && isPrivate(message.kind),
  bridge: ({ message }) => message !== undefined && isOfBridge(message.kind),
  malformed: ({ sort }) => sort === "malformed",
  note: ({ sort }) => sort === "note",
};

function isEvent({ kind }: Message): boolean {
  return MESSAGES[kind].event;
}

function whom(term: string): Term | undefined {
  if (term === "bus") {
    return ({ message }) => message !== undefined && deviceOf(message) === undefined;
  }
  const [, kind = "", digits = ""] = /^(9p|[a-z]*)([0-9]*)$/.exec(term) ?? [];
  const isAny = kind === "dev" || (kind === "" && digits !== "");
  const isKind = [...DEVICE_KINDS.values()].includes(kind);
  if (!(isAny && digits !== "") && !isKind) return undefined;
  return ({ message, deviceId }) => {
    const device = message && deviceOf(message);
    if (device === undefined || (digits !== "" && device !== Number(digits))) return false;
    return isAny || deviceId === undefined || DEVICE_KINDS.get(deviceId) === kind;
  };
}

function what(term: string): Term {
  const sort = Object.hasOwn(SORTS, term) ? SORTS[term] : undefined;
  if (sort !== undefined) return sort;
  const pattern = /^[a-z_*]+$/i.test(term) ? term.toUpperCase().replaceAll("*", ".*") : "";
  const name = new RegExp(`^${pattern}$`);
  if (pattern === "" || !MESSAGES.some((each) => name.test(each.name))) {
    throw new UsageError(
      `trace filter: ${term} is no device (0, net0, net), no sort (${
        Object.keys(SORTS).join(", ")
      }, bus) and no message (SET_VQUEUE, GET_*)`,
    );
  }
  return ({ message }) => message !== undefined && name.test(kindName(message.kind));
}

/** Parses a filter; "" shows all. */
export function parseTraceFilter(text: string): TraceFilter {
  const about: Term[] = [];
  const sorts: Term[] = [];
  const never: Term[] = [];
  for (const part of text === "" ? [] : text.split(",")) {
    const term = part.replace(/^!/, "");
    const device = whom(term);
    const list = part.startsWith("!") ? never : device !== undefined ? about : sorts;
    list.push(device ?? what(term));
  }
  return (shown) => {
    const isOne = (terms: readonly Term[]) => terms.some((term) => term(shown));
    return [about, sorts].every((terms) => terms.length === 0 || isOne(terms)) && !isOne(never);
  };
}
