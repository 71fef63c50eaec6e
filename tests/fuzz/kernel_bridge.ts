/**
 * A kernel at its bridge that does anything: frames sound, changed and of mere bytes, cursors anywhere, memory that comes and
 * goes under queues, an endpoint that goes and comes, faults, devices that answer late. In virtual time, at a node in this process.
 *
 * Nothing is thrown, few lines are said, timers, descriptors and mappings are as many afterwards as before. In the end a session
 * that begins anew is served, and no memory of the kernel's is mapped any more.
 */

import { assert, assertEquals } from "@std/assert";
import { BridgeBus } from "../../src/bus/bridge.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { Kind, Message, QUEUE_ENABLED } from "../../src/message/message.ts";
import { createLog } from "../../src/observe/log.ts";
import { DeviceSide } from "../../src/transport/device_side.ts";
import { FakeDevice } from "../support/fake_device.ts";
import { LateDevice } from "../support/late_device.ts";
import { MemoryNode } from "../support/memory_bridge_node.ts";
import type { Random } from "../support/mock_driver.ts";
import { mutate } from "./bytes.ts";
import type { Fuzzer } from "./fuzzer.ts";
import { assertFew, Holdings, RoundReactor } from "./round_reactor.ts";

const STEPS = 60;
const PAGE = 4096;
const ADDRESSES = [0x10_0000, 0x10_1000, 0x10_2000, 0x20_0000];
const MAPS = [1, 2, 3, 4, 5];
const KINDS = [
  ...[Kind.GET_DEVICE_INFO, Kind.GET_CONFIG, Kind.SET_DEVICE_STATUS, Kind.SET_DRIVER_FEATURES],
  ...[Kind.SET_VQUEUE, Kind.RESET_VQUEUE, Kind.GET_VQUEUE, Kind.EVENT_AVAIL],
];
const CODEC = codecFor("v1", 128);
/** Longer than any pause between sessions, and than a device may take. */
const CALM_MS = 70_000;

function local(id: number, size: number, token: number, words: readonly number[]): Uint8Array {
  const bytes = new Uint8Array(128);
  const view = new DataView(bytes.buffer);
  bytes.set([2, id]);
  view.setUint16(4, token, true);
  view.setUint16(6, size, true);
  words.forEach((word, i) => view.setBigUint64(8 + 8 * i, BigInt(word), true));
  return bytes;
}

class Round {
  readonly lines: string[] = [];
  readonly node = new MemoryNode();
  readonly bus: BridgeBus;
  readonly side: DeviceSide;
  readonly late: LateDevice;
  readonly device = new FakeDevice();
  #epoch = 1;
  #token = 2;
  frames = 0;

  constructor(readonly reactor: RoundReactor, readonly random: Random) {
    this.late = new LateDevice(reactor);
    const log = createLog("fuzz", "info", (line) => this.lines.push(line));
    const endpoint = { name: "loopback", id: "", create: false };
    const options = { discardOnAttach: false, ringPerMessage: false } as const;
    this.bus = new BridgeBus(reactor, this.node, endpoint, log, options);
    this.side = new DeviceSide({ reactor, bus: this.bus, codec: CODEC, log });
    this.side.add(0, this.device);
    this.side.add(1, this.late);
  }

