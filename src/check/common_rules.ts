/**
 * Rules that say the same to both sides: what must be so of every message that comes ({@link lookOn}), and
 * bodies that want no more of a role than that it can lead its peer to speak ({@link Asker}).
 */

import { Kind } from "../message/message.ts";
import { isBusMessage } from "../message/table.ts";
import type { Dialogue, Heard } from "./dialogue.ts";
import { expect, expectSame } from "./outcome.ts";

/** Bytes of a message of the prototype. */
const PROTO_SIZE = 40;
/** The prototype's IOMMU_TRANSLATE, which is for drivers, and IOMMU_INVALIDATE, which nobody sends. */
const [PROTO_TRANSLATE, PROTO_INVALIDATE] = [0x21, 0x22];

/** 32 bits, little-endian. */
export function u32(bytes: Uint8Array, at: number): number {
  return new DataView(bytes.buffer).getUint32(at, true);
}

/** Is all of it zero from there on? */
export function zeros(bytes: Uint8Array | Uint32Array, from: number): boolean {
  return bytes.subarray(from).every((byte) => byte === 0);
}

type Look = (heard: Heard, talk: Dialogue) => boolean;

const paddingIsZero: Look = ({ bytes, message, malformed }) =>
  malformed !== undefined || zeros(bytes, message.size);
const isOfItsDevice: Look = ({ message }, { device }) =>
  message.device === (isBusMessage(message.kind) ? 0 : device);
const hasItsSize: Look = ({ message }, { codec }) =>
  message.size === codec.encode(message, new DataView(new ArrayBuffer(codec.slotSize)), 0);

/** Where a message has a reserved word that is sent as 0: SET_VQUEUE, and the answers with them. */
function reservedWord({ kind, response }: Heard["message"], isV1: boolean): readonly number[] {
  if (kind === Kind.SET_VQUEUE && !response) return isV1 ? [20] : [12, 20];
  if (kind === Kind.GET_VQUEUE && response) return isV1 ? [] : [20];
  return kind === Kind.GET_SHM && response && isV1 ? [12] : [];
}

/** From where on the prototype's messages hold nothing, as far as they are looked at. */
function protoEnd({ kind, response }: Heard["message"]): number {
  if (kind === Kind.GET_VQUEUE && response) return 12;
  const isEmpty = kind === Kind.GET_DEVICE_STATUS || kind === Kind.GET_DEVICE_INFO;
  return isEmpty && !response ? 4 : PROTO_SIZE;
}

/** Rules by number: is it so of this message? */
const LOOKS: Readonly<Record<string, Look>> = {
  G1: ({ bytes }) => bytes[7] === 0,
  G2: hasItsSize,
  G3: ({ message }, { codec }) => message.size <= codec.maxSize,
  G4: ({ bytes }) => bytes[0]! <= 3,
  G5: ({ bytes, message }, { codec }) =>
    reservedWord(message, codec.dialect === "v1").every((at) => u32(bytes, at) === 0),
  G6: paddingIsZero,
  G7: isOfItsDevice,
  G9: ({ message }, { codec }) => codec.answered(message.kind) || message.token === 0,
  G10: isOfItsDevice,
  G19: hasItsSize,
  G22: ({ message }, { codec }) => codec.answered(message.kind) || !message.response,
  V28: isOfItsDevice,
  B16: paddingIsZero,
  P3: ({ bytes, message }) => bytes[0] === (message.response ? 1 : 0),
  P7: ({ bytes, message }) => zeros(bytes.subarray(0, PROTO_SIZE), protoEnd(message)),
  P10: ({ bytes }, { bus }) =>
    bytes[1] !== (bus.side === "driver" ? PROTO_INVALIDATE : PROTO_TRANSLATE),
};

/** All that was heard means something, and keeps the rule, if looking on is of any use to it. */
export function lookOn(talk: Dialogue, rule: string): void {
  for (const one of talk.heard) {
    const { malformed, bytes } = one;
    expect(malformed === undefined, `a message that is none, ${malformed}: ${bytes.toHex()}`);
    expect(LOOKS[rule]?.(one, talk) ?? true, `this message is not so: ${bytes.toHex()}`);
  }
}

