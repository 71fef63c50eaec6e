/** Rules V: the device side (wire document 11.2, 11.6). */

import { assert, assertEquals } from "@std/assert";
import { NetDevice } from "../../src/devices/net/net_device.ts";
import { inProcessBus } from "../support/in_process_bus.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { Kind, QUEUE_ENABLED } from "../../src/message/message.ts";
import { ResponderPort } from "../../src/network/responder_port.ts";
import { createLog } from "../../src/observe/log.ts";
import { DeviceSide } from "../../src/transport/device_side.ts";
import { getQueue, type Rig, RINGS, UNSET, withForeign, withSide } from "../support/device_rig.ts";
import { FAKE_DEVICE_ID, FAKE_FEATURES, FAKE_VENDOR_ID } from "../support/fake_device.ts";
import { RawPeer } from "../support/raw_peer.ts";
import { BOTH, type Form, rule, V1, V1_2025 } from "./rules.ts";

/** The real network card with the responder, asked by a raw peer. */
async function withNetDevice(form: Form, body: (peer: RawPeer) => Promise<void>): Promise<void> {
  using reactor = new Reactor();
  using pair = inProcessBus(reactor);
  const codec = codecFor(form);
  const log = createLog("test", "error", () => {});
  using side = new DeviceSide({ reactor, bus: pair.device, codec, log });
  const mac = Uint8Array.of(0x52, 0x54, 0, 0x12, 0x34, 0x56);
  side.add(0, new NetDevice(reactor, new ResponderPort({}, reactor), { mac, mtu: 1500 }));
  const peer = new RawPeer(reactor, pair.driver, codec);
  side.open();
  peer.open();
  await reactor.until(body(peer));
}

/** The bytes of the next message, whatever the codec makes of them. */
async function rawAnswer({ peer, reactor }: Rig, request: number[]): Promise<Uint8Array> {
  let raw: Uint8Array | undefined;
  const { received } = peer;
  peer.received = (slot) => {
    raw ??= Uint8Array.from({ length: 64 }, (_, i) => slot.getUint8(i));
  };
  peer.putBytes(request);
  while (raw === undefined) await reactor.sleep(0);
  peer.received = received;
  return raw;
}

const u32 = (bytes: Uint8Array, at: number) => new DataView(bytes.buffer).getUint32(at, true);

const generationOf = async ({ peer }: Rig) =>
  (await peer.ask(Kind.GET_CONFIG, (m) => m.length = 4)).generation;

/** A SET_CONFIG of some bytes. */
const writeConfig = ({ peer }: Rig, offset: number, bytes: readonly number[], generation: number) =>
  peer.ask(Kind.SET_CONFIG, (m) => {
    m.generation = generation;
    m.offset = offset;
    m.length = bytes.length;
    m.bytes.set(bytes);
  });

rule(
  "V1",
  BOTH,
  "one request of each kind, one answer each",
  (form) =>
    withForeign(async ({ peer, quiet }) => {
      const kinds = [
        Kind.GET_DEVICE_INFO,
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
      ];
      for (const kind of kinds) await peer.ask(kind);
      await quiet();
    }, { dialect: form }),
);

rule("V2 V30", BOTH, "GET_DEVICE_INFO is accurate, before any status", async (form) => {
  await withSide(async ({ peer }) => {
    const info = await peer.ask(Kind.GET_DEVICE_INFO);
    assertEquals(
      [info.deviceId, info.vendorId, info.featureBlocks, info.configSize, info.maxQueues],
      [FAKE_DEVICE_ID, FAKE_VENDOR_ID, 2, 12, 3],
    );
  }, { dialect: form });
  await withNetDevice(form, async (peer) => {
    const info = await peer.ask(Kind.GET_DEVICE_INFO);
    assertEquals([info.deviceId, info.featureBlocks, info.maxQueues], [1, 2, 3]);
    // As many queues answer, and the configuration is that long.
    for (const index of [0, 1, 2, 3]) {
      const { maxSize } = await peer.ask(Kind.GET_VQUEUE, (m) => m.index = index);
      assertEquals(maxSize > 0, index < info.maxQueues);
    }
    await peer.ask(Kind.GET_CONFIG, (m) => m.length = info.configSize);
    const past = await peer.ask(Kind.SET_CONFIG, (m) => {
      m.offset = info.configSize;
      m.length = 1;
    });
    assertEquals(past.length, 0);
  });
});

