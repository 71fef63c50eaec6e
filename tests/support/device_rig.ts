/** A device side under test: an in-process bus, two fake devices, a raw peer, virtual time. */

import { assertEquals } from "@std/assert";
import { inProcessBus } from "../../src/bus/in_process_bus.ts";
import type { SharedSegment } from "../../src/bus/bus.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { codecFor } from "../../src/message/codecs.ts";
import type { Dialect } from "../../src/message/codec.ts";
import { Kind, type Message, QUEUE_ENABLED } from "../../src/message/message.ts";
import { createLog } from "../../src/observe/log.ts";
import type { DeviceModel } from "../../src/virtio/device.ts";
import type { MemoryQuota, MemoryRegion } from "../../src/memory/mod.ts";
import { DeviceSide } from "../../src/transport/device_side.ts";
import { PRIVATE_VERSION } from "../../src/transport/epoch.ts";
import { FAKE_MAX_QUEUE_SIZE, FakeDevice, type FakeDeviceOptions } from "./fake_device.ts";
import { type Fill, RawPeer } from "./raw_peer.ts";
import { VirtualClock } from "./virtual_clock.ts";

/** The raw peer's epoch. */
export const EPOCH = 0x1234_5678_9abc;
const VERSION_1_BLOCK = 1;
/** Where every queue lies. */
export const RINGS = { descriptorAddress: 0x1000, driverAddress: 0x2000, deviceAddress: 0x3000 };

/** A device side, its two devices, and a raw peer. */
export interface Rig {
  readonly reactor: Reactor;
  readonly peer: RawPeer;
  readonly side: DeviceSide;
  /** Device number 0. */
  readonly device: FakeDevice;
  /** Device number 5. */
  readonly fifth: FakeDevice;
  readonly clock: VirtualClock;
  readonly lines: string[];
  /** HELLO with this epoch until the device side takes us for a vmsg; the answers to both. */
  greet(epoch?: number): Promise<{ epoch: number; nonce: number }>;
  /** One HELLO. */
  hello(own: number, theirs: number, nonce: number): Promise<Message>;
  /** A private request with our epoch. */
  ask(kind: Kind, fill?: Fill): Promise<Message>;
  /** Everything that was sent before has been handled: a PING is answered, and nothing else came. */
  quiet(): Promise<void>;
  setStatus(status: number, device?: number): Promise<number>;
  /** Features of block 1, VERSION_1 unless given, FEATURES_OK. */
  negotiate(block1?: number): Promise<void>;
  setQueue(index: number, fill?: Fill): Promise<void>;
}

/** How a rig differs from the usual one. */
export interface RigOptions {
  readonly dialect?: Dialect;
  readonly capacity?: number;
  readonly device?: FakeDeviceOptions;
  /** Take no memory but a segment. */
  readonly confined?: boolean;
  /** Memory of the bus behind its queues. */
  readonly segment?: SharedSegment;
  /** Memory of the driver side's that device 0 is told of beforehand. */
  readonly fixed?: readonly MemoryRegion[];
  /** How much may be mapped. */
  readonly quota?: MemoryQuota;
  /** More devices, by number. */
  readonly models?: readonly (readonly [number, (reactor: Reactor) => DeviceModel])[];
}

/** Runs a test's body in the reactor of a fresh rig. */
export async function withSide(body: (rig: Rig) => Promise<void>, options: RigOptions = {}) {
  const { dialect = "v1", capacity = 64, confined, segment, fixed, models = [] } = options;
  const codec = codecFor(dialect);
  const clock = new VirtualClock();
  using reactor = new Reactor(clock);
  using pair = inProcessBus(reactor, undefined, capacity, segment);
  const lines: string[] = [];
  using side = new DeviceSide({
    reactor,
    bus: pair.device,
    codec,
    log: createLog("test", "debug", (line) => lines.push(line)),
    confined,
    quota: options.quota,
  });
  const device = new FakeDevice(options.device);
  const fifth = new FakeDevice();
  side.add(0, device, fixed);
  side.add(5, fifth);
  for (const [number, make] of models) side.add(number, make(reactor));
  const peer = new RawPeer(reactor, pair.driver, codec);
  side.open();
  peer.open();
  const rig: Rig = {
    reactor,
    peer,
    side,
    device,
    fifth,
    clock,
    lines,
    hello: (own, theirs, nonce) =>
      peer.ask(Kind.HELLO, (m) => {
        m.epoch = own;
        m.peerEpoch = theirs;
        m.nonce = nonce;
        m.version = PRIVATE_VERSION;
      }),
    async greet(epoch = EPOCH) {
      const first = await rig.hello(epoch, 0, 0);
      const second = await rig.hello(epoch, first.epoch, first.nonce);
      return { epoch: second.epoch, nonce: second.nonce };
    },
    ask: (kind, fill = () => {}) =>
      peer.ask(kind, (m) => {
        m.epoch = EPOCH;
        fill(m);
      }),
    async quiet() {
      // HELLO is answered in every state of a vmsg peer, PING in the states that are none.
      const answer = await peer.ask(Kind.PING, (m) => m.data = 0xcafe);
      assertEquals([answer.data, peer.messages.length], [0xcafe, 0]);
    },
    setStatus: async (status, number = 0) =>
      (await peer.ask(Kind.SET_DEVICE_STATUS, (m) => {
        m.device = number;
        m.status = status;
      })).status,
    async negotiate(block1 = 1) {
      assertEquals(await rig.setStatus(0x3), 0x3);
      await peer.ask(Kind.SET_DRIVER_FEATURES, (m) => {
        m.count = 2;
        m.words[VERSION_1_BLOCK] = block1;
      });
      assertEquals(await rig.setStatus(0xb), 0xb);
    },
    async setQueue(index, fill = () => {}) {
      await peer.ask(Kind.SET_VQUEUE, (m) => {
        m.index = index;
        m.flags = QUEUE_ENABLED;
        m.queueSize = 64;
        Object.assign(m, RINGS);
        fill(m);
      });
    },
  };
  await reactor.until(body(rig));
}

/** The side under test with a vmsg peer that has said hello. */
export function withVmsg(body: (rig: Rig) => Promise<void>, options?: RigOptions) {
  return withSide(async (rig) => {
    await rig.greet();
    await body(rig);
  }, options);
}

/** The same with a foreign peer. */
export function withForeign(body: (rig: Rig) => Promise<void>, options?: RigOptions) {
  return withSide(async (rig) => {
    await rig.peer.ask(Kind.GET_DEVICE_INFO);
    await body(rig);
  }, options);
}

const queueState = (
  { maxSize, queueSize, flags, descriptorAddress, driverAddress, deviceAddress }: Message,
) => ({
  maxSize,
  queueSize,
  flags,
  descriptorAddress,
  driverAddress,
  deviceAddress,
});

/** GET_VQUEUE of a queue that exists and is not set up. */
export const UNSET = {
  maxSize: FAKE_MAX_QUEUE_SIZE,
  queueSize: 0,
  flags: 0,
  descriptorAddress: 0,
  driverAddress: 0,
  deviceAddress: 0,
};

/** What GET_VQUEUE says of a queue. */
export async function getQueue({ peer }: Rig, index: number) {
  const answer = await peer.ask(Kind.GET_VQUEUE, (m) => m.index = index);
  assertEquals(answer.index, index);
  return queueState(answer);
}
