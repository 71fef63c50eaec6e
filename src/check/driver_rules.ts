/**
 * What a driver side must do, asked of it by one who plays its device: bodies by the rules (docs/wire.md, section 7)
 * that they ask for. A body finds a driver that has not begun with this device and may leave it in any state.
 * What a driver must not do, it is given time for.
 */

import { DEVICE_ADDED, DEVICE_REMOVED, Kind, type Message, QueueFlag } from "../message/message.ts";
import { kindName } from "../message/table.ts";
import { RingFeature, Status } from "../virtio/features.ts";
import { type Bodies, type Body, byRule } from "./common_rules.ts";
import type { Spoil } from "./dialogue.ts";
import { expect, expectSame, require } from "./outcome.ts";
import type { DeviceRole } from "./roles.ts";

const { GET_DEVICE_INFO, GET_DEVICE_FEATURES, SET_DRIVER_FEATURES, GET_CONFIG, SET_CONFIG } = Kind;
const { GET_DEVICE_STATUS, SET_DEVICE_STATUS, GET_VQUEUE, SET_VQUEUE, RESET_VQUEUE } = Kind;
const { EVENT_AVAIL, EVENT_DEVICE, GET_DEVICES, PING, IOMMU_ENABLE, IOMMU_TRANSLATE } = Kind;

const FEATURES_OK = (m: Message) => (m.status & Status.FEATURES_OK) !== 0;
const DRIVER_OK = (m: Message) => (m.status & Status.DRIVER_OK) !== 0;
/** For how long a driver with half a device is watched: it may use it or give it up. */
const HALF_MS = 5000;

const NO_RESET = "it does not reset a device that needs it (R14), which is how this is seen";
const GOES = "it goes away when a device needs a reset, so what it would do is not seen";
/** An answer that lets a driver ask again, if it is one that does. */
const ANSWER_LATE_MS = 30;
/** For how long a driver may do what it does now and then. */
const NOW_AND_THEN_MS = 2000;

/** An answer that is a little strange is taken: a status is answered so, and the driver goes on. */
const takes = (spoil: Spoil): Body<DeviceRole> => async (s) => {
  s.override = (request) => {
    if (request.kind !== SET_DEVICE_STATUS) return false;
    s.answer(request, {}, spoil);
    return true;
  };
  await s.bringUp();
};

function acceptedOf(s: DeviceRole): number[] {
  const accepted: number[] = s.features.map(() => 0);
  for (const { index, count, words } of s.of(SET_DRIVER_FEATURES)) {
    for (let i = 0; i < count; i++) accepted[index + i] = words[i]!;
  }
  return accepted;
}

/** Is the queue of the message at that place in the order set up there, since the last reset? */
function isSetUp({ said }: DeviceRole, place: number): boolean {
  const before = said.slice(0, place);
  const reset = before.findLastIndex((m) => m.kind === SET_DEVICE_STATUS && m.status === 0);
  const { index } = said[place]!;
  return before.slice(reset + 1).some((m) => m.kind === SET_VQUEUE && m.index === index);
}

