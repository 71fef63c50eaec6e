/**
 * The recorded session of the prototype QEMU, played to either of our sides: the device side must answer
 * with the very bytes that QEMU answered, the driver side must send the very bytes that QEMU sent.
 */

import { assert, assertEquals } from "@std/assert";
import type { Bus } from "../../src/bus/bus.ts";
import { inProcessBus } from "../../src/bus/in_process_bus.ts";
import { createSealedMemory } from "../../src/linux/fd.ts";
import { mapAnonymous, mapShared } from "../../src/linux/mapping.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { RingFeature } from "../../src/virtio/features.ts";
import { createLog } from "../../src/observe/log.ts";
import { knownMemory } from "../../src/sharing/driver_memory.ts";
import { NetDriver } from "../../src/drivers/net/net_driver.ts";
import type { DeviceHost, DeviceModel, QueueSetup } from "../../src/virtio/device.ts";
import { DeviceSide } from "../../src/transport/device_side.ts";
import { DriverSide } from "../../src/transport/driver_side.ts";
import { type DeviceQueue, openDeviceQueue } from "../../src/virtio/queue/mod.ts";
import { cleanTest } from "../support/leaks.ts";
import { BytePeer, RecordedAnswers, wait } from "./recorded_answers.ts";
import {
  exchanges,
  hex,
  idOf,
  isAnswer,
  payload,
  readRecording,
  withoutChoices,
} from "./recording.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

/** The recorded guest's RAM up to here holds its rings. */
const WINDOW = 256 << 20;

const session = readRecording();
const exchanged = exchanges(session);
const offeredAnswer = exchanged.find(({ request }) => idOf(request) === 0x04)!.answer!;

/** Offered feature bits of the recorded device, low and high. */
const OFFERED = [
  payload(offeredAnswer).getUint32(4, true),
  payload(offeredAnswer).getUint32(8, true),
];

/** A device without work: it opens its rings, wherever they are, and looks at them when kicked. */
class RecordedDevice implements DeviceModel {
  readonly deviceId: number = 1;
  readonly vendorId: number = 0x554d4551;
  readonly features: Uint32Array = Uint32Array.from(OFFERED);
  readonly config: Uint8Array = Uint8Array.of(0x52, 0x54, 0, 0x12, 0x34, 0x56, 1, 0, 1, 0, 0xdc, 5);
  readonly configSize: number = this.config.length;
  readonly queueCount: number = 3;
  readonly maxQueueSize: number = 1024;
  readonly queues: (DeviceQueue | undefined)[] = [];
  readonly kicks = [0, 0, 0];
  accepted: number[] = [];
  host!: DeviceHost;
  #words = new Uint32Array(2);

  connect(host: DeviceHost): void {
    this.host = host;
  }

  acceptFeatures(words: Uint32Array): boolean {
    this.#words = words.slice();
    this.accepted = [...words];
    return true;
  }

  readConfig(offset: number, length: number): Uint8Array {
    return this.config.subarray(offset, offset + length);
  }

  writeConfig(): boolean {
    return false;
  }

