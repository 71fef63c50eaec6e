/**
 * The rules of virtio-msg, each once: what a device side, a driver side or a bus must do. Numbers and
 * words are those of docs/wire.md, section 7.
 *
 * A rule can be asked of a peer if device_rules.ts or driver_rules.ts has a body for it. Where there is
 * none for a side that the rule is about, {@link Rule.unasked} says why.
 */

import type { Dialect } from "../message/codec.ts";

/** The side of a peer. */
export type RuleSide = "device" | "driver";

/** The kinds of bus that a rule may be confined to. */
export type BusKind = "linux-user" | "ivshmem" | "shm" | "bridge";

/** One rule. */
export interface Rule {
  /** A letter and a number: G framing, V device, R driver, B bus, P dialect proto, U kernel's bridge. */
  readonly number: string;
  /** The section of docs/wire.md. */
  readonly section: string;
  /** A MUST of the specification; otherwise a SHOULD. */
  readonly must: boolean;
  /** Whose peer has to keep it. */
  readonly about: RuleSide | "both";
  /** The dialects that have it. */
  readonly dialects: readonly Dialect[];
  /** The rule in few words. */
  readonly title: string;
  /** Why no body asks that side for it. */
  readonly unasked: Readonly<Partial<Record<RuleSide, string>>>;
  /** The kinds of bus that it is about; undefined for all. */
  readonly buses: readonly BusKind[] | undefined;
}

const SECTIONS = { G: "7.1", V: "7.2", R: "7.3", B: "7.4", P: "7.5", U: "7.6" } as const;

function rule(
  number: `${keyof typeof SECTIONS}${number}`,
  must: boolean,
  about: Rule["about"],
  dialects: Rule["dialects"],
  title: string,
  unasked: Rule["unasked"] = {},
  buses?: readonly BusKind[],
): Rule {
  const section = SECTIONS[number[0] as keyof typeof SECTIONS];
  return { number, section, must, about, dialects, title, unasked, buses };
}

/** MUST and SHOULD. */
const [M, S] = [true, false];
/** Dialects: both forms of revision 1, one of them, the prototype's. */
const BOTH: readonly Dialect[] = ["v1", "v1-2025"];
const V1: readonly Dialect[] = ["v1"];
const V1_2025: readonly Dialect[] = ["v1-2025"];
const PROTO: readonly Dialect[] = ["proto"];

const device = (reason: string) => ({ device: reason });
const driver = (reason: string) => ({ driver: reason });
const neither = (reason: string) => ({ device: reason, driver: reason });

// What no conversation shows.
const INSIDE = "what a device does with its memory is seen inside of it only";
const LOOK = "whether a driver looks at its ring is seen inside of it only";
const WANTS = "what a side wants to notify is seen inside of it only";
// What no message leads to.
const ITSELF = "a device does this by itself, no message leads it to";
const ASKED = "a driver does this when its user wants it, no message leads it to";
const CONSTANT = "a property of the bus, which no message tells";
const RELAY = "a driver's tokens are its own: it takes a relay between both sides to change them";
const BOTH_ENDS = "both ends of the bus have to be seen";
const DOORBELL = "doorbells are seen at the end of a bus, not in its messages";
const IN_BAND = "notifications are messages; the doorbell is no notification";
// What vmsg does not offer.
const STRICT = "the profile is a feature bit of the bus, and vmsg's buses have none";
const NO_NEXT = "NOTIFICATION_DATA is never offered (B7), so the field says nothing";
const REVISION = "there is one revision, and no message carries one";
const NO_EVENT = "devices live as long as their attachment: EVENT_DEVICE is not used";
const OPTION = "vmsg asks no GET_DEVICES: the device number is an option";
const NO_IOMMU = "the linux-user bus has no software IOMMU: IOMMU_ENABLE is never sent";
const BRIDGE = "vmsg does not open /dev/virtio-msg-bridge";

