/**
 * Ways of being wrong: what one of our own sides says is changed by a relay. With each go the rules, or fault modes,
 * that must find it, in every dialect in which it can be said.
 */

import type { Dialect } from "../../src/message/codec.ts";
import { DIALECTS, type Kind, Message } from "../../src/message/message.ts";
import { codecFor } from "../../src/message/codecs.ts";
import type { RuleSide } from "../../src/check/rules.ts";
import type { Change, From, Way } from "./relay.ts";
import { ruleOf } from "./wording.ts";

type Make = (way: Way) => Change;

/** One way of being wrong. */
export interface Fault {
  readonly what: string;
  /** Numbers of the rules, and fault modes, that must find it. */
  readonly breaks: readonly string[];
  /** Where it is one: what is changed looks so in these. */
  readonly dialects: readonly Dialect[];
  /** A fresh one for each rule. */
  readonly change: Make;
  /** It is found without a hand on the driver side. */
  readonly unled: boolean;
}

interface How {
  readonly change: Make;
  /**
   * Unless given, both forms of revision 1, and what has no tokens. What is of `v1-2025` alone is of these as well.
   */
  readonly in?: readonly Dialect[];
  readonly unled?: boolean;
}

export const REVISION_1: readonly Dialect[] = ["v1", "v1-2025"];
export const PROTO: readonly Dialect[] = ["proto"];
export const ALL: readonly Dialect[] = DIALECTS;

export function fault(breaks: string, what: string, how: How): Fault {
  const { change, in: dialects = REVISION_1, unled = false } = how;
  const isOfRevision1 = how.in === undefined || `${how.in}` === "v1-2025";
  return {
    ...{ breaks: breaks.split(" "), what, unled },
    change: isOfRevision1 ? withTokens(change) : change,
    dialects: isOfRevision1 ? [...dialects, ...WITHOUT_TOKENS] : dialects,
  };
}

/** What it has that `v1-2025` has not are two bytes less, and four less in what says where a queue is (docs/wire.md 3.8). */
const WITHOUT_TOKENS: readonly Dialect[] = ["rfc", "rfc-q"];
/** Where in those the word is, in front of the areas. */
const WORD_AT = 20;

function saysAreas([type, id]: Uint8Array): boolean {
  return (type! & 2) === 0 && id === ((type! & 1) === 1 ? Id.GET_QUEUE : Id.SET_QUEUE);
}

/** The same in `v1-2025`, with token 0, and longer by as much. */
function widened(bytes: Uint8Array): Uint8Array {
  const wide = new Uint8Array(bytes.length + 8);
  wide.set(bytes.subarray(0, 4));
  wide.set(bytes.subarray(4), 6);
  const more = saysAreas(bytes) ? 4 : 0;
  if (more > 0) {
    wide.copyWithin(WORD_AT + more, WORD_AT, wide.length);
    wide.fill(0, WORD_AT, WORD_AT + more);
  }
  const view = viewOf(wide);
  view.setUint16(6, view.getUint16(6, true) + 2 + more, true);
  return wide;
}

function narrowed(wide: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(64);
  const more = saysAreas(wide) ? 4 : 0;
  bytes.set(wide.subarray(0, 4));
  bytes.set(wide.subarray(6, WORD_AT), 4);
  bytes.set(wide.subarray(WORD_AT + more, 66 + more), WORD_AT - 2);
  const view = viewOf(bytes);
  view.setUint16(4, Math.max(viewOf(wide).getUint16(6, true) - 2 - more, 0), true);
  return bytes;
}

/** A change of what `v1-2025` looks like, of what has no tokens as well. */
function withTokens(make: Make): Make {
  return (way) => {
    if (!WITHOUT_TOKENS.includes(way.codec.dialect)) return make(way);
    const say = (from: From, bytes: Uint8Array) => way.say(from, narrowed(bytes));
    const change = make({ ...way, codec: codecFor("v1-2025"), say });
    return (from, bytes) => change(from, widened(bytes)).map(narrowed);
  };
}

/** Which of its rules must find it there. */
export function brokenIn(fault: Fault, side: RuleSide, dialect: Dialect): readonly string[] {
  if (!fault.dialects.includes(dialect)) return [];
  return fault.breaks.filter((number) => ruleOf(number, side).dialects.includes(dialect));
}

