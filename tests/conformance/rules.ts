/**
 * The rules of the wire document's section 11, as data, and where each is tested.
 *
 * A rule is *tested* by a test of this directory whose name begins with its number ({@link rule}), *referenced*
 * where a test elsewhere does it under its number, or *listed* as not applicable, with the reason. The last
 * test of conformance_test.ts sees that none is forgotten and that references name tests that exist.
 */

import { cleanTest } from "../support/leaks.ts";

/** The dialects that the rules are about; `proto` has rules of its own (11.5). */
export type Form = "v1" | "v1-2025";

/** Every rule number: 11.1 to 11.6. */
export const ALL_RULES: readonly string[] = Object.entries({
  G: 21,
  V: 44,
  R: 25,
  B: 23,
  P: 14,
  U: 5,
}).flatMap(([letter, last]) => Array.from({ length: last }, (_, i) => `${letter}${i + 1}`));

/** These hold for `v1-2025` only: 11.6 replaces them for `v1`. */
export const REPLACED: readonly string[] = "V3 V13 V14 V27 R8 B2 B8 B9 B10 B11".split(" ");

/** Rules that tests of this directory test, with the dialects. */
export const TESTED: Map<string, Set<string>> = new Map();

/**
 * Registers a test of one or more rules, once per dialect.
 *
 * @param numbers such as "V19" or "V19 V20"
 * @param forms in which dialects
 */
export function rule<F extends string>(
  numbers: string,
  forms: readonly F[],
  text: string,
  body: (form: F) => void | Promise<void>,
): void {
  for (const form of forms) {
    for (const number of numbers.split(" ")) {
      if (!TESTED.has(number)) TESTED.set(number, new Set());
      TESTED.get(number)!.add(form);
    }
    cleanTest(`${numbers} ${form}: ${text}`, () => body(form));
  }
}

/** Both forms of revision 1. */
export const BOTH: readonly Form[] = ["v1", "v1-2025"];
/** `v1` alone. */
export const V1: readonly "v1"[] = ["v1"];
/** `v1-2025` alone. */
export const V1_2025: readonly "v1-2025"[] = ["v1-2025"];
/** The prototype's dialect. */
export const PROTO: readonly "proto"[] = ["proto"];

/** A rule that a test elsewhere has under its number. */
export interface Reference {
  readonly rule: string;
  /** Below tests/. */
  readonly file: string;
  /** The test's name as it stands in the source. */
  readonly test: string;
}

/** Tested elsewhere. */
export const REFERENCES: readonly Reference[] = [
  {
    rule: "G1",
    file: "message/codec_test.ts",
    test: "every ${dialect} vector decodes to its meaning and back to its bytes",
  },
  {
    rule: "V24",
    file: "transport/device_side_test.ts",
    test: "V24 V42: RESET_VQUEUE stops the queue and shows it unset",
  },
  {
    rule: "R24",
    file: "transport/driver_side_test.ts",
    test: "R24: a request without an answer fails in time, and a late answer is dropped",
  },
  {
    rule: "B6",
    file: "transport/device_side_test.ts",
    test: "B6: a full queue loses no notification, and answers still have room",
  },
  {
    rule: "B6",
    file: "transport/driver_side_test.ts",
    test: "B6: with a full queue no available notification is lost, none is doubled",
  },
  {
    rule: "P1",
    file: "interop/proto_replay_test.ts",
    test: "P1 P3 P7 P13: our device side gives every recorded answer, byte for byte",
  },
  {
    rule: "P2",
    file: "interop/proto_replay_test.ts",
    test: "P2: an answer is in the queue before the device side does anything else",
  },
  {
    rule: "P3",
    file: "interop/proto_replay_test.ts",
    test: "P3 P4 P6 P7: our driver side sends every recorded message, byte for byte",
  },
  {
    rule: "P5",
    file: "interop/proto_replay_test.ts",
    test: "P5 P8 P10 P14: the net driver says to the prototype only what it knows",
  },
  {
    rule: "P6",
    file: "transport/driver_side_test.ts",
    test: "proto P6: a status write is followed by GET_DEVICE_STATUS",
  },
  {
    rule: "P7",
    file: "interop/proto_replay_test.ts",
    test: "P3 P4 P6 P7: our driver side sends every recorded message, byte for byte",
  },
  {
    rule: "P8",
    file: "interop/proto_replay_test.ts",
    test: "P5 P8 P10 P14: the net driver says to the prototype only what it knows",
  },
  {
    rule: "P10",
    file: "interop/proto_replay_test.ts",
    test: "P5 P8 P10 P14: the net driver says to the prototype only what it knows",
  },
  {
    rule: "P11",
    file: "bus/linux_user_test.ts",
    test: "linux-user proto: no locks, queues as found, 0xED for every message (P11)",
  },
  {
    rule: "P13",
    file: "interop/proto_replay_test.ts",
    test: "P13: queues are asked for again at any time, the maxima stay",
  },
  {
    rule: "P14",
    file: "interop/proto_replay_test.ts",
    test: "P5 P8 P10 P14: the net driver says to the prototype only what it knows",
  },
];

const BRIDGE = "vmsg does not open /dev/virtio-msg-bridge (wire document 8.12)";

/** Rules of what vmsg does not offer. */
export const NOT_APPLICABLE: readonly { readonly rule: string; readonly reason: string }[] = [
  { rule: "R17", reason: "there is one revision, and no message carries one" },
  { rule: "V36", reason: "the strict profile is a transport feature bit; vmsg's buses have none" },
  { rule: "V44", reason: "NOTIFICATION_DATA is never offered (B7), so the word says nothing" },
  {
    rule: "B13",
    reason: "devices live as long as their attachment: EVENT_DEVICE is not used",
  },
  {
    rule: "B14",
    reason: "a device goes with its attachment, and the end of that stops its driver",
  },
  { rule: "B19", reason: "vmsg asks no GET_DEVICES: the device number is an option" },
  { rule: "B21", reason: "notifications are messages; the doorbell is no notification" },
  { rule: "P9", reason: "the linux-user bus has no software IOMMU: IOMMU_ENABLE is never sent" },
  ...["U1", "U2", "U3", "U4", "U5"].map((rule) => ({ rule, reason: BRIDGE })),
];

/** Where vmsg does less than a rule wants; each has a test of what it does. */
export const DEVIATIONS: readonly { readonly rule: string; readonly what: string }[] = [
  {
    rule: "R12",
    what: "SHOULD: the net driver does not read its configuration again when it changes, because " +
      "it uses nothing of it but the MAC address; vhost-user's front end reads when it wants to",
  },
];
