/**
 * The rules of virtio-msg, each once: what a device side, a driver side or a bus must do. Numbers and
 * words are those of docs/wire.md, section 7.
 *
 * A rule can be asked of a peer if device_rules.ts, driver_rules.ts or common_rules.ts has a body for it. Where
 * there is none for a side that the rule is about, {@link Rule.unasked} says why.
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

type Row = readonly [
  number: `${keyof typeof SECTIONS}${number}`,
  must: boolean,
  about: Rule["about"],
  dialects: Rule["dialects"],
  title: string,
  unasked?: Rule["unasked"],
  buses?: Rule["buses"],
];

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
const NO_RANGE = "Linux drops an EVENT_CONFIG that names a range without its data";
const NO_POLLING = "no bus polls instead of notifying";
const NO_PING = "vmsg sends no PING: an answer that does not come is enough (R37)";
const BRIDGE = "vmsg does not open /dev/virtio-msg-bridge";
const LINUX_USER: readonly BusKind[] = ["linux-user"];
const BRIDGE_BUS: readonly BusKind[] = ["bridge"];

const TABLE: readonly Row[] = [
  ["G1", M, "both", BOTH, "every field is little-endian"],
  ["G2", M, "both", BOTH, "the size is 8 for the header, and the payload's"],
  ["G3", M, "both", BOTH, "no message is longer than the bus carries"],
  ["G4", M, "both", BOTH, "type bits 2 to 7 are sent as 0 and ignored"],
  ["G5", M, "both", BOTH, "reserved fields are sent as 0 and ignored"],
  ["G6", M, "both", BOTH, "bytes behind the size are sent as 0 and ignored"],
  ["G7", M, "both", BOTH, "bus messages have device number 0"],
  ["G8", M, "driver", BOTH, "an open request's token is not 0, and its own"],
  ["G9", M, "both", BOTH, "events have token 0", device(ITSELF)],
  ["G10", M, "both", BOTH, "an answer repeats token and device number"],
  ["G11", S, "both", BOTH, "an answer that nobody waits for is dropped"],
  ["G12", M, "both", BOTH, "nobody but the bus reads the token", driver(RELAY)],
  ["G13", M, "device", BOTH, "one answer a request, in order"],
  ["G14", S, "both", BOTH, "what is malformed or unknown is dropped"],
  ["G15", M, "both", BOTH, "an event is never answered"],
  ["G16", M, "both", BOTH, "nothing is used that the bus does not advertise"],
  ["G17", M, "both", BOTH, "ids with bit 7 are an implementation's own"],
  ["G18", M, "driver", BOTH, "an answer counts with type, id, device and size"],
  ["G19", M, "both", V1, "events have exactly their size", device(ITSELF)],
  ["G20", M, "device", BOTH, "requests are worked on in order"],
  ["G21", S, "driver", BOTH, "bytes behind an answer's payload are ignored"],
  ["G22", M, "both", V1, "an event with an answer's bit is none"],
  ["G23", M, "device", V1, "one answer, also if the queue is full meanwhile"],

  ["V1", M, "device", BOTH, "every request is served"],
  ["V2", M, "device", BOTH, "GET_DEVICE_INFO tells the truth"],
  ["V3", M, "device", V1_2025, "the feature bits are a multiple of 32"],
  ["V4", S, "device", BOTH, "a number without a device: an info of zeros"],
  ["V5", M, "device", BOTH, "feature blocks that do not exist read as 0"],
  ["V6", M, "device", BOTH, "feature answers echo block and count"],
  ["V7", M, "device", BOTH, "features that cannot be leave FEATURES_OK clear"],
  ["V8", M, "device", BOTH, "SET_DEVICE_STATUS answers the resulting status"],
  ["V9", M, "device", BOTH, "status 0 resets everything and then reads 0"],
  ["V10", S, "device", V1_2025, "the generation survives a reset"],
  ["V11", M, "device", BOTH, "a change has a generation of its own", device(ITSELF)],
  ["V12", M, "device", BOTH, "GET_CONFIG answers offset, length and data"],
  ["V13", M, "device", V1_2025, "a stale generation changes nothing"],
  ["V14", M, "device", V1_2025, "SET_CONFIG answers what is there now"],
  ["V15", M, "device", BOTH, "a change is announced by EVENT_CONFIG", device(ITSELF)],
  ["V16", M, "device", BOTH, "no generation has two EVENT_CONFIG with data", device(ITSELF)],
  ["V17", S, "device", BOTH, "a change that fits no event has length 0", device(ITSELF)],
  ["V18", M, "device", BOTH, "NEEDS_RESET is announced", device(ITSELF)],
  ["V19", M, "device", BOTH, "GET_VQUEUE says the largest size, 0 for none"],
  ["V20", M, "device", BOTH, "the size is 0 until the queue is set"],
  ["V21", M, "device", BOTH, "GET_VQUEUE shows what SET_VQUEUE stored"],
  ["V22", M, "device", BOTH, "a queue is inactive before SET_VQUEUE"],
  ["V23", M, "device", BOTH, "an unset queue can be set after DRIVER_OK too"],
  ["V24", M, "device", BOTH, "RESET_VQUEUE stops the queue, then answers"],
  ["V25", M, "device", BOTH, "queues are worked on after DRIVER_OK", device(INSIDE)],
  ["V26", S, "device", BOTH, "EVENT_USED follows used buffers", device(ITSELF)],
  ["V27", M, "device", V1_2025, "GET_SHM answers length 0 for no region"],
  ["V28", M, "device", BOTH, "a device answers as its own number"],
  ["V29", M, "device", V1, "GET_DEVICE_INFO's answer has 52 bytes"],
  ["V30", M, "device", BOTH, "it is answered before any status"],
  ["V31", M, "device", V1, "admin queues lie inside; 0/0 without"],
  ["V32", M, "device", V1, 'GET_VQUEUE\'s flag 1 is "enabled"'],
  ["V33", M, "device", V1, "SET_VQUEUE with flags 1 enables"],
  ["V35", M, "device", V1, "the generation is no reason to refuse a write"],
  ["V36", M, "device", V1, "strict: it is one", device(STRICT)],
  ["V37", M, "device", V1, "SET_CONFIG is all or nothing"],
  ["V38", M, "device", V1, "GET_SHM is answered, 32 bytes, 0 for no region"],
  ["V39", M, "device", BOTH, "NOTIF_CONFIG_DATA is not offered"],
  ["V40", M, "device", BOTH, "no EVENT_CONFIG for a status of the driver's"],
  ["V41", M, "device", V1, "EVENT_CONFIG names a range inside, or nothing", device(ITSELF)],
  ["V42", M, "device", BOTH, "after a reset every queue is unset"],
  ["V43", S, "device", BOTH, "VERSION_1 and ACCESS_PLATFORM are offered"],
  ["V44", S, "device", V1, "EVENT_AVAIL's next is as the ring's kind", device(NO_NEXT)],
  ["V45", M, "device", V1, "SET_VQUEUE 0 stores, the queue stays disabled"],
  ["V46", M, "device", V1, "bits 2 to 5 keep stored fields"],
  ["V47", M, "device", V1, "2 stores and leaves the state alone"],
  ["V48", M, "device", V1, "an enabled queue is not changed"],
  ["V49", M, "device", V1, "3, reserved bits, a word at 12: nothing happens"],
  ["V50", M, "device", V1, "SET_VQUEUE is all or nothing"],
  ["V51", M, "device", V1, "an index that does not exist: nothing happens"],
  ["V52", M, "device", V1, "no RESET_VQUEUE without RING_RESET: nothing happens"],
  ["V53", M, "device", V1, "GET_DEVICE_FEATURES shows the offer, always"],
  ["V54", M, "device", V1, "SET_DRIVER_FEATURES changes the blocks it names"],
  ["V55", M, "device", V1, "at most 65536 queues; blocks cover all features"],
  ["V56", M, "device", V1, "the UUID is one and stays, or nil"],
  ["V57", M, "device", V1, "no status 0 before the reset is done", device(ITSELF)],
  ["V58", M, "device", V1, "SET_CONFIG of length 0; answers of length 0"],
  ["V59", M, "device", V1, "the generation follows every change of contents"],
  ["V60", M, "device", V1, "EVENT_CONFIG for a status names no range", device(ITSELF)],
  ["V61", S, "device", V1_2025, "EVENT_CONFIG without data names what changed", device(NO_RANGE)],
  ["V62", S, "device", V1, "strict: so does a change that does not fit", device(STRICT)],

  ["R1", M, "driver", BOTH, "GET_DEVICE_INFO comes first"],
  ["R2", M, "driver", BOTH, "features go in blocks, only offered ones back"],
  ["R3", M, "driver", BOTH, "FEATURES_OK is looked for in the answer"],
  ["R4", M, "driver", BOTH, "a queue is asked for, then set within its size"],
  ["R5", M, "driver", BOTH, "a queue of largest size 0 is not used"],
  ["R6", M, "driver", BOTH, "DRIVER_OK after features and queues, then I/O"],
  ["R7", M, "driver", BOTH, "configuration accesses stay within the space"],
  ["R8", M, "driver", V1_2025, "SET_CONFIG names the last known generation", driver(ASKED)],
  ["R9", M, "driver", BOTH, "a refused SET_CONFIG is handled", driver(ASKED)],
  ["R10", M, "driver", BOTH, "EVENT_AVAIL follows new buffers"],
  ["R11", M, "driver", BOTH, "its next is 0 without NOTIFICATION_DATA"],
  ["R12", S, "driver", BOTH, "EVENT_CONFIG of length 0: read again"],
  ["R13", M, "driver", BOTH, "EVENT_USED: look at the ring", driver(LOOK)],
  ["R14", S, "driver", BOTH, "NEEDS_RESET is answered with status 0"],
  ["R15", M, "driver", BOTH, "a reset is status 0"],
  ["R16", S, "driver", BOTH, "RESET_VQUEUE only with RING_RESET"],
  ["R17", M, "driver", BOTH, "another revision's messages are ignored", driver(REVISION)],
  ["R18", M, "driver", BOTH, "configuration accesses are split to fit", driver(ASKED)],
  ["R19", M, "driver", BOTH, "all feature blocks, split to fit"],
  ["R20", M, "driver", V1, "SET_CONFIG names generation 0", driver(ASKED)],
  ["R21", S, "driver", BOTH, "a torn read starts over, with a limit", driver(ASKED)],
  ["R23", M, "driver", BOTH, "a reset is done when 0 is read"],
  ["R24", M, "driver", BOTH, "a lost request: a bounded wait, and a reset", driver(ASKED)],
  ["R25", M, "driver", BOTH, "RESET_VQUEUE, then GET_VQUEUE until clear", driver(ASKED)],
  ["R26", M, "driver", V1, "NOTIF_CONFIG_DATA is not accepted"],
  ["R27", M, "driver", BOTH, "EVENT_CONFIG of a range without data is taken"],
  ["R28", M, "driver", V1, "the generation may start anew at a reset"],
  ["R29", M, "driver", V1, "the profile is the bus's, not the device's", driver(ASKED)],
  ["R30", M, "driver", V1, "SET_VQUEUE is used as it is meant"],
  ["R31", M, "driver", BOTH, "SET_VQUEUE is confirmed by GET_VQUEUE"],
  ["R32", M, "driver", BOTH, "no EVENT_AVAIL before SET_VQUEUE"],
  ["R33", M, "driver", BOTH, "no I/O before DRIVER_OK is shown"],
  ["R34", M, "driver", BOTH, "areas are aligned to 16, 2 and 4 bytes"],
  ["R35", M, "driver", V1, "SET_CONFIG answers all or 0, or is broken", driver(ASKED)],
  ["R36", M, "driver", BOTH, "SET_CONFIG's success may have no data", driver(ASKED)],
  ["R37", M, "driver", V1, "what is not answered has failed: a reset"],
  ["R38", M, "driver", V1, "REMOVED: no new work, also said twice"],

  ["B1", M, "both", BOTH, "the bus is known before any message", neither(CONSTANT)],
  ["B2", M, "both", V1_2025, "the longest message has 48 to 264 bytes", neither(CONSTANT)],
  ["B3", M, "both", BOTH, "messages are passed on unchanged", neither(BOTH_ENDS)],
  ["B4", M, "device", BOTH, "device numbers are checked"],
  ["B5", S, "driver", BOTH, "what was discovered is asked GET_DEVICE_INFO"],
  ["B6", M, "both", BOTH, "notifications reach the other side", neither(WANTS)],
  ["B7", S, "both", BOTH, "NOTIFICATION_DATA is kept off"],
  ["B8", M, "device", V1_2025, "GET_DEVICES goes in multiples of 8"],
  ["B9", M, "device", V1_2025, "its bitmap has count/8 bytes, low bits first"],
  ["B10", M, "device", V1_2025, "next is 0 or behind the window"],
  ["B11", S, "device", V1_2025, "the count is honoured unless it does not fit"],
  ["B12", M, "both", BOTH, "PING is echoed"],
  ["B13", M, "device", BOTH, "EVENT_DEVICE tells arrival and departure", device(NO_EVENT)],
  ["B14", S, "driver", BOTH, "REMOVED releases the driver"],
  ["B15", M, "device", BOTH, "no error answer to an event"],
  ["B16", M, "both", BOTH, "padding is 0"],
  ["B17", M, "both", V1, "the longest message has 52 to 65535 bytes", neither(CONSTANT)],
  ["B18", M, "device", V1, "GET_DEVICES answers offset, next, count, bits"],
  ["B19", S, "driver", V1, "a client takes any window of GET_DEVICES", driver(OPTION)],
  ["B20", M, "device", BOTH, "a bus invents no answer"],
  ["B21", M, "both", V1, "an out-of-band notification is seen once", neither(IN_BAND)],
  ["B22", S, "both", V1, "no feature bits towards Linux", neither(CONSTANT)],
  ["B23", M, "driver", BOTH, "EVENT_DEVICE may come twice"],
  ["B24", M, "both", V1, "bits of the bus are common, and stay", neither(CONSTANT)],
  ["B25", M, "driver", V1, "a request for nobody fails visibly", driver(ASKED)],
  ["B26", M, "both", V1, "the bus judges no transport id", neither(BOTH_ENDS)],
  ["B27", M, "driver", V1, "each request ends in bounded time", driver(ASKED)],
  ["B28", S, "both", V1, "a number is not given out at once again", neither(NO_EVENT)],
  ["B29", M, "both", V1, "each notification has one way, and comes once", neither(IN_BAND)],
  ["B30", M, "both", V1, "polling makes no visible events", neither(NO_POLLING)],
  ["B31", M, "device", V1, "GET_DEVICES takes any window"],
  ["B32", M, "device", V1, "no event is delayed for order", device(ITSELF)],
  ["B33", M, "device", V1, "ADDED when it is there, REMOVED when not", device(NO_EVENT)],
  ["B34", S, "both", V1, "EVENT_AVAIL's word, or no NOTIFICATION_DATA"],
  ["B35", M, "both", BOTH, "what is unknown to a revision is not passed on", neither(REVISION)],
  ["B36", S, "driver", BOTH, "a lost PING: status, recovery", driver(NO_PING)],

  ["P1", M, "device", PROTO, "the prototype's ids are answered, no others"],
  ["P2", M, "device", PROTO, "within 3.5 ms, once"],
  ["P3", M, "both", PROTO, "answers have bit 0, and no type another bit"],
  ["P4", M, "driver", PROTO, "configuration goes in 4, 2 and 1 bytes"],
  ["P5", M, "driver", PROTO, "offered features only, VERSION_1 among them"],
  ["P6", M, "driver", PROTO, "a status write is followed by a read"],
  ["P7", M, "both", PROTO, "the payload is zero where nothing is said"],
  ["P8", M, "driver", PROTO, "no EVENT_AVAIL before DRIVER_OK"],
  ["P9", M, "driver", PROTO, "IOMMU_TRANSLATE is served", driver(NO_IOMMU)],
  ["P10", M, "both", PROTO, "no 21 to a device, no 22 to a driver"],
  [
    "P11",
    M,
    "both",
    PROTO,
    "a doorbell a message, any number taken",
    neither(DOORBELL),
    LINUX_USER,
  ],
  ["P12", M, "device", PROTO, "at most 128 events while an answer is awaited", device(ITSELF)],
  ["P13", M, "device", PROTO, "GET_VQUEUE is answered at any time"],
  ["P14", M, "driver", PROTO, "an empty EVENT_CONFIG is taken"],

  ["U1", M, "device", V1, "ring headers before the first kick", device(BRIDGE), BRIDGE_BUS],
  ["U2", M, "device", V1, "frames: exact sizes, zero words, epoch", device(BRIDGE), BRIDGE_BUS],
  ["U3", M, "device", V1, "no event before the first status write", device(BRIDGE), BRIDGE_BUS],
  ["U4", M, "device", V1, "mapped and unmapped before the answer", device(BRIDGE), BRIDGE_BUS],
  ["U5", M, "device", V1, "addresses are looked up in the windows", device(BRIDGE), BRIDGE_BUS],
];

/** Every rule. */
export const RULES: readonly Rule[] = TABLE.map(
  ([number, must, about, dialects, title, unasked = {}, buses]) => {
    const section = SECTIONS[number[0] as keyof typeof SECTIONS];
    return { number, section, must, about, dialects, title, unasked, buses };
  },
);

/** Is the rule about such a side? */
export function isAbout({ about }: Rule, side: RuleSide): boolean {
  return about === side || about === "both";
}

/** The rule with this number. */
export function ruleOf(number: string): Rule {
  const rule = RULES.find((rule) => rule.number === number);
  if (rule === undefined) throw new Error(`there is no rule ${number}`);
  return rule;
}