  async run(): Promise<void> {
    const { random, reactor } = this;
    const startMs = reactor.now();
    this.side.open();
    const steps = [this.#ask, this.#ask, this.#ask, this.#window, this.#window, this.#endpoint];
    steps.push(this.#noise, this.#poke, this.#device, this.#fault);
    for (let i = 0; i < STEPS; i++) {
      random.pick(steps).call(this);
      await reactor.sleep(random.pick([0, 0, 0.1, 1, 12, 5000]));
      this.#look();
    }
    await this.#calm();
    assertFew(this.lines, reactor.now() - startMs);
  }

  get #isThere(): boolean {
    return this.node.isAttached;
  }

  #put(bytes: Uint8Array): void {
    if (!this.#isThere) return;
    if (this.random.chance(0.15)) mutate(new DataView(bytes.buffer), this.random, [this.#epoch]);
    this.node.put(bytes);
  }

  #ask(): void {
    const { random } = this;
    const message = new Message();
    message.reset(random.pick(KINDS), false);
    Object.assign(message, {
      ...{
        device: random.below(3),
        token: this.#token++ & 0xffff,
        count: 2,
        length: 4,
        queueSize: 64,
      },
      ...{ status: random.pick([0, 1, 3, 0xb, 0xf]), flags: QUEUE_ENABLED, index: random.below(3) },
      ...{ descriptorAddress: 0x10_0000, driverAddress: 0x10_1000, deviceAddress: 0x10_2000 },
    });
    message.words[1] = 1;
    const bytes = new Uint8Array(128);
    CODEC.encode(message, new DataView(bytes.buffer), 0);
    this.#put(bytes);
  }

  #window(): void {
    const { random } = this;
    const [map, at] = [random.pick(MAPS), random.pick(ADDRESSES)];
    const length = PAGE * (1 + random.below(3));
    const isAdd = random.chance(0.6);
    const words = [this.#epoch, map, map, at, length, ...isAdd ? [PAGE * map, length, 1] : [0]];
    this.#put(local(isAdd ? 0x89 : 0x8a, isAdd ? 72 : 56, this.#token++ & 0xffff || 1, words));
  }

  #endpoint(): void {
    if (this.random.chance(0.4)) this.#put(local(0xc1, 24, 0, [this.#epoch, 1]));
    else this.#put(local(0xc0, 40, 0, [++this.#epoch, 0, 0, 128]));
  }

  #noise(): void {
    const bytes = new Uint8Array(128);
    for (let i = 0; i < 128; i++) bytes[i] = this.random.u32();
    if (this.random.chance(0.5)) bytes[0]! &= 3;
    this.#put(bytes);
  }

  #poke(): void {
    if (!this.#isThere) return;
    const header = this.node.header(this.random.pick(["tx", "rx"]));
    header[this.random.below(6)] = this.random.chance(0.5)
      ? this.random.below(300)
      : this.random.u32();
  }

  #device(): void {
    const { late, device, random } = this;
    late.isLate = random.chance(0.3);
    if (late.isAsked && random.chance(0.7)) late.answer();
    random.pick([device.host, late.host]).used(random.below(3));
    if (random.chance(0.3)) device.host.configChanged();
  }

  #fault(): void {
    if (this.random.chance(0.3) && this.node.isWatched) this.node.faulted();
  }

  /** The kernel reads, where cursors let it. */
  #look(): void {
    if (this.#isThere) this.frames += this.node.takeSafely();
  }

  /** Whatever was done to this session, the next one is whole. */
  async #calm(): Promise<void> {
    const { reactor, node, late } = this;
    late.isLate = false;
    while (late.isAsked) {
      late.answer();
      await reactor.sleep(1);
    }
    await reactor.sleep(CALM_MS);
    // A kernel's node whose endpoint is offline is left alone; here it comes back first.
    if (this.bus.isOffline && this.#isThere) {
      // The process stores its cursor again when it is woken.
      node.put();
      await reactor.sleep(1);
      node.startAnew();
      node.put(local(0xc0, 40, 0, [++this.#epoch, 0, 0, 128]));
      await reactor.sleep(CALM_MS);
    }
    if (this.bus.isAttached) node.faulted();
    await reactor.sleep(CALM_MS);
    assert(this.bus.isAttached, "no session begins");
    assertEquals(node.mappings.filter(({ buffer }) => buffer.byteLength > 0).length, 0);
    node.take();
    const bytes = Uint8Array.fromHex("0002000007000800");
    node.put(bytes);
    await reactor.sleep(1);
    assertEquals(node.take().map((hex) => hex.slice(0, 12)), ["010200000700"]);
  }

  dispose(): void {
    this.side[Symbol.dispose]();
    this.bus[Symbol.dispose]();
  }
}

/** See the head of this file. */
export const KERNEL_BRIDGE_FUZZERS: readonly Fuzzer[] = [{
  name: "kernel-bridge",
  what: "a kernel at its bridge that does anything",
  open: async (use) => {
    using reactor = new RoundReactor();
    const holdings = new Holdings();
    let frames = 0;
    await use({
      round: async (random) => {
        await reactor.round(async () => {
          const round = new Round(reactor, random);
          try {
            await round.run();
          } finally {
            round.dispose();
            frames += round.frames;
          }
        });
        holdings.check();
      },
      finish: () => holdings.finish(`${frames} frames were sent`),
    });
  },
}];
