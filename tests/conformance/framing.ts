/** Rules G: framing and correlation, of both sides (wire document 11.1, 11.6). */

import { assert, assertEquals, assertNotEquals } from "@std/assert";
import { Kind } from "../../src/message/message.ts";
import { withForeign } from "../support/device_rig.ts";
import { withReady } from "../support/driver_rig.ts";
import { BOTH, type Form, rule, V1 } from "./rules.ts";
import { type Passed, withWhole } from "./whole.ts";

const u16 = (bytes: Uint8Array, at: number) => bytes[at]! + 256 * bytes[at + 1]!;
const u32 = (bytes: Uint8Array, at: number) => u16(bytes, at) + 65536 * u16(bytes, at + 2);
const isResponse = (bytes: Uint8Array) => (bytes[0]! & 1) !== 0;
const isEvent = (bytes: Uint8Array) => (bytes[1]! & 0x40) !== 0;
const tokenOf = (bytes: Uint8Array) => u16(bytes, 4);
const sizeOf = (bytes: Uint8Array) => u16(bytes, 6);

/** A session with pings and a reset, on record. */
async function session(form: Form): Promise<Passed[]> {
  let passed: Passed[] = [];
  await withWhole(form, async (whole) => {
    assertEquals(await whole.ping(), 3);
    await whole.side.device(0).reset();
    passed = whole.passed;
  });
  return passed;
}

/** Sizes of 5N.3 and 5.3: the request, the answer. */
function expectedSize(form: Form, bytes: Uint8Array): number {
  const answer = isResponse(bytes);
  switch (bytes[1]) {
    case 0x02:
      return answer ? (form === "v1" ? 52 : 32) : 8;
    case 0x03:
      return answer ? 16 + 4 * u32(bytes, 12) : 16;
    case 0x04:
      return answer ? 8 : 16 + 4 * u32(bytes, 12);
    case 0x05:
      return answer ? 20 + u32(bytes, 16) : 16;
    case 0x07:
      return answer ? 12 : 8;
    case 0x08:
      return 12;
    case 0x09:
      return answer ? 48 : 12;
    case 0x0a:
      return answer ? 8 : 48;
    case 0x40:
      return 24 + u32(bytes, 20);
    case 0x41:
      return 16;
    case 0x42:
      return 12;
    default:
      throw new Error(`a message 0x${bytes[1]!.toString(16)} was not expected`);
  }
}

rule(
  "G2 G3 G16",
  BOTH,
  "every message of a session has the size of the table, 64 at most",
  async (form) => {
    const passed = await session(form);
    assert(passed.length > 40, `${passed.length} messages`);
    for (const { bytes } of passed) {
      assertEquals(sizeOf(bytes), expectedSize(form, bytes), bytes.toHex());
      assert(sizeOf(bytes) >= 8 && sizeOf(bytes) <= 64);
    }
  },
);

rule("G4 G5 G6 B16", BOTH, "type bits 2-7, MBZ words and padding are sent as 0", async (form) => {
  for (const { bytes } of await session(form)) {
    assert(bytes[0]! <= 3, bytes.toHex());
    assert(bytes.subarray(sizeOf(bytes)).every((byte) => byte === 0), bytes.toHex());
    const isRequest = !isResponse(bytes);
    if (bytes[1] === 0x0a && isRequest) {
      assertEquals([u32(bytes, 12), u32(bytes, 20)], [form === "v1" ? 1 : 0, 0]);
    }
    if (bytes[1] === 0x09 && !isRequest && form === "v1-2025") assertEquals(u32(bytes, 20), 0);
  }
});

rule(
  "G4 G5 G6",
  BOTH,
  "the device side ignores them",
  (form) =>
    withForeign(async ({ peer, device, negotiate }) => {
      await negotiate();
      peer.putBytes([0xfc, 7, 0, 0, 9, 0, 8, 0, ...new Array(56).fill(0xff)]);
      assertEquals((await peer.nextOf(Kind.GET_DEVICE_STATUS)).token, 9);
      const ring = [0, 0, 1, 0, 0, 0, 0, 0];
      const flags = form === "v1" ? [1, 0, 0, 0] : [0x5a, 0xff, 0xff, 0xff];
      const head = [0xfc, 0x0a, 0, 0, 10, 0, 48, 0, 1, 0, 0, 0];
      peer.putBytes([
        ...[...head, ...flags, 64, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, ...ring, ...ring, ...ring],
        ...new Array(16).fill(0xee),
      ]);
      assertEquals((await peer.nextOf(Kind.SET_VQUEUE)).token, 10);
      assertEquals(device.setups.at(-1)?.size, 64);
    }, { dialect: form }),
);

