/**
 * What a driver side must do, asked of it by one who plays its device: a body per rule of rules.ts. Where
 * one bring-up shows several of them, they share a body and each has its own claims. docs/wire.md, section 7.
 *
 * A body finds a driver that has not begun with this device and may leave it in any state. What a driver
 * must not do, it is given time for.
 */

import { DEVICE_ADDED, DEVICE_REMOVED, Kind, type Message } from "../message/message.ts";
import { RingFeature, Status } from "../virtio/features.ts";
import type { DeviceRole } from "./device_role.ts";
import { REQUESTS } from "./driver_role.ts";
import { expect, expectSame } from "./outcome.ts";
import { FOREIGN_IDS, lookOn, NONSENSE, u32, WRONG_EVENTS, zeros } from "./traffic.ts";

/** Asks for one rule. */
export type DriverBody = (s: DeviceRole) => Promise<void>;

const FEATURES_OK = (m: Message) => (m.status & Status.FEATURES_OK) !== 0;
const DRIVER_OK = (m: Message) => (m.status & Status.DRIVER_OK) !== 0;

// --- framing and the bus ----------------------------------------------------------------------------

/** A bring-up, and a look at all that was heard. */
async function looksOn(s: DeviceRole): Promise<void> {
  await s.bringUp();
  lookOn(s.talk, s.rule);
}

/** A PING is sent and answered, and shows that the driver is still there. */
async function ping(s: DeviceRole, data: number): Promise<void> {
  const token = s.talk.send(Kind.PING, { data });
  const isIt = ({ message: m }: (typeof s.talk.heard)[number]) =>
    m.kind === Kind.PING && m.response && m.token === token && m.data === data;
  await s.until(() => s.talk.heard.some(isIt), "PING was not echoed");
}

/** The driver says nothing to such messages, and goes on. */
const silentTo = (
  what: string,
  messages: (number: readonly number[]) => readonly (readonly number[])[],
): DriverBody =>
async (s) => {
  await s.bringUp();
  const from = s.talk.heard.length;
  const { device } = s.talk;
  for (const bytes of messages([device & 0xff, device >> 8])) s.talk.put(bytes);
  await ping(s, 1);
  await s.lookOn();
  expectSame(s.talk.heard.length - from, 1, `answers, with one to PING, after ${what}`);
};

/** An answer that is a little strange is taken: status 0 is answered so, and the driver goes on. */
const takes = (spoil: (bytes: Uint8Array) => void): DriverBody => async (s) => {
  s.override = (request) => {
    if (request.kind !== Kind.SET_DEVICE_STATUS) return false;
    s.status = request.status;
    const { device, token, status } = request;
    const head = [1, 0x08, device & 0xff, device >> 8, token & 0xff, token >> 8, 12, 0, status];
    const bytes = new Uint8Array(64);
    bytes.set(head);
    spoil(bytes);
    s.talk.put(bytes);
    return true;
  };
  await looksOn(s);
};

/** Wrong answers come before the right one, which is the one that counts. */
async function waitsForItsAnswer(s: DeviceRole): Promise<void> {
  let wrong = 0;
  s.override = (request) => {
    if (request.kind !== Kind.SET_DEVICE_STATUS || wrong++ > 0) return false;
    s.talk.reply(request, { status: 0x8f, token: request.token ^ 0x8000 });
    s.talk.reply(request, { status: 0x8f, device: request.device ^ 4 });
    s.talk.reply(request, { status: 0x8f, kind: Kind.GET_DEVICE_STATUS });
    const { token, device } = request;
    for (const size of [7, 8, 11, 65, 0xffff]) {
      const ids = [1, 0x08, device & 0xff, device >> 8, token & 0xff, token >> 8];
      s.talk.put([...ids, size & 0xff, size >> 8, 0x8f]);
    }
    return false;
  };
  await s.bringUp();
  // A driver that took one of them would have seen status 0x8f behind its reset, and asked again.
  expectSame(s.of(Kind.GET_DEVICE_STATUS).length, 0, "requests for the status");
}

async function tokensAreOwn(s: DeviceRole): Promise<void> {
  const open = new Set<number>();
  s.override = ({ kind, token }) => {
    if (!s.talk.codec.answered(kind)) return false;
    expect(token !== 0, "a request with token 0");
    expect(!open.has(token), `token ${token} twice while it is open`);
    open.add(token);
    return false;
  };
  const { answer } = s;
  s.answer = (request) => {
    answer.call(s, request);
    open.delete(request.token);
  };
  await s.bringUp();
}

// --- the driver -------------------------------------------------------------------------------------

async function asksInfoFirst(s: DeviceRole): Promise<void> {
  await s.bringUp();
  expectSame(s.at(Kind.GET_DEVICE_INFO), 0, "where GET_DEVICE_INFO is in the order");
}

