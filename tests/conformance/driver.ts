/** Rules R: the driver side, of the net driver and of the requests below it (wire document 11.3, 11.6). */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { createEventFd } from "../../src/linux/eventfd.ts";
import { createSealedMemory } from "../../src/linux/fd.ts";
import { Kind, type Message } from "../../src/message/message.ts";
import { createLog } from "../../src/observe/log.ts";
import { DeviceState } from "../../src/drivers/session.ts";
import { MappedRegion, MemoryTable } from "../../src/sharing/memory_table.ts";
import { Vring } from "../../src/drivers/vhost_user/vring.ts";
import { type DriverRig, withDriverSide, withReady } from "../support/driver_rig.ts";
import type { Fill } from "../support/raw_peer.ts";
import { BOTH, type Form, PROTO, rule, V1, V1_2025 } from "./rules.ts";
import { type NetDriverRig, ScriptedDevice, withNetDriver } from "./scripted_device.ts";
import { withWhole } from "./whole.ts";

const SETUP = { size: 64, descriptorAddress: 0x1000, driverAddress: 0x2000, deviceAddress: 0x3000 };

/** Brings the net driver up. */
async function bringUp(rig: NetDriverRig): Promise<void> {
  rig.open();
  await rig.wait(() => rig.driver.isUp);
}

/** Where the first request of that kind is in the order. */
const at = (
  { requests }: ScriptedDevice,
  kind: Kind,
  which: (m: Message) => boolean = () => true,
) => requests.findIndex((message) => message.kind === kind && which(message));

/** Answers the next request, which must be of this kind. */
async function serve({ peer }: DriverRig, kind: Kind, fill: Fill = () => {}): Promise<Message> {
  const request = await peer.nextOf(kind);
  peer.reply(request, fill);
  return request;
}

/** What a bring-up that must fail fails with. */
async function failure(form: Form, prepare: (device: ScriptedDevice) => void) {
  let device: ScriptedDevice | undefined;
  let message = "it did not fail";
  try {
    await withNetDriver(form, async (rig) => {
      device = rig.device;
      prepare(rig.device);
      rig.open();
      await rig.reactor.sleep(4000);
    });
  } catch (error) {
    message = error instanceof Error ? error.message : String(error);
  }
  return { message, device: device! };
}

rule(
  "R1 B5",
  BOTH,
  "the first thing said to a device is GET_DEVICE_INFO",
  (form) =>
    withNetDriver(form, async (rig) => {
      await bringUp(rig);
      assertEquals(rig.device.requests[0]!.kind, Kind.GET_DEVICE_INFO);
    }),
);

rule(
  "R2",
  BOTH,
  "features are read in blocks, what is wanted and offered is written",
  (form) =>
    withNetDriver(form, async (rig) => {
      const { device } = rig;
      await bringUp(rig);
      const [read] = device.of(Kind.GET_DEVICE_FEATURES);
      const [written] = device.of(Kind.SET_DRIVER_FEATURES);
      assertEquals([read!.index, read!.count, written!.index, written!.count], [0, 2, 0, 2]);
      const words = [...written!.words.subarray(0, 2)];
      assertEquals(words.map((word, i) => (word & ~device.features[i]!) >>> 0), [0, 0]);
      // RING_RESET was offered and is not wanted.
      assertEquals(words, [0x2001_8020, 0x0000_0003]);
    }),
);

rule(
  "B7",
  BOTH,
  "NOTIFICATION_DATA is not accepted, even if it is offered",
  (form) =>
    withNetDriver(form, async (rig) => {
      rig.device.features = [0xffff_ffff, 0xffff_ffff];
      await bringUp(rig);
      const [written] = rig.device.of(Kind.SET_DRIVER_FEATURES);
      // Bits 34 (packed), 38, 39, 41.
      assertEquals(written!.words[1]! & 0x02c4, 0);
    }),
);

