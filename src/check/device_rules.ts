/**
 * What a device side must do, asked of it by one who speaks as a driver: a body per rule of rules.ts. Where
 * one conversation shows several of them, they share a body and each has its own claims. docs/wire.md, section 7.
 *
 * A body finds a device whose status is 0 and may leave it in any state. Where nothing must happen, a
 * device is asked for its status behind it, and given a little time ({@link DriverRole.calm}).
 */

import { Kind } from "../message/message.ts";
import { kindName } from "../message/table.ts";
import { RingFeature, Status } from "../virtio/features.ts";
import { type DriverRole, KNOWN, NOBODY, REQUESTS, RUNNING } from "./driver_role.ts";
import { expect, expectSame, require } from "./outcome.ts";
import { FOREIGN_IDS, lookOn, NONSENSE, u16, u32, WRONG_EVENTS, zeros } from "./traffic.ts";

/** Asks for one rule. */
export type DeviceBody = (d: DriverRole) => Promise<void>;

const NEARLY = KNOWN | Status.FEATURES_OK;
/** A region of shared memory that no device has. */
const ABSENT_REGION = 0xff;
/** A queue, a region, a feature block that no device has. */
const NOWHERE = 0xffff_ffff;

// --- framing ----------------------------------------------------------------------------------------

/** One request of each kind, and a look at all that was heard. */
async function looksOn(d: DriverRole): Promise<void> {
  await d.tour();
  lookOn(d.talk, d.rule);
}

/** A request that is a little wrong is answered as if it were right, and none of the answers is so. */
const ignores = (spoil: (bytes: Uint8Array) => void): DeviceBody => async (d) => {
  const { bytes, token } = d.talk.bytesOf(Kind.GET_DEVICE_STATUS);
  spoil(bytes);
  d.talk.put(bytes);
  await d.talk.answer(Kind.GET_DEVICE_STATUS, token);
  await looksOn(d);
};

async function ignoresReserved(d: DriverRole): Promise<void> {
  const { talk } = d;
  await d.negotiate();
  const { bytes, token } = talk.bytesOf(Kind.SET_VQUEUE, d.ring(0));
  // In `v1` they are none: rule V49.
  if (talk.codec.dialect === "v1-2025") {
    bytes.fill(0xff, 12, 16);
    bytes.fill(0xff, 20, 24);
  }
  talk.put(bytes);
  await talk.answer(Kind.SET_VQUEUE, token);
  await d.expectSet(0, "after SET_VQUEUE with something in reserved fields");
  const shared = await talk.ask(Kind.GET_SHM, { index: ABSENT_REGION });
  const queue = await talk.ask(Kind.GET_VQUEUE);
  const field = talk.codec.dialect === "v1" ? u32(shared.bytes, 12) : u32(queue.bytes, 20);
  expectSame(field, 0, "the reserved field of GET_SHM or GET_VQUEUE");
}

/** Nobody answers such messages to a device of that number, and its status stays. */
const silentTo = (
  what: string,
  messages: (number: readonly number[]) => readonly (readonly number[])[],
  device?: number,
): DeviceBody =>
async (d) => {
  const { talk } = d;
  const status = await d.status();
  const number = device ?? talk.device;
  const from = talk.heard.length;
  for (const bytes of messages([number & 0xff, number >> 8])) talk.put(bytes);
  const events = await d.calm(what);
  expectSame(talk.heard.length - from - events.length, 1, `answers, with one to ${what}`);
  expectSame(await d.status(), status, `the status after ${what}`);
};

async function repeatsTokens(d: DriverRole): Promise<void> {
  // The same twice, and lower than before: nothing to draw a conclusion from.
  for (const token of [1, 0x8001, 0xffff, 0x300, 0x300, 2]) {
    const { message } = await d.talk.ask(Kind.GET_DEVICE_STATUS, { token });
    d.claim("G10", message.device, d.talk.device, "an answer's number");
  }
}