/** The feature blocks that were written, as one list. */
function acceptedOf(s: DeviceRole): number[] {
  const accepted: number[] = s.features.map(() => 0);
  for (const { index, count, words } of s.of(Kind.SET_DRIVER_FEATURES)) {
    for (let i = 0; i < count; i++) accepted[index + i] = words[i]!;
  }
  return accepted;
}

async function takesOffered(s: DeviceRole): Promise<void> {
  await s.bringUp();
  const accepted = acceptedOf(s);
  const notOffered = accepted.map((word, i) => (word & ~(s.features[i] ?? 0)) >>> 0);
  expectSame(notOffered, s.features.map(() => 0), "bits that are accepted and not offered");
  expect((accepted[1]! & 1) !== 0, "VERSION_1 is not accepted");
}

async function readsAllBlocks(s: DeviceRole): Promise<void> {
  s.features = [...s.features, ...new Array<number>(14).fill(0)];
  await s.bringUp();
  for (const kind of [Kind.GET_DEVICE_FEATURES, Kind.SET_DRIVER_FEATURES]) {
    const blocks = s.of(kind).flatMap(({ index, count }) =>
      Array.from({ length: count }, (_, i) => index + i)
    );
    const wanted = s.features.map((_, i) => i);
    expectSame([...new Set(blocks)].sort((a, b) => a - b), wanted, "the blocks in messages");
  }
}

/** Where the order of the bring-up shows. */
async function setsQueuesUp(s: DeviceRole): Promise<void> {
  let held: Message | undefined;
  s.override = (request) => {
    if (request.kind !== Kind.SET_DEVICE_STATUS || !DRIVER_OK(request)) return false;
    held ??= request;
    return true;
  };
  await s.until(() => held !== undefined, "the driver did not come to DRIVER_OK");
  await s.lookOn();
  const early = s.of(Kind.EVENT_AVAIL).length;
  s.claim("R6", early, 0, "notifications before DRIVER_OK was answered");
  s.override = undefined;
  s.answer(held!);
  await s.bringUp();
  const featuresOk = s.at(Kind.SET_DEVICE_STATUS, FEATURES_OK);
  const driverOk = s.at(Kind.SET_DEVICE_STATUS, DRIVER_OK);
  const inOrder = s.at(Kind.SET_DRIVER_FEATURES) < featuresOk;
  s.claim("R6", inOrder, true, "features before FEATURES_OK");
  expect(s.queues.size > 0, "no queue was set up");
  const about = s.of([Kind.GET_VQUEUE, Kind.SET_VQUEUE]);
  for (const [index, { queueSize }] of s.queues) {
    const set = s.at(Kind.SET_VQUEUE, (m) => m.index === index);
    const isBetween = featuresOk < set && set < driverOk;
    s.claim("R6", isBetween, true, `queue ${index} set up between FEATURES_OK and DRIVER_OK`);
    const kinds = about.filter((m) => m.index === index).map(({ kind }) => kind);
    s.claim("R4", kinds[0], Kind.GET_VQUEUE, `the kind of what is said first of queue ${index}`);
    const most = s.maxSizes[index]!;
    const fits = queueSize > 0 && queueSize <= most;
    s.claim("R4", fits, true, `${queueSize} entries fit queue ${index} of ${most}`);
  }
}

async function notifies(s: DeviceRole): Promise<void> {
  const words: number[] = [];
  s.override = ({ kind }, { bytes }) => {
    if (kind === Kind.EVENT_AVAIL) words.push(u32(bytes, 12));
    return false;
  };
  await s.bringUp();
  const driverOk = s.at(Kind.SET_DEVICE_STATUS, DRIVER_OK);
  await s.until(() => s.of(Kind.EVENT_AVAIL).length > 0, "the driver gives no buffers");
  s.claim("R10", s.at(Kind.EVENT_AVAIL) > driverOk, true, "notified behind DRIVER_OK");
  for (const { index } of s.of(Kind.EVENT_AVAIL)) {
    s.claim("R10", s.queues.has(index), true, `queue ${index}, which was notified of, is set up`);
  }
  s.claim("R11", words, words.map(() => 0), "EVENT_AVAIL's next");
}