rule(
  "R3",
  BOTH,
  "FEATURES_OK is checked in the answer; a device that refuses is left alone",
  async (form) => {
    const { message, device } = await failure(form, (device) => {
      device.override = (request) => {
        if (request.kind !== Kind.SET_DEVICE_STATUS || (request.status & 8) === 0) return false;
        device.peer.reply(request, (m) => m.status = 3);
        return true;
      };
    });
    assertMatch(message, /refuses our features/);
    assertEquals(device.of(Kind.SET_VQUEUE), []);
    const order = [Kind.SET_DRIVER_FEATURES, Kind.SET_DEVICE_STATUS];
    const set = at(device, order[0]!);
    assert(set < at(device, order[1]!, ({ status }) => (status & 8) !== 0));
  },
);

rule(
  "R4 R6",
  BOTH,
  "features, then per queue GET_VQUEUE and SET_VQUEUE, then DRIVER_OK, then I/O",
  (form) =>
    withNetDriver(form, async (rig) => {
      const { device, wait } = rig;
      let held: Message | undefined;
      device.override = (request) => {
        const isLast = request.kind === Kind.SET_DEVICE_STATUS && (request.status & 4) !== 0;
        if (isLast) held = request;
        return isLast;
      };
      rig.open();
      await wait(() => held !== undefined);
      await rig.reactor.sleep(5);
      assertEquals(device.of(Kind.EVENT_AVAIL), [], "no I/O before DRIVER_OK is reported");
      device.override = undefined;
      device.answer(held!);
      await wait(() => device.of(Kind.EVENT_AVAIL).length > 0);
      const featuresOk = at(device, Kind.SET_DEVICE_STATUS, ({ status }) => status === 0xb);
      const driverOk = at(device, Kind.SET_DEVICE_STATUS, ({ status }) => status === 0xf);
      assert(at(device, Kind.SET_DRIVER_FEATURES) < featuresOk);
      for (const index of [0, 1]) {
        const asked = at(device, Kind.GET_VQUEUE, (m) => m.index === index);
        const set = at(device, Kind.SET_VQUEUE, (m) => m.index === index);
        assert(featuresOk < asked && asked < set && set < driverOk);
        assert(device.requests[set]!.queueSize <= device.maxSizes[index]!);
      }
    }),
);

rule("R5", BOTH, "a queue with maximum 0, or a too small one, is not set up", async (form) => {
  for (const maxSizes of [[256, 0, 64], [0, 256, 64], [256, 128, 64]]) {
    const { message, device } = await failure(form, (device) => device.maxSizes = maxSizes);
    assertMatch(message, /queue . has \d+ entries, 256 needed/);
    for (const { index } of device.of(Kind.SET_VQUEUE)) assert(maxSizes[index]! >= 256);
  }
});

rule(
  "R7",
  BOTH,
  "configuration accesses of a session stay within config_size",
  (form) =>
    withWhole(form, async ({ ping, passed, device }) => {
      assertEquals(await ping(), 3);
      const reads = passed.filter(({ from, bytes }) => from === "driver" && bytes[1] === 5);
      assert(reads.length > 0);
      for (const { bytes } of reads) {
        const view = new DataView(bytes.buffer);
        assert(view.getUint32(8, true) + view.getUint32(12, true) <= device.configSize);
      }
    }),
);

rule("R7", BOTH, "beyond config_size a device is not asked", async (form) => {
  await withReady(async (rig) => {
    const { device } = rig;
    const info = device.info();
    await serve(rig, Kind.GET_DEVICE_INFO, (m) => {
      Object.assign(m, { deviceId: 1, featureBlocks: 2, configSize: 12 });
    });
    await info;
    const codes: string[] = [];
    const fail = (error: { code: string }) => void codes.push(error.code);
    for (const [offset, length] of [[0, 13], [12, 1], [9, 4], [0xffff_ffff, 4]] as const) {
      await device.config(offset, length).catch(fail);
      await device.setConfig(offset, new Uint8Array(length)).catch(fail);
    }
    assertEquals(codes, new Array(8).fill("CONFIG_RANGE"));
    assertEquals(await device.config(300, 0), new Uint8Array(0), "nothing is nowhere outside");
    const read = device.config(8, 4);
    await serve(rig, Kind.GET_CONFIG, (m) => Object.assign(m, { offset: 8, length: 4 }));
    await read;
    assertEquals(rig.peer.messages, []);
  }, { dialect: form });
  const { message, device } = await failure(form, (device) => {
    device.override = (request) => {
      if (request.kind !== Kind.GET_DEVICE_INFO) return false;
      device.peer.reply(request, (m) => {
        Object.assign(m, { deviceId: 1, featureBlocks: 2, configSize: 4, maxQueues: 3 });
      });
      return true;
    };
  });
  assertMatch(message, /has 4 bytes of configuration, not 6/);
  assertEquals(device.of(Kind.GET_CONFIG), []);
});

