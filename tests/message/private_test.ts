import { assertEquals } from "@std/assert";
import { codecFor } from "../../src/message/codecs.ts";
import { type Field, FIELDS, Kind, Message } from "../../src/message/message.ts";
import { isPrivate, PRIVATE_MESSAGES } from "../../src/message/private.ts";
import { bytesOf, slotOf } from "./vectors.ts";

const EPOCH = 0x1f_2e3d_4c5b_6a;
const EPOCH_BYTES = "6a5b4c3d2e1f0000";

/** Kind, answer, fields, the whole message in hex. */
const CASES: readonly [Kind, boolean, Partial<Record<Field, number>>, string][] = [
  [
    Kind.HELLO,
    false,
    { epoch: EPOCH, peerEpoch: 0x0102, nonce: 0xcafef00d, version: 1, capabilities: 5 },
    `0290000001022400${EPOCH_BYTES}02010000000000000df0feca0100000005000000`,
  ],
  [
    Kind.HELLO,
    true,
    { epoch: 2 ** 53 - 1, peerEpoch: EPOCH, nonce: 7, version: 1 },
    `0390000001022400ffffffffffff1f00${EPOCH_BYTES}070000000100000000000000`,
  ],
  [
    Kind.ADD_MEMORY,
    false,
    {
      epoch: EPOCH,
      ordinal: 3,
      memoryDevice: 2,
      flags: 1,
      address: 0x1_4000_0000,
      length: 0x8000_0000,
      offset: 0x1000,
    },
    `0291000001023000${EPOCH_BYTES}0300000002000100` +
    `0000004001000000` + `0000008000000000` + `0010000000000000`,
  ],
  [Kind.ADD_MEMORY, true, { epoch: EPOCH, result: 12 }, `0391000001021400${EPOCH_BYTES}0c000000`],
  [
    Kind.REMOVE_MEMORY,
    false,
    { epoch: EPOCH, memoryDevice: 2, flags: 1, address: 0x1_4000_0000, length: 0x1000 },
    `0292000001022800${EPOCH_BYTES}0000000002000100` + `0000004001000000` + `0010000000000000`,
  ],
  [Kind.REMOVE_MEMORY, true, { epoch: EPOCH }, `0392000001021400${EPOCH_BYTES}00000000`],
  [
    Kind.STOP_VQUEUE,
    false,
    { epoch: EPOCH, memoryDevice: 2, index: 1 },
    `0293000001021800${EPOCH_BYTES}0200000001000000`,
  ],
  [
    Kind.STOP_VQUEUE,
    true,
    { epoch: EPOCH, result: 0, index: 1, base: 0x8005, wrap: 3 },
    `0393000001021c00${EPOCH_BYTES}000000000100000005800300`,
  ],
  [
    Kind.SET_VQUEUE_STATE,
    false,
    { epoch: EPOCH, memoryDevice: 2, index: 1, base: 0x8005, wrap: 3 },
    `0294000001021c00${EPOCH_BYTES}020000000100000005800300`,
  ],
  [
    Kind.SET_VQUEUE_STATE,
    true,
    { epoch: EPOCH, result: 16 },
    `0394000001021400${EPOCH_BYTES}10000000`,
  ],
  [
    Kind.SET_DOORBELLS,
    false,
    { epoch: EPOCH, ordinal: 3 },
    `0295000001021400${EPOCH_BYTES}03000000`,
  ],
  [
    Kind.SET_DOORBELLS,
    true,
    { epoch: EPOCH, result: 9 },
    `0395000001021400${EPOCH_BYTES}09000000`,
  ],
  [
    Kind.SET_NOTIFIER,
    false,
    { epoch: EPOCH, ordinal: 3, memoryDevice: 2, flags: 3, index: 1 },
    `0296000001021c00${EPOCH_BYTES}030000000200030001000000`,
  ],
  [
    Kind.SET_NOTIFIER,
    true,
    { epoch: EPOCH, result: 22 },
    `0396000001021400${EPOCH_BYTES}16000000`,
  ],
];

Deno.test("private messages, both ways", () => {
  assertEquals(CASES.length, 2 * PRIVATE_MESSAGES.length);
  const codec = codecFor("v1");
  const message = new Message();
  for (const [kind, response, fields, hex] of CASES) {
    const bytes = Uint8Array.from(hex.match(/../g)!, (byte) => parseInt(byte, 16));
    message.reset(kind, response);
    message.token = 0x201;
    for (const field of FIELDS) message[field] = fields[field] ?? 0;
    const slot = slotOf(new Uint8Array(0), 0xaa);
    assertEquals(codec.encode(message, slot, 0), bytes.length);
    assertEquals(bytesOf(slot, 64), bytesOf(slotOf(bytes), 64));
    message.reset(Kind.PING, false);
    assertEquals(codec.decode(slot, 0, message), undefined);
    assertEquals([message.kind, message.response, message.token], [kind, response, 0x201]);
    for (const field of FIELDS) assertEquals(message[field], fields[field] ?? 0, field);
  }
});

Deno.test("private messages are the last ones, with ids left to implementations", () => {
  for (const kind of Object.values(Kind)) {
    assertEquals(isPrivate(kind), PRIVATE_MESSAGES.some((entry) => entry.kind === kind));
  }
  for (const { kind, wire, bus } of PRIVATE_MESSAGES) {
    assertEquals(bus, true);
    assertEquals(wire.proto, undefined);
    assertEquals(wire["v1-2025"], undefined);
    assertEquals(codecFor("v1-2025").has(kind), false);
    assertEquals(wire.v1!.id & 0xf0, 0x90);
  }
});