/** What each message of a bring-up must be, and where in the order. */
function looksAt(s: DeviceRole): void {
  const { said, maxSizes } = s;
  const featuresOk = s.at(SET_DEVICE_STATUS, FEATURES_OK);
  const driverOk = s.at(SET_DEVICE_STATUS, DRIVER_OK);
  for (const [i, message] of said.entries()) {
    const { kind, index, flags, mustBeZero, queueSize, length } = message;
    const isSetBefore = isSetUp(s, i);
    if (kind === EVENT_AVAIL) {
      s.claim("R10", isSetBefore, true, `queue ${index}, which was notified of, is set up`);
      s.claim("R11", message.nextOffset, 0, "EVENT_AVAIL's next");
    } else if (kind === GET_CONFIG || kind === SET_CONFIG) {
      s.claim("P4", [1, 2, 4].includes(length), true, `${length} bytes are 1, 2 or 4`);
    } else if (kind === SET_DEVICE_STATUS) {
      const next = said.slice(i + 1).find((m) => m.kind !== EVENT_AVAIL)?.kind;
      s.claim("P6", next, GET_DEVICE_STATUS, "the kind of what follows SET_DEVICE_STATUS");
    } else if (kind === SET_VQUEUE) {
      const what = `queue ${index} of ${queueSize} entries, flags ${flags}:`;
      const isBetween = 0 <= featuresOk && featuresOk < i && (driverOk < 0 || i < driverOk);
      s.claim("R6", isBetween, true, `${what} set up between FEATURES_OK and DRIVER_OK`);
      const isAsked = said.slice(0, i).some((m) => m.kind === GET_VQUEUE && m.index === index);
      s.claim("R4", isAsked, true, `${what} asked for before`);
      const fits = queueSize > 0 && queueSize <= maxSizes[index]!;
      s.claim("R4 R30", fits, true, `${what} fits ${maxSizes[index]}`);
      const isKnown = flags <= QueueFlag.ALL && (flags & 3) !== 3 && mustBeZero === 0;
      s.claim("R30", isKnown && !isSetBefore, true, `${what} a known operation, once`);
      const { descriptorAddress, driverAddress, deviceAddress } = message;
      const beyond = [descriptorAddress % 16, driverAddress % 2, deviceAddress % 4];
      s.claim("R34", beyond, [0, 0, 0], `${what} bytes beyond alignment`);
    }
  }
}

/** A bring-up; where it fails, what its messages break is the better reason. */
async function bringsUp(s: DeviceRole): Promise<void> {
  try {
    await s.bringUp();
  } finally {
    looksAt(s);
  }
  await s.until(() => s.at(EVENT_AVAIL) >= 0, "the driver gives no buffers");
  s.claim("B5 R1", s.at(GET_DEVICE_INFO), 0, "where GET_DEVICE_INFO is in the order");
  const accepted = acceptedOf(s);
  const notOffered = accepted.map((word, i) => (word & ~(s.features[i] ?? 0)) >>> 0);
  s.claim("R2 P5", notOffered, s.features.map(() => 0), "bits that are accepted and not offered");
  s.claim("R2 P5", accepted[1]! & 1, 1, "VERSION_1, which is accepted,");
  const featuresOk = s.at(SET_DEVICE_STATUS, FEATURES_OK);
  const driverOk = s.at(SET_DEVICE_STATUS, DRIVER_OK);
  s.claim("R6", s.at(SET_DRIVER_FEATURES) < featuresOk, true, "features before FEATURES_OK");
  s.claim("R6 R10 P8", s.at(EVENT_AVAIL) > driverOk, true, "notified behind DRIVER_OK");
  looksAt(s);
}

/** What the driver wrote to the configuration during a bring-up: there only if it has a reason to. */
async function written(s: DeviceRole): Promise<Message[]> {
  await s.bringUp();
  const writes = s.of(SET_CONFIG);
  require(writes.length > 0, "it writes no configuration while it begins");
  return writes;
}

/** A request gets no answer in time; what is written behind it has to be a reset, and then it begins anew. */
const loses = (wanted: Kind, isLate: boolean): Body<DeviceRole> => async (s) => {
  const lost = () => s.at(wanted);
  const since = () => lost() < 0 ? [] : s.of(SET_DEVICE_STATUS, lost());
  s.override = ({ kind }) => kind === wanted && since().length === 0;
  await s.until(() => lost() >= 0, `${kindName(wanted)} was not asked`);
  await s.until(() => since().length > 0, "a request that was not answered leads to no reset");
  expectSame(since()[0]!.status, 0, "the status that is written behind it");
  if (isLate) s.answer(s.said[lost()]!);
  await s.bringUp();
};

