/** The bridge's bus and a device side at a node in this process ({@link MemoryNode}), one device that answers late. Time is virtual. */

import { assertEquals } from "@std/assert";
import { BridgeBus } from "../../src/bus/bridge.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { Kind, Message, QUEUE_ENABLED } from "../../src/message/message.ts";
import { describe } from "../../src/message/text.ts";
import { createLog } from "../../src/observe/log.ts";
import { createTracer } from "../../src/observe/trace.ts";
import { DeviceSide } from "../../src/transport/device_side.ts";
import { FakeDevice } from "./fake_device.ts";
import { LateDevice } from "./late_device.ts";
import { cleanTest } from "./leaks.ts";
import { MemoryNode } from "./memory_bridge_node.ts";
import { VirtualClock } from "./virtual_clock.ts";

export const CODEC = codecFor("v1", 128);
export const PAGE = 4096;
/** The number of the device that answers late. */
export const LATE = 5;
export const FEATURES_OK = 0x0b, DRIVER_OK = 0x0f, NEEDS_RESET = 0x40;

/** See the head of this file. */
export class MemoryBridgeRig {
  readonly reactor = new Reactor(new VirtualClock());
  readonly lines: string[] = [];
  /** As `--trace` has it. */
  readonly traced: string[] = [];
  readonly node: MemoryNode;
  readonly bus: BridgeBus;
  readonly side: DeviceSide;
  readonly device = new FakeDevice();
  readonly late = new LateDevice(this.reactor);
  #token = 2;

  constructor(isKernel = true, name = "loopback") {
    this.node = new MemoryNode(isKernel);
    const log = createLog("test", "info", (line) => this.lines.push(line));
    const options = { discardOnAttach: false, ringPerMessage: false } as const;
    const endpoint = { name, id: "", create: false };
    this.bus = new BridgeBus(this.reactor, this.node, endpoint, log, options);
    const tracer = createTracer((line) => this.traced.push(line), this.reactor);
    this.side = new DeviceSide({ reactor: this.reactor, bus: this.bus, codec: CODEC, log, tracer });
    this.side.add(0, this.device);
    this.side.add(LATE, this.late);
  }

  /** Lets things happen; what the process has sent then. */
  async said(ms = 0.1): Promise<string[]> {
    await this.reactor.sleep(ms);
    return this.node.take().map(inWords);
  }

  ask(kind: Kind, device: number, fields: Partial<Message> = {}): void {
    const message = new Message();
    message.reset(kind, false);
    Object.assign(message, { device, token: this.#token++, ...fields });
    const bytes = new Uint8Array(128);
    CODEC.encode(message, new DataView(bytes.buffer), 0);
    this.node.put(bytes);
  }

  async bringUp(device: number): Promise<void> {
    this.ask(Kind.GET_DEVICE_INFO, device);
    for (const status of [0, 1, 3]) this.ask(Kind.SET_DEVICE_STATUS, device, { status });
    const words = new Uint32Array(32);
    words[1] = 1;
    this.ask(Kind.SET_DRIVER_FEATURES, device, { count: 2, words });
    this.ask(Kind.SET_DEVICE_STATUS, device, { status: FEATURES_OK });
    const rings = {
      descriptorAddress: 0x10_0000,
      driverAddress: 0x10_1000,
      deviceAddress: 0x10_2000,
    };
    this.ask(Kind.SET_VQUEUE, device, { queueSize: 64, flags: QUEUE_ENABLED, ...rings });
    this.ask(Kind.SET_DEVICE_STATUS, device, { status: DRIVER_OK });
    await this.said();
    assertEquals(this.side.status(device), DRIVER_OK);
  }

  /** Has the late device work on a window, and take its time from then on, until {@link letGo}. */
  async holdMemory(): Promise<void> {
    this.side.open();
    await this.said();
    this.node.put(add(1, 0x10_0000, 3 * PAGE));
    await this.said();
    await this.bringUp(LATE);
    this.late.isLate = true;
  }

  /** It does, and is quick again. */
  letGo(): void {
    this.late.isLate = false;
    this.late.answer();
  }

  dispose(): void {
    this.side[Symbol.dispose]();
    this.bus[Symbol.dispose]();
    this.reactor[Symbol.dispose]();
  }
}

/** A frame that the process sent, as in "RESET 1", "ADD_ANSWER 7 0"; of messages their name. */
export function inWords(hex: string): string {
  const bytes = Uint8Array.fromHex(hex);
  const view = new DataView(bytes.buffer);
  if ((bytes[0]! & 2) === 0) {
    const message = new Message();
    const slot = new Uint8Array(128);
    slot.set(bytes);
    assertEquals(CODEC.decode(new DataView(slot.buffer), 0, message), undefined, hex);
    return describe(message).split(" ")[0]!;
  }
  const name =
    { 0xc2: "RESET", 0xc3: "DEV", 0xc4: "COMMIT", 0x89: "ADDED", 0x8a: "DELETED" }[bytes[1]!];
  const value = bytes[1]! < 0xc0 ? view.getInt32(32, true) : view.getUint16(16, true);
  const of = bytes[1]! < 0xc0
    ? ` ${view.getBigUint64(24, true)}`
    : ` of ${view.getBigUint64(8, true)}`;
  return `${name}${of}${bytes[1] === 0xc2 ? "" : ` ${value}`}`;
}

export function local(
  id: number,
  size: number,
  token: number,
  words: readonly number[],
): Uint8Array {
  const bytes = new Uint8Array(128);
  const view = new DataView(bytes.buffer);
  bytes.set([2, id]);
  view.setUint16(4, token, true);
  view.setUint16(6, size, true);
  words.forEach((word, i) => view.setBigUint64(8 + 8 * i, BigInt(word), true));
  return bytes;
}

export const online = (epoch: number, limit = 128) => local(0xc0, 40, 0, [epoch, 0, 0, limit]);
export const offline = (epoch: number) => local(0xc1, 24, 0, [epoch, 1]);
export const add = (map: number, at: number, length: number, epoch = 1, from = length) =>
  local(0x89, 72, map, [epoch, map, map, at, length, PAGE * map, from, 1]);
export const del = (map: number, epoch = 1) =>
  local(0x8a, 56, 1000 + map, [epoch, map, map, 0, 0, 0]);

/** Registers a test at a node of its own. */
export function memoryBridgeTest(
  name: string,
  body: (rig: MemoryBridgeRig) => Promise<void>,
  isKernel = true,
): void {
  cleanTest(`bridge: ${name}`, async () => {
    const rig = new MemoryBridgeRig(isKernel);
    try {
      await rig.reactor.until(body(rig));
    } finally {
      rig.dispose();
    }
  });
}
