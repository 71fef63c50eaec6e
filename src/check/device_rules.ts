/**
 * What a device side must do, asked of it by one who speaks as a driver: bodies by the rules (docs/wire.md, section 7)
 * that they ask for. Where one conversation shows several, each has its own claims. A body finds a device whose
 * status is 0 and may leave it in any state. What must not happen is given time ({@link DriverRole.calm}).
 */

import { Kind, type Message, QueueFlag } from "../message/message.ts";
import { kindName } from "../message/table.ts";
import { RingFeature, Status } from "../virtio/features.ts";
import { type Bodies, type Body, byRule, zeros } from "./common_rules.ts";
import type { Fields, Spoil } from "./dialogue.ts";
import { expect, expectSame, require } from "./outcome.ts";
import { type DriverRole, KNOWN, NEARLY, NOBODY, RING_RESET, RUNNING, UNSET } from "./roles.ts";

/** A queue, a region, a feature block that no device has. */
const NOWHERE = 0xffff_ffff;
/** That are counted where nobody says how many there are. */
const MOST_QUEUES = 1024;
/** What the prototype answers, in the order of its ids; and what it does not. */
const PROTO_ANSWERED = [0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0b];
const PROTO_SILENT = [0x0a, 0x0c, 0x0d, 0x11, 0x20];
/** Nothing comes for that long when all is answered. */
const QUIET_MS = 100;
/** The naps of the prototype before it gives up: how long they would be together, and how many of a millisecond they are. */
const PROTO_ANSWER_MS = 3.5;
const PROTO_NAPS = 50;
/** How often it is asked so, on a machine that has other work. */
const PROTO_TRIES = 10;
/** Requests that are sent to one who reads none of its answers: more than queues hold. */
const FLOOD = 12_000;

const { GET_DEVICE_INFO, GET_DEVICE_FEATURES, GET_CONFIG, SET_CONFIG } = Kind;
const { GET_DEVICE_STATUS, SET_DEVICE_STATUS, GET_VQUEUE, SET_VQUEUE, RESET_VQUEUE, GET_SHM } =
  Kind;

/** A request that is a little wrong is answered as if it were right, and none of the answers is so. */
const overlooks = (spoil: Spoil): Body<DriverRole> => async (d) => {
  const { bytes, token } = d.talk.bytesOf(GET_DEVICE_STATUS);
  spoil(bytes);
  d.talk.put(bytes);
  await d.talk.answer(GET_DEVICE_STATUS, token);
  await d.converse();
};

async function offers(d: DriverRole, bit: number): Promise<boolean> {
  return ((await d.features())[bit >> 5]! >>> (bit & 31) & 1) !== 0;
}

const isProto = ({ talk }: DriverRole) => talk.codec.dialect === "proto";

/**
 * As the prototype waits: it looks 1024 times, with naps of a few microseconds, which by a kernel's usual slack are a
 * good 50 ms together, and more on a machine that has other work. Naps of our own last longer there as well. And where
 * all answers need longer than the naps' own length, it is the device. What was missed, if anything was.
 */
async function missedOf({ talk }: DriverRole): Promise<string | undefined> {
  const took: number[] = [];
  for (let n = 0; n < 5; n++) {
    for (const kind of [GET_DEVICE_INFO, GET_DEVICE_FEATURES, GET_DEVICE_STATUS, GET_VQUEUE]) {
      const sentMs = talk.reactor.now();
      talk.send(kind);
      const answer = await talk.withinNaps(({ message: m }) => m.response, PROTO_NAPS);
      if (answer === undefined) {
        // It is not to be taken for the next one's.
        await talk.answer(kind, 0);
        return `${kindName(kind)} was not answered within ${PROTO_NAPS} naps`;
      }
      expectSame(kindName(answer.message.kind), kindName(kind), "what was answered");
      took.push(answer.atMs - sentMs);
    }
  }
  const quickest = Math.min(...took).toFixed(1);
  const isQuick = +quickest <= PROTO_ANSWER_MS;
  return isQuick ? undefined : `the quickest of ${took.length} answers took ${quickest} ms`;
}