rule(
  "R8",
  V1_2025,
  "SET_CONFIG carries the latest generation, from reads, events and answers",
  (form) =>
    withReady(async (rig) => {
      const { device, peer, wait } = rig;
      const write = async (generation: number) => {
        const written = device.setConfig(2, Uint8Array.of(7));
        const request = await serve(rig, Kind.SET_CONFIG, (m) => {
          Object.assign(m, { generation, offset: 2, length: 1 });
        });
        assertEquals(await written, true);
        return request.generation;
      };
      const read = device.config(0, 4);
      await serve(rig, Kind.GET_CONFIG, (m) => Object.assign(m, { generation: 41, length: 4 }));
      await read;
      assertEquals(await write(42), 41);
      assertEquals(await write(42), 42);
      let events = 0;
      device.onConfig = () => events++;
      peer.send(Kind.EVENT_CONFIG, (m) => Object.assign(m, { device: 3, generation: 50 }));
      await wait(() => events === 1);
      assertEquals(await write(50), 50);
    }, { dialect: form }),
);

rule(
  "R9",
  V1,
  "a SET_CONFIG that was not applied is told, and not repeated",
  (form) =>
    withReady(async (rig) => {
      const written = rig.device.setConfig(0, Uint8Array.of(1));
      await serve(rig, Kind.SET_CONFIG, (m) => m.generation = 9);
      assertEquals(await written, false);
      assertEquals(rig.peer.messages, []);
    }, { dialect: form }),
);

rule(
  "R9",
  V1_2025,
  "a stale SET_CONFIG is repeated once, a refused one is told",
  (form) =>
    withReady(async (rig) => {
      const again = rig.device.setConfig(0, Uint8Array.of(1));
      const stale = await serve(rig, Kind.SET_CONFIG, (m) => m.generation = 9);
      const fresh = await serve(rig, Kind.SET_CONFIG, (m) => {
        Object.assign(m, { generation: 9, length: 1 });
      });
      assertEquals([stale.generation, fresh.generation, await again], [0, 9, true]);
      const refused = rig.device.setConfig(0, Uint8Array.of(1));
      await serve(rig, Kind.SET_CONFIG, (m) => m.generation = 9);
      assertEquals(await refused, false);
      // One that changes all the time is not asked for ever.
      const never = rig.device.setConfig(0, Uint8Array.of(1));
      for (const generation of [10, 11]) {
        await serve(rig, Kind.SET_CONFIG, (m) => m.generation = generation);
      }
      assertEquals([await never, rig.peer.messages], [false, []]);
    }, { dialect: form }),
);

rule(
  "R10 R11",
  BOTH,
  "EVENT_AVAIL after adding buffers: the queue's index, the word 0",
  (form) =>
    withWhole(form, async ({ ping, passed }) => {
      assertEquals(await ping(), 3);
      const kicks = passed.filter(({ from, bytes }) => from === "driver" && bytes[1] === 0x41);
      const words = kicks.map(({ bytes }) => [bytes[8]!, ...bytes.subarray(9, 16)]);
      assert(words.every(([index, ...rest]) => index! <= 1 && rest.every((byte) => byte === 0)));
      assertEquals(new Set(words.map(([index]) => index)), new Set([0, 1]), "both queues");
    }),
);

