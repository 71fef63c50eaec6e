/** What is true of every message of a peer, whichever side it is: rules that are checked by looking on. */

import { isBusMessage } from "../message/table.ts";
import type { Conversation, Heard } from "./conversation.ts";
import { expect } from "./outcome.ts";

/** 16 bits, little-endian. */
export function u16(bytes: Uint8Array, at: number): number {
  return bytes[at]! | bytes[at + 1]! << 8;
}

/** 32 bits, little-endian. */
export function u32(bytes: Uint8Array, at: number): number {
  return (u16(bytes, at) | u16(bytes, at + 2) << 16) >>> 0;
}

/** Is all of it zero from there on? */
export function zeros(bytes: Uint8Array | Uint32Array, from: number): boolean {
  return bytes.subarray(from).every((byte) => byte === 0);
}

type Look = (heard: Heard, talk: Conversation) => boolean;

/** Ids of the prototype's events. */
const isProtoEvent = (id: number) => id >= 0x10 && id <= 0x12;
const paddingIsZero: Look = ({ bytes, message, malformed }) =>
  malformed !== undefined || zeros(bytes, message.size);
const isOfItsDevice: Look = ({ message }, { device }) =>
  message.device === (isBusMessage(message.kind) ? 0 : device);
const hasItsSize: Look = ({ message, malformed }, { codec }) => {
  const { size } = message;
  const slot = new DataView(new ArrayBuffer(codec.slotSize));
  return malformed === undefined && size === codec.encode(message, slot, 0);
};

/** Rules by number: is it so of this message? */
const LOOKS: Readonly<Record<string, Look>> = {
  G2: hasItsSize,
  G3: ({ bytes }, { codec }) => u16(bytes, 6) <= codec.maxSize,
  G4: ({ bytes }) => bytes[0]! <= 3,
  G6: paddingIsZero,
  G7: isOfItsDevice,
  V28: isOfItsDevice,
  G9: ({ message }, { codec }) => codec.answered(message.kind) || message.token === 0,
  G16: ({ malformed }) => malformed === undefined,
  G19: hasItsSize,
  B16: paddingIsZero,
  P3: ({ bytes, message }) =>
    bytes[0] === (message.response ? 1 : 0) && !(message.response && isProtoEvent(bytes[1]!)),
};

/** Messages that are none, to or from a device of that number. */
export const NONSENSE = (n: readonly number[]): number[][] => [
  [0, 0x3f, ...n, 1, 0, 8, 0],
  [2, 0x3f, 0, 0, 1, 0, 8, 0],
  [0, 0x02, ...n, 1, 0, 7, 0],
  [0, 0x02, ...n, 1, 0, 0xff, 0xff],
  [0, 0x0a, ...n, 1, 0, 47, 0],
  [0, 0x04, ...n, 1, 0, 20, 0, 0, 0, 0, 0, 2, 0, 0, 0],
  [0, 0x06, ...n, 1, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0],
];

/** Events that are wrong, and events that the other side sends. */
export const WRONG_EVENTS = (n: readonly number[]): number[][] => [
  [0, 0x41, ...n, 0, 0, 15, 0, 1],
  [0, 0x41, ...n, 7, 0, 16, 0, 0xff, 0xff, 0xff, 0xff],
  [0, 0x42, ...n, 0, 0, 11, 0, 1],
  [0, 0x42, ...n, 7, 0, 12, 0, 0xff, 0xff, 0xff, 0xff],
  [0, 0x40, ...n, 0, 0, 8, 0],
  [1, 0x41, ...n, 0, 0, 16, 0],
];

/** Ids that are an implementation's own, and none of vmsg's. */
export const FOREIGN_IDS = (n: readonly number[]): number[][] =>
  [0x89, 0xbf, 0xc1, 0xff].flatMap((id) => [
    [0, id, ...n, 1, 0, 8, 0],
    [2, id, 0, 0, 1, 0, 8, 0],
  ]);

/** All that was heard must keep the rule, if looking on is of any use to it. */
export function lookOn(talk: Conversation, rule: string): void {
  const isSo = LOOKS[rule] ?? (() => true);
  for (const heard of talk.heard) {
    expect(isSo(heard, talk), `this message is not so: ${heard.bytes.toHex()}`);
  }
}