/** Every rule. */
export const RULES: readonly Rule[] = [
  rule("G1", M, "both", BOTH, "every field is little-endian"),
  rule("G2", M, "both", BOTH, "the size is 8 for the header, and the payload's"),
  rule("G3", M, "both", BOTH, "no message is longer than the bus carries"),
  rule("G4", M, "both", BOTH, "type bits 2 to 7 are sent as 0 and ignored"),
  rule("G5", M, "both", BOTH, "reserved fields are sent as 0 and ignored"),
  rule("G6", M, "both", BOTH, "bytes behind the size are sent as 0 and ignored"),
  rule("G7", M, "both", BOTH, "bus messages have device number 0"),
  rule("G8", M, "driver", BOTH, "an open request's token is not 0, and its own"),
  rule("G9", M, "both", BOTH, "events have token 0", device(ITSELF)),
  rule("G10", M, "both", BOTH, "an answer repeats token and device number"),
  rule("G11", S, "both", BOTH, "an answer that nobody waits for is dropped"),
  rule("G12", M, "both", BOTH, "nobody but the bus reads the token", driver(RELAY)),
  rule("G13", M, "device", BOTH, "one answer a request, in order"),
  rule("G14", S, "both", BOTH, "what is malformed or unknown is dropped"),
  rule("G15", M, "both", BOTH, "an event is never answered"),
  rule("G16", M, "both", BOTH, "nothing is used that the bus does not advertise"),
  rule("G17", M, "both", BOTH, "ids with bit 7 are an implementation's own"),
  rule("G18", M, "driver", BOTH, "an answer counts with type, id, device and size"),
  rule("G19", M, "both", V1, "events have exactly their size", device(ITSELF)),
  rule("G20", M, "device", BOTH, "requests are worked on in order"),
  rule("G21", S, "driver", BOTH, "bytes behind an answer's payload are ignored"),

  rule("V1", M, "device", BOTH, "every request is served"),
  rule("V2", M, "device", BOTH, "GET_DEVICE_INFO tells the truth"),
  rule("V3", M, "device", V1_2025, "the feature bits are a multiple of 32"),
  rule("V4", S, "device", BOTH, "a number without a device: an info of zeros"),
  rule("V5", M, "device", BOTH, "feature blocks that do not exist read as 0"),
  rule("V6", M, "device", BOTH, "feature answers echo block and count"),
  rule("V7", M, "device", BOTH, "features that cannot be leave FEATURES_OK clear"),
  rule("V8", M, "device", BOTH, "SET_DEVICE_STATUS answers the resulting status"),
  rule("V9", M, "device", BOTH, "status 0 resets everything and then reads 0"),
  rule("V10", S, "device", BOTH, "the generation survives a reset"),
  rule("V11", M, "device", BOTH, "a change has a generation of its own", device(ITSELF)),
  rule("V12", M, "device", BOTH, "GET_CONFIG answers offset, length and data"),
  rule("V13", M, "device", V1_2025, "a stale generation changes nothing"),
  rule("V14", M, "device", V1_2025, "SET_CONFIG answers what is there now"),
  rule("V15", M, "device", BOTH, "a change is announced by EVENT_CONFIG", device(ITSELF)),
  rule("V16", M, "device", BOTH, "no generation has two EVENT_CONFIG with data", device(ITSELF)),
  rule("V17", S, "device", BOTH, "a change that fits no event has length 0", device(ITSELF)),
  rule("V18", M, "device", BOTH, "NEEDS_RESET is announced", device(ITSELF)),
  rule("V19", M, "device", BOTH, "GET_VQUEUE says the largest size, 0 for none"),
  rule("V20", M, "device", BOTH, "the size is 0 until the queue is set"),
  rule("V21", M, "device", BOTH, "GET_VQUEUE shows what SET_VQUEUE stored"),
  rule("V22", M, "device", BOTH, "a queue is inactive before SET_VQUEUE"),
  rule("V23", M, "device", BOTH, "SET_VQUEUE works after DRIVER_OK too"),
  rule("V24", M, "device", BOTH, "RESET_VQUEUE stops the queue, then answers"),
  rule("V25", M, "device", BOTH, "queues are worked on after DRIVER_OK", device(INSIDE)),
  rule("V26", S, "device", BOTH, "EVENT_USED follows used buffers", device(ITSELF)),
  rule("V27", M, "device", V1_2025, "GET_SHM answers length 0 for no region"),
  rule("V28", M, "device", BOTH, "a device answers as its own number"),
  rule("V29", M, "device", V1, "GET_DEVICE_INFO's answer has 52 bytes"),
  rule("V30", M, "device", BOTH, "it is answered before any status"),
  rule("V31", M, "device", V1, "admin queues lie inside; 0/0 without"),
  rule("V32", M, "device", V1, 'GET_VQUEUE\'s flag 1 is "enabled"'),
  rule("V33", M, "device", V1, "SET_VQUEUE with flags 1 enables"),
  rule("V35", M, "device", V1, "the generation is no reason to refuse a write"),
  rule("V36", M, "device", V1, "strict: it is one", device(STRICT)),
  rule("V37", M, "device", V1, "SET_CONFIG is all or nothing"),
  rule("V38", M, "device", V1, "GET_SHM is answered, 32 bytes, 0 for no region"),
  rule("V39", M, "device", BOTH, "NOTIF_CONFIG_DATA is not offered"),
  rule("V40", M, "device", BOTH, "no EVENT_CONFIG for a status of the driver's"),
  rule("V41", M, "device", V1, "EVENT_CONFIG names a range inside, or nothing", device(ITSELF)),
  rule("V42", M, "device", BOTH, "after a reset every queue is unset"),
  rule("V43", S, "device", BOTH, "VERSION_1 and ACCESS_PLATFORM are offered"),
  rule("V44", S, "device", V1, "EVENT_AVAIL's next is as the ring's kind", device(NO_NEXT)),

  rule("R1", M, "driver", BOTH, "GET_DEVICE_INFO comes first"),
  rule("R2", M, "driver", BOTH, "features go in blocks, only offered ones back"),
  rule("R3", M, "driver", BOTH, "FEATURES_OK is looked for in the answer"),
  rule("R4", M, "driver", BOTH, "a queue is asked for, then set within its size"),
  rule("R5", M, "driver", BOTH, "a queue of largest size 0 is not used"),
  rule("R6", M, "driver", BOTH, "DRIVER_OK after features and queues, then I/O"),
  rule("R7", M, "driver", BOTH, "configuration accesses stay within the space"),
  rule("R8", M, "driver", V1_2025, "SET_CONFIG names the last known generation", driver(ASKED)),
  rule("R9", M, "driver", BOTH, "a refused SET_CONFIG is handled", driver(ASKED)),
  rule("R10", M, "driver", BOTH, "EVENT_AVAIL follows new buffers"),
  rule("R11", M, "driver", BOTH, "its next is 0 without NOTIFICATION_DATA"),
  rule("R12", S, "driver", BOTH, "EVENT_CONFIG of length 0: read again"),
  rule("R13", M, "driver", BOTH, "EVENT_USED: look at the ring", driver(LOOK)),
  rule("R14", S, "driver", BOTH, "NEEDS_RESET is answered with status 0"),
  rule("R15", M, "driver", BOTH, "a reset is status 0"),
  rule("R16", S, "driver", BOTH, "RESET_VQUEUE only with RING_RESET"),
  rule("R17", M, "driver", BOTH, "another revision's messages are ignored", driver(REVISION)),
  rule("R18", M, "driver", BOTH, "configuration accesses are split to fit", driver(ASKED)),
  rule("R19", M, "driver", BOTH, "all feature blocks, split to fit"),
  rule("R20", M, "driver", V1, "SET_CONFIG names generation 0", driver(ASKED)),
  rule("R21", S, "driver", BOTH, "a torn read starts over, with a limit", driver(ASKED)),
  rule("R22", S, "driver", BOTH, "SET_VQUEUE is confirmed by GET_VQUEUE"),
  rule("R23", M, "driver", BOTH, "a reset is done when 0 is read"),
  rule("R24", M, "driver", BOTH, "a lost request: a bounded wait, and a reset", driver(ASKED)),
  rule("R25", M, "driver", BOTH, "RESET_VQUEUE, then GET_VQUEUE until clear", driver(ASKED)),

  rule("B1", M, "both", BOTH, "the bus is known before any message", neither(CONSTANT)),
  rule("B2", M, "both", V1_2025, "the longest message has 48 to 264 bytes", neither(CONSTANT)),
  rule("B3", M, "both", BOTH, "messages are passed on unchanged", neither(BOTH_ENDS)),
  rule("B4", M, "device", BOTH, "device numbers are checked"),
  rule("B5", S, "driver", BOTH, "what was discovered is asked GET_DEVICE_INFO"),
  rule("B6", M, "both", BOTH, "notifications reach the other side", neither(WANTS)),
  rule("B7", S, "both", BOTH, "NOTIFICATION_DATA is kept off"),
  rule("B8", M, "device", V1_2025, "GET_DEVICES goes in multiples of 8"),
  rule("B9", M, "device", V1_2025, "its bitmap has count/8 bytes, low bits first"),
  rule("B10", M, "device", V1_2025, "next is 0 or behind the window"),
  rule("B11", S, "device", V1_2025, "the count is honoured unless it does not fit"),
  rule("B12", M, "both", BOTH, "PING is echoed"),
  rule("B13", M, "device", BOTH, "EVENT_DEVICE tells arrival and departure", device(NO_EVENT)),
  rule("B14", S, "driver", BOTH, "REMOVED releases the driver", driver(NO_EVENT)),
  rule("B15", M, "device", BOTH, "no error answer to an event"),
  rule("B16", M, "both", BOTH, "padding is 0"),
  rule("B17", M, "both", V1, "the longest message has 52 to 65535 bytes", neither(CONSTANT)),
  rule("B18", M, "device", V1, "GET_DEVICES answers offset, next, count, bits"),
  rule("B19", S, "driver", V1, "a client takes any window of GET_DEVICES", driver(OPTION)),
  rule("B20", M, "device", BOTH, "a bus invents no answer"),
  rule("B21", M, "both", V1, "an out-of-band notification is seen once", neither(IN_BAND)),
  rule("B22", S, "both", V1, "no feature bits towards Linux", neither(CONSTANT)),
  rule("B23", M, "driver", BOTH, "EVENT_DEVICE may come twice"),

  rule("P1", M, "device", PROTO, "the prototype's ids are answered, no others"),
  rule("P2", M, "device", PROTO, "within 3.5 ms, once"),
  rule("P3", M, "both", PROTO, "answers have bit 0, and no type another bit"),
  rule("P4", M, "driver", PROTO, "configuration goes in 4, 2 and 1 bytes"),
  rule("P5", M, "driver", PROTO, "offered features only, VERSION_1 among them"),
  rule("P6", M, "driver", PROTO, "a status write is followed by a read"),
  rule("P7", M, "both", PROTO, "the payload is zero where nothing is said"),
  rule("P8", M, "driver", PROTO, "no EVENT_AVAIL before DRIVER_OK"),
  rule("P9", M, "driver", PROTO, "IOMMU_TRANSLATE is served", driver(NO_IOMMU)),
  rule("P10", M, "both", PROTO, "no 21 to a device, no 22 to a driver"),
  rule("P11", M, "both", PROTO, "a doorbell a message, any number taken", neither(DOORBELL), [
    "linux-user",
  ]),
  rule("P12", M, "device", PROTO, "at most 128 events while an answer is awaited", device(ITSELF)),
  rule("P13", M, "device", PROTO, "GET_VQUEUE is answered at any time"),
  rule("P14", M, "driver", PROTO, "an empty EVENT_CONFIG is taken"),

  rule("U1", M, "device", V1, "ring headers before the first kick", device(BRIDGE), ["bridge"]),
  rule("U2", M, "device", V1, "frames: exact sizes, zero words, epoch", device(BRIDGE), ["bridge"]),
  rule("U3", M, "device", V1, "no event before the first status write", device(BRIDGE), ["bridge"]),
  rule("U4", M, "device", V1, "mapped and unmapped before the answer", device(BRIDGE), ["bridge"]),
  rule("U5", M, "device", V1, "addresses are looked up in the windows", device(BRIDGE), ["bridge"]),
];

/** The rule with this number. */
export function ruleOf(number: string): Rule {
  const rule = RULES.find((rule) => rule.number === number);
  if (rule === undefined) throw new Error(`there is no rule ${number}`);
  return rule;
}
