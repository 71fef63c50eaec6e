/** A device side of a script: it answers every request as a good device does, unless a test says otherwise. */

import { inProcessBus } from "../support/in_process_bus.ts";
import { mapAnonymous } from "../../src/linux/mapping.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import type { Dialect } from "../../src/message/codec.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { Kind, type Message, QUEUE_ENABLED } from "../../src/message/message.ts";
import { createLog } from "../../src/observe/log.ts";
import { knownMemory } from "../../src/sharing/driver_memory.ts";
import { NetDriver } from "../../src/drivers/net/net_driver.ts";
import { DriverSide } from "../../src/transport/driver_side.ts";
import { RawPeer } from "../support/raw_peer.ts";

const TIMEOUT_MS = 4000;

/** The device's state; a test changes it. */
export class ScriptedDevice {
  /** Every request and event that came. */
  readonly requests: Message[] = [];
  /** VERSION_1, ACCESS_PLATFORM, RING_RESET; MAC, STATUS, MRG_RXBUF, EVENT_IDX. */
  features: number[] = [0x2001_8020, 0x0000_0103];
  maxSizes: number[] = [256, 1024, 64];
  status = 0;
  generation = 7;
  readonly config = Uint8Array.of(0x52, 0x54, 0, 0x12, 0x34, 0x56, 1, 0, 1, 0, 0xdc, 5);
  /** Answers a message itself and returns true, or leaves it to the script. */
  override: ((message: Message) => boolean) | undefined;
  /** Queues that were set up: their SET_VQUEUE. */
  readonly queues = new Map<number, Message>();

  constructor(readonly peer: RawPeer) {
    peer.onMessage = (message) => {
      if (message.kind === Kind.HELLO) return false;
      this.requests.push(message);
      if (this.override?.(message) !== true) this.answer(message);
      return false;
    };
  }

  /** The requests of one kind. */
  of(kind: Kind): Message[] {
    return this.requests.filter((message) => message.kind === kind);
  }

  /** Answers as a good device does. */
  answer(request: Message): void {
    const { kind, index } = request;
    if (!this.peer.codec.answered(kind)) return;
    if (kind === Kind.SET_DEVICE_STATUS) {
      this.status = request.status;
      if (this.status === 0) this.queues.clear();
    }
    if (kind === Kind.SET_VQUEUE) this.queues.set(index, request);
    if (kind === Kind.RESET_VQUEUE) this.queues.delete(index);
    this.peer.reply(request, (m) => {
      m.index = index;
      m.count = request.count;
      m.offset = request.offset;
      m.length = request.length;
      m.generation = this.generation;
      m.status = this.status;
      if (kind === Kind.GET_DEVICE_FEATURES) m.words.set(this.features);
      if (kind === Kind.GET_CONFIG) {
        m.bytes.set(this.config.subarray(m.offset, m.offset + m.length));
      }
      if (kind === Kind.GET_DEVICE_INFO) {
        Object.assign(m, { deviceId: 1, vendorId: 0x1af4, featureBlocks: 2, configSize: 12 });
        m.maxQueues = this.maxSizes.length;
      }
      if (kind === Kind.GET_VQUEUE) this.#queue(m);
    });
  }

  #queue(m: Message): void {
    m.maxSize = this.maxSizes[m.index] ?? 0;
    const set = this.queues.get(m.index);
    if (set === undefined) return;
    m.flags = QUEUE_ENABLED;
    m.queueSize = set.queueSize;
    m.descriptorAddress = set.descriptorAddress;
    m.driverAddress = set.driverAddress;
    m.deviceAddress = set.deviceAddress;
  }
}

/** A net driver under test. */
export interface NetDriverRig {
  readonly reactor: Reactor;
  readonly side: DriverSide;
  readonly driver: NetDriver;
  readonly device: ScriptedDevice;
  readonly events: string[];
  /** Opens the bus: the bring-up begins. */
  open(): void;
  wait(condition: () => boolean): Promise<void>;
}

/** Runs a test's body with a net driver in front of a scripted device, on number 0, foreign. */
export async function withNetDriver(
  dialect: Dialect,
  body: (rig: NetDriverRig) => Promise<void>,
): Promise<void> {
  using reactor = new Reactor();
  using pair = inProcessBus(reactor);
  using mapping = mapAnonymous(16 << 20);
  const codec = codecFor(dialect);
  const log = createLog("test", "error", () => {});
  using side = new DriverSide({ reactor, bus: pair.driver, codec, log });
  const peer = new RawPeer(reactor, pair.device, codec);
  const device = new ScriptedDevice(peer);
  const events: string[] = [];
  using driver = new NetDriver(
    reactor,
    side,
    0,
    {
      up: () => events.push("up"),
      down: (reason) => events.push(`down: ${reason}`),
      frame: () => true,
      writable: () => {},
    },
    log,
    { memory: knownMemory(mapping, 0x4000_0000) },
  );
  await reactor.until(body({
    reactor,
    side,
    driver,
    device,
    events,
    open() {
      peer.open();
      side.open();
    },
    async wait(condition) {
      const endMs = performance.now() + TIMEOUT_MS;
      while (!condition()) {
        if (performance.now() > endMs) throw new Error(`never so: ${condition}`);
        await reactor.sleep(1);
      }
    },
  }));
}