rule(
  "R12",
  BOTH,
  "EVENT_CONFIG of length 0 is told with its generation (nothing is read again)",
  async (form) => {
    await withReady(async ({ device, peer, wait }) => {
      const told: number[][] = [];
      device.onConfig = (status, generation) => told.push([status, generation, device.generation]);
      peer.send(
        Kind.EVENT_CONFIG,
        (m) => Object.assign(m, { device: 3, status: 7, generation: 8 }),
      );
      await wait(() => told.length === 1);
      assertEquals(told, [[7, 8, 8]]);
    }, { dialect: form });
    await withNetDriver(form, async (rig) => {
      await bringUp(rig);
      const { device } = rig;
      const { length } = device.requests;
      device.peer.send(Kind.EVENT_CONFIG, (m) => Object.assign(m, { status: 0xf, generation: 8 }));
      await rig.reactor.sleep(5);
      assertEquals(device.requests.slice(length).map(({ kind }) => kind), []);
      assertEquals(rig.events, ["up"]);
    });
  },
);

rule(
  "R13",
  BOTH,
  "EVENT_USED leads to the used ring, also of queues that are none",
  (form) =>
    withReady(async ({ device, peer, wait }) => {
      const used: number[] = [];
      device.onUsed = (queue) => used.push(queue);
      for (const index of [0, 1, 1]) {
        peer.send(Kind.EVENT_USED, (m) => Object.assign(m, { device: 3, index }));
      }
      await wait(() => used.length === 3);
      assertEquals(used, [0, 1, 1]);
    }, { dialect: form }),
);

rule(
  "R14 R15",
  BOTH,
  "NEEDS_RESET is answered by writing status 0, and a new bring-up",
  (form) =>
    withNetDriver(form, async (rig) => {
      const { device, wait, events } = rig;
      await bringUp(rig);
      const { length } = device.requests;
      device.peer.send(Kind.EVENT_CONFIG, (m) => m.status = 0x4f);
      await wait(() => events.length === 3);
      assertEquals(events, ["up", "down: the device needed a reset", "up"]);
      const statuses = device.requests.slice(length).filter(({ kind }) =>
        kind === Kind.SET_DEVICE_STATUS
      ).map(({ status }) => status);
      assertEquals(statuses, [0, 1, 3, 0xb, 0xf]);
      assertEquals(device.of(Kind.RESET_VQUEUE), []);
    }),
);

/** Stops a front end's ring with these features negotiated; what was said from then on. */
async function stopRing(form: Form, features: readonly number[]): Promise<Message[]> {
  let said: Message[] = [];
  await withDriverSide(async (rig) => {
    const script = new ScriptedDevice(rig.peer);
    script.features = [0, 0x0000_0103];
    using stack = new DisposableStack();
    const state = new DeviceState(rig.device, createLog("test", "error", () => {}));
    const fd = createSealedMemory("vmsg-test", 65536);
    const region = stack.use(
      new MappedRegion(
        { guestAddress: 0x4000_0000, size: 65536, userAddress: 0x7000_0000, fileOffset: 0 },
        fd,
      ),
    );
    const vring = stack.use(new Vring(0));
    vring.size = 64;
    vring.enabled = true;
    vring.kick = createEventFd();
    vring.addresses = { descriptor: 0x7000_0000, available: 0x7000_1000, used: 0x7000_2000 };
    const wanted = {
      features: Uint32Array.from(features),
      memory: new MemoryTable([region]),
      vrings: [vring],
      mayRun: true,
    };
    await rig.wait(() => rig.side.isReady);
    assertEquals(rig.side.peer, "foreign");
    await state.discover();
    await state.apply(wanted);
    assertEquals([vring.running, script.queues.size], [true, 1]);
    const { length } = script.requests;
    await state.apply({ ...wanted, mayRun: false });
    assertEquals([vring.running, script.queues.size], [false, 0]);
    said = script.requests.slice(length).filter(({ kind }) => kind !== Kind.EVENT_AVAIL);
  }, { dialect: form, answersHello: false });
  return said;
}

rule(
  "R16",
  BOTH,
  "a ring is stopped by RESET_VQUEUE with RING_RESET, else by status 0",
  async (form) => {
    const withRingReset = await stopRing(form, [0, 0x0000_0101]);
    assertEquals(withRingReset.map(({ kind }) => kind), [Kind.RESET_VQUEUE, Kind.GET_VQUEUE]);
    const without = await stopRing(form, [0, 0x0000_0001]);
    assertEquals(without.map(({ kind, status }) => [kind, status]), [[Kind.SET_DEVICE_STATUS, 0]]);
  },
);