rule(
  "V3",
  V1_2025,
  "the number of feature bits is a multiple of 32",
  (form) =>
    withForeign(async (rig) => {
      const bytes = await rawAnswer(rig, [0, 2, 0, 0, 1, 0, 8, 0]);
      assertEquals([u32(bytes, 16) % 32, u32(bytes, 16), bytes[6]], [0, 64, 32]);
    }, { dialect: form }),
);

rule(
  "V4",
  BOTH,
  "a number without a device answers GET_DEVICE_INFO with zeros",
  (form) =>
    withForeign(async ({ peer }) => {
      for (const number of [1, 7, 0xffff]) {
        const info = await peer.ask(Kind.GET_DEVICE_INFO, (m) => m.device = number);
        assertEquals(info.device, number);
        assertEquals(info.numbers.every((value) => value === 0), true);
      }
    }, { dialect: form }),
);

rule(
  "V5 V6",
  BOTH,
  "feature blocks: index and count echoed, zeros beyond",
  (form) =>
    withForeign(async ({ peer }) => {
      for (
        const [index, words] of [[0, FAKE_FEATURES], [1, [FAKE_FEATURES[1]!, 0, 0]], [7, [
          0,
          0,
          0,
          0,
        ]]] as const
      ) {
        const answer = await peer.ask(Kind.GET_DEVICE_FEATURES, (m) => {
          m.index = index;
          m.count = words.length;
        });
        assertEquals([answer.index, answer.count], [index, words.length]);
        assertEquals(answer.size, 16 + 4 * words.length);
        assertEquals([...answer.words.subarray(0, words.length)], [...words]);
      }
    }, { dialect: form }),
);

rule(
  "V7 V8",
  BOTH,
  "the mask that was written is judged at FEATURES_OK, the answer tells",
  (form) =>
    withForeign(async ({ peer, device, setStatus }) => {
      const write = (words: number[]) =>
        peer.ask(Kind.SET_DRIVER_FEATURES, (m) => {
          m.count = words.length;
          m.words.set(words);
        });
      await setStatus(3);
      await write([0x21, 0]);
      assertEquals(await setStatus(0xb), 3, "without VERSION_1");
      await write([0x23, 1]);
      assertEquals(await setStatus(0xb), 3, "with a bit that was not offered");
      await write([0x21, 1]);
      assertEquals(await setStatus(0xb), 0xb);
      assertEquals(device.accepted, [0x21, 1]);
      assertEquals((await peer.ask(Kind.GET_DEVICE_STATUS)).status, 0xb);
    }, { dialect: form }),
);

rule(
  "V9 V42",
  BOTH,
  "status 0 resets features, queues, pending work, status",
  (form) =>
    withForeign(async (rig) => {
      const { device, negotiate, setStatus, setQueue, quiet } = rig;
      await negotiate();
      for (const index of [0, 1, 2]) await setQueue(index);
      await setStatus(0xf);
      // What stopping finds is not for the new start.
      device.usedAtStop.add(1);
      assertEquals(await setStatus(0), 0);
      for (const index of [0, 1, 2]) assertEquals(await getQueue(rig, index), UNSET);
      assertEquals(device.host.mayTouchMemory(), false);
      await quiet();
      assertEquals(await setStatus(0xb), 3, "the features are gone");
    }, { dialect: form }),
);

rule(
  "V10 V11 V12",
  BOTH,
  "the generation grows with each change, and survives a reset",
  (form) =>
    withForeign(async (rig) => {
      const { peer, device, setStatus } = rig;
      const first = await generationOf(rig);
      device.config[5] = 0x77;
      device.host.configChanged();
      const read = await peer.ask(Kind.GET_CONFIG, (m) => {
        m.offset = 4;
        m.length = 3;
      });
      assertEquals([read.generation, read.offset, read.length], [first + 1, 4, 3]);
      assertEquals([...read.bytes.subarray(0, 3)], [5, 0x77, 7]);
      await setStatus(0);
      assertEquals(await generationOf(rig), first + 1);
    }, { dialect: form }),
);