rule(
  "G4 G21",
  BOTH,
  "the driver side ignores them, and bytes behind an answer",
  (form) =>
    withReady(async ({ device, peer }) => {
      const status = device.status();
      const { token } = await peer.nextOf(Kind.GET_DEVICE_STATUS);
      const head = [0xfd, 7, 3, 0, token & 0xff, token >> 8, 24, 0, 0x0b, 0, 0, 0];
      peer.putBytes([...head, ...new Array(52).fill(0xee)]);
      assertEquals(await status, 0x0b);
      if (form === "v1-2025") return;
      // 60 bytes, as the rule's test has it; in `v1-2025` from 52 on it is `v1`'s answer (5N.7).
      const info = device.info();
      const request = await peer.nextOf(Kind.GET_DEVICE_INFO);
      const bytes = new Array(64).fill(0xee);
      bytes.splice(0, 8, 1, 2, 3, 0, request.token & 0xff, request.token >> 8, 60, 0);
      bytes.fill(0, 8, 52);
      bytes.splice(8, 1, 1);
      bytes.splice(40, 1, 3);
      peer.putBytes(bytes);
      const { deviceId, maxQueues } = await info;
      assertEquals([deviceId, maxQueues], [1, 3]);
    }, { dialect: form }),
);

rule(
  "G7",
  BOTH,
  "transport messages carry the device's number, bus messages 0",
  (form) =>
    withReady(async ({ device, peer }) => {
      const status = device.status();
      const request = await peer.nextOf(Kind.GET_DEVICE_STATUS);
      assertEquals(request.device, 3);
      peer.reply(request);
      await status;
      device.available(1);
      assertEquals((await peer.nextOf(Kind.EVENT_AVAIL)).device, 3);
      peer.send(Kind.PING, (m) => m.data = 7);
      assertEquals((await peer.nextOf(Kind.PING)).device, 0);
    }, { dialect: form }),
);

rule(
  "G8 G9 G10",
  BOTH,
  "tokens of a session: requests have one, answers repeat it, events have none",
  async (form) => {
    const open = new Map<number, Uint8Array>();
    let answers = 0;
    for (const { from, bytes } of await session(form)) {
      const token = tokenOf(bytes);
      if (isEvent(bytes)) {
        assertEquals(token, 0, bytes.toHex());
        continue;
      }
      assertNotEquals(token, 0, bytes.toHex());
      assertEquals(from, isResponse(bytes) ? "device" : "driver");
      if (!isResponse(bytes)) {
        assert(!open.has(token), "unique while it is outstanding");
        open.set(token, bytes);
        continue;
      }
      const request = open.get(token)!;
      assertEquals([bytes[1], u16(bytes, 2)], [request[1], u16(request, 2)]);
      open.delete(token);
      answers++;
    }
    assertEquals(open.size, 0, "each request was answered once");
    assert(answers >= 15, `${answers} answers`);
  },
);

rule(
  "G8",
  BOTH,
  "requests to two devices and to one device have different tokens",
  (form) =>
    withReady(async ({ side, peer }) => {
      const [third, fourth] = [side.device(3), side.device(4)];
      const asked = [third.status(), third.status(), fourth.status(), fourth.status()];
      const tokens = new Set<number>();
      const requests = [];
      for (let n = 0; n < 4; n++) requests.push(await peer.nextOf(Kind.GET_DEVICE_STATUS));
      for (const request of requests) {
        tokens.add(request.token);
        peer.reply(request, (m) => m.status = request.device);
      }
      assertEquals([await Promise.all(asked), tokens.size], [[3, 3, 4, 4], 4]);
    }, { dialect: form }),
);

rule(
  "G11 G18",
  BOTH,
  "answers that nobody waits for are dropped: token, id, device, kind",
  (form) =>
    withReady(async ({ side, device, peer, lines }) => {
      const status = device.status();
      const request = await peer.nextOf(Kind.GET_DEVICE_STATUS);
      const dropped = side.counters.dropped;
      peer.reply(request, (m) => m.token ^= 1);
      peer.reply(request, (m) => m.device = 4);
      peer.reply(request, (m) => m.kind = Kind.SET_DEVICE_STATUS);
      peer.reply(request, (m) => m.status = 5);
      peer.reply(request, (m) => m.status = 6);
      assertEquals(await status, 5);
      const ping = peer.send(Kind.PING);
      assertEquals((await peer.nextOf(Kind.PING)).token, ping);
      assertEquals(side.counters.dropped, dropped + 4);
      assertEquals(lines.filter((line) => line.includes("warn")), []);
    }, { dialect: form }),
);

