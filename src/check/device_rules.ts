/**
 * What a device side must do, asked of it by one who speaks as a driver: a body per rule of rules.ts, or
 * one for several that cannot be told apart. docs/wire.md, section 7.
 *
 * A body finds a device whose status is 0 and may leave it in any state. Where nothing must happen, a
 * device is asked for its status behind it, and given a little time ({@link DriverRole.calm}).
 */

import { Kind } from "../message/message.ts";
import { kindName } from "../message/table.ts";
import { RingFeature, Status } from "../virtio/features.ts";
import type { Fill } from "./conversation.ts";
import { type DriverRole, KNOWN, NOBODY, REQUESTS, RUNNING } from "./driver_role.ts";
import { expect, expectSame, require } from "./outcome.ts";
import { lookOn, u16, u32, zeros } from "./traffic.ts";

/** Asks for one rule. */
export type DeviceBody = (d: DriverRole) => Promise<void>;

const NEARLY = KNOWN | Status.FEATURES_OK;
/** A region of shared memory that no device has. */
const ABSENT_REGION = 0xff;

// --- framing ----------------------------------------------------------------------------------------

/** One request of each kind, and a look at all that was heard. */
const looksOn = (number: string): DeviceBody => async (d) => {
  await d.tour();
  lookOn(d.talk, number);
};

/** A request that is a little wrong is answered as if it were right; so is everything of the device's. */
const ignores = (number: string, spoil: (bytes: Uint8Array) => void): DeviceBody => async (d) => {
  const { bytes, token } = d.talk.bytesOf(Kind.GET_DEVICE_STATUS);
  spoil(bytes);
  d.talk.put(bytes);
  await d.talk.answer(Kind.GET_DEVICE_STATUS, token);
  await d.tour();
  lookOn(d.talk, number);
};

async function ignoresReserved(d: DriverRole): Promise<void> {
  const { talk } = d;
  await d.negotiate();
  const { bytes, token } = talk.bytesOf(Kind.SET_VQUEUE, d.setup(0));
  bytes.fill(0xff, 20, 24);
  if (talk.codec.dialect === "v1-2025") bytes.fill(0xff, 12, 16);
  talk.put(bytes);
  await talk.answer(Kind.SET_VQUEUE, token);
  await d.expectSet(0, "after SET_VQUEUE with something in reserved fields");
  const shared = await talk.ask(Kind.GET_SHM, (m) => m.index = ABSENT_REGION);
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
    const { message } = await d.talk.ask(Kind.GET_DEVICE_STATUS, (m) => m.token = token);
    const is = [message.device, message.token];
    expectSame(is, [d.talk.device, token], "an answer's number and token");
  }
}

async function worksInOrder(d: DriverRole): Promise<void> {
  const { talk } = d;
  const statuses = [1, KNOWN, KNOWN, 0, 1];
  const from = talk.heard.length;
  const tokens = statuses.flatMap((status) => [
    talk.send(Kind.SET_DEVICE_STATUS, (m) => m.status = status),
    talk.send(Kind.GET_DEVICE_STATUS),
  ]);
  await d.status();
  const answers = talk.heard.slice(from, -1).map(({ message }) => message);
  expectSame(answers.map(({ token }) => token), tokens, "the answers' order");
  const shown = answers.map(({ status }) => status);
  expectSame(shown, statuses.flatMap((status) => [status, status]), "what they say");
}

// --- the device -------------------------------------------------------------------------------------

async function offers(d: DriverRole, bit: number): Promise<boolean> {
  return ((await d.features())[bit >> 5]! >>> (bit & 31) & 1) !== 0;
}