async function worksInOrder(d: DriverRole): Promise<void> {
  const { talk } = d;
  const statuses = [1, KNOWN, KNOWN, 0, 1];
  const from = talk.heard.length;
  const tokens = statuses.flatMap((status) => [
    talk.send(Kind.SET_DEVICE_STATUS, { status }),
    talk.send(Kind.GET_DEVICE_STATUS),
  ]);
  await d.status();
  const answers = talk.heard.slice(from, -1).map(({ message }) => message);
  d.claim("G13", answers.map(({ token }) => token), tokens, "the answers' order");
  const shown = answers.map(({ status }) => status);
  d.claim("G20", shown, statuses.flatMap((status) => [status, status]), "what they say");
}

// --- the device -------------------------------------------------------------------------------------

async function offers(d: DriverRole, bit: number): Promise<boolean> {
  return ((await d.features())[bit >> 5]! >>> (bit & 31) & 1) !== 0;
}

async function offersWhatCanBe(d: DriverRole): Promise<void> {
  const { VERSION_1, ACCESS_PLATFORM, NOTIFICATION_DATA, NOTIF_CONFIG_DATA } = RingFeature;
  for (const bit of [VERSION_1, ACCESS_PLATFORM]) {
    d.claim("V43", await offers(d, bit), true, `feature ${bit} is offered`);
  }
  d.claim("B7", await offers(d, NOTIFICATION_DATA), false, "NOTIFICATION_DATA is offered");
  d.claim("V39", await offers(d, NOTIF_CONFIG_DATA), false, "NOTIF_CONFIG_DATA is offered");
}

/** The offered set and one bit more, in blocks 0 and 1. */
function tooMuch(offered: readonly number[]): readonly number[] {
  for (let bit = 63; bit >= 0; bit--) {
    const words = [...offered];
    words[bit >> 5] = (words[bit >> 5]! | (1 << (bit & 31))) >>> 0;
    if (words[bit >> 5] !== offered[bit >> 5]) return words;
  }
  return offered;
}

/** GET_DEVICE_INFO, at status 0, and what can be seen of what it says. */
async function tellsTruth(d: DriverRole): Promise<void> {
  const { talk } = d;
  d.claim("V30", await d.status(), 0, "the status");
  const { bytes, message } = await talk.ask(Kind.GET_DEVICE_INFO);
  const { configSize, maxQueues, featureBlocks, adminStart, adminCount, uuid } = message;
  d.claim("V3", u32(bytes, 16) % 32, 0, "feature bits beyond whole blocks");
  d.claim("V29", message.size, 52, "the size of GET_DEVICE_INFO's answer");
  const isUuid = zeros(uuid, 0) || (uuid[8]! & 0xc0) === 0x80;
  d.claim("V29", isUuid, true, `${uuid.toHex()} is nil or a UUID`);
  const hasAdmin = await offers(d, RingFeature.ADMIN_VQ);
  d.claim("V31", adminStart + adminCount <= maxQueues, true, "admin queues lie inside");
  d.claim("V31", hasAdmin || adminStart + adminCount === 0, true, "admin queues have their bit");
  d.claim("V19", (await d.queue(0)).maxSize > 0, true, "queue 0 has a largest size");
  for (const index of [maxQueues, maxQueues + 7, NOWHERE]) {
    const { maxSize, size, flags, addresses } = await d.queue(index);
    d.claim("V2 V19", maxSize, 0, `the largest size of queue ${index} of ${maxQueues}`);
    d.claim("V32", [size, flags, ...addresses], [0, 0, 0, 0, 0], `queue ${index}, of size 0`);
  }
  const { configBytes } = talk.codec.limits;
  for (let at = 0; at < configSize; at += configBytes) {
    await d.config(at, Math.min(configBytes, configSize - at));
  }
  const { generation } = await d.config(0, 1);
  const past = await d.writeConfig(configSize, [0], generation);
  d.claim("V2", past.length, 0, "bytes written behind the configuration");
  const { words } = await d.blocks(featureBlocks, 1);
  d.claim("V2", words[0], 0, `feature block ${featureBlocks} of as many`);
}

