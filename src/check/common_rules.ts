/**
 * Rules that say the same to both sides: what must be so of every message that comes ({@link lookOn}), and
 * bodies that want no more of a role than that it can lead its peer to speak ({@link Asker}).
 */

import { isBusMessage } from "../message/table.ts";
import type { Dialogue, Heard } from "./dialogue.ts";
import { expect } from "./outcome.ts";
import type { Asker } from "./roles.ts";

/** The prototype's IOMMU_TRANSLATE, which is for drivers, and IOMMU_INVALIDATE, which nobody sends. */
const [PROTO_TRANSLATE, PROTO_INVALIDATE] = [0x21, 0x22];

export function zeros(bytes: Uint8Array | Uint32Array, from: number): boolean {
  return bytes.subarray(from).every((byte) => byte === 0);
}

type Look = (heard: Heard, talk: Dialogue) => boolean;

const paddingIsZero: Look = ({ bytes, message }) => zeros(bytes, message.size);
const isOfItsDevice: Look = ({ message }, { device }) =>
  message.device === (isBusMessage(message.kind) ? 0 : device);
const hasItsSize: Look = ({ message }, { codec }) =>
  message.size === codec.encode(message, new DataView(new ArrayBuffer(codec.slotSize)), 0);

/** What has no meaning is 0: written anew, it is the same. */
const saysNoMore: Look = ({ bytes, message }, { codec }) => {
  const anew = new Uint8Array(codec.slotSize);
  const size = codec.encode(message, new DataView(anew.buffer), 0);
  return message.mustBeZero === 0 && bytes.subarray(0, size).every((byte, i) => byte === anew[i]);
};

/** Rules by number: is it so of this message? */
const LOOKS: Readonly<Record<string, Look>> = {
  // No size is above 255, so its high byte is 0, and behind the low one.
  G1: ({ bytes }, { codec }) => bytes[codec.headerSize - 1] === 0,
  G2: hasItsSize,
  G3: ({ message }, { codec }) => message.size <= codec.maxSize,
  G4: ({ bytes }) => bytes[0]! <= 3,
  G5: saysNoMore,
  G6: paddingIsZero,
  G7: isOfItsDevice,
  G9: ({ message }, { codec }) => codec.answered(message.kind) || message.token === 0,
  G10: isOfItsDevice,
  G19: hasItsSize,
  G22: ({ message }, { codec }) => codec.answered(message.kind) || !message.response,
  V28: isOfItsDevice,
  B16: paddingIsZero,
  P3: ({ bytes, message }) => bytes[0] === (message.response ? 1 : 0),
  P7: saysNoMore,
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

export type Body<Role> = (role: Role) => Promise<void>;
export type Bodies<Role> = Readonly<Record<string, Body<Role>>>;

export function byRule<Role>(bodies: Bodies<Role>): Bodies<Role> {
  return Object.fromEntries(
    Object.entries(bodies).flatMap(([rules, body]) => rules.split(" ").map((rule) => [rule, body])),
  );
}

export const COMMON_BODIES: Bodies<Asker> = byRule({
  "G1 G2 G3 G5 G9 G16 V1 V28 B16": (asker) => asker.converse(),
  async G7(asker) {
    await asker.converse();
    await asker.ping(7);
  },
  G14: (asker) =>
    asker.unheeded("a message that is none", [
      [0, 0x3f, ...asker.number, 1, 0, 8, 0],
      [2, 0x3f, 0, 0, 1, 0, 8, 0],
      [0, 0x02, ...asker.number, 1, 0, 7, 0],
      [0, 0x02, ...asker.number, 1, 0, 0xff, 0xff],
      // A byte less than it has.
      [0, 0x0a, ...asker.number, 1, 0, asker.talk.codec.conduct.hasTokens ? 47 : 43, 0],
      // In `rfc` Linux leaves the data out of the size.
      ...asker.talk.codec.conduct.hasTokens
        ? [
          [0, 0x04, ...asker.number, 1, 0, 20, 0, 0, 0, 0, 0, 2, 0, 0, 0],
          [0, 0x06, ...asker.number, 1, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0],
        ]
        : [],
    ]),
  G15: (asker) =>
    asker.unheeded("an event", [
      [0, 0x41, ...asker.number, 0, 0, 15, 0, 1],
      [0, 0x41, ...asker.number, 7, 0, 16, 0, 0xff, 0xff, 0xff, 0xff],
      [0, 0x42, ...asker.number, 0, 0, 11, 0, 1],
      [0, 0x42, ...asker.number, 7, 0, 12, 0, 0xff, 0xff, 0xff, 0xff],
      [0, 0x40, ...asker.number, 0, 0, 8, 0],
    ]),
  // A driver that took one for an event would reset a device that says NEEDS_RESET.
  G22: (asker) =>
    asker.unheeded("an event with an answer's bit", [
      [1, 0x40, ...asker.number, 0, 0, 24, 0, 0x4f],
      [1, 0x41, ...asker.number, 0, 0, 16, 0],
      [1, 0x42, ...asker.number, 0, 0, 12, 0],
    ]),
  G17: (asker) =>
    asker.unheeded(
      "an implementation's own id",
      [0x89, 0xbf, 0xc1, 0xff].flatMap((id) => [
        [0, id, ...asker.number, 1, 0, 8, 0],
        [2, id, 0, 0, 1, 0, 8, 0],
      ]),
    ),
  async "G10 B12"(asker) {
    for (const data of [0, 0xcafe_f00d, 0xffff_ffff]) await asker.ping(data);
  },
});