rule(
  "V13",
  V1_2025,
  "a stale generation changes nothing and is answered with length 0",
  (form) =>
    withForeign(async (rig) => {
      const { device } = rig;
      device.host.configChanged();
      device.host.configChanged();
      const now = await generationOf(rig);
      for (const stale of [now - 1, now + 1, 0]) {
        const refused = await writeConfig(rig, 4, [9], stale);
        assertEquals([refused.generation, refused.offset, refused.length], [now, 4, 0]);
        assertEquals(refused.size, 20);
      }
      assertEquals([device.config[4], device.calls], [5, []]);
      assertEquals((await writeConfig(rig, 4, [9], now)).length, 1);
      assertEquals(device.config[4], 9);
    }, { dialect: form }),
);

rule(
  "V14",
  V1_2025,
  "an accepted write answers the generation and what is there now",
  (form) =>
    withForeign(async (rig) => {
      const { device } = rig;
      device.writeConfig = (offset, bytes) => {
        device.config[offset] = bytes[0]! & 0x0f;
        return true;
      };
      const answer = await writeConfig(rig, 3, [0xff], await generationOf(rig));
      assertEquals([answer.length, answer.bytes[0], answer.size], [1, 0x0f, 21]);
      assertEquals(answer.generation, await generationOf(rig));
    }, { dialect: form }),
);

rule(
  "V15 V16 V17",
  BOTH,
  "EVENT_CONFIG: the new generation, never a range, so never one twice",
  (form) =>
    withForeign(async (rig) => {
      const { peer, device, setStatus, quiet } = rig;
      await setStatus(3);
      const first = await generationOf(rig);
      for (let change = 1; change <= 3; change++) {
        // Of everything: as much as no message holds (V17).
        device.config.fill(change);
        device.host.configChanged();
        const event = await peer.nextOf(Kind.EVENT_CONFIG);
        assertEquals([event.generation, event.status], [first + change, 3]);
        assertEquals([event.offset, event.length, event.size], [0, 0, 24]);
      }
      await quiet();
    }, { dialect: form, device: { configSize: 256 } }),
);

rule(
  "V18",
  BOTH,
  "NEEDS_RESET is announced, the generation stays",
  (form) =>
    withForeign(async (rig) => {
      const { peer, device, negotiate, setStatus } = rig;
      await negotiate();
      await setStatus(0xf);
      const before = await generationOf(rig);
      device.host.needsReset("test");
      const event = await peer.nextOf(Kind.EVENT_CONFIG);
      assertEquals([event.status, event.generation, event.length], [0x4f, before, 0]);
    }, { dialect: form }),
);

rule(
  "V19 V20 V21",
  BOTH,
  "GET_VQUEUE: maximum, then what SET_VQUEUE stored",
  (form) =>
    withForeign(async (rig) => {
      const { negotiate, setQueue } = rig;
      await negotiate();
      assertEquals(await getQueue(rig, 3), { ...UNSET, maxSize: 0 });
      assertEquals(await getQueue(rig, 2), UNSET);
      await setQueue(2, (m) => m.queueSize = 32);
      assertEquals(await getQueue(rig, 2), {
        ...UNSET,
        ...RINGS,
        queueSize: 32,
        flags: QUEUE_ENABLED,
      });
      assertEquals(await getQueue(rig, 1), UNSET);
    }, { dialect: form }),
);