rule(
  "R25",
  BOTH,
  "RESET_VQUEUE, then GET_VQUEUE until the queue is cleared",
  (form) =>
    withReady(async (rig) => {
      let done = false;
      const reset = rig.device.resetQueue(1).then(() => done = true);
      assertEquals((await serve(rig, Kind.RESET_VQUEUE)).index, 1);
      for (let n = 0; n < 3; n++) {
        await serve(rig, Kind.GET_VQUEUE, (m) => {
          Object.assign(m, SETUP, { index: 1, maxSize: 256, queueSize: 64, flags: 1 });
        });
        assertEquals(done, false);
      }
      await serve(rig, Kind.GET_VQUEUE, (m) => Object.assign(m, { index: 1, maxSize: 256 }));
      await reset;
      assertEquals(rig.peer.messages, []);
    }, { dialect: form }),
);

rule(
  "R18",
  BOTH,
  "configuration that no message holds is read and written in parts",
  (form) =>
    withReady(async (rig) => {
      const { device, peer } = rig;
      const most = form === "v1" ? 44 : 28;
      const parts: number[][] = [];
      peer.onMessage = (request) => {
        if (request.kind !== Kind.GET_CONFIG && request.kind !== Kind.SET_CONFIG) return false;
        parts.push([request.offset, request.length]);
        peer.reply(request, (m) => {
          Object.assign(m, { offset: request.offset, length: request.length });
          for (let i = 0; i < m.length; i++) m.bytes[i] = m.offset + i;
        });
        return false;
      };
      const bytes = await device.config(10, 100);
      assertEquals([...bytes], Array.from({ length: 100 }, (_, i) => 10 + i));
      assertEquals(await device.setConfig(10, bytes), true);
      let next = 10;
      for (const [offset, length] of parts.slice(0, parts.length / 2)) {
        assertEquals(offset, next);
        assert(length! <= most);
        next += length!;
      }
      assertEquals(next, 110);
      assertEquals(parts.slice(parts.length / 2), parts.slice(0, parts.length / 2));
    }, { dialect: form }),
);

rule(
  "R19",
  BOTH,
  "all feature blocks, split where a message is too short",
  (form) =>
    withReady(async (rig) => {
      const asked: number[][] = [];
      rig.peer.onMessage = (request) => {
        if (request.kind === Kind.HELLO) return false;
        asked.push([request.kind, request.index, request.count]);
        rig.peer.reply(request, (m) => {
          Object.assign(m, { index: request.index, count: request.count });
          for (let i = 0; i < m.count; i++) m.words[i] = 100 + m.index + i;
        });
        return false;
      };
      const words = await rig.device.features(16);
      assertEquals([...words], Array.from({ length: 16 }, (_, i) => 100 + i));
      await rig.device.setFeatures(words);
      assertEquals(asked, [
        [Kind.GET_DEVICE_FEATURES, 0, 12],
        [Kind.GET_DEVICE_FEATURES, 12, 4],
        [Kind.SET_DRIVER_FEATURES, 0, 12],
        [Kind.SET_DRIVER_FEATURES, 12, 4],
      ]);
    }, { dialect: form }),
);

rule(
  "R20",
  V1,
  "SET_CONFIG carries generation 0, whatever was seen",
  (form) =>
    withReady(async (rig) => {
      const read = rig.device.config(0, 1);
      await serve(rig, Kind.GET_CONFIG, (m) => Object.assign(m, { generation: 41, length: 1 }));
      await read;
      const written = rig.device.setConfig(0, Uint8Array.of(1));
      const request = await serve(rig, Kind.SET_CONFIG, (m) => m.length = 1);
      assertEquals([request.generation, await written], [0, true]);
    }, { dialect: form }),
);

