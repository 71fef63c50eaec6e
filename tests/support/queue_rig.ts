/** A device in front of mock memory: its queues are the mock driver's, its host can take the memory away. */

import { assert, assertEquals } from "@std/assert";
import { Reactor } from "../../src/linux/reactor.ts";
import type { DeviceHost, DeviceModel } from "../../src/virtio/device.ts";
import { RingFeature } from "../../src/virtio/features.ts";
import { MockDriver, MockMemory } from "./mock_driver.ts";
import { VirtualClock } from "./virtual_clock.ts";

const AT = 0x4000_0000;
/** Where buffers may lie. */
export const BUFFERS = AT + 0x4_0000;
const QUEUE_SIZE = 64;

/** See the head of this file. */
export class QueueRig<Device extends DeviceModel> implements Disposable {
  readonly reactor = new Reactor(new VirtualClock());
  readonly memory = new MockMemory([{ at: AT, size: 1 << 20 }]);
  readonly device: Device;
  readonly queues: MockDriver[] = [];
  /** Queues that were notified, in order. */
  readonly used: number[] = [];
  readonly resets: string[] = [];
  /** May the device touch memory? */
  touch = true;
  configChanges = 0;

  /**
   * Makes the device, negotiates these features beside VERSION_1, and starts every queue, or these.
   *
   * @param chosen feature bits; "none": the driver never says FEATURES_OK
   * @param base where every queue goes on
   */
  constructor(
    make: (reactor: Reactor) => Device,
    chosen: readonly number[] | "none" = [],
    started?: readonly number[],
    base = 0,
  ) {
    const device = this.device = make(this.reactor);
    const host: DeviceHost = {
      memory: this.memory.space,
      regions: [],
      mayTouchMemory: () => this.touch,
      used: (queue) => this.used.push(queue),
      configChanged: () => this.configChanges++,
      needsReset: (reason) => this.resets.push(reason),
    };
    device.connect(host);
    const features = chosen === "none" ? [] : chosen;
    const words = new Uint32Array(2);
    for (const bit of [RingFeature.VERSION_1, ...features]) words[bit >> 5] |= 1 << (bit & 31);
    if (chosen !== "none") assert(device.acceptFeatures(words));
    this.#start(features, started, base);
    this.#restart = () => this.#start(features, started, 0);
  }

  readonly #restart: () => void;

  #start(features: readonly number[], started: readonly number[] | undefined, base: number): void {
    const { device } = this;
    for (let index = 0; index < device.queueCount; index++) {
      const queue = new MockDriver(this.memory, {
        size: QUEUE_SIZE,
        at: AT + index * 0x3000,
        eventIndex: features.includes(RingFeature.EVENT_IDX),
        indirect: features.includes(RingFeature.INDIRECT_DESC),
      });
      this.queues[index] = queue;
      if (started?.includes(index) ?? true) {
        assertEquals(device.startQueue(index, { ...queue.config, base }), undefined);
      }
    }
  }

  /** The driver resets the device and begins anew. */
  restart(): void {
    for (let index = 0; index < this.device.queueCount; index++) this.device.stopQueue(index);
    this.device.reset?.();
    this.resets.length = this.used.length = 0;
    this.#restart();
  }

  /** Lets the device work until it has nothing to do. */
  settle(): void {
    // A turn that finds nothing to do would block: the timer bounds it.
    for (let i = 0; i < 20; i++) {
      const timer = this.reactor.timer(() => {});
      timer.arm(0);
      this.reactor.turn();
      this.reactor.dropTimer(timer);
    }
  }

  /** Offers one buffer with these bytes to read and, behind them, `writable` bytes to write; its head. */
  offer(queue: number, at: number, bytes: Uint8Array, writable = 0): number | undefined {
    if (bytes.length > 0) this.memory.bytes(at, bytes.length).set(bytes);
    const read = bytes.length > 0 ? [{ address: at, length: bytes.length }] : [];
    const write = writable > 0 ? [{ address: at + bytes.length, length: writable }] : [];
    const head = this.queues[queue].add(read, write);
    this.queues[queue].publish();
    this.device.available(queue);
    return head;
  }

  [Symbol.dispose](): void {
    this.device[Symbol.dispose]();
    this.reactor[Symbol.dispose]();
    this.memory.checkGuards();
    this.memory[Symbol.dispose]();
  }
}