rule(
  "G18",
  BOTH,
  "short answers do not count",
  (form) =>
    withReady(async ({ device, peer, side }) => {
      const status = device.status();
      const { token } = await peer.nextOf(Kind.GET_DEVICE_STATUS);
      for (const size of [7, 8, 11, 65, 0xffff]) {
        const bytes = [1, 7, 3, 0, token & 0xff, token >> 8, size & 0xff, size >> 8, 0x0f];
        peer.putBytes(bytes);
      }
      peer.putBytes([1, 7, 3, 0, token & 0xff, token >> 8, 12, 0, 0x0b]);
      assertEquals([await status, side.counters.malformed], [0x0b, 5]);
    }, { dialect: form, requestTimeoutMs: 1000 }),
);

rule("G12 B3", BOTH, "a bus that rewrites every token changes nothing", async (form) => {
  const original = new Map<number, number>();
  let next = 0xfff0;
  const setToken = (bytes: Uint8Array, token: number) => {
    const copy = bytes.slice();
    copy[4] = token & 0xff;
    copy[5] = token >> 8;
    return copy;
  };
  await withWhole(
    form,
    async ({ ping, side }) => {
      assertEquals(await ping(), 3);
      await side.device(0).reset();
      assert(original.size > 15);
    },
    (from, bytes) => {
      if (isEvent(bytes)) return bytes;
      if (from === "device") return setToken(bytes, original.get(tokenOf(bytes))!);
      next = next === 0xffff ? 1 : next + 1;
      original.set(next, tokenOf(bytes));
      return setToken(bytes, next);
    },
  );
});

rule(
  "G13 G20",
  BOTH,
  "requests of one device are answered in order, each once",
  (form) =>
    withForeign(async ({ peer, quiet }) => {
      const kinds = [
        Kind.GET_DEVICE_STATUS,
        Kind.GET_VQUEUE,
        Kind.SET_DEVICE_STATUS,
        Kind.GET_CONFIG,
        Kind.GET_DEVICE_STATUS,
        Kind.GET_SHM,
        Kind.RESET_VQUEUE,
        Kind.SET_DEVICE_STATUS,
        Kind.GET_DEVICE_INFO,
      ];
      let status = 0;
      const tokens = kinds.map((kind) => peer.send(kind, (m) => m.status = 2 * status++ + 1));
      for (const [i, kind] of kinds.entries()) {
        assertEquals((await peer.nextOf(kind)).token, tokens[i]);
      }
      await quiet();
      // The last one written, without the FEATURES_OK that it did not get.
      assertEquals((await peer.ask(Kind.GET_DEVICE_STATUS)).status, 7);
    }, { dialect: form }),
);

/** Messages that are none. */
const NONSENSE: readonly (readonly number[])[] = [
  [0x00, 0x3f, 0, 0, 1, 0, 8, 0],
  [0x02, 0x3f, 0, 0, 1, 0, 8, 0],
  [0x00, 0x02, 0, 0, 1, 0, 7, 0],
  [0x00, 0x02, 0, 0, 1, 0, 0xff, 0xff],
  [0x00, 0x0a, 0, 0, 1, 0, 47, 0],
  [0x00, 0x04, 0, 0, 1, 0, 20, 0, 0, 0, 0, 0, 2, 0, 0, 0],
  [0x00, 0x06, 0, 0, 1, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0],
];

rule(
  "G14",
  BOTH,
  "the device side says nothing to malformed and unknown messages",
  (form) =>
    withForeign(async ({ peer, side, device, quiet }) => {
      const { malformed } = side.counters;
      for (const bytes of NONSENSE) peer.putBytes(bytes);
      await quiet();
      assertEquals([side.counters.malformed - malformed, device.calls], [NONSENSE.length, []]);
    }, { dialect: form }),
);

rule(
  "G14",
  BOTH,
  "the driver side says nothing to malformed and unknown messages",
  (form) =>
    withReady(async ({ peer, side }) => {
      for (const bytes of NONSENSE) peer.putBytes(bytes);
      const token = peer.send(Kind.PING);
      assertEquals((await peer.nextOf(Kind.PING)).token, token);
      assertEquals([peer.messages.length, side.isReady], [0, true]);
    }, { dialect: form }),
);