async function offersWhatCanBe(d: DriverRole): Promise<void> {
  for (const bit of [RingFeature.VERSION_1, RingFeature.ACCESS_PLATFORM]) {
    expect(await offers(d, bit), `feature ${bit} is not offered`);
  }
  for (const bit of [RingFeature.NOTIFICATION_DATA, RingFeature.NOTIF_CONFIG_DATA]) {
    expect(!await offers(d, bit), `feature ${bit} is offered`);
  }
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

/** GET_DEVICE_INFO, before any status was written, and what can be seen of what it says. */
async function tellsTruth(d: DriverRole): Promise<void> {
  const { talk } = d;
  const { bytes, message } = await talk.ask(Kind.GET_DEVICE_INFO);
  const { deviceId, configSize, maxQueues, featureBlocks, adminStart, adminCount } = message;
  expect(deviceId !== 0, "the device id is 0");
  if (talk.codec.dialect === "v1") {
    expectSame(message.size, 52, "the size of GET_DEVICE_INFO's answer");
    const isUuid = zeros(message.uuid, 0) || (message.uuid[8]! & 0xc0) === 0x80;
    expect(isUuid, `neither nil nor a UUID: ${message.uuid.toHex()}`);
  } else expectSame(u32(bytes, 16) % 32, 0, "feature bits beyond whole blocks");
  expect(adminStart + adminCount <= maxQueues, "admin queues lie outside");
  const hasAdmin = await offers(d, RingFeature.ADMIN_VQ);
  expect(hasAdmin || (adminStart === 0 && adminCount === 0), "admin queues without ADMIN_VQ");
  expect((await d.queue(0)).maxSize > 0, "the largest size of queue 0 is 0");
  for (const index of [maxQueues, maxQueues + 7, 0xffff_ffff]) {
    const { maxSize, size, flags, addresses } = await d.queue(index);
    const is = [maxSize, size, flags, ...addresses];
    expectSame(is, [0, 0, 0, 0, 0, 0], `queue ${index}, which does not exist`);
  }
  const { configBytes } = talk.codec.limits;
  for (let at = 0; at < configSize; at += configBytes) {
    await d.config(at, Math.min(configBytes, configSize - at));
  }
  const past = await d.writeConfig(configSize, [0], await d.generation());
  expectSame(past.length, 0, "bytes written behind the configuration");
  const { words } = await d.blocks(featureBlocks, 1);
  expectSame(words[0], 0, `feature block ${featureBlocks}`);
}

async function answersInBlocks(d: DriverRole): Promise<void> {
  for (const [index, count] of [[0, 2], [1, 3], [70, 4], [0, 1]] as const) {
    const answer = await d.blocks(index, count);
    const is = [answer.index, answer.count, answer.size];
    expectSame(is, [index, count, 16 + 4 * count], "block, count and size");
    const isAbsent = index === 70;
    expect(!isAbsent || answer.words.every((word) => word === 0), "there is something in block 70");
  }
}

async function judgesFeatures(d: DriverRole): Promise<void> {
  for (const status of [1, KNOWN]) {
    expectSame(await d.setStatus(status), status, "the resulting status");
    expectSame(await d.status(), status, "the status that stays");
  }
  const offered = await d.features();
  const withoutVersion1 = [offered[0]!, (offered[1]! & ~1) >>> 0];
  for (const words of [withoutVersion1, tooMuch(offered)]) {
    await d.setFeatures(words);
    expectSame(await d.setStatus(NEARLY), KNOWN, `the resulting status with features ${words}`);
    expectSame(await d.status(), KNOWN, "the status that stays");
  }
  await d.setStatus(0);
  await d.negotiate();
}

async function forgetsAtReset(d: DriverRole): Promise<void> {
  const { maxQueues } = await d.info();
  for (let index = 0; index < maxQueues; index++) await d.expectUnset(index, "at first");
  await d.negotiate();
  for (let index = 0; index < maxQueues; index++) await d.expectUnset(index, "after FEATURES_OK");
  for (let index = 0; index < Math.min(maxQueues, 3); index++) await d.setQueue(index);
  await d.setStatus(RUNNING);
  expectSame(await d.setStatus(0), 0, "the status that answers 0");
  expectSame(await d.status(), 0, "the status after 0");
  for (let index = 0; index < maxQueues; index++) await d.expectUnset(index, "after status 0");
  await d.setStatus(KNOWN);
  expectSame(await d.setStatus(NEARLY), KNOWN, "FEATURES_OK with the features of before");
}

async function storesQueues(d: DriverRole): Promise<void> {
  await d.negotiate();
  await d.setQueue(0);
  await d.expectSet(0, "after SET_VQUEUE");
  await d.expectUnset(1, "while queue 0 is set up");
  await d.setQueue(1, (m) => m.queueSize = 32);
  expectSame((await d.queue(1)).size, 32, "queue 1's size");
  await d.expectSet(0, "after queue 1's SET_VQUEUE");
}

/** SET_CONFIG, and what the generation that it names has to do with it. */
async function writes(d: DriverRole): Promise<void> {
  const { bytes: [byte], generation } = await d.config(0, 1);
  const first = await d.writeConfig(0, [byte!], generation);
  require(first.length === 1, "this device takes no write of its configuration");
  const now = await d.generation();
  const others = [now + 1, now + 999];
  for (const other of others) {
    const { length } = await d.writeConfig(0, [byte! ^ 1], other);
    const wanted = d.talk.codec.dialect === "v1" ? 1 : 0;
    expectSame(length, wanted, `bytes written under generation ${other} instead of ${now}`);
  }
  if (d.talk.codec.dialect === "v1") return;
  expectSame((await d.config(0, 1)).bytes[0], byte, "the byte that was not to be written");
  const answer = await d.writeConfig(0, [byte! ^ 1], now);
  const then = await d.config(0, 1);
  const is = [answer.length, answer.generation, answer.bytes[0], answer.size];
  expectSame(is, [1, then.generation, then.bytes[0], 21], "what answers a write");
}

const showsNoRegion = (size: number): DeviceBody => async (d) => {
  for (const region of [ABSENT_REGION, 0xffff_ffff]) {
    const answer = await d.ask(Kind.GET_SHM, (m) => m.index = region);
    const is = [answer.index, answer.length, answer.address, answer.size];
    expectSame(is, [region, 0, 0, size], "an absent region");
  }
};

// --- the bus ----------------------------------------------------------------------------------------

/** GET_DEVICES: its three words and its bits. */
async function window(d: DriverRole, offset: number, count: number) {
  const fill: Fill = (m) => Object.assign(m, { offset, count });
  const { bytes, message } = await d.talk.ask(Kind.GET_DEVICES, fill);
  const words = [u16(bytes, 8), u16(bytes, 10), u16(bytes, 12)];
  return { words, bits: bytes.slice(14, message.size) };
}

/** The numbers that GET_DEVICES shows, in windows of so many. */
async function numbersShown(d: DriverRole, count: number): Promise<number[]> {
  const numbers: number[] = [];
  for (let offset = 0, next = -1; next !== 0; offset = next) {
    const { words, bits } = await window(d, offset, count);
    expectSame([...words.slice(0, 2), bits.length], [offset, count, count / 8], "a window");
    for (let n = 0; n < count; n++) {
      if ((bits[n >> 3]! >> (n & 7) & 1) !== 0) numbers.push(offset + n);
    }
    next = words[2]!;
    const isSound = next === 0 || (next % 8 === 0 && next >= offset + count);
    expect(isSound, `next is ${next} for ${count} from ${offset} on`);
  }
  return numbers;
}

async function discovers(d: DriverRole): Promise<void> {
  const numbers = await numbersShown(d, 32);
  expect(numbers.includes(d.talk.device), `device ${d.talk.device} is not in ${numbers}`);
  expect(!numbers.includes(NOBODY), `device ${NOBODY} is shown`);
  expectSame(await numbersShown(d, 8), numbers, "the numbers, in smaller windows");
}

/** Requests to a number without a device change nothing of another, and nobody answers. */
async function reachesNobody(d: DriverRole): Promise<void> {
  await d.setStatus(KNOWN);
  const from = d.talk.heard.length;
  for (const kind of REQUESTS) {
    if (kind === Kind.GET_DEVICE_INFO) continue;
    d.talk.send(kind, (m) => {
      d.setup(0)(m);
      Object.assign(m, { device: NOBODY, status: 0x8f, length: 1 });
    });
  }
  await d.calm("a request to no device");
  expectSame(d.talk.heard.length - from, 1, "answers, with those to requests to no device");
  expectSame(await d.status(), KNOWN, "the status of the device that was not meant");
  await d.expectUnset(0, "of the device that was not meant");
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
  expect(zeros(bytes.subarray(0, PROTO_SIZE), 12), "something behind GET_VQUEUE's size");
  const { maxSize } = await d.queue(0);
  await d.setQueue(0);
  expectSame((await d.queue(0)).maxSize, maxSize, "the largest size after SET_VQUEUE");
  await d.setStatus(RUNNING);
  expectSame((await d.queue(0)).maxSize, maxSize, "the largest size after DRIVER_OK");
  await d.calm("a start");
  lookOn(d.talk, "P3");
  for (const { bytes } of d.talk.heard) expect(bytes[1] !== 0x22, "IOMMU_INVALIDATE came");
}

/** The bodies by the rule's number. */
export const DEVICE_BODIES: Readonly<Record<string, DeviceBody>> = {
  async G1(d) {
    const { bytes } = await d.talk.ask(Kind.GET_DEVICE_FEATURES, (m) => {
      m.index = 0x0107;
      m.count = 4;
    });
    expectSame([...bytes.slice(6, 16)], [32, 0, 7, 1, 0, 0, 4, 0, 0, 0], "size, index and count");
  },
  G2: looksOn("G2"),
  async G3(d) {
    const { configBytes } = d.talk.codec.limits;
    for (const length of [configBytes, configBytes + 1, 256]) {
      d.talk.send(Kind.GET_CONFIG, (m) => m.length = length);
    }
    d.talk.send(Kind.GET_DEVICE_FEATURES, (m) => m.count = 100);
    await d.status();
    lookOn(d.talk, "G3");
  },
  G4: ignores("G4", (bytes) => bytes[0]! |= 0xfc),
  G5: ignoresReserved,
  G6: ignores("G6", (bytes) => bytes.fill(0xff, 8)),
  async G7(d) {
    await d.tour();
    await d.ask(Kind.PING);
    lookOn(d.talk, "G7");
  },
  G10: repeatsTokens,
  G11: silentTo("an answer that nobody asked for", (n) => [[1, 8, ...n, 9, 0, 12, 0, KNOWN]]),
  G12: repeatsTokens,
  G13: worksInOrder,
  G14: silentTo("a message that is none", (n) => [
    [0, 0x3f, ...n, 1, 0, 8, 0],
    [2, 0x3f, 0, 0, 1, 0, 8, 0],
    [0, 0x02, ...n, 1, 0, 7, 0],
    [0, 0x02, ...n, 1, 0, 0xff, 0xff],
    [0, 0x0a, ...n, 1, 0, 47, 0],
    [0, 0x04, ...n, 1, 0, 20, 0, 0, 0, 0, 0, 2, 0, 0, 0],
    [0, 0x06, ...n, 1, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0],
  ]),
  G15: silentTo("an event", (n) => [
    [0, 0x41, ...n, 0, 0, 15, 0, 1],
    [0, 0x41, ...n, 0, 0, 8, 0],
    [0, 0x41, ...n, 7, 0, 16, 0, 0xff, 0xff, 0xff, 0xff],
    [0, 0x40, ...n, 0, 0, 24, 0],
    [0, 0x42, ...n, 0, 0, 12, 0],
    [1, 0x41, ...n, 0, 0, 16, 0],
  ]),
  G16: looksOn("G16"),
  G17: silentTo("an implementation's own id", (n) =>
    [0x89, 0xbf, 0xc1, 0xff].flatMap((id) => [
      [0, id, ...n, 1, 0, 8, 0],
      [2, id, 0, 0, 1, 0, 8, 0],
    ])),
  G20: worksInOrder,
  async V1(d) {
    await d.tour();
    await d.calm("one request of every kind");
  },
  V2: tellsTruth,
  V3: tellsTruth,
  async V4(d) {
    const { bytes } = await d.talk.ask(Kind.GET_DEVICE_INFO, (m) => m.device = NOBODY);
    expect(zeros(bytes, 8), "GET_DEVICE_INFO of no device says something");
  },
  V5: answersInBlocks,
  V6: answersInBlocks,
  V7: judgesFeatures,
  V8: judgesFeatures,
  V9: forgetsAtReset,
  async V10(d) {
    await d.start();
    const before = await d.generation();
    await d.setStatus(0);
    expectSame(await d.generation(), before, "the generation after a reset");
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
  V13: writes,
  V14: writes,
  V19: tellsTruth,
  V20: forgetsAtReset,
  V21: storesQueues,
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
    await d.resetQueue(1);
    await d.expectUnset(1, "after RESET_VQUEUE");
    await d.expectSet(0, "after queue 1's RESET_VQUEUE");
    await d.setQueue(1);
    await d.expectSet(1, "set up again");
  },
  V27: showsNoRegion(20),
  V28: looksOn("G7"),
  V29: tellsTruth,
  V30: tellsTruth,
  V31: tellsTruth,
  V32: forgetsAtReset,
  V33: storesQueues,
  async V34(d) {
    await d.negotiate();
    for (const flags of [0, 2, 3, 0x8000_0001]) {
      await d.setQueue(0, (m) => m.flags = flags);
      await d.expectUnset(0, `after SET_VQUEUE with flags ${flags}`);
    }
  },
  V35: writes,
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
  V39: offersWhatCanBe,
  async V40(d) {
    await d.negotiate();
    for (const status of [RUNNING, RUNNING | Status.FAILED, 0, 1]) {
      await d.setStatus(status);
      const events = await d.calm("a status");
      const told = events.some(({ message }) => message.kind === Kind.EVENT_CONFIG);
      expect(!told, `status ${status}, which the driver wrote, was announced`);
    }
  },
  V42: forgetsAtReset,
  V43: offersWhatCanBe,
  B4: reachesNobody,
  B7: offersWhatCanBe,
  B8: discovers,
  B9: discovers,
  B10: discovers,
  async B11(d) {
    const { words: [, count], bits } = await window(d, 0, 1024);
    const most = d.talk.codec.limits.deviceBits;
    expect(count! <= Math.min(1024, most) && bits.length === count! / 8, `a count of ${count}`);
    expectSame((await window(d, 0, 64)).words[1], 64, "a count that fits");
  },
  async B12(d) {
    for (const data of [0, 0xcafe_f00d, 0xffff_ffff]) {
      expectSame((await d.ask(Kind.PING, (m) => m.data = data)).data, data, "PING's data");
    }
  },
  B15: silentTo("an event to no device", (n) => [
    [0, 0x41, ...n, 0, 0, 16, 0, 1],
    [0, 0x41, ...n, 5, 0, 9, 0, 1],
    [2, 0x40, 0, 0, 0, 0, 12, 0, 5, 0, 1, 0],
  ], NOBODY),
  B16: looksOn("B16"),
  async B18(d) {
    const { device } = d.talk;
    const first = device & ~7;
    const { words: [at, next, count], bits } = await window(d, first, 16);
    expectSame([at, bits.length], [first, Math.ceil(count! / 8)], "offset and bytes of bits");
    expect(count! <= 16 && (next === 0 || next! > first), `count ${count}, next ${next}`);
    expect((bits[0]! >> (device & 7) & 1) !== 0, `device ${device} is not shown`);
  },
  B20: reachesNobody,
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
  P3: startsProto,
  P7: startsProto,
  P10: startsProto,
  P13: startsProto,
};