  startQueue(index: number, setup: QueueSetup): string | undefined {
    const has = (bit: number) => (this.#words[bit >> 5]! & (1 << (bit & 31))) !== 0;
    const queue = openDeviceQueue(this.host.memory, {
      ...setup,
      eventIndex: has(RingFeature.EVENT_IDX),
      indirect: has(RingFeature.INDIRECT_DESC),
    });
    if (typeof queue === "string") return queue;
    this.queues[index] = queue;
    return undefined;
  }

  stopQueue(index: number): number {
    this.queues[index]?.stop();
    this.queues[index] = undefined;
    return 0;
  }

  available(index: number): void {
    this.kicks[index]!++;
    if (this.host.mayTouchMemory()) this.queues[index]?.wantKicks();
  }

  resume(): void {}

  [Symbol.dispose](): void {}
}

const PROTO_BUS = { discardOnAttach: false, ringPerMessage: true };

/** Rings a bus's doorbell at its receiver. */
function rung(bus: Bus): void {
  (bus as unknown as { rung(): void }).rung();
}

interface DeviceRig {
  readonly reactor: Reactor;
  readonly side: DeviceSide;
  readonly model: RecordedDevice;
  readonly deviceBus: Bus;
  readonly peer: BytePeer;
  readonly lines: string[];
}

async function withDevice(body: (rig: DeviceRig) => Promise<void>): Promise<void> {
  using reactor = new Reactor(new VirtualClock());
  using pair = inProcessBus(reactor, PROTO_BUS, 64);
  using memory = createSealedMemory("vmsg-test-guest", WINDOW);
  using mapping = mapShared(memory.number, WINDOW);
  const lines: string[] = [];
  const log = createLog("test", "debug", (line) => lines.push(line));
  using side = new DeviceSide({ reactor, bus: pair.device, codec: codecFor("proto"), log });
  const model = new RecordedDevice();
  side.add(0, model, [{ at: 0, size: WINDOW, memory: mapping, offset: 0 }]);
  const peer = new BytePeer(reactor, pair.driver);
  side.open();
  peer.open();
  await reactor.until(body({ reactor, side, model, deviceBus: pair.device, peer, lines }));
}

cleanTest(
  "P1 P3 P7 P13: our device side gives every recorded answer, byte for byte",
  () =>
    withDevice(async ({ reactor, side, model, peer, lines }) => {
      let answers = 0;
      let events = 0;
      for (const [number, { from, bytes }] of session.entries()) {
        if (from === "driver") {
          peer.put(bytes);
          continue;
        }
        if (!isAnswer(bytes)) {
          assertEquals(idOf(bytes), 0x12, "the recording has no other event");
          model.host.used(payload(bytes).getUint32(0, true));
          events++;
        } else answers++;
        assertEquals(hex(await peer.next()), hex(bytes), `message ${number + 1} of the recording`);
      }
      await reactor.sleep(5);
      assertEquals(peer.messages, [], "and nothing else came");
      assertEquals([answers, events], [50, 16]);
      const { malformed, dropped } = side.counters;
      assertEquals([malformed, dropped], [0, 0]);
      // The session really ran: rings were found in the memory, features taken, kicks came.
      assertEquals(lines.filter((line) => /needs a reset|memory/.test(line)), []);
      const accepted = exchanged.findLast(({ request }) =>
        idOf(request) === 0x05 && payload(request).getUint32(8, true) !== 0
      )!.request;
      assertEquals(model.accepted, [
        payload(accepted).getUint32(4, true),
        payload(accepted).getUint32(8, true),
      ]);
      const kicks = (index: number) =>
        exchanged.filter(({ request }) =>
          idOf(request) === 0x11 && payload(request).getUint32(0, true) === index
        ).length;
      // Each ring is looked at once more when it is set up.
      assertEquals(model.kicks, [kicks(0) + 1, kicks(1) + 1, kicks(2) + 1]);
    }),
);

cleanTest(
  "the recorded session twice: the second guest finds the same device",
  () =>
    withDevice(async ({ peer, model }) => {
      for (let round = 0; round < 2; round++) {
        for (const { request, answer } of exchanged) {
          peer.put(request);
          if (answer !== undefined) assertEquals(hex(await peer.next()), hex(answer));
        }
      }
      assertEquals(peer.messages, []);
      assertEquals(model.queues.every((queue) => queue === undefined), true);
    }),
);

cleanTest(
  "2.6: requests whose answer nobody waits for, several under way",
  () =>
    withDevice(async ({ peer }) => {
      // Linux sends SET_FEATURES, SET_CONFIG and status without waiting; here all at once, up to 30.
      for (let at = 0; at < exchanged.length; at += 30) {
        const part = exchanged.slice(at, at + 30);
        for (const { request } of part) peer.put(request);
        for (const { answer } of part) {
          if (answer !== undefined) assertEquals(hex(await peer.next()), hex(answer));
        }
      }
    }),
);

cleanTest(
  "P13: queues are asked for again at any time, the maxima stay",
  () =>
    withDevice(async ({ peer }) => {
      const probes = exchanged.filter(({ request }) => idOf(request) === 0x0b);
      for (const { request, answer } of exchanged) {
        peer.put(request);
        if (answer !== undefined) assertEquals(hex(await peer.next()), hex(answer));
        for (const probe of probes.slice(0, 4)) {
          peer.put(probe.request);
          assertEquals(hex(await peer.next()), hex(probe.answer!));
        }
      }
    }),
);

cleanTest(
  "P1: ids that QEMU ignores are ignored, answers and unknown ids as well",
  () =>
    withDevice(async ({ peer, model }) => {
      const status = exchanged.find(({ request }) => idOf(request) === 0x09)!;
      const ask = async () => {
        peer.put(status.request);
        assertEquals(hex(await peer.next()), hex(status.answer!));
      };
      await ask();
      for (const id of [0x01, 0x02, 0x0d, 0x10, 0x12, 0x20, 0x22, 0x23, 0x7f, 0xff]) {
        peer.put(Uint8Array.of(0, id, 0, 0, 1));
      }
      // A response bit aborts QEMU; ours drops it.
      for (let id = 0; id < 0x23; id++) peer.put(Uint8Array.of(1, id));
      await ask();
      assertEquals([peer.messages, model.kicks], [[], [0, 0, 0]]);
    }),
);

cleanTest(
  "P2: an answer is in the queue before the device side does anything else",
  () =>
    withDevice(async ({ reactor, deviceBus, peer }) => {
      await reactor.sleep(1);
      for (const { request, answer } of exchanged) {
        peer.put(request);
        // By hand and without the loop, so no task and no timer has run before the answer is taken.
        rung(deviceBus);
        rung(peer.bus);
        assertEquals(peer.messages.splice(0).map(hex), answer === undefined ? [] : [hex(answer)]);
      }
    }),
);

// --- our driver side --------------------------------------------------------------------------------

interface DriverRig {
  readonly reactor: Reactor;
  readonly side: DriverSide;
  readonly peer: BytePeer;
}

async function withDriver(body: (rig: DriverRig) => Promise<void>): Promise<void> {
  using reactor = new Reactor(new VirtualClock());
  using pair = inProcessBus(reactor, PROTO_BUS, 64);
  const log = createLog("test", "debug", () => {});
  using side = new DriverSide({ reactor, bus: pair.driver, codec: codecFor("proto"), log });
  const peer = new BytePeer(reactor, pair.device);
  await reactor.until(body({ reactor, side, peer }));
}

cleanTest(
  "P3 P4 P6 P7: our driver side sends every recorded message, byte for byte",
  () =>
    withDriver(async ({ reactor, side, peer }) => {
      const sent: string[] = [];
      let next = 0;
      peer.onMessage = (bytes) => {
        sent.push(hex(bytes));
        const answer = exchanged[next++]?.answer;
        if (answer !== undefined) peer.put(answer);
      };
      side.open();
      peer.open();
      const device = side.device(0);
      const used = [0, 0, 0];
      device.onUsed = (queue) => used[queue]!++;
      for (let i = 0; i < exchanged.length; i++) {
        const { request, answer } = exchanged[i]!;
        const fields = payload(request);
        const number = fields.getUint32(0, true);
        const answered = answer === undefined ? undefined : payload(answer);
        switch (idOf(request)) {
          case 0x03:
            assertEquals((await device.info()).deviceId, answered!.getUint32(4, true));
            break;
          case 0x04:
            assertEquals([...await device.features(2)], OFFERED);
            break;
          case 0x05:
            await device.setFeatures(
              Uint32Array.of(fields.getUint32(4, true), fields.getUint32(8, true)),
            );
            break;
          case 0x06: {
            const bytes = await device.config(fields.getUint16(0, true), fields.getUint8(3));
            assertEquals(bytes[0], answered!.getUint8(4));
            break;
          }
          case 0x0a: {
            // One call writes and asks (rule P6); the recording has both as well.
            const status = await device.setStatus(number);
            assertEquals(idOf(exchanged[++i]!.request), 0x09);
            assertEquals(status, payload(exchanged[i]!.answer!).getUint32(0, true));
            break;
          }
          case 0x0b:
            assertEquals((await device.queue(number)).maxSize, answered!.getUint32(4, true));
            break;
          case 0x0c:
            await device.startQueue(number, {
              size: fields.getUint32(4, true),
              descriptorAddress: Number(fields.getBigUint64(8, true)),
              driverAddress: Number(fields.getBigUint64(16, true)),
              deviceAddress: Number(fields.getBigUint64(24, true)),
              base: 0,
            });
            break;
          case 0x11:
            device.available(number);
            break;
          default:
            throw new Error(`the recording has a message 0x${idOf(request).toString(16)}`);
        }
        await wait(reactor, () => sent.length > i);
      }
      await reactor.sleep(2);
      assertEquals(sent, exchanged.map(({ request }) => hex(request)));
      const events = session.filter(({ from, bytes }) => from === "device" && !isAnswer(bytes));
      for (const { bytes } of events) peer.put(bytes);
      await wait(reactor, () => used[0]! + used[1]! + used[2]! === events.length);
      const { malformed, dropped } = side.counters;
      assertEquals([malformed, dropped], [0, 0]);
    }),
);

cleanTest(
  "P5 P8 P10 P14: the net driver says to the prototype only what it knows",
  () =>
    withDriver(async ({ reactor, side, peer }) => {
      using memory = mapAnonymous(16 << 20);
      const device = new RecordedAnswers(peer);
      let ups = 0;
      const downs: string[] = [];
      using _driver = new NetDriver(
        reactor,
        side,
        0,
        {
          up: () => ups++,
          down: (reason) => downs.push(reason),
          frame: () => true,
          writable: () => {},
        },
        createLog("test", "error", () => {}),
        { memory: knownMemory(memory, 0x4000_0000) },
      );
      side.open();
      peer.open();
      await wait(reactor, () => ups === 1 && device.requests.some((bytes) => idOf(bytes) === 0x11));
      assertEquals(device.aborts, []);
      const known = new Set(session.map(({ bytes }) => withoutChoices(bytes)));
      for (const bytes of device.requests) {
        assert(known.has(withoutChoices(bytes)), `the prototype never sent ${hex(bytes)}`);
      }
      // Each kind has been said, and in the order of 2.4.
      const ids = device.requests.map(idOf);
      assertEquals(new Set(ids), new Set([3, 0xa, 9, 4, 5, 6, 0xb, 0xc, 0x11]));
      assertEquals(ids[0], 0x03);
      ids.forEach((id, i) => id !== 0x0a || assertEquals(ids[i + 1], 0x09, "P6"));
      const features = payload(device.requests.find((bytes) => idOf(bytes) === 0x05)!);
      const accepted = [features.getUint32(4, true), features.getUint32(8, true)];
      assertEquals(
        accepted.map((word, i) => (word & ~OFFERED[i]!) >>> 0),
        [0, 0],
        "P5: offered only",
      );
      assertEquals(accepted[1]! & 3, 3, "P5: VERSION_1 and ACCESS_PLATFORM");
      // P14: QEMU's config bit sticks, every EVENT_USED is followed by an empty EVENT_CONFIG.
      const count = device.requests.length;
      for (let i = 0; i < 20; i++) {
        peer.put(Uint8Array.of(0, 0x12, 0, 0, i & 1));
        peer.put(Uint8Array.of(0, 0x10, 0, 0, 0x0f));
        await reactor.sleep(0);
      }
      await reactor.sleep(2);
      assertEquals([device.requests.length, ups, downs, side.counters.dropped], [count, 1, [], 0]);
      // NEEDS_RESET comes by EVENT_CONFIG only (section 12, row 52): one new bring-up, again in bytes it knows.
      peer.put(Uint8Array.of(0, 0x10, 0, 0, 0x4f));
      await wait(reactor, () => ups === 2);
      assertEquals([device.aborts, downs.length], [[], 1]);
      for (const bytes of device.requests) {
        assert(known.has(withoutChoices(bytes)), `the prototype never sent ${hex(bytes)}`);
      }
    }),
);