rule(
  "V22 V25 V23 V26",
  BOTH,
  "queues work from SET_VQUEUE and DRIVER_OK on, late ones too",
  (form) =>
    withForeign(async ({ peer, device, negotiate, setQueue, setStatus, quiet }) => {
      const kick = async (index: number) => {
        peer.send(Kind.EVENT_AVAIL, (m) => m.index = index);
        await quiet();
      };
      await negotiate();
      device.takeCalls();
      await kick(0);
      assertEquals(device.takeCalls(), [], "V22");
      await setQueue(0);
      await kick(0);
      assertEquals(device.host.mayTouchMemory(), false, "V25: it hears of it and may do nothing");
      await setStatus(0xf);
      assertEquals(device.takeCalls().at(-1), "resume");
      assertEquals(device.host.mayTouchMemory(), true);
      await setQueue(1);
      assertEquals(device.takeCalls(), ["start 1", "available 1"], "V23");
      await kick(1);
      assertEquals(device.takeCalls(), ["available 1"]);
      device.host.used(1);
      assertEquals((await peer.nextOf(Kind.EVENT_USED)).index, 1, "V26");
    }, { dialect: form }),
);

rule(
  "V24",
  BOTH,
  "RESET_VQUEUE stops the queue before it answers, its notification does not follow",
  (form) =>
    withForeign(async (rig) => {
      const { peer, device, negotiate, setQueue, setStatus, quiet } = rig;
      await negotiate();
      await setQueue(0);
      await setStatus(0xf);
      device.takeCalls();
      device.usedAtStop.add(0);
      await peer.ask(Kind.RESET_VQUEUE, (m) => m.index = 0);
      assertEquals(device.takeCalls(), ["stop 0"]);
      assertEquals(await getQueue(rig, 0), UNSET);
      await quiet();
    }, { dialect: form }),
);

rule(
  "V27",
  V1_2025,
  "GET_SHM of any region: 20 bytes, length 0",
  (form) =>
    withForeign(async ({ peer }) => {
      const answer = await peer.ask(Kind.GET_SHM, (m) => m.index = 9);
      assertEquals([answer.index, answer.length, answer.address, answer.size], [9, 0, 0, 20]);
    }, { dialect: form }),
);

rule(
  "V28",
  BOTH,
  "a device answers, and speaks, under its own number",
  (form) =>
    withForeign(async ({ peer, fifth, setStatus }) => {
      for (const number of [0, 5]) {
        const answer = await peer.ask(Kind.GET_DEVICE_STATUS, (m) => m.device = number);
        assertEquals(answer.device, number);
      }
      await setStatus(7, 5);
      fifth.host.used(2);
      fifth.host.configChanged();
      assertEquals((await peer.nextOf(Kind.EVENT_USED)).device, 5);
      assertEquals((await peer.nextOf(Kind.EVENT_CONFIG)).device, 5);
    }, { dialect: form }),
);

rule(
  "V29 V31",
  V1,
  "GET_DEVICE_INFO: 52 bytes, blocks, the nil UUID, no administration queues",
  (form) =>
    withForeign(async (rig) => {
      const bytes = await rawAnswer(rig, [0, 2, 0, 0, 1, 0, 8, 0]);
      assertEquals(bytes[6], 52);
      assert(bytes.subarray(16, 32).every((byte) => byte === 0), "UUID");
      assertEquals([32, 36, 40, 44, 48].map((at) => u32(bytes, at)), [2, 12, 3, 0, 0]);
    }, { dialect: form }),
);

rule(
  "V32 V33",
  V1,
  "GET_VQUEUE flags before, after SET_VQUEUE, after either reset",
  (form) =>
    withForeign(async (rig) => {
      const { peer, negotiate, setQueue, setStatus } = rig;
      await negotiate();
      assertEquals(await getQueue(rig, 0), UNSET);
      for (const reset of ["RESET_VQUEUE", "status 0"]) {
        if ((await peer.ask(Kind.GET_DEVICE_STATUS)).status === 0) await negotiate();
        await setQueue(0);
        const set = await getQueue(rig, 0);
        assertEquals([set.flags, set.queueSize, set.descriptorAddress], [1, 64, 0x1000]);
        assertEquals([set.driverAddress, set.deviceAddress], [0x2000, 0x3000]);
        if (reset === "status 0") await setStatus(0);
        else await peer.ask(Kind.RESET_VQUEUE, (m) => m.index = 0);
        assertEquals(await getQueue(rig, 0), UNSET, reset);
      }
      const absent = await peer.ask(Kind.GET_VQUEUE, (m) => m.index = 7);
      absent.index = 0;
      assert(absent.numbers.every((value) => value === 0), "a maximum of 0: all 0");
    }, { dialect: form }),
);