rule(
  "R21",
  BOTH,
  "a read in parts starts over when the generation moves, at most so often",
  (form) =>
    withReady(async (rig) => {
      let reads = 0;
      const generations = [1, 2, 3, 3];
      rig.peer.onMessage = (request) => {
        if (request.kind !== Kind.GET_CONFIG) return false;
        const generation = generations[reads++] ?? reads;
        rig.peer.reply(request, (m) => {
          Object.assign(m, { generation, offset: request.offset, length: request.length });
          m.bytes.fill(generation, 0, m.length);
        });
        return false;
      };
      assertEquals(new Set(await rig.device.config(0, 50)), new Set([3]));
      assertEquals(reads, 4);
      const endless = await rig.device.config(0, 50).catch((error) => error.code);
      assertEquals(endless, "CONFIG_UNSTABLE");
      assert(reads <= 4 + 12, `${reads} reads`);
    }, { dialect: form }),
);

rule(
  "R22",
  BOTH,
  "GET_VQUEUE, SET_VQUEUE, GET_VQUEUE; a device that shows another is not used",
  async (form) => {
    await withNetDriver(form, async (rig) => {
      await bringUp(rig);
      const kinds = rig.device.requests.map(({ kind, index }) => `${kind} ${index}`);
      const about = [Kind.GET_VQUEUE, Kind.SET_VQUEUE];
      const sequence = kinds.filter((text) => about.some((kind) => text.startsWith(`${kind} `)));
      const [get, set] = about;
      assertEquals(sequence, [0, 1].flatMap((i) => [`${get} ${i}`, `${set} ${i}`, `${get} ${i}`]));
    });
    const { message } = await failure(form, (device) => {
      device.override = (request) => {
        if (request.kind !== Kind.SET_VQUEUE) return false;
        // Answered, and not done.
        device.peer.reply(request);
        return true;
      };
    });
    assertMatch(message, /did not take queue 0/);
  },
);

rule(
  "R23",
  BOTH,
  "a reset ends when status 0 was read, not before",
  (form) =>
    withReady(async (rig) => {
      let done = false;
      const startMs = rig.reactor.now();
      const reset = rig.device.reset().then(() => done = true);
      assertEquals((await serve(rig, Kind.SET_DEVICE_STATUS, (m) => m.status = 0xf)).status, 0);
      while (rig.reactor.now() < startMs + 50) {
        await serve(rig, Kind.GET_DEVICE_STATUS, (m) => m.status = 0xf);
        assertEquals(done, false);
      }
      await serve(rig, Kind.GET_DEVICE_STATUS);
      await reset;
    }, { dialect: form }),
);

rule(
  "R24",
  BOTH,
  "a silent device: the request ends in time, and a reset recovers",
  (form) =>
    withReady(async (rig) => {
      const { device, peer } = rig;
      const startMs = rig.reactor.now();
      const code = await device.status().catch((error) => error.code);
      const tookMs = rig.reactor.now() - startMs;
      assert(code === "TIMEOUT" && tookMs >= 45 && tookMs < 1000, `${code} after ${tookMs} ms`);
      const late = await peer.nextOf(Kind.GET_DEVICE_STATUS);
      const reset = device.reset();
      peer.reply(late, (m) => m.status = 0xf);
      await serve(rig, Kind.SET_DEVICE_STATUS);
      await reset;
    }, { dialect: form, requestTimeoutMs: 50 }),
);

rule(
  "P4",
  PROTO,
  "configuration of any length goes in pieces of 4, 2 and 1",
  () =>
    withDriverSide(async ({ device, peer }) => {
      const parts: number[] = [];
      peer.onMessage = (request) => {
        parts.push(request.length);
        peer.reply(request, (m) => {
          Object.assign(m, { offset: request.offset, length: request.length });
          for (let i = 0; i < m.length; i++) m.bytes[i] = m.offset + i;
        });
        return false;
      };
      for (let length = 1; length <= 20; length++) {
        const bytes = await device.config(3, length);
        assertEquals([...bytes], Array.from({ length }, (_, i) => 3 + i));
        assertEquals(await device.setConfig(3, bytes), true);
      }
      assertEquals(new Set(parts), new Set([1, 2, 4]));
    }, { dialect: "proto" }),
);