/** NEEDS_RESET leads to a reset by status 0, and queues are not reset one by one. */
async function recovers(s: DeviceRole): Promise<void> {
  s.features = [s.features[0]!, s.features[1]! & ~(1 << (RingFeature.RING_RESET & 31))];
  await s.bringUp();
  const from = s.said.length;
  const status = s.status | Status.DEVICE_NEEDS_RESET;
  const { generation } = s;
  s.talk.send(Kind.EVENT_CONFIG, { status, generation });
  const isReset = () => s.of(Kind.SET_DEVICE_STATUS, from).length > 0;
  await s.until(isReset, "the driver does not reset a device that needs it");
  await s.lookOn();
  const [first] = s.of(Kind.SET_DEVICE_STATUS, from);
  s.claim("R14 R15", first?.status, 0, "the status that is written first");
  s.claim("R16", s.of(Kind.RESET_VQUEUE).length, 0, "RESET_VQUEUE without RING_RESET");
}

// --- the prototype's dialect ------------------------------------------------------------------------

const PROTO_SIZE = 40;

async function startsProto(s: DeviceRole): Promise<void> {
  s.override = ({ kind }, { bytes }) => {
    const isEmpty = kind === Kind.GET_DEVICE_STATUS || kind === Kind.GET_DEVICE_INFO;
    const isZero = zeros(bytes.subarray(0, PROTO_SIZE), 4);
    s.claim("P7", isZero || !isEmpty, true, "a payload that says nothing is 0");
    return false;
  };
  await looksOn(s);
  const translates = s.talk.heard.some(({ bytes }) => bytes[1] === 0x21);
  s.claim("P10", translates, false, "IOMMU_TRANSLATE came");
  for (const { length } of s.of([Kind.GET_CONFIG, Kind.SET_CONFIG])) {
    s.claim("P4", [1, 2, 4].includes(length), true, `${length} bytes are 1, 2 or 4`);
  }
  for (const [i, { kind }] of s.said.entries()) {
    if (kind !== Kind.SET_DEVICE_STATUS) continue;
    const next = s.said.slice(i + 1).find((m) => m.kind !== Kind.EVENT_AVAIL)?.kind;
    s.claim("P6", next, Kind.GET_DEVICE_STATUS, "the kind of what follows SET_DEVICE_STATUS");
  }
  const first = s.at(Kind.EVENT_AVAIL);
  const driverOk = s.at(Kind.SET_DEVICE_STATUS, DRIVER_OK);
  s.claim("P8", first < 0 || first > driverOk, true, "notified behind DRIVER_OK");
}

/** Rules that a body covers together, or that are asked in the same way. */
const SHARED: readonly (readonly [rules: string, body: DriverBody])[] = [
  ["G2 G3 G9 G16 B16", looksOn],
  ["G8", tokensAreOwn],
  ["G11 G18", waitsForItsAnswer],
  ["B5 R1", asksInfoFirst],
  ["R2 P5", takesOffered],
  ["R4 R6", setsQueuesUp],
  ["R10 R11", notifies],
  ["R14 R15 R16", recovers],
  ["R19", readsAllBlocks],
  ["P3 P4 P6 P7 P8 P10", startsProto],
];