rule(
  "V34",
  V1,
  "SET_VQUEUE with another operation than 1 changes nothing",
  (form) =>
    withForeign(async (rig) => {
      const { device, negotiate, setQueue } = rig;
      await negotiate();
      device.takeCalls();
      for (const flags of [0, 2, 3, 0x8000_0001]) await setQueue(0, (m) => m.flags = flags);
      assertEquals([await getQueue(rig, 0), device.takeCalls()], [UNSET, []]);
    }, { dialect: form }),
);

rule(
  "V35 V37",
  V1,
  "SET_CONFIG: whatever the generation, all or nothing",
  (form) =>
    withForeign(async (rig) => {
      const { device } = rig;
      device.host.configChanged();
      for (const generation of [0, 999, 1]) {
        assertEquals((await writeConfig(rig, 2, [generation & 0xff, 8], generation)).length, 2);
        assertEquals([device.config[2], device.config[3]], [generation & 0xff, 8]);
      }
      for (const [offset, length] of [[11, 2], [12, 1], [0, 13], [0xffff_fffe, 4]] as const) {
        const before = device.config.slice();
        assertEquals((await writeConfig(rig, offset, new Array(length).fill(9), 0)).length, 0);
        assertEquals(device.config, before);
      }
      assertEquals((await writeConfig(rig, 0, new Array(12).fill(1), 0)).length, 12);
    }, { dialect: form }),
);

rule(
  "V38",
  V1,
  "GET_SHM of any region: 32 bytes, length 0",
  (form) =>
    withForeign(async ({ peer }) => {
      for (const region of [0, 9, 0xffff_ffff]) {
        const answer = await peer.ask(Kind.GET_SHM, (m) => m.index = region);
        assertEquals([answer.index, answer.length, answer.address], [region, 0, 0]);
        assertEquals(answer.size, 32);
      }
    }, { dialect: form }),
);

rule(
  "V39 V43 B7",
  BOTH,
  "the card offers VERSION_1 and ACCESS_PLATFORM, no notification data",
  (form) =>
    withNetDevice(form, async (peer) => {
      await peer.ask(Kind.GET_DEVICE_INFO);
      const { words } = await peer.ask(Kind.GET_DEVICE_FEATURES, (m) => m.count = 2);
      const has = (bit: number) => (words[bit >> 5]! & (1 << (bit & 31))) !== 0;
      assertEquals([32, 33, 38, 39, 41].map(has), [true, true, false, false, false]);
    }),
);

rule(
  "V40",
  BOTH,
  "no EVENT_CONFIG for a status that the driver wrote",
  (form) =>
    withForeign(async ({ negotiate, setStatus, quiet, reactor }) => {
      await negotiate();
      for (const status of [0xf, 0x8f, 0, 1]) {
        await setStatus(status);
        await reactor.sleep(1);
        await quiet();
      }
    }, { dialect: form }),
);

rule(
  "V41",
  V1,
  "EVENT_CONFIG: 24 bytes, offset 0, length 0, whatever happens",
  (form) =>
    withForeign(async ({ peer, device, setStatus, reactor }) => {
      await setStatus(7);
      for (let n = 0; n < 50; n++) {
        const what = (n * 7) % 3;
        if (what === 0) device.host.configChanged();
        else if (what === 1) device.host.needsReset("test");
        else device.host.used(n % 3);
        await reactor.sleep(0);
        if (n % 10 !== 9) continue;
        peer.send(Kind.SET_DEVICE_STATUS);
        peer.send(Kind.SET_DEVICE_STATUS, (m) => m.status = 7);
      }
      await reactor.sleep(2);
      let events = 0;
      for (const message of peer.messages.splice(0)) {
        if (message.kind !== Kind.EVENT_CONFIG) continue;
        assertEquals([message.size, message.offset, message.length, message.token], [24, 0, 0, 0]);
        events++;
      }
      assert(events > 5, `${events} events`);
    }, { dialect: form }),
);