export const DRIVER_BODIES: Bodies<DeviceRole> = byRule({
  G4: takes((bytes) => bytes[0]! |= 0xfc),
  G6: (s) => takes((bytes) => bytes.fill(0xee, s.talk.codec.headerSize + 4))(s),
  async G8(s) {
    const open = new Set<number>();
    s.override = (request) => {
      const { kind, token } = request;
      if (!s.talk.codec.answered(kind)) return false;
      expect(token !== 0 && !open.has(token), `token ${token}, which is 0 or open already`);
      open.add(token);
      // Answered behind what is there already, so that more than one may be open.
      s.later(ANSWER_LATE_MS, () => {
        open.delete(token);
        s.answer(request);
      });
      return true;
    };
    await s.bringUp();
  },
  /** Wrong answers come before the right one, which is the one that counts. */
  async "G11 G18"(s) {
    let wrong = 0;
    s.override = (request) => {
      if (request.kind !== SET_DEVICE_STATUS || wrong++ > 0) return false;
      const { token, device } = request;
      const { headerSize: h, conduct, dialect } = s.talk.codec;
      if (conduct.hasTokens) s.talk.reply(request, { status: 0x8f, token: token ^ 0x8000 });
      s.talk.reply(request, { status: 0x8f, device: device ^ 4 });
      s.talk.reply(request, { status: 0x8f, kind: GET_DEVICE_STATUS });
      // Nobody reads them there.
      for (const size of dialect === "rfc-q" ? [] : [h - 1, h, h + 3, 65, 0xffff]) {
        const sizeBytes = [size & 0xff, size >> 8];
        s.talk.reply(request, { status: 0x8f }, (bytes) => bytes.set(sizeBytes, h - 2));
      }
      return false;
    };
    await s.bringUp();
    // A driver that took one of them would have seen status 0x8f behind its reset, and asked again.
    const first = s.at(SET_DEVICE_STATUS, ({ status }) => status !== 0);
    const asked = s.said.slice(0, first).filter(({ kind }) => kind === GET_DEVICE_STATUS);
    expectSame(asked.length, 0, "requests for the status behind the reset");
  },
  // Of another size, they would have told of a reset that is needed.
  G19: (s) =>
    s.unheeded("an event of another size", [
      [0, 0x40, ...s.number, 0, 0, 25, 0, 0x4f],
      [0, 0x40, ...s.number, 0, 0, 23, 0, 0x4f],
    ]),
  G21: (s) =>
    takes((bytes) => {
      const { headerSize } = s.talk.codec;
      bytes[headerSize - 2] = 60;
      bytes.fill(0xee, headerSize + 4, 60);
    })(s),

  "B5 R1 R2 R4 R6 R10 R11 R30 R34 P3 P4 P5 P6 P7 P8 P10": bringsUp,
  async "B7 B34 R26"(s) {
    s.features = [0xffff_ffff, 0xffff_ffff];
    await s.bringUp();
    const { NOTIFICATION_DATA, NOTIF_CONFIG_DATA } = RingFeature;
    const accepts = (bit: number) => acceptedOf(s)[bit >> 5]! >>> (bit & 31) & 1;
    s.claim("B7 B34", accepts(NOTIFICATION_DATA), 0, "NOTIFICATION_DATA, which is accepted,");
    s.claim("R26", accepts(NOTIF_CONFIG_DATA), 0, "NOTIF_CONFIG_DATA, which is accepted,");
  },
  async "B14 B23 R38"(s) {
    const { device } = s.talk;
    await s.bringUp();
    const from = s.said.length;
    const tell = async (...states: number[]) => {
      for (const state of states) s.talk.send(EVENT_DEVICE, { number: device, state });
      await s.ping(1);
      await s.lookOn();
    };
    await tell(DEVICE_ADDED, DEVICE_ADDED);
    s.claim("B23", s.said.length, from, "messages after the device was said to be there again");
    await tell(DEVICE_REMOVED, DEVICE_REMOVED);
    s.talk.send(Kind.EVENT_USED);
    await s.lookOn(HALF_MS);
    s.claim("B14 R38", s.said.length, from, "messages to a device that was removed");
    s.status = 0;
    await tell(DEVICE_ADDED, DEVICE_ADDED);
    await s.bringUp();
    s.claim("R38 B23", s.of(GET_DEVICE_INFO, from).length, 1, "GET_DEVICE_INFO after a return");
  },

  async R3(s) {
    s.override = (request) => {
      if (request.kind !== SET_DEVICE_STATUS || !FEATURES_OK(request)) return false;
      s.talk.reply(request, { status: request.status & ~Status.FEATURES_OK });
      return true;
    };
    await s.refuse();
    expect(s.at(SET_DEVICE_STATUS, FEATURES_OK) >= 0, "FEATURES_OK was not set");
    expectSame(s.of(SET_VQUEUE).length, 0, "queues set up without FEATURES_OK");
  },
  async R5(s) {
    s.maxSizes = [256, 0, 64];
    await s.lookOn(HALF_MS);
    expect(s.at(GET_VQUEUE) >= 0, "no queue was asked for");
    const used = s.of([SET_VQUEUE, EVENT_AVAIL]);
    expect(used.every(({ index }) => index !== 1), "queue 1 is used, which does not exist");
  },
  async R7(s) {
    // Less than a network card has.
    s.config = s.config.slice(0, 4);
    await s.lookOn(HALF_MS);
    expect(s.at(GET_DEVICE_INFO) >= 0, "the driver did not begin");
    for (const { offset, length } of s.of([GET_CONFIG, SET_CONFIG])) {
      expect(offset + length <= 4, `${length} bytes from ${offset} on, of 4`);
    }
  },
  async R12(s) {
    require(s.config.length > 0, "the device that is played has no configuration");
    await s.bringUp();
    const from = s.said.length;
    s.generation++;
    await s.announce({});
    const isRead = () => s.of(GET_CONFIG, from).length > 0;
    expect(await s.serve(isRead, HALF_MS), "nothing is read again");
  },
  /** NEEDS_RESET leads to a reset by status 0, and queues are not reset one by one. */
  async "R14 R15 R16 R28"(s) {
    s.features = [s.features[0]!, s.features[1]! & ~(1 << (RingFeature.RING_RESET & 31))];
    await s.bringUp();
    const { departures } = s.talk;
    const from = s.said.length;
    const { generation } = s;
    s.generation = 0;
    await s.announce({ status: s.status | Status.DEVICE_NEEDS_RESET, generation });
    const isReset = await s.serve(() => s.of(SET_DEVICE_STATUS, from).length > 0, HALF_MS);
    require(isReset || s.talk.departures === departures, GOES);
    s.claim("R14", isReset, true, "whether a device that needs a reset is reset");
    if (!isReset) s.claim("R16", s.of(RESET_VQUEUE).length, 0, "RESET_VQUEUE without RING_RESET");
    require(isReset || s.rule === "R16", NO_RESET);
    if (!isReset) return;
    s.claim("R14 R15", s.of(SET_DEVICE_STATUS, from)[0]!.status, 0, "the status written first");
    s.claim("R16", s.of(RESET_VQUEUE).length, 0, "RESET_VQUEUE without RING_RESET");
    const isUsed = () => s.of(EVENT_AVAIL, from).length > 0;
    await s.until(isUsed, "a device that was reset, and its generation with it, is not used again");
  },
  async R19(s) {
    s.features = [...s.features, ...new Array<number>(14).fill(0)];
    await s.bringUp();
    const wanted = s.features.map((_, i) => i);
    for (const kind of [GET_DEVICE_FEATURES, SET_DRIVER_FEATURES]) {
      const blocks = s.of(kind).flatMap(({ index, count }) => wanted.slice(index, index + count));
      expectSame([...new Set(blocks)].sort((a, b) => a - b), wanted, "the blocks in messages");
    }
  },
  async R23(s) {
    const { reactor } = s.talk;
    let sinceMs = Infinity;
    s.override = (request) => {
      const { kind, status } = request;
      if (kind === SET_DEVICE_STATUS && status === 0) sinceMs = Math.min(sinceMs, reactor.now());
      if (sinceMs === Infinity || reactor.now() >= sinceMs + 50) return false;
      const isAsking = kind === SET_DEVICE_STATUS || kind === GET_DEVICE_STATUS;
      expect(isAsking, "the driver goes on before its reset is over");
      s.answer(request, { status: 0x0f });
      return true;
    };
    await s.bringUp();
    expect(sinceMs !== Infinity, "there was no reset");
  },
  /** A range without data is taken: so is the status with it. */
  async R27(s) {
    await s.bringUp();
    const { departures } = s.talk;
    const from = s.said.length;
    const status = s.status | Status.DEVICE_NEEDS_RESET;
    const { bytes } = s.talk.bytesOf(Kind.EVENT_CONFIG, { status, length: 6 });
    const { headerSize } = s.talk.codec;
    bytes[headerSize - 2] = headerSize + 16;
    s.talk.put(bytes);
    const isTaken = await s.serve(() => s.of(SET_DEVICE_STATUS, from).length > 0, HALF_MS);
    require(isTaken || s.talk.departures === departures, GOES);
    if (!isTaken) await s.announce({ status });
    require(s.of(SET_DEVICE_STATUS, from).length > 0, NO_RESET);
    expect(isTaken, "EVENT_CONFIG of a range without data is not taken");
  },
  async R31(s) {
    s.override = (request) => {
      if (request.kind !== SET_VQUEUE) return false;
      // Answered, and not done.
      s.talk.reply(request);
      return true;
    };
    await s.refuse();
    expect(s.at(SET_VQUEUE) >= 0, "no queue was set up");
    expectSame(s.of(EVENT_AVAIL).length, 0, "notifications of queues that were not taken");
  },
  /** Also behind a reset: the queues of before are none then. */
  async R32(s) {
    await s.bringUp();
    await s.until(() => s.at(EVENT_AVAIL) >= 0, "the driver gives no buffers");
    const from = s.said.length;
    await s.announce({ status: s.status | Status.DEVICE_NEEDS_RESET });
    await s.serve(() => s.of(EVENT_AVAIL, from).length > 0, HALF_MS);
    for (const [i, { kind, index }] of s.said.entries()) {
      if (kind !== EVENT_AVAIL) continue;
      expect(isSetUp(s, i), `queue ${index} is notified of, which is not set up`);
    }
    require(s.of(SET_DEVICE_STATUS, from).length > 0, NO_RESET);
    expect(s.of(EVENT_AVAIL, from).length > 0, "the driver gives no buffers behind its reset");
  },
  /** DRIVER_OK is answered without it at first: until it is shown, nothing is used. */
  async R33(s) {
    let isShown = false;
    s.override = (request) => {
      const { kind } = request;
      if (isShown || (kind !== SET_DEVICE_STATUS && kind !== GET_DEVICE_STATUS)) return false;
      s.answer(request, { status: request.status & ~Status.DRIVER_OK });
      return true;
    };
    await s.until(() => s.at(SET_DEVICE_STATUS, DRIVER_OK) >= 0, "no DRIVER_OK was written");
    await s.lookOn();
    expectSame(s.of(EVENT_AVAIL).length, 0, "notifications before DRIVER_OK was shown");
    isShown = true;
    await s.until(() => s.at(EVENT_AVAIL) >= 0, "DRIVER_OK that is shown late is not seen");
  },
  R37: loses(GET_DEVICE_FEATURES, false),
  R24: loses(GET_DEVICE_FEATURES, true),
  B27: loses(GET_VQUEUE, false),

  async R8(s) {
    const { generation } = s;
    for (const write of await written(s)) {
      expectSame(write.generation, generation, "the generation in SET_CONFIG");
    }
  },
  async "R20 R29"(s) {
    for (const { generation } of await written(s)) {
      expectSame(generation, 0, "the generation in SET_CONFIG");
    }
  },
  async R9(s) {
    let refusals = 0;
    s.override = (request) => {
      if (request.kind !== SET_CONFIG) return false;
      s.talk.reply(request, { generation: s.generation + ++refusals });
      return true;
    };
    await s.lookOn(NOW_AND_THEN_MS);
    require(refusals > 0, "it writes no configuration while it begins");
    expect(refusals <= 2, `a refused write was repeated ${refusals - 1} times`);
  },
  async R18(s) {
    await s.bringUp();
    const accesses = s.of([GET_CONFIG, SET_CONFIG]);
    require(accesses.length > 0, "it uses no configuration");
    const { configBytes } = s.talk.codec.limits;
    for (const { offset, length } of accesses) {
      expect(length <= configBytes, `${length} bytes from ${offset} on in one message`);
    }
  },
  /** Only a read that fills a message is known to be a part of one. */
  async R21(s) {
    const { configBytes } = s.talk.codec.limits;
    const parts: { readonly offset: number; readonly isNext: boolean }[] = [];
    let end = -1;
    s.override = ({ kind, offset, length }) => {
      if (kind !== GET_CONFIG) return false;
      // It moves between the first parts, and then rests.
      if (parts.length < 3) s.generation++;
      parts.push({ offset, isNext: offset === end });
      end = length === configBytes ? offset + length : -1;
      return false;
    };
    await s.bringUp();
    const second = parts.findIndex(({ isNext }) => isNext);
    require(second > 0, "it reads no configuration that is longer than a message");
    const isAnew = parts.slice(second).some(({ offset }) => offset === parts[second - 1]!.offset);
    expect(isAnew, "a read in parts goes on, though its generation has changed");
  },

  /** One of eight bits is there; what comes next is said to begin at 16. */
  async B19(s) {
    const { device } = s.talk;
    const from: number[] = [];
    s.override = (request) => {
      const { kind, offset } = request;
      if (kind !== GET_DEVICES) return false;
      from.push(offset);
      const bytes = Uint8Array.of(offset === 0 && device < 8 ? 1 << device : 0);
      s.answer(request, { count: 8, bytes, nextOffset: offset === 0 ? 16 : 0 });
      return true;
    };
    await s.lookOn(NOW_AND_THEN_MS);
    require(from.length > 0, "it asks no GET_DEVICES");
    require(device < 8, "this is asked with a device number below 8");
    expect(from.includes(16), "GET_DEVICES is not asked again from what the answer calls next");
    await s.until(() => s.at(GET_DEVICE_INFO) >= 0, "a device among fewer than asked is not found");
  },
  async B36(s) {
    s.override = ({ kind }) => kind === PING;
    await s.lookOn(NOW_AND_THEN_MS);
    require(s.at(PING) >= 0, "it sends no PING");
    const follows = () => s.of([GET_DEVICE_STATUS, SET_DEVICE_STATUS], s.at(PING)).length > 0;
    await s.until(follows, "no status is read after a PING without an answer");
  },

  async P9(s) {
    await s.bringUp();
    require(s.at(IOMMU_ENABLE, ({ state }) => state === 1) >= 0, "it enables no IOMMU");
    const [queue] = s.queues.values();
    require(queue !== undefined, "it sets up no queue whose address could be asked for");
    s.talk.send(IOMMU_TRANSLATE, { address: queue.descriptorAddress, prot: 1 });
    const isAnswered = () =>
      s.talk.heard.some(({ message: m }) => m.kind === IOMMU_TRANSLATE && m.response);
    await s.until(isAnswered, "IOMMU_TRANSLATE is not answered");
  },
  async P14(s) {
    await s.bringUp();
    const from = s.said.length;
    s.talk.send(Kind.EVENT_USED);
    await s.announce({});
    expectSame(s.of(SET_DEVICE_STATUS, from).length, 0, "status writes after an event");
  },
});
