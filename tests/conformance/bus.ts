/** Rules B: the bus (wire document 11.4, 11.6), and P12 of the prototype. */

import { assert, assertEquals } from "@std/assert";
import { inProcessBus } from "../support/in_process_bus.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { Kind } from "../../src/message/message.ts";
import { type Rig, withForeign, withSide } from "../support/device_rig.ts";
import { withReady } from "../support/driver_rig.ts";
import { BOTH, PROTO, rule, V1, V1_2025 } from "./rules.ts";

rule(
  "B1",
  BOTH,
  "the greatest message is known before any message, and that is all there is",
  (form) => {
    const codec = codecFor(form);
    assertEquals([codec.dialect, codec.maxSize], [form, 64]);
    // No feature bits (B22): nothing of the bus or the codec names any.
    assert(!Object.keys(codec).some((key) => /feature/i.test(key)));
  },
);

rule("B2", V1_2025, "48 is needed, 264 is the most that should be", (form) => {
  const { maxSize } = codecFor(form);
  assert(maxSize >= 48 && maxSize <= 264);
});

rule("B17 B22", V1, "between 52 and 65535; no transport feature bits", (form) => {
  const { maxSize, limits } = codecFor(form);
  assert(maxSize >= 52 && maxSize <= 65535);
  // What 5N.1 computes from it.
  assertEquals([limits.featureBlocks, limits.configBytes, limits.deviceBits], [12, 44, 400]);
});

rule("B3", BOTH, "what one end publishes, the other end gets, byte for byte", async () => {
  using reactor = new Reactor();
  using pair = inProcessBus(reactor);
  const got: string[] = [];
  const sent: string[] = [];
  const nobody = { attached() {}, detached() {} };
  const take = (slot: DataView) => {
    got.push(Uint8Array.from({ length: 64 }, (_, i) => slot.getUint8(i)).toHex());
  };
  pair.driver.open({ ...nobody, received: take });
  pair.device.open({ ...nobody, received: take });
  for (let n = 0; n < 60; n++) {
    const bytes = crypto.getRandomValues(new Uint8Array(64));
    const offset = pair.driver.claim();
    bytes.forEach((byte, i) => pair.driver.view.setUint8(offset + i, byte));
    pair.driver.send();
    sent.push(bytes.toHex());
  }
  while (got.length < sent.length) await reactor.until(reactor.sleep(0));
  assertEquals(got, sent);
});

rule(
  "B4 B20",
  BOTH,
  "nothing reaches a number without a device, no answer is invented",
  (form) =>
    withForeign(async ({ peer, device, fifth, side, quiet }) => {
      const { dropped } = side.counters;
      const kinds = [
        Kind.GET_DEVICE_FEATURES,
        Kind.SET_DRIVER_FEATURES,
        Kind.GET_CONFIG,
        Kind.SET_CONFIG,
        Kind.GET_DEVICE_STATUS,
        Kind.SET_DEVICE_STATUS,
        Kind.GET_VQUEUE,
        Kind.SET_VQUEUE,
        Kind.RESET_VQUEUE,
        Kind.GET_SHM,
        Kind.EVENT_AVAIL,
      ];
      for (const kind of kinds) peer.send(kind, (m) => m.device = 7);
      await quiet();
      // The failure is a local matter: it is counted.
      assertEquals(side.counters.dropped, dropped + kinds.length);
      assertEquals([device.calls, fifth.calls], [[], []]);
    }, { dialect: form }),
);

rule(
  "B6",
  BOTH,
  "every notification of a busy turn arrives, in band",
  (form) =>
    withForeign(async ({ peer, device, fifth, setStatus, quiet }) => {
      await setStatus(7);
      await setStatus(7, 5);
      for (let round = 0; round < 50; round++) {
        for (const index of [0, 1, 2]) {
          device.host.used(index);
          fifth.host.used(index);
        }
        const seen = new Set<string>();
        for (let n = 0; n < 6; n++) {
          const event = await peer.nextOf(Kind.EVENT_USED);
          seen.add(`${event.device}.${event.index}`);
        }
        assertEquals(seen.size, 6);
      }
      await quiet();
    }, { dialect: form }),
);

/** GET_DEVICES as it is on the wire: three words and the bitmap. */
async function devices({ peer, reactor }: Rig, offset: number, count: number) {
  let raw: number[] | undefined;
  const { received } = peer;
  peer.received = (slot) => {
    raw = Array.from({ length: 64 }, (_, i) => slot.getUint8(i));
  };
  const le = (value: number) => [value & 0xff, value >> 8];
  peer.putBytes([2, 2, 0, 0, 1, 2, 12, 0, ...le(offset), ...le(count)]);
  while (raw === undefined) await reactor.sleep(0);
  peer.received = received;
  const u16 = (at: number) => raw![at]! + 256 * raw![at + 1]!;
  return { words: [u16(8), u16(10), u16(12)], bitmap: raw.slice(14, u16(6)), device: u16(2) };
}