/** Ids of revision 1. */
export const Id = {
  INFO: 0x02,
  GET_FEATURES: 0x03,
  SET_FEATURES: 0x04,
  GET_CONFIG: 0x05,
  SET_CONFIG: 0x06,
  GET_STATUS: 0x07,
  SET_STATUS: 0x08,
  GET_QUEUE: 0x09,
  SET_QUEUE: 0x0a,
  RESET_QUEUE: 0x0b,
  GET_SHM: 0x0c,
  EVENT_CONFIG: 0x40,
  EVENT_AVAIL: 0x41,
  EVENT_USED: 0x42,
} as const;
export const PING = 0x203;
export const GET_DEVICES = 0x202;
export const EVENT_DEVICE = 0x240;
export const NOBODY = 0xfffe;

export type Edit = (view: DataView, bytes: Uint8Array) => void;

/** Class and id: bus messages from 0x200 on. */
export const idOf = (bytes: Uint8Array) => bytes[1]! | (bytes[0]! & 2) << 8;
export const isAnswer = (bytes: Uint8Array) => (bytes[0]! & 1) !== 0;
export const viewOf = (bytes: Uint8Array) => new DataView(bytes.buffer);

/** A message of 64 bytes to or from device 3. */
export function message(...bytes: number[]): Uint8Array {
  const slot = new Uint8Array(64);
  slot.set(bytes);
  return slot;
}

/** Changes what one side says, if it is one of these. */
export function edit(from: From, ids: readonly number[] | "all", change: Edit): () => Change {
  return () => (who, bytes) => {
    const isIt = who === from && (ids === "all" || ids.includes(idOf(bytes)));
    if (isIt) change(viewOf(bytes), bytes);
    return [bytes];
  };
}

/** As {@link edit}, of what has answer's bit. */
export const editAnswer = (id: number, change: Edit) =>
  edit("device", [id], (view, bytes) => {
    if (isAnswer(bytes)) change(view, bytes);
  });

/** One side does not say these. */
export const omit =
  (from: From, which: (bytes: Uint8Array) => boolean) => (): Change => (who, bytes) =>
    who === from && which(bytes) ? [] : [bytes];

/** One side says more: beside each of these, what is made of it. */
export const add = (
  from: From,
  which: (bytes: Uint8Array, view: DataView) => boolean,
  make: (bytes: Uint8Array) => Uint8Array,
  where: "before" | "behind" = "behind",
) =>
(): Change =>
(who, bytes) => {
  if (who !== from || !which(bytes, viewOf(bytes))) return [bytes];
  return where === "before" ? [make(bytes), bytes] : [bytes, make(bytes)];
};

/** What the other side says leads this side to say something, with the next thing that it says. */
export const react = (
  from: From,
  to: (bytes: Uint8Array) => boolean,
  make: (bytes: Uint8Array) => Uint8Array,
) =>
(): Change => {
  const waiting: Uint8Array[] = [];
  return (who, bytes) => {
    if (who === from) return [bytes, ...waiting.splice(0)];
    if (to(bytes)) waiting.push(make(bytes.slice()));
    return [bytes];
  };
};

export const answerTo = (bytes: Uint8Array) => {
  bytes[0]! |= 1;
  return bytes;
};
export const is = (id: number) => (bytes: Uint8Array) => idOf(bytes) === id;
export const status = (value: number) => (bytes: Uint8Array) =>
  idOf(bytes) === Id.SET_STATUS && bytes[8] === value;
export const knownIds = new Set<number>([...Object.values(Id), PING, GET_DEVICES]);

/** What the bytes say, in any dialect; undefined if that is nothing. */
export function said({ codec }: Way, bytes: Uint8Array): Message | undefined {
  const message = new Message();
  return codec.decode(viewOf(bytes), 0, message) === undefined ? message : undefined;
}

/** Changes what one side says, in any dialect: its answer to a request of that kind, or a request or an event. */
export const sayOtherwise =
  (from: From, kind: Kind, change: (message: Message) => void): Make => (way) => (who, bytes) => {
    const message = who === from ? said(way, bytes) : undefined;
    if (message?.kind !== kind || message.response !== (from === "device" && kind < 11)) {
      return [bytes];
    }
    change(message);
    way.codec.encode(message, viewOf(bytes), 0);
    return [bytes];
  };

/** From some message on nothing passes in either direction. */
export const gone =
  (when: (way: Way) => (from: From, message: Message) => boolean): Make => (way) => {
    let isGone = false;
    const isOver = when(way);
    return (from, bytes) => {
      const message = said(way, bytes);
      isGone ||= message !== undefined && isOver(from, message);
      return isGone ? [] : [bytes];
    };
  };