/** There are queues, as many as their sizes show, and none behind. */
async function endsBehindQueues(d: DriverRole): Promise<void> {
  let count = 0;
  while (count < MOST_QUEUES && (await d.shows(count, {})).maxSize > 0) count++;
  expect(count > 0, "queue 0 has no largest size");
  expect(count < MOST_QUEUES, `a queue on each of ${MOST_QUEUES} numbers`);
  for (const index of [count + 1, count + 7, NOWHERE]) await d.shows(index, { maxSize: 0 });
}

async function showsUnset(d: DriverRole, rules?: string): Promise<void> {
  const { maxQueues } = await d.ask(GET_DEVICE_INFO);
  for (let index = 0; index < maxQueues; index++) await d.shows(index, UNSET, rules);
}

function writing(offset: number, bytes: readonly number[], generation: number): Fields {
  return { offset, bytes, length: bytes.length, generation };
}

/**
 * SET_VQUEUE by the text of 2026: rules, what is said of queue 0 one after the other from a reset on, and
 * what GET_VQUEUE must show then. `a` and `b` are of different sizes and lie elsewhere.
 */
function queueCases(a: Fields, b: Fields, most: number) {
  const stored = { ...a, flags: 0 };
  const { KEEP_SIZE, KEEP_DESCRIPTOR, KEEP_DRIVER, KEEP_DEVICE } = QueueFlag;
  const keepAreas = KEEP_DESCRIPTOR | KEEP_DRIVER | KEEP_DEVICE;
  const keepAll = KEEP_SIZE | keepAreas;
  const cases: (readonly [rules: string, said: readonly Fields[], shown: Fields])[] = [
    ["V45", [stored], stored],
    ["V45 V46", [stored, { ...b, flags: keepAll | 1 }], a],
    ["V46", [stored, { ...b, flags: KEEP_SIZE | 1 }], { ...b, queueSize: a.queueSize!, flags: 1 }],
    ["V46", [stored, { ...b, flags: keepAreas }], { ...stored, queueSize: b.queueSize! }],
    ["V47", [{ ...a, flags: 2 }], stored],
    ["V47", [stored, { ...b, flags: 2 }], { ...b, flags: 0 }],
  ];
  for (const flags of [0, 1, 2, KEEP_SIZE | 1, keepAll, keepAll | 1, keepAll | 2]) {
    cases.push(["V48", [a, { ...b, flags }], a]);
  }
  for (
    const wrong of [{ flags: 3 }, { flags: 0x41 }, { flags: 1 << 31 >>> 0 }, { mustBeZero: 1 }]
  ) {
    cases.push(["V49", [{ ...a, ...wrong }], UNSET], ["V49", [a, { ...b, ...wrong }], a]);
  }
  const misplaced = (["descriptorAddress", "driverAddress", "deviceAddress"] as const)
    .map((area) => ({ [area]: (b[area] as number) + 1 }));
  for (const bad of [...[0, 3, 2 * most].map((queueSize) => ({ queueSize })), ...misplaced]) {
    for (const flags of [0, 1, 2]) cases.push(["V50", [stored, { ...b, ...bad, flags }], stored]);
  }
  return cases;
}

/** GET_DEVICES, and what must be so of every answer. */
async function window(d: DriverRole, offset: number, count: number): Promise<Message> {
  const answer = await d.must(Kind.GET_DEVICES, { offset, count }, { offset }, "B18 B31");
  const { count: shown, nextOffset: next, size, bytes } = answer;
  const asked = `GET_DEVICES of ${count} from ${offset} on, answered with ${shown}, next ${next}`;
  const needed = d.talk.codec.sizeOf(6 + Math.ceil(shown / 8));
  d.claim("B9 B18 B31", size, needed, `the size of ${asked}`);
  d.claim("B18 B31", shown <= count, true, `as many at most: ${asked}`);
  d.claim("B18 B31", next === 0 || next > offset, true, `next is 0 or behind: ${asked}`);
  d.claim("B10", next === 0 || next >= offset + count, true, `next is 0 or behind all: ${asked}`);
  d.claim("B8", [offset % 8, shown % 8, next % 8], [0, 0, 0], `beyond whole bytes: ${asked}`);
  const spare = shown % 8 === 0 ? 0 : bytes[shown >> 3]! >> (shown % 8);
  d.claim("B31", spare, 0, `the spare bits of ${asked}`);
  return answer;
}