/** Messages by their bytes, for a device number's two. */
export type Messages = (number: readonly number[]) => readonly (readonly number[])[];

/** Who asks for one rule, in either role, by a body that may cover several. */
export abstract class Asker {
  /** @param rule the number of the one that is asked for */
  constructor(readonly rule: string, readonly talk: Dialogue) {}

  /** Makes sure that the peer is in the state that a body finds. */
  async begin(): Promise<void> {}

  /** Leads the peer to say what such a peer says. */
  abstract converse(): Promise<void>;
  /** Sends messages that the peer must not answer, and that must not change anything. */
  abstract unheeded(what: string, messages: Messages): Promise<void>;
  /** A PING must be answered. */
  abstract ping(data: number): Promise<void>;

  /** Two values that must be the same by these rules, if the one that is asked for is among them. */
  claim(rules: string, actual: unknown, expected: unknown, what: string): void {
    if (rules.split(" ").includes(this.rule)) expectSame(actual, expected, what);
  }

  /** {@link unheeded}, of a number in its two bytes. */
  protected puts(messages: Messages, device: number): void {
    for (const bytes of messages([device & 0xff, device >> 8])) this.talk.put(bytes);
  }
}

/** Bodies by the numbers of the rules that they ask for. */
export type Bodies<Role> = Readonly<Record<string, (role: Role) => Promise<void>>>;

/** The same by one number each. */
export function byRule<Role>(bodies: Bodies<Role>): Bodies<Role> {
  return Object.fromEntries(
    Object.entries(bodies).flatMap(([rules, body]) => rules.split(" ").map((rule) => [rule, body])),
  );
}

const unheeded = (what: string, messages: Messages) => (asker: Asker) =>
  asker.unheeded(what, messages);

/** Bodies for both roles. */
export const COMMON_BODIES: Bodies<Asker> = byRule({
  "G1 G2 G3 G5 G9 G16 V28 B16": (asker) => asker.converse(),
  async G7(asker) {
    await asker.converse();
    await asker.ping(7);
  },
  G14: unheeded("a message that is none", (n) => [
    [0, 0x3f, ...n, 1, 0, 8, 0],
    [2, 0x3f, 0, 0, 1, 0, 8, 0],
    [0, 0x02, ...n, 1, 0, 7, 0],
    [0, 0x02, ...n, 1, 0, 0xff, 0xff],
    [0, 0x0a, ...n, 1, 0, 47, 0],
    [0, 0x04, ...n, 1, 0, 20, 0, 0, 0, 0, 0, 2, 0, 0, 0],
    [0, 0x06, ...n, 1, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0],
  ]),
  G15: unheeded("an event", (n) => [
    [0, 0x41, ...n, 0, 0, 15, 0, 1],
    [0, 0x41, ...n, 7, 0, 16, 0, 0xff, 0xff, 0xff, 0xff],
    [0, 0x42, ...n, 0, 0, 11, 0, 1],
    [0, 0x42, ...n, 7, 0, 12, 0, 0xff, 0xff, 0xff, 0xff],
    [0, 0x40, ...n, 0, 0, 8, 0],
  ]),
  // A driver that took one for an event would reset a device that says NEEDS_RESET.
  G22: unheeded("an event with an answer's bit", (n) => [
    [1, 0x40, ...n, 0, 0, 24, 0, 0x4f],
    [1, 0x41, ...n, 0, 0, 16, 0],
    [1, 0x42, ...n, 0, 0, 12, 0],
  ]),
  G17: unheeded("an implementation's own id", (n) =>
    [0x89, 0xbf, 0xc1, 0xff].flatMap((id) => [
      [0, id, ...n, 1, 0, 8, 0],
      [2, id, 0, 0, 1, 0, 8, 0],
    ])),
  async "G10 B12"(asker) {
    for (const data of [0, 0xcafe_f00d, 0xffff_ffff]) await asker.ping(data);
  },
});