rule(
  "G15 B15",
  BOTH,
  "events are never answered, malformed ones neither",
  (form) =>
    withForeign(async ({ peer, device, quiet }) => {
      peer.putBytes([0x00, 0x41, 0, 0, 0, 0, 15, 0, 1]);
      peer.putBytes([0x00, 0x41, 0, 0, 0, 0, 8, 0]);
      peer.putBytes([0x00, 0x41, 9, 0, 7, 0, 16, 0, 0xff, 0xff, 0xff, 0xff]);
      peer.putBytes([0x00, 0x41, 0, 0, 7, 0, 16, 0, 0xff, 0xff, 0xff, 0xff]);
      peer.putBytes([0x00, 0x40, 0, 0, 0, 0, 24, 0]);
      peer.putBytes([0x00, 0x42, 0, 0, 0, 0, 12, 0]);
      peer.putBytes([0x01, 0x41, 0, 0, 0, 0, 16, 0]);
      peer.putBytes([0x02, 0x40, 0, 0, 0, 0, 12, 0, 5, 0, 1, 0]);
      await quiet();
      assertEquals(device.calls, []);
    }, { dialect: form }),
);

rule(
  "G17",
  BOTH,
  "ids left to implementations are no transport messages",
  (form) =>
    withForeign(async ({ peer, device, side, quiet }) => {
      const { malformed } = side.counters;
      // A request and an event, in both classes; none of them is one of ours (design section 6).
      for (const type of [0, 2]) {
        for (const id of [0x89, 0xbf, 0xc1, 0xff]) peer.putBytes([type, id, 0, 0, 1, 0, 8, 0]);
      }
      await quiet();
      assertEquals([side.counters.malformed - malformed, device.calls], [8, []]);
    }, { dialect: form }),
);

rule("G19", V1, "events of another size are dropped by both sides", async (form) => {
  await withReady(async ({ device, peer }) => {
    const seen: number[] = [];
    device.onUsed = (queue) => seen.push(queue);
    device.onConfig = (status) => seen.push(status);
    peer.putBytes([0, 0x42, 3, 0, 0, 0, 16, 0, 1]);
    peer.putBytes([0, 0x42, 3, 0, 0, 0, 11, 0, 1]);
    peer.putBytes([0, 0x40, 3, 0, 0, 0, 25, 0, 0x0f]);
    // A range without its data (section 12, row 58).
    peer.putBytes([0, 0x40, 3, 0, 0, 0, 24, 0, 0x0f, ...[0, 0, 0], 1, 0, 0, 0, 0, 0, 0, 0, 2]);
    peer.putBytes([0, 0x42, 3, 0, 0, 0, 12, 0, 2]);
    const token = peer.send(Kind.PING);
    assertEquals((await peer.nextOf(Kind.PING)).token, token);
    assertEquals(seen, [2]);
  }, { dialect: form });
  await withForeign(async ({ peer, negotiate, setQueue, setStatus, device, quiet }) => {
    await negotiate();
    await setQueue(1);
    await setStatus(0xf);
    device.takeCalls();
    for (const size of [12, 15, 17, 24]) peer.putBytes([0, 0x41, 0, 0, 0, 0, size, 0, 1]);
    await quiet();
    assertEquals(device.takeCalls(), []);
    peer.putBytes([0, 0x41, 0, 0, 0, 0, 16, 0, 1]);
    await quiet();
    assertEquals(device.takeCalls(), ["available 1"]);
  }, { dialect: form });
});

rule(
  "G3",
  BOTH,
  "256 bytes of configuration: the driver splits, no answer is too long",
  (form) =>
    withForeign(async ({ peer }) => {
      const answer = await peer.ask(Kind.GET_CONFIG, (m) => m.length = 44);
      assertEquals(answer.size, 64);
      peer.send(Kind.GET_CONFIG, (m) => m.length = 45);
      peer.send(Kind.GET_CONFIG, (m) => m.length = 256);
      await peer.ask(Kind.PING);
      assertEquals(peer.messages, []);
      const features = await peer.ask(Kind.GET_DEVICE_FEATURES, (m) => m.count = 100);
      assert(features.size <= 64);
    }, { dialect: form, device: { configSize: 256 } }),
);