async function answersInBlocks(d: DriverRole): Promise<void> {
  for (const [index, count] of [[0, 2], [1, 3], [70, 4], [0, 0], [NOWHERE, 2]] as const) {
    const answer = await d.blocks(index, count);
    const is = [answer.index, answer.count, answer.size];
    d.claim("V6", is, [index, count, 16 + 4 * count], "block, count and size");
    if (index >= 70) d.claim("V5", zeros(answer.words, 0), true, `blocks from ${index} on are 0`);
  }
}

async function judgesFeatures(d: DriverRole): Promise<void> {
  for (const status of [1, KNOWN]) {
    d.claim("V8", await d.setStatus(status), status, "the resulting status");
    d.claim("V8", await d.status(), status, "the status that stays");
  }
  const offered = await d.features();
  const withoutVersion1 = [offered[0]!, (offered[1]! & ~1) >>> 0];
  const inBlock11 = [0, 1, ...new Array(9).fill(0), 0x8000_0000];
  for (const words of [withoutVersion1, tooMuch(offered), inBlock11]) {
    await d.setFeatures(words);
    const status = await d.setStatus(NEARLY);
    d.claim("V7", status, KNOWN, `the resulting status with features ${words}`);
    d.claim("V8", status, await d.status(), "the resulting status, beside the one that stays");
  }
  // Better ones are taken, after a reset.
  await d.setStatus(0);
  await d.negotiate();
}

/** All queues must read as not set up. */
async function expectUnset(d: DriverRole, rules: string, when: string): Promise<void> {
  const { maxQueues } = await d.info();
  for (let index = 0; index < maxQueues; index++) {
    const { size, flags, addresses } = await d.queue(index);
    d.claim(rules, [size, ...addresses], [0, 0, 0, 0], `queue ${index} ${when}`);
    d.claim("V32", flags, 0, `the flags of queue ${index} ${when}`);
  }
}

async function forgetsAtReset(d: DriverRole): Promise<void> {
  await expectUnset(d, "V20", "at first");
  await d.negotiate();
  await expectUnset(d, "V20", "after FEATURES_OK");
  await d.setQueue(0);
  d.claim("V32", (await d.queue(0)).flags, 1, "the flags of queue 0, which is set up");
  await d.setStatus(RUNNING);
  d.claim("V9", await d.setStatus(0), 0, "the status that answers 0");
  d.claim("V9", await d.status(), 0, "the status after 0");
  await expectUnset(d, "V9 V42", "after status 0");
  await d.setStatus(KNOWN);
  d.claim("V9", await d.setStatus(NEARLY), KNOWN, "FEATURES_OK with the features of before");
}

async function storesQueues(d: DriverRole): Promise<void> {
  await d.negotiate();
  await d.setQueue(0);
  await d.expectSet(0, "after SET_VQUEUE");
  await d.expectUnset(1, "while queue 0 is set up");
  await d.setQueue(1, { queueSize: 32 });
  expectSame((await d.queue(1)).size, 32, "queue 1's size");
  await d.expectSet(0, "after queue 1's SET_VQUEUE");
}

/** SET_CONFIG, and what the generation that it names has to do with it. */
async function writes(d: DriverRole): Promise<void> {
  const { bytes: [byte], generation } = await d.config(0, 1);
  const first = await d.writeConfig(0, [byte!], generation);
  require(first.length === 1, "this device takes no write of its configuration");
  const now = (await d.config(0, 1)).generation;
  for (const other of [now + 1, now + 999]) {
    const { length } = await d.writeConfig(0, [byte! ^ 1], other);
    const what = `bytes written under generation ${other} instead of ${now}`;
    d.claim("V13", length, 0, what);
    d.claim("V35", length, 1, what);
  }
  d.claim("V13", (await d.config(0, 1)).bytes[0], byte, "the byte that was not to be written");
  const answer = await d.writeConfig(0, [byte! ^ 2], (await d.config(0, 1)).generation);
  const then = await d.config(0, 1);
  const is = [answer.length, answer.generation, answer.bytes[0], answer.size];
  d.claim("V14", is, [1, then.generation, then.bytes[0], 21], "what answers a write");
}

