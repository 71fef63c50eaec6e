/**
 * The rules of virtio-msg: what a device side, a driver side or a bus must do. What each of them says is in
 * docs/wire.md, section 7, by its number.
 *
 * A rule can be asked of a peer if device_rules.ts, driver_rules.ts or common_rules.ts has a body for it. Where
 * there is none for a side that the rule is about, {@link Rule.unasked} says why.
 */

import type { Dialect } from "../message/codec.ts";

export type RuleSide = "device" | "driver";

export interface Rule {
  /** A letter and a number: G framing, V device, R driver, B bus, P dialect proto, U kernel's bridge. */
  readonly number: string;
  readonly section: string;
  /** A MUST of the specification; otherwise a SHOULD. */
  readonly must: boolean;
  readonly sides: readonly RuleSide[];
  readonly dialects: readonly Dialect[];
  /** Why no body asks that side for it. */
  readonly unasked: Readonly<Partial<Record<RuleSide, string>>>;
}

const SIDES = { both: ["device", "driver"], device: ["device"], driver: ["driver"] } as const;
/** Both forms of revision 1, one of them, the prototype's dialect. */
const BOTH: readonly Dialect[] = ["v1", "v1-2025"];
const V1: readonly Dialect[] = ["v1"];
const V1_2025: readonly Dialect[] = ["v1-2025"];
const PROTO: readonly Dialect[] = ["proto"];

/** And those that virtio has, whatever carries it. */
const EACH: readonly Dialect[] = [...BOTH, ...PROTO];

/** Whose peer has to keep which rules, in which dialects. */
const TABLE: readonly (readonly [keyof typeof SIDES, readonly Dialect[], numbers: string])[] = [
  ["both", BOTH, "G1 G2 G3 G4 G5 G6 G7 G9 G10 G11 G12 G14 G15 G16 G17 B1 B3 B6 B7 B12 B16 B35"],
  ["device", BOTH, "G13 G20 V1 V2 V4 V5 V6 V7 V8 V11 V15 V16 V17 V18 V20 V21 V22"],
  ["device", BOTH, "V23 V24 V25 V26 V28 V30 V39 V40 V42 V43 V61 B4 B13 B15 B20"],
  ["driver", BOTH, "G8 G18 G21 R2 R3 R5 R7 R9 R12 R13 R14 R15 R16 R17 R18"],
  ["driver", BOTH, "R19 R21 R23 R24 R25 R27 R31 R32 R33 R36 R38 B5 B14 B23 B36"],
  ["device", EACH, "V9 V12 V19"],
  ["driver", EACH, "R1 R4 R6 R10 R11 R34"],
  ["both", V1, "G19 G22 B17 B21 B22 B24 B26 B28 B29 B30 B34"],
  ["device", V1, "G23 V29 V31 V32 V33 V35 V36 V37 V38 V41 V44 V45 V46 V47 V48 V49 V50 V51 V52"],
  ["device", V1, "V53 V54 V55 V56 V57 V58 V59 V60 V62 B18 B31 B32 B33 U1 U2 U3 U4 U5"],
  ["driver", V1, "R20 R26 R28 R29 R30 R35 R37 B19 B25 B27"],
  ["both", V1_2025, "B2"],
  ["device", V1_2025, "V3 V10 V13 V14 V27 B8 B9 B10 B11"],
  ["driver", V1_2025, "R8"],
  ["both", PROTO, "P3 P7 P10 P11"],
  ["device", PROTO, "P1 P2 P12 P13"],
  ["driver", PROTO, "P4 P5 P6 P8 P9 P14"],
];

const SHOULD =
  "G11 G14 G21 V4 V10 V17 V26 V43 V44 V61 V62 R12 R14 R16 R21 B5 B7 B11 B14 B19 B22 B28 B34 B36";

/** Why no body asks for rules: the side that cannot be asked, their numbers, the reason. */
const UNASKED: readonly (readonly [keyof typeof SIDES, numbers: string, reason: string])[] = [
  // What no message leads to.
  ["device", "G9 G19 V11 V15 V16 V17 V18 V26 V41 V57 V60 B32 P12", "no message leads it to this"],
  ["driver", "R25 R35 R36 B25", "no message leads it to this"],
  ["device", "B13 B28 B33", "no message makes a device come or go"],
  // What no conversation shows.
  ["device", "V25", "what a device does with its memory is seen inside of it only"],
  ["driver", "R13", "whether a driver looks at its ring is seen inside of it only"],
  ["both", "B6", "what a side wants to notify is seen inside of it only"],
  ["both", "B1 B2 B17 B22 B24", "a property of the bus, which no message tells"],
  ["driver", "G12", "its tokens are its own: it takes a relay to change them"],
  ["both", "B3 B21 B26 B29", "both ends of the bus have to be seen"],
  ["both", "P11", "doorbells are seen at the end of a bus, not in its messages"],
  // What vmsg does not offer.
  ["device", "V36 V62", "the profile is a feature bit of the bus, and vmsg's buses have none"],
  ["device", "V44", "NOTIFICATION_DATA is never offered (B7), so the field says nothing"],
  ["device", "V61", "Linux drops an EVENT_CONFIG that names a range without its data"],
  ["driver", "R17", "there is one revision, and no message carries one"],
  ["both", "B35", "there is one revision, and no message carries one"],
  ["driver", "B28", "the device side gives out numbers"],
  ["both", "B30", "no bus polls instead of notifying"],
  ["device", "U1 U2 U3 U4 U5", "vmsg does not open /dev/virtio-msg-bridge"],
];

/** Of what `v1-2025` has, what `rfc` has not: tokens. */
const NOT_IN_RFC = "G8 G9 G10 G12";
/** And what holds in `rfc-q`, where sizes are not read, there are no bus messages, and writes and features are echoed. */
const IN_RFC_Q = "G4 G11 G13 G16 G18 G20 G21 " +
  "V1 V4 V7 V8 V9 V10 V11 V12 V15 V16 V17 V18 V19 V20 V21 V22 V23 V24 V25 V26 V28 V30 V40 V42 V43 V61 " +
  "R1 R2 R3 R4 R5 R6 R7 R10 R11 R12 R13 R14 R15 R16 R17 R23 R24 R25 R27 R31 R32 R33 R34";

const LETTERS = "GVRBPU";
const has = (numbers: string, number: string) => numbers.split(" ").includes(number);
const place = ({ number }: Rule) => 1000 * LETTERS.indexOf(number[0]!) + Number(number.slice(1));

function rule(number: string, sides: readonly RuleSide[], dialects: readonly Dialect[]): Rule {
  const unasked: Partial<Record<RuleSide, string>> = {};
  for (const [whose, numbers, reason] of UNASKED) {
    if (has(numbers, number)) { for (const side of SIDES[whose]) unasked[side] = reason; }
  }
  const spoken = [...dialects];
  if (dialects.includes("v1-2025") && !has(NOT_IN_RFC, number)) spoken.push("rfc");
  if (has(IN_RFC_Q, number)) spoken.push("rfc-q");
  const section = `7.${LETTERS.indexOf(number[0]!) + 1}`;
  return { number, section, must: !has(SHOULD, number), sides, dialects: spoken, unasked };
}

export const RULES: readonly Rule[] = TABLE.flatMap(([whose, dialects, numbers]) =>
  numbers.split(" ").map((number) => rule(number, SIDES[whose], dialects))
).sort((a, b) => place(a) - place(b));