rule(
  "B8 B9 B10",
  V1_2025,
  "GET_DEVICES: offset, count, next in eights; bits low first",
  (form) =>
    withSide(async (rig) => {
      // Numbers 0 and 5.
      assertEquals(await devices(rig, 0, 32), {
        words: [0, 32, 0],
        bitmap: [0x21, 0, 0, 0],
        device: 0,
      });
      assertEquals((await devices(rig, 0, 8)).words, [0, 8, 0]);
      assertEquals(await devices(rig, 8, 8), { words: [8, 8, 0], bitmap: [0], device: 0 });
      // Asked for other than eights: self-consistent, and next is behind the window.
      const odd = await devices(rig, 3, 8);
      assertEquals([odd.words, odd.bitmap], [[3, 8, 0], [0x04]]);
    }, { dialect: form }),
);

rule(
  "B10",
  V1_2025,
  "next is 0 or behind the window, and a multiple of 8",
  (form) =>
    withForeign(async (rig) => {
      const { FakeDevice } = await import("../support/fake_device.ts");
      for (const number of [13, 70, 400]) rig.side.add(number, new FakeDevice());
      const seen: number[] = [];
      for (let offset = 0, windows = 0;; windows++) {
        assert(windows < 64);
        const { words: [at, count, next], bitmap } = await devices(rig, offset, 8);
        assertEquals([at, count, bitmap.length], [offset, 8, 1]);
        for (let n = 0; n < 8; n++) if ((bitmap[0]! & (1 << n)) !== 0) seen.push(offset + n);
        if (next === 0) break;
        assert(next! % 8 === 0 && next! >= offset + 8, `next ${next} after ${offset}`);
        offset = next!;
      }
      assertEquals(seen, [0, 5, 13, 70, 400]);
    }, { dialect: form }),
);

rule(
  "B11",
  V1_2025,
  "a count that no message holds is cut to what fits",
  (form) =>
    withForeign(async (rig) => {
      const { words, bitmap } = await devices(rig, 0, 1024);
      assertEquals([words, bitmap.length], [[0, 400, 0], 50]);
    }, { dialect: form }),
);

rule(
  "B18",
  V1,
  "GET_DEVICES: offset, next, count; as many bits as counted",
  (form) =>
    withForeign(async (rig) => {
      assertEquals(await devices(rig, 0, 32), {
        words: [0, 0, 32],
        bitmap: [0x21, 0, 0, 0],
        device: 0,
      });
      assertEquals(await devices(rig, 0, 4), { words: [0, 5, 4], bitmap: [1], device: 0 });
      assertEquals((await devices(rig, 0, 1024)).words, [0, 0, 400]);
    }, { dialect: form }),
);

rule("B12", BOTH, "PING is echoed by both sides", async (form) => {
  await withForeign(async ({ peer }) => {
    for (const data of [0, 0xcafe_f00d, 0xffff_ffff]) {
      assertEquals((await peer.ask(Kind.PING, (m) => m.data = data)).data, data);
    }
  }, { dialect: form });
  await withReady(async ({ peer }) => {
    for (const data of [0, 0xcafe_f00d, 0xffff_ffff]) {
      const token = peer.send(Kind.PING, (m) => m.data = data);
      const pong = await peer.nextOf(Kind.PING);
      assertEquals([pong.response, pong.token, pong.data], [true, token, data]);
    }
  }, { dialect: form });
});

rule(
  "B23",
  BOTH,
  "EVENT_DEVICE, also twice and of unknown states, disturbs nobody",
  (form) =>
    withReady(async ({ peer, side, device, events }) => {
      for (const number of [3, 3, 9]) {
        for (const state of [1, 2, 2, 1, 0x8000]) {
          peer.send(Kind.EVENT_DEVICE, (m) => Object.assign(m, { number, state }));
        }
      }
      const status = device.status();
      peer.reply(await peer.nextOf(Kind.GET_DEVICE_STATUS), (m) => m.status = 3);
      assertEquals([await status, side.isReady, events], [3, true, ["ready"]]);
    }, { dialect: form }),
);

rule(
  "P12",
  PROTO,
  "a turn of the device sends no more events than it has queues, and one",
  () =>
    withSide(async ({ peer, device, reactor }) => {
      peer.send(Kind.SET_DEVICE_STATUS, (m) => m.status = 7);
      await peer.ask(Kind.GET_DEVICE_STATUS);
      for (let n = 0; n < 1000; n++) device.host.used(n % 3);
      for (let n = 0; n < 1000; n++) device.host.configChanged();
      await reactor.sleep(2);
      assertEquals(peer.messages.map(({ kind }) => kind), [
        Kind.EVENT_USED,
        Kind.EVENT_USED,
        Kind.EVENT_USED,
        Kind.EVENT_CONFIG,
      ]);
    }, { dialect: "proto" }),
);