const showsNoRegion = (size: number): DeviceBody => async (d) => {
  for (const region of [ABSENT_REGION, NOWHERE]) {
    const answer = await d.ask(Kind.GET_SHM, { index: region });
    const is = [answer.index, answer.length, answer.address, answer.size];
    expectSame(is, [region, 0, 0, size], "an absent region");
  }
};

// --- the bus ----------------------------------------------------------------------------------------

/** GET_DEVICES: its three words and its bits. */
async function window(d: DriverRole, offset: number, count: number) {
  const { bytes, message } = await d.talk.ask(Kind.GET_DEVICES, { offset, count });
  const words = [u16(bytes, 8), u16(bytes, 10), u16(bytes, 12)];
  return { words, bits: bytes.slice(14, message.size) };
}

/** The numbers that GET_DEVICES shows, in windows of so many. */
async function numbersShown(d: DriverRole, count: number): Promise<number[]> {
  const numbers: number[] = [];
  for (let offset = 0, next = -1; next !== 0; offset = next) {
    const { words, bits } = await window(d, offset, count);
    d.claim("B9", bits.length, count / 8, `bytes for ${count} numbers`);
    for (let n = 0; n < count; n++) {
      if ((bits[n >> 3]! >> (n & 7) & 1) !== 0) numbers.push(offset + n);
    }
    next = words[2]!;
    const isBehind = next === 0 || next >= offset + count;
    d.claim("B10", isBehind, true, `next, ${next}, is 0 or behind ${count} from ${offset} on`);
    const shown = [words[0]! % 8, words[1]! % 8, next % 8];
    d.claim("B8", shown, [0, 0, 0], "offset, count and next beyond whole bytes");
    if (next < offset + count) break;
  }
  return numbers;
}

async function discovers(d: DriverRole): Promise<void> {
  const numbers = await numbersShown(d, 32);
  const known = [d.talk.device, NOBODY].map((number) => numbers.includes(number));
  d.claim("B9", known, [true, false], `whether ${numbers} have the device, and nobody`);
  d.claim("B9 B10", await numbersShown(d, 8), numbers, "the numbers, in smaller windows");
}

/** Requests to a number without a device change nothing of another, and nobody answers. */
async function reachesNobody(d: DriverRole): Promise<void> {
  await d.setStatus(KNOWN);
  const from = d.talk.heard.length;
  for (const kind of REQUESTS) {
    if (kind === Kind.GET_DEVICE_INFO) continue;
    d.talk.send(kind, { ...d.ring(0), device: NOBODY, status: 0x8f, length: 1 });
  }
  await d.status();
  d.claim("B20", d.talk.heard.length - from, 1, "answers, with those to requests to no device");
  d.claim("B4", await d.status(), KNOWN, "the status of the device that was not meant");
  await expectUnset(d, "B4", "of the device that was not meant");
}

// --- the prototype's dialect ------------------------------------------------------------------------

/** What the prototype answers, in the order of its ids; and what it does not. */
const PROTO_ANSWERED = [0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0b];
const PROTO_SILENT = [0x0a, 0x0c, 0x0d, 0x11, 0x20];
const PROTO_SIZE = 40;
/** What the prototype waits before it gives up. */
const PROTO_ANSWER_MS = 3.5;

async function startsProto(d: DriverRole): Promise<void> {
  await d.negotiate();
  const { bytes } = await d.talk.ask(Kind.GET_VQUEUE);
  d.claim("P7", zeros(bytes.subarray(0, PROTO_SIZE), 12), true, "0 behind GET_VQUEUE's size");
  const { maxSize } = await d.queue(0);
  await d.setQueue(0);
  d.claim("P13", (await d.queue(0)).maxSize, maxSize, "the largest size after SET_VQUEUE");
  await d.setStatus(RUNNING);
  d.claim("P13", (await d.queue(0)).maxSize, maxSize, "the largest size after DRIVER_OK");
  await d.calm("a start");
  lookOn(d.talk, d.rule);
  const invalidated = d.talk.heard.some(({ bytes }) => bytes[1] === 0x22);
  d.claim("P10", invalidated, false, "IOMMU_INVALIDATE came");
}