/** The bodies by the rule's number. */
export const DRIVER_BODIES: Readonly<Record<string, DriverBody>> = {
  ...Object.fromEntries(
    SHARED.flatMap(([rules, body]) => rules.split(" ").map((rule) => [rule, body])),
  ),
  async G1(s) {
    let size = -1;
    s.override = ({ kind }, { bytes }) => {
      if (kind === Kind.GET_DEVICE_INFO) size = bytes[6]! | bytes[7]! << 8;
      return false;
    };
    await s.bringUp();
    expectSame(size, 8, "GET_DEVICE_INFO's size, low byte first");
  },
  G4: takes((bytes) => bytes[0]! |= 0xfc),
  async G5(s) {
    s.override = ({ kind }, { bytes }) => {
      if (kind !== Kind.SET_VQUEUE) return false;
      const reserved = [u32(bytes, 20), s.talk.codec.dialect === "v1" ? 0 : u32(bytes, 12)];
      expectSame(reserved, [0, 0], "the reserved fields of SET_VQUEUE");
      return false;
    };
    await s.bringUp();
  },
  G6: takes((bytes) => bytes.fill(0xee, 12)),
  async G7(s) {
    await s.bringUp();
    await ping(s, 7);
    lookOn(s.talk, s.rule);
  },
  async G10(s) {
    await s.bringUp();
    for (const data of [1, 2, 3]) await ping(s, data);
  },
  G14: silentTo("a message that is none", NONSENSE),
  G15: silentTo("an event", WRONG_EVENTS),
  G17: silentTo("an implementation's own id", FOREIGN_IDS),
  // Of another size, they would have told of a reset that is needed.
  G19: silentTo("an event of another size", (n) => [
    [0, 0x40, ...n, 0, 0, 25, 0, 0x4f],
    [0, 0x40, ...n, 0, 0, 23, 0, 0x4f],
  ]),
  G21: takes((bytes) => {
    bytes[6] = 60;
    bytes.fill(0xee, 12, 60);
  }),
  async B7(s) {
    s.features = [0xffff_ffff, 0xffff_ffff];
    await s.bringUp();
    const accepted = acceptedOf(s);
    for (const bit of [RingFeature.NOTIFICATION_DATA, RingFeature.NOTIF_CONFIG_DATA]) {
      expect((accepted[bit >> 5]! >>> (bit & 31) & 1) === 0, `feature ${bit} is accepted`);
    }
  },
  async B12(s) {
    await s.bringUp();
    for (const data of [0, 0xcafe_f00d, 0xffff_ffff]) await ping(s, data);
  },
  async B23(s) {
    const tell = (state: number) =>
      s.talk.send(Kind.EVENT_DEVICE, { number: s.talk.device, state });
    await s.bringUp();
    const from = s.said.length;
    for (const state of [DEVICE_ADDED, DEVICE_ADDED, DEVICE_REMOVED, DEVICE_REMOVED]) tell(state);
    await s.lookOn();
    expectSame(s.of(REQUESTS, from).length, 0, "requests to a device that was removed");
    s.status = 0;
    s.queues.clear();
    for (const state of [DEVICE_ADDED, DEVICE_ADDED]) tell(state);
    await s.until(() => (s.status & Status.DRIVER_OK) !== 0, "an added device is not discovered");
    await s.lookOn();
    expectSame(s.of(Kind.GET_DEVICE_INFO, from).length, 1, "discoveries");
    const answers = s.talk.heard.filter(({ message }) => message.response);
    expectSame(answers.length, 0, "answers to EVENT_DEVICE");
  },
  async R3(s) {
    s.override = (request) => {
      if (request.kind !== Kind.SET_DEVICE_STATUS || !FEATURES_OK(request)) return false;
      s.talk.reply(request, { status: request.status & ~Status.FEATURES_OK });
      return true;
    };
    await s.refuse();
    expect(s.at(Kind.SET_DEVICE_STATUS, FEATURES_OK) >= 0, "FEATURES_OK was not set");
    expectSame(s.of(Kind.SET_VQUEUE).length, 0, "queues set up without FEATURES_OK");
  },
  async R5(s) {
    s.maxSizes = [256, 0, 64];
    await s.lookOn(5000);
    expect(s.at(Kind.GET_VQUEUE) >= 0, "no queue was asked for");
    const used = [...s.of(Kind.SET_VQUEUE), ...s.of(Kind.EVENT_AVAIL)];
    expect(used.every(({ index }) => index !== 1), "queue 1 is used, which does not exist");
  },
  async R7(s) {
    // Less than a network card has: a driver may use it or give it up.
    s.config = s.config.slice(0, 4);
    await s.lookOn(5000);
    expect(s.at(Kind.GET_DEVICE_INFO) >= 0, "the driver did not begin");
    for (const { offset, length } of s.of([Kind.GET_CONFIG, Kind.SET_CONFIG])) {
      expect(offset + length <= 4, `${length} bytes from ${offset} on, of 4`);
    }
  },
  async R12(s) {
    await s.bringUp();
    const from = s.said.length;
    s.generation++;
    const { status, generation } = s;
    s.talk.send(Kind.EVENT_CONFIG, { status, generation });
    await s.lookOn();
    expect(s.of(Kind.GET_CONFIG, from).length > 0, "nothing is read again");
  },
  async R22(s) {
    s.override = (request) => {
      if (request.kind !== Kind.SET_VQUEUE) return false;
      // Answered, and not done.
      s.talk.reply(request);
      return true;
    };
    await s.refuse();
    expect(s.at(Kind.SET_VQUEUE) >= 0, "no queue was set up");
  },
  async R23(s) {
    let sinceMs = Infinity;
    s.override = (request) => {
      const { kind } = request;
      if (kind === Kind.SET_DEVICE_STATUS && request.status === 0) sinceMs = s.talk.now();
      const isOver = s.talk.now() >= sinceMs + 50;
      if (isOver || !Number.isFinite(sinceMs)) return false;
      const isAsking = kind === Kind.SET_DEVICE_STATUS || kind === Kind.GET_DEVICE_STATUS;
      expect(isAsking, "the driver goes on before its reset is over");
      s.answer(request, { status: 0x0f });
      return true;
    };
    await s.bringUp();
    expect(Number.isFinite(sinceMs), "there was no reset");
  },
  async P14(s) {
    await s.bringUp();
    const from = s.said.length;
    const { status } = s;
    s.talk.send(Kind.EVENT_USED);
    s.talk.send(Kind.EVENT_CONFIG, { status });
    await s.lookOn();
    expectSame(s.of(Kind.SET_DEVICE_STATUS, from).length, 0, "status writes after an event");
  },
};
