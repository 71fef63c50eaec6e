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
export function zeros(bytes: Uint8Array, from: number): boolean {
  return bytes.subarray(from).every((byte) => byte === 0);
}

type Look = (heard: Heard, talk: Conversation) => boolean;

/** Ids of the prototype's events. */
const isProtoEvent = (id: number) => id >= 0x10 && id <= 0x12;
const paddingIsZero: Look = ({ bytes, message, malformed }) =>
  malformed !== undefined || zeros(bytes, message.size);

/** Rules by number: is it so of this message? */
const LOOKS: Readonly<Record<string, Look>> = {
  G2: ({ message, malformed }, { codec }) => {
    const { size } = message;
    const slot = new DataView(new ArrayBuffer(codec.slotSize));
    return malformed === undefined && size === codec.encode(message, slot, 0);
  },
  G3: ({ bytes }, { codec }) => u16(bytes, 6) <= codec.maxSize,
  G4: ({ bytes }) => bytes[0]! <= 3,
  G6: paddingIsZero,
  G7: ({ message }, { device }) => message.device === (isBusMessage(message.kind) ? 0 : device),
  G9: ({ message }, { codec }) => codec.answered(message.kind) || message.token === 0,
  G16: ({ malformed }) => malformed === undefined,
  B16: paddingIsZero,
  P3: ({ bytes, message }) =>
    bytes[0] === (message.response ? 1 : 0) && !(message.response && isProtoEvent(bytes[1]!)),
};

/** All that was heard must keep the rule. */
export function lookOn(talk: Conversation, number: string): void {
  const isSo = LOOKS[number]!;
  for (const heard of talk.heard) {
    expect(isSo(heard, talk), `this message is not so: ${heard.bytes.toHex()}`);
  }
}