/** Rules that a body covers together, or that are asked in the same way. */
const SHARED: readonly (readonly [rules: string, body: DeviceBody])[] = [
  ["G2 G16 V28 B16", looksOn],
  ["G5", ignoresReserved],
  ["G10 G12", repeatsTokens],
  ["G13 G20", worksInOrder],
  ["V2 V3 V19 V29 V30 V31", tellsTruth],
  ["V5 V6", answersInBlocks],
  ["V7 V8", judgesFeatures],
  ["V9 V20 V42", forgetsAtReset],
  ["V13 V14 V35", writes],
  ["V21 V33", storesQueues],
  ["V39 V43 B7", offersWhatCanBe],
  ["B4 B20", reachesNobody],
  ["B8 B9 B10", discovers],
  ["P3 P7 P10 P13", startsProto],
];

/** The bodies by the rule's number. */
export const DEVICE_BODIES: Readonly<Record<string, DeviceBody>> = {
  ...Object.fromEntries(
    SHARED.flatMap(([rules, body]) => rules.split(" ").map((rule) => [rule, body])),
  ),
  async G1(d) {
    const { bytes } = await d.talk.ask(Kind.GET_DEVICE_FEATURES, { index: 0x0107, count: 4 });
    expectSame([...bytes.slice(6, 16)], [32, 0, 7, 1, 0, 0, 4, 0, 0, 0], "size, index and count");
  },
  async G3(d) {
    const { configBytes } = d.talk.codec.limits;
    for (const length of [configBytes, configBytes + 1, 256]) {
      d.talk.send(Kind.GET_CONFIG, { length });
    }
    d.talk.send(Kind.GET_DEVICE_FEATURES, { count: 100 });
    await d.status();
    lookOn(d.talk, d.rule);
  },
  G4: ignores((bytes) => bytes[0]! |= 0xfc),
  G6: ignores((bytes) => bytes.fill(0xff, 8)),
  async G7(d) {
    await d.ask(Kind.PING);
    await looksOn(d);
  },
  G11: silentTo("an answer that nobody asked for", (n) => [[1, 8, ...n, 9, 0, 12, 0, KNOWN]]),
  G14: silentTo("a message that is none", NONSENSE),
  G15: silentTo("an event", WRONG_EVENTS),
  G17: silentTo("an implementation's own id", FOREIGN_IDS),
  async V1(d) {
    await d.tour();
    await d.calm("one request of every kind");
  },
  async V4(d) {
    const { bytes } = await d.talk.ask(Kind.GET_DEVICE_INFO, { device: NOBODY });
    expect(zeros(bytes, 8), "GET_DEVICE_INFO of no device says something");
  },
  async V10(d) {
    await d.start();
    const { generation } = await d.config(0, 1);
    await d.setStatus(0);
    expectSame((await d.config(0, 1)).generation, generation, "the generation after a reset");
  },
  async V12(d) {
    const whole = await d.config(0, 6);
    for (const [offset, length] of [[0, 1], [1, 3], [2, 4]] as const) {
      const part = await d.config(offset, length);
      const is = [part.offset, part.length, part.size, part.generation];
      expectSame(is, [offset, length, 20 + length, whole.generation], "offset, length, size");
      const bytes = [...whole.bytes.subarray(offset, offset + length)];
      expectSame([...part.bytes.subarray(0, length)], bytes, `${length} bytes from ${offset} on`);
    }
  },
  async V22(d) {
    await d.start();
    d.talk.send(Kind.EVENT_AVAIL);
    const events = await d.calm("EVENT_AVAIL of a queue that is not set up");
    expectSame(events.map(({ message }) => kindName(message.kind)), [], "events");
    expectSame(await d.status(), RUNNING, "the status after EVENT_AVAIL without a queue");
  },
  async V23(d) {
    await d.start();
    await d.setQueue(0);
    await d.expectSet(0, "after SET_VQUEUE behind DRIVER_OK");
    expectSame(await d.status(), RUNNING, "the status after it");
  },
  async V24(d) {
    require(await offers(d, RingFeature.RING_RESET), "RING_RESET is not offered");
    await storesQueues(d);
    await d.setStatus(RUNNING);
    await d.ask(Kind.RESET_VQUEUE, { index: 1 });
    await d.expectUnset(1, "after RESET_VQUEUE");
    await d.expectSet(0, "after queue 1's RESET_VQUEUE");
    await d.setQueue(1);
    await d.expectSet(1, "set up again");
  },
  V27: showsNoRegion(20),
  async V32(d) {
    await tellsTruth(d);
    await forgetsAtReset(d);
  },
  async V37(d) {
    const { configSize } = await d.info();
    const { bytes: [byte], generation } = await d.config(configSize - 1, 1);
    for (const offset of [configSize - 1, configSize, 0xffff_fffe]) {
      const { length } = await d.writeConfig(offset, [byte! ^ 1, 0], generation);
      expectSame(length, 0, `bytes written across the end, from ${offset} on`);
    }
    const { bytes } = await d.config(configSize - 1, 1);
    expectSame(bytes[0], byte, "the last byte after a write that did not fit");
  },
  V38: showsNoRegion(32),
  async V40(d) {
    await d.negotiate();
    for (const status of [RUNNING, RUNNING | Status.FAILED, 0, 1]) {
      await d.setStatus(status);
      const events = await d.calm("a status");
      const told = events.some(({ message }) => message.kind === Kind.EVENT_CONFIG);
      expect(!told, `status ${status}, which the driver wrote, was announced`);
    }
  },
  async B11(d) {
    const { words: [, count], bits } = await window(d, 0, 1024);
    const most = d.talk.codec.limits.deviceBits;
    expect(count! <= Math.min(1024, most) && bits.length === count! / 8, `a count of ${count}`);
    expectSame((await window(d, 0, 64)).words[1], 64, "a count that fits");
  },
  async B12(d) {
    for (const data of [0, 0xcafe_f00d, 0xffff_ffff]) {
      expectSame((await d.ask(Kind.PING, { data })).data, data, "PING's data");
    }
  },
  B15: silentTo("an event to no device", (n) => [
    [0, 0x41, ...n, 0, 0, 16, 0, 1],
    [0, 0x41, ...n, 5, 0, 9, 0, 1],
    [2, 0x40, 0, 0, 0, 0, 12, 0, 5, 0, 1, 0],
  ], NOBODY),
  async B18(d) {
    const { device } = d.talk;
    const first = device & ~7;
    const { words: [at, next, count], bits } = await window(d, first, 16);
    expectSame([at, bits.length], [first, Math.ceil(count! / 8)], "offset and bytes of bits");
    expect(count! <= 16 && (next === 0 || next! > first), `count ${count}, next ${next}`);
    expect((bits[0]! >> (device & 7) & 1) !== 0, `device ${device} is not shown`);
  },
  async P1(d) {
    const { device, heard } = d.talk;
    const from = heard.length;
    const number = [device & 0xff, device >> 8];
    for (const id of [...PROTO_ANSWERED, ...PROTO_SILENT]) {
      // GET_CONFIG and SET_CONFIG of one byte.
      d.talk.put([0, id, ...number, 0, 0, 0, id === 6 || id === 7 ? 1 : 0]);
    }
    await d.status();
    const ids = heard.slice(from, -1).filter(({ bytes }) => (bytes[0]! & 1) !== 0)
      .map(({ bytes }) => bytes[1]);
    expectSame(ids, PROTO_ANSWERED, "the ids that were answered");
  },
  async P2(d) {
    for (let n = 0; n < 10; n++) {
      const askedMs = d.talk.now();
      const { atMs } = await d.talk.ask(Kind.GET_DEVICE_STATUS);
      expect(atMs - askedMs <= PROTO_ANSWER_MS, `an answer took ${atMs - askedMs} ms`);
    }
    await d.calm("a status");
  },
};