/** The numbers that GET_DEVICES shows, in windows of so many. */
async function numbersShown(d: DriverRole, count: number): Promise<number[]> {
  const numbers: number[] = [];
  for (let offset = 0, next = -1; next !== 0; offset = next) {
    const { bytes, nextOffset } = await window(d, offset, count);
    for (let n = 0; n < count; n++) {
      if ((bytes[n >> 3]! >> (n & 7) & 1) !== 0) numbers.push(offset + n);
    }
    next = nextOffset;
    if (next < offset + count) break;
  }
  return numbers;
}

export const DEVICE_BODIES: Bodies<DriverRole> = byRule({
  async G1(d) {
    const { bytes } = await d.talk.ask(GET_DEVICE_FEATURES, { index: 0x0107, count: 4 });
    const { headerSize: at } = d.talk.codec;
    const is = [...bytes.slice(at - 2, at + 8)];
    expectSame(is, [at + 24, 0, 7, 1, 0, 0, 4, 0, 0, 0], "size, index and count");
  },
  async G3(d) {
    const { configBytes } = d.talk.codec.limits;
    for (const length of [configBytes, configBytes + 1, 256]) d.talk.send(GET_CONFIG, { length });
    d.talk.send(GET_DEVICE_FEATURES, { count: 100 });
    await d.status();
  },
  G4: overlooks((bytes) => bytes[0]! |= 0xfc),
  async G5(d) {
    await d.negotiate();
    const { bytes, token } = d.talk.bytesOf(SET_VQUEUE, d.ring(0));
    // In `v1` they are none: rule V49.
    const reserved = { v1: [], "v1-2025": [12, 20] }[d.talk.codec.dialect as string] ?? [10];
    for (const at of reserved) bytes.fill(0xff, at, at + 4);
    d.talk.put(bytes);
    await d.talk.answer(SET_VQUEUE, token);
    await d.shows(0, d.ring(0));
    await d.converse();
  },
  G6: (d) => overlooks((bytes) => bytes.fill(0xff, d.talk.codec.headerSize))(d),
  G11: (d) => d.unheeded("an answer to nobody", [[1, 8, ...d.number, 9, 0, 12, 0, KNOWN]]),
  async "G10 G12"(d) {
    // The same twice, and lower than before: nothing to draw a conclusion from.
    for (const token of [1, 0x8001, 0xffff, 0x300, 0x300, 2]) {
      await d.ask(GET_DEVICE_STATUS, { token });
    }
  },
  /** One who reads nothing until no more is taken, so that both queues are full, has all answers then. */
  async "G13 G20 G23"(d) {
    const { talk, talk: { bus, heard, reactor } } = d;
    const from = heard.length;
    const sent: { readonly token: number; readonly status: number }[] = [];
    bus.isPaused = d.rule === "G23";
    for (let calm = 0; calm < 3 && sent.length < (bus.isPaused ? FLOOD : 10);) {
      calm = bus.claim() < 0 ? calm + 1 : 0;
      const status = [1, KNOWN, KNOWN, 0, 1][(sent.length >> 1) % 5]!;
      const kind = sent.length % 2 === 0 ? SET_DEVICE_STATUS : GET_DEVICE_STATUS;
      if (calm === 0) sent.push({ token: talk.send(kind, { status }), status });
      else await reactor.sleep(1);
    }
    bus.isPaused = false;
    while (heard.length < from + sent.length && bus.claim() < 0) {
      talk.expectTime();
      await reactor.sleep(1);
    }
    // Without tokens any of them would be the last one's.
    const { hasTokens } = talk.codec.conduct;
    let left = hasTokens ? 0 : sent.length;
    while (left > 0 && await talk.next() !== undefined) left--;
    await d.status();
    const answers = heard.slice(from, -1).map(({ message }) => message);
    const [is, wanted] = [answers, sent].map((all) => all.map((one) => [one.token, one.status]));
    expectSame(is, wanted, "tokens and statuses of the answers");
  },

  /** GET_DEVICE_INFO, at status 0, and what can be seen of what it says. */
  async "V2 V3 V19 V29 V30 V31 V55"(d) {
    if (isProto(d)) return await endsBehindQueues(d);
    d.claim("V30", await d.status(), 0, "the status");
    const { bytes, message } = await d.talk.ask(GET_DEVICE_INFO);
    const { configSize, maxQueues, featureBlocks, adminStart, adminCount } = message;
    d.claim("V3", bytes[d.talk.codec.headerSize + 8]! % 32, 0, "feature bits beyond whole blocks");
    d.claim("V29", message.size, 52, "the size of GET_DEVICE_INFO's answer");
    const hasAdmin = await offers(d, RingFeature.ADMIN_VQ);
    d.claim("V31", adminStart + adminCount <= maxQueues, true, "admin queues lie inside");
    d.claim("V31", hasAdmin || adminStart + adminCount === 0, true, "admin queues have their bit");
    d.claim("V55", maxQueues <= 65536, true, `${maxQueues} queues are 65536 at most`);
    d.claim("V19", (await d.shows(0, {})).maxSize > 0, true, "queue 0 has a largest size");
    for (const index of [maxQueues, maxQueues + 7, NOWHERE]) {
      await d.shows(index, { maxSize: 0 }, "V2 V19");
    }
    const { configChunk } = d.talk.codec.limits;
    for (let at = 0; at < configSize; at += configChunk) {
      await d.config(at, Math.min(configChunk, configSize - at));
    }
    const { generation } = await d.config(0, 1);
    await d.must(SET_CONFIG, writing(configSize, [0], generation), { length: 0 }, "V2");
    const behind = { index: featureBlocks, count: 4 };
    await d.must(GET_DEVICE_FEATURES, behind, { words: [0, 0, 0, 0] }, "V2 V55");
  },
  /** Nil, or one that is a UUID (RFC 4122), stays, and is no other device's. */
  async V56(d) {
    const uuidOf = async (device: number) =>
      (await d.ask(GET_DEVICE_INFO, { device })).uuid.slice();
    const uuid = await uuidOf(d.talk.device);
    const isUuid = (uuid[8]! & 0xc0) === 0x80 && uuid[6]! >> 4 >= 1 && uuid[6]! >> 4 <= 8;
    expect(zeros(uuid, 0) || isUuid, `${uuid.toHex()} is neither nil nor a UUID`);
    await d.start();
    await d.setStatus(0);
    expectSame((await uuidOf(d.talk.device)).toHex(), uuid.toHex(), "the UUID after a reset");
    const seen = new Set([uuid.toHex()]);
    for (const number of await numbersShown(d, 32)) {
      if (number === d.talk.device) continue;
      const other = await uuidOf(number);
      expect(zeros(other, 0) || !seen.has(other.toHex()), `device ${number} has another's UUID`);
      seen.add(other.toHex());
    }
  },
  async "V5 V6"(d) {
    for (const [index, count] of [[0, 2], [1, 3], [70, 4], [0, 0], [NOWHERE, 2]] as const) {
      const size = d.talk.codec.sizeOf(8 + 4 * count);
      const is = await d.must(GET_DEVICE_FEATURES, { index, count }, { index, count, size }, "V6");
      if (index >= 70) d.claim("V5", zeros(is.words, 0), true, `blocks from ${index} on are 0`);
    }
  },
  async "V7 V8 V53"(d) {
    for (const status of [1, KNOWN]) {
      await d.must(SET_DEVICE_STATUS, { status }, { status }, "V8");
      await d.must(GET_DEVICE_STATUS, {}, { status }, "V8");
    }
    const offered = await d.features();
    const [low, high] = offered as [number, number];
    const withoutVersion1 = [low, (high & ~1) >>> 0];
    const andOneMore = [low, (high | high + 1) >>> 0];
    const inBlock11 = [0, 1, ...new Array(9).fill(0), 0x8000_0000];
    const { featuresComeWhole } = d.talk.codec.conduct;
    for (const words of [withoutVersion1, andOneMore, ...featuresComeWhole ? [] : [inBlock11]]) {
      await d.setFeatures(words);
      const status = await d.setStatus(NEARLY);
      d.claim("V7", status, KNOWN, `the resulting status with features ${words}`);
      await d.must(GET_DEVICE_STATUS, {}, { status }, "V8");
      d.claim("V53", await d.features(), offered, `the offer after features ${words}`);
    }
    // Better ones are taken, after a reset.
    await d.setStatus(0);
    await d.negotiate();
    d.claim("V53", await d.features(), offered, "the offer after FEATURES_OK");
  },
  async "V9 V10 V20 V32 V42"(d) {
    await showsUnset(d, "V20 V32");
    await d.negotiate();
    await showsUnset(d, "V20 V32");
    await d.setQueue(0);
    await d.shows(0, { flags: 1 }, "V32");
    await d.setStatus(RUNNING);
    const { generation } = await d.config(0, 1);
    await d.must(SET_DEVICE_STATUS, { status: 0 }, { status: 0 }, "V9");
    await d.must(GET_DEVICE_STATUS, {}, { status: 0 }, "V9");
    await d.must(GET_CONFIG, { length: 1 }, { generation }, "V10");
    await showsUnset(d, "V9 V32 V42");
    // The prototype ends itself at a status that it would not store.
    if (isProto(d)) return;
    await d.setStatus(KNOWN);
    d.claim("V9", await d.setStatus(NEARLY), KNOWN, "FEATURES_OK with the features of before");
  },
  async V12(d) {
    const { configSize } = await d.ask(GET_DEVICE_INFO);
    const isOld = d.talk.codec.conduct.configAccessIsPowerOfTwo;
    require(isProto(d) || configSize >= 6, `a configuration of ${configSize} bytes is too short`);
    const { generation, bytes: whole } = await d.config(0, isOld ? 4 : 6);
    const parts = isOld ? [[0, 1], [1, 1], [2, 2]] as const : [[0, 1], [1, 3], [2, 4]] as const;
    for (const [offset, length] of parts) {
      const says = { offset, length, bytes: whole.slice(offset, offset + length) };
      const more = isProto(d) ? {} : { size: d.talk.codec.sizeOf(12 + length), generation };
      await d.must(GET_CONFIG, { offset, length }, { ...says, ...more });
    }
  },
  /** SET_CONFIG, and what the generation that it names has to do with it. */
  async "V13 V14 V35 V59"(d) {
    const { bytes: [byte], generation } = await d.config(0, 1);
    const first = await d.ask(SET_CONFIG, writing(0, [byte!], generation));
    require(first.length === 1, "this device takes no write of its configuration");
    const now = (await d.config(0, 1)).generation;
    for (const other of [now + 1, now + 999]) {
      const { length } = await d.ask(SET_CONFIG, writing(0, [byte! ^ 1], other));
      const what = `bytes written under generation ${other} instead of ${now}`;
      d.claim("V13", length, 0, what);
      d.claim("V35", length, 1, what);
    }
    const before = await d.config(0, 1);
    d.claim("V13", before.bytes[0], byte, "the byte that was not to be written");
    const says = writing(0, [byte! ^ 2], before.generation);
    const answer = await d.ask(SET_CONFIG, says);
    const then = await d.config(0, 1);
    const isNew = then.generation !== before.generation;
    d.claim("V59", isNew, true, `generation ${then.generation} after a change is another`);
    // The data may be left out, and then there is nothing to compare.
    const data = answer.size === d.talk.codec.sizeOf(12) ? then.bytes[0] : answer.bytes[0];
    const is = [answer.length, answer.generation, data];
    d.claim("V14", is, [1, then.generation, then.bytes[0]], "what answers a write");
  },
  async "V21 V23 V24 V33"(d) {
    const { maxQueues } = await d.ask(GET_DEVICE_INFO);
    require(maxQueues > 1, "a device with one queue has no other to compare with");
    await d.negotiate();
    await d.setQueue(0);
    await d.shows(0, d.ring(0), "V21 V33");
    await d.shows(1, UNSET, "V21 V33");
    await d.setStatus(RUNNING);
    await d.setQueue(1, { queueSize: 32 });
    await d.shows(1, { ...d.ring(1), queueSize: 32 });
    await d.must(GET_DEVICE_STATUS, {}, { status: RUNNING }, "V23");
    if (d.rule !== "V24") return;
    require(await offers(d, RingFeature.RING_RESET), "RING_RESET is not offered");
    await d.ask(RESET_VQUEUE, { index: 1 });
    await d.shows(1);
    await d.shows(0, d.ring(0));
    await d.setQueue(1);
    await d.shows(1, d.ring(1));
  },
  async "V27 V38"(d) {
    const { codec } = d.talk;
    const size = codec.sizeOf(codec.dialect === "v1" ? 24 : 12);
    for (const index of [0xff, NOWHERE]) {
      await d.must(GET_SHM, { index }, { index, length: 0, address: 0, size });
    }
  },
  async "V37 V58"(d) {
    const { configSize } = await d.ask(GET_DEVICE_INFO);
    require(configSize > 0, "this device has no configuration");
    const { bytes: [byte], generation } = await d.config(configSize - 1, 1);
    const refused = { length: 0, size: 20, generation };
    for (const offset of [configSize - 1, configSize, 0xffff_fffe]) {
      const says = writing(offset, [byte! ^ 1, 0], generation);
      const { length } = await d.must(SET_CONFIG, says, refused, "V58");
      d.claim("V37", length, 0, `bytes written across the end, from ${offset} on`);
    }
    await d.must(SET_CONFIG, writing(0, [], generation), refused, "V58");
    await d.must(GET_CONFIG, { offset: configSize - 1, length: 1 }, { bytes: [byte!], generation });
  },
  async "V39 V43 B7 B34"(d) {
    const { VERSION_1, ACCESS_PLATFORM, NOTIFICATION_DATA, NOTIF_CONFIG_DATA } = RingFeature;
    for (const bit of [VERSION_1, ACCESS_PLATFORM]) {
      d.claim("V43", await offers(d, bit), true, `feature ${bit} is offered`);
    }
    d.claim("B7 B34", await offers(d, NOTIFICATION_DATA), false, "NOTIFICATION_DATA is offered");
    d.claim("V39", await offers(d, NOTIF_CONFIG_DATA), false, "NOTIF_CONFIG_DATA is offered");
  },
  async "V22 V40"(d) {
    await d.negotiate();
    for (const status of [RUNNING, RUNNING | Status.FAILED, 0, 1]) {
      await d.setStatus(status);
      d.talk.send(Kind.EVENT_AVAIL);
      const events = await d.calm("a status and EVENT_AVAIL of no queue");
      const kinds = events.map(({ message }) => kindName(message.kind));
      expectSame(kinds, [], `events after status ${status}, and EVENT_AVAIL of no queue`);
      await d.must(GET_DEVICE_STATUS, {}, { status });
    }
  },
  async "V45 V46 V47 V48 V49 V50"(d) {
    const { maxSize } = await d.shows(0, {});
    const a = d.ring(0);
    const b = { ...d.ring(1), index: 0, queueSize: 16 };
    for (const [rules, said, shown] of queueCases(a, b, maxSize)) {
      if (!rules.split(" ").includes(d.rule)) continue;
      await d.setStatus(0);
      await d.negotiate();
      for (const fields of said) await d.must(SET_VQUEUE, fields, { size: 8 });
      d.before = `, after SET_VQUEUE ${said.map((fields) => JSON.stringify(fields))}`;
      await d.must(Kind.GET_VQUEUE, {}, shown);
    }
  },
  async V51(d) {
    const { maxQueues } = await d.ask(GET_DEVICE_INFO);
    await d.negotiate();
    for (const index of [maxQueues, NOWHERE]) {
      await d.must(SET_VQUEUE, { ...d.ring(0), index }, { size: 8 });
      await d.shows(index, { maxSize: 0, ...UNSET });
      await d.must(RESET_VQUEUE, { index }, { size: 8 });
    }
    await showsUnset(d);
    await d.must(GET_DEVICE_STATUS, {}, { status: NEARLY });
  },
  async V52(d) {
    await d.negotiate(RING_RESET);
    await d.setQueue(0);
    await d.setStatus(RUNNING);
    await d.must(RESET_VQUEUE, {}, { size: 8 });
    await d.shows(0, d.ring(0));
  },
  async V54(d) {
    const words = await d.negotiate();
    // Each block by itself, and what is said of one leaves the other alone.
    for (const [last, status] of [[0, NEARLY], [1, KNOWN]] as const) {
      await d.setStatus(0);
      await d.setStatus(KNOWN);
      await d.setFeatures([words[1]!], 1);
      await d.setFeatures([0], last);
      await d.must(SET_DEVICE_STATUS, { status: NEARLY }, { status });
    }
  },

  /** Requests to a number without a device change nothing of another, and nobody answers. */
  async "V4 B4 B20"(d) {
    const nothing = { deviceId: 0, vendorId: 0, featureBlocks: 0, configSize: 0, maxQueues: 0 };
    await d.must(GET_DEVICE_INFO, { device: NOBODY }, nothing, "V4");
    await d.setStatus(KNOWN);
    const from = d.talk.heard.length;
    for (const kind of d.requests) {
      if (kind === GET_DEVICE_INFO) continue;
      d.talk.send(kind, { ...d.ring(0), device: NOBODY, status: 0x8f, length: 1 });
    }
    await d.must(GET_DEVICE_STATUS, {}, { status: KNOWN }, "B4");
    d.claim("B20", d.talk.heard.length - from, 1, "answers, with those to requests to no device");
    await showsUnset(d, "B4");
  },
  async "B8 B9 B10 B11"(d) {
    const numbers = await numbersShown(d, 32);
    const known = [d.talk.device, NOBODY].map((number) => numbers.includes(number));
    d.claim("B9", known, [true, false], `whether ${numbers} have the device, and nobody`);
    d.claim("B9 B10", await numbersShown(d, 8), numbers, "the numbers, in smaller windows");
    const { count, size } = await d.ask(Kind.GET_DEVICES, { count: 1024 });
    const fits = count <= d.talk.codec.limits.deviceBits &&
      size === d.talk.codec.sizeOf(6 + count / 8);
    d.claim("B11", fits, true, `a count of ${count} fits`);
    await d.must(Kind.GET_DEVICES, { count: 64 }, { count: 64 }, "B11");
  },
  B15: (d) =>
    d.unheeded("an event to no device", [
      [0, 0x41, NOBODY & 0xff, NOBODY >> 8, 0, 0, 16, 0, 1],
      [0, 0x41, NOBODY & 0xff, NOBODY >> 8, 5, 0, 9, 0, 1],
      [2, 0x40, 0, 0, 0, 0, 12, 0, 5, 0, 1, 0],
    ]),
  async "B18 B31"(d) {
    const { device } = d.talk;
    for (const [offset, count] of [[0, 0], [device, 0], [0, 0xffff], [0xffff, 1]] as const) {
      await window(d, offset, count);
    }
    // Some neither begin nor end with a byte.
    for (const offset of [device & ~7, device, Math.max(device - 3, 0)]) {
      const { count, bytes } = await window(d, offset, 12);
      const isShown = count > device - offset && (bytes[0]! >> (device - offset) & 1) !== 0;
      expect(isShown, `device ${device} is not shown in a window from ${offset} on`);
    }
  },

  async P1(d) {
    const { heard } = d.talk;
    const from = heard.length;
    for (const id of [...PROTO_ANSWERED, ...PROTO_SILENT]) {
      // GET_CONFIG and SET_CONFIG of one byte.
      d.talk.put([0, id, ...d.number, 0, 0, 0, id === 6 || id === 7 ? 1 : 0]);
    }
    // Without tokens no answer says that it is the last: so many have to come, and nothing soon behind them.
    const answers = () => heard.slice(from).filter(({ message }) => message.response);
    const withinMs = () => answers().length < PROTO_ANSWERED.length ? undefined : QUIET_MS;
    while (await d.talk.next(withinMs()) !== undefined);
    expectSame(
      answers().map(({ bytes }) => bytes[1]),
      PROTO_ANSWERED,
      "the ids that were answered",
    );
  },
  /** Who has other work may miss one moment, and not each of them. */
  async P2(d) {
    let missed: string | undefined = "";
    for (let n = 0; n < PROTO_TRIES && missed !== undefined; n++) missed = await missedOf(d);
    expect(missed === undefined, missed ?? "");
    await d.calm("these requests");
  },
  async "P3 P7 P10 P13"(d) {
    await d.negotiate();
    const { maxSize } = await d.shows(0, {});
    await d.setQueue(0);
    await d.shows(0, { maxSize }, "P13");
    await d.setStatus(RUNNING);
    await d.shows(0, { maxSize }, "P13");
    await d.calm("a start");
  },
});
