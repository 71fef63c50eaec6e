/**
 * A virtio network card (VIRTIO 1.2, section 5.1): one queue pair, its frames at a network port.
 *
 * Theory of operation. Two tasks in the reactor, one a direction, each working on one batch at a time.
 *
 *     transmit: pop buffers of queue 1 -> port.send -> complete; sleeps until the driver kicks
 *     receive:  port has a frame -> pop buffers of queue 0 -> port.receive -> complete;
 *               sleeps until the port is readable, or, when buffers lack, until the driver kicks
 *
 * Each batch first asks whether the driver's memory may be touched (DRIVER_OK, lease); if not, the task
 * ends and `resume` starts it again. A batch publishes once and notifies at most once. Buffers are used in
 * the order they came, which is what makes a restarted device able to go on (design section 6).
 *
 * Which receive function runs, for one buffer a frame or for several (MRG_RXBUF), is chosen when the
 * features are accepted, not per frame.
 */

import type { Reactor, Task } from "../../linux/reactor.ts";
import { DEVICE_NET, NetFeature, RingFeature } from "../../message/features.ts";
import { NET_HEADER_SIZE, type NetworkPort, NUM_BUFFERS_OFFSET } from "../../network/port.ts";
import type { DeviceHost, DeviceModel, QueueSetup } from "../../transport/device_model.ts";
import {
  Chain,
  ChainSequence,
  type DeviceQueue,
  openDeviceQueue,
  Pop,
} from "../../virtqueue/mod.ts";

/** Frames per task run; more would let requests wait. */
const BATCH = 64;
const RECEIVE = 0;
const TRANSMIT = 1;
/** As large as QEMU allows; a front end chooses less. */
const MAX_QUEUE_SIZE = 1024;
/** The vendor id of every QEMU device, which drivers expect (wire document 1.6). */
const VENDOR_ID = 0x554d4551;
const STATUS_LINK_UP = 1;
/** struct virtio_net_config up to mtu: mac, status, max_virtqueue_pairs, mtu. */
const CONFIG_SIZE = 12;

const OFFERED = [
  NetFeature.MAC,
  NetFeature.STATUS,
  NetFeature.MTU,
  NetFeature.MRG_RXBUF,
  RingFeature.INDIRECT_DESC,
  RingFeature.EVENT_IDX,
  RingFeature.VERSION_1,
  // Linux's own virtio-msg buses demand it (rule V43); addresses are the same with and without.
  RingFeature.ACCESS_PLATFORM,
];

/** What the device is. */
export interface NetDeviceOptions {
  /** Six bytes. */
  readonly mac: Uint8Array;
  /** The largest payload of a frame, in bytes. */
  readonly mtu: number;
}

/** Is a feature bit set in blocks of 32? */
function hasBit(words: Uint32Array, bit: number): boolean {
  return (words[bit >> 5] & (1 << (bit & 31))) !== 0;
}

/** See the head of this file. */
export class NetDevice implements DeviceModel {
  readonly deviceId: number = DEVICE_NET;
  readonly vendorId: number = VENDOR_ID;
  readonly features: Uint32Array = new Uint32Array(2);
  readonly config: Uint8Array = new Uint8Array(CONFIG_SIZE);
  readonly queueCount: number = 2;
  readonly maxQueueSize: number = MAX_QUEUE_SIZE;
  /** What went through, and what could not. */
  readonly counters = { received: 0, transmitted: 0, tooLong: 0, batches: 0 };
  readonly #chain = new Chain();
  readonly #sequence = new ChainSequence();
  readonly #receiveTask: Task = { run: () => this.#guarded(RECEIVE) };
  readonly #transmitTask: Task = { run: () => this.#guarded(TRANSMIT) };
  #host!: DeviceHost;
  #queues: (DeviceQueue | undefined)[] = [undefined, undefined];
  #eventIndex = false;
  #indirect = false;
  #receiveBatch: (queue: DeviceQueue) => boolean = this.#receiveSingle;

  constructor(
    readonly reactor: Reactor,
    readonly port: NetworkPort,
    options: NetDeviceOptions,
  ) {
    for (const bit of [...OFFERED, ...port.features]) this.features[bit >> 5] |= 1 << (bit & 31);
    const config = new DataView(this.config.buffer);
    this.config.set(options.mac.subarray(0, 6));
    config.setUint16(6, STATUS_LINK_UP, true);
    config.setUint16(8, 1, true);
    config.setUint16(10, options.mtu, true);
  }

  connect(host: DeviceHost): void {
    this.#host = host;
    this.port.open({
      readable: () => this.reactor.schedule(this.#receiveTask),
      writable: () => this.reactor.schedule(this.#transmitTask),
      link: (up) => this.#setLink(up),
    });
  }

  #setLink(up: boolean): void {
    const config = new DataView(this.config.buffer);
    const status = up ? STATUS_LINK_UP : 0;
    if (config.getUint16(6, true) === status) return;
    config.setUint16(6, status, true);
    this.#host.configChanged();
  }

  acceptFeatures(words: Uint32Array): boolean {
    this.#eventIndex = hasBit(words, RingFeature.EVENT_IDX);
    this.#indirect = hasBit(words, RingFeature.INDIRECT_DESC);
    this.#receiveBatch = hasBit(words, NetFeature.MRG_RXBUF)
      ? this.#receiveMergeable
      : this.#receiveSingle;
    this.port.setFeatures(words);
    return true;
  }

  writeConfig(): boolean {
    // Nothing in a modern network card's configuration is for the driver to write.
    return false;
  }

  startQueue(index: number, setup: QueueSetup): string | undefined {
    const queue = openDeviceQueue(this.#host.memory, {
      ...setup,
      eventIndex: this.#eventIndex,
      indirect: this.#indirect,
    });
    if (typeof queue === "string") return queue;
    this.#queues[index] = queue;
    return undefined;
  }

  stopQueue(index: number): number {
    const queue = this.#queues[index];
    if (queue === undefined) return 0;
    this.#queues[index] = undefined;
    if (index === RECEIVE) this.#sequence.clear();
    if (queue.stop()) this.#host.used(index);
    return queue.base;
  }

  available(index: number): void {
    this.reactor.schedule(index === TRANSMIT ? this.#transmitTask : this.#receiveTask);
  }

  resume(): void {
    this.available(RECEIVE);
    this.available(TRANSMIT);
  }

  /** One batch of a queue, if there is one and its memory may be touched. */
  #guarded(index: number): boolean {
    const queue = this.#queues[index];
    if (queue === undefined || !this.#host.mayTouchMemory()) return false;
    this.counters.batches++;
    const more = index === TRANSMIT ? this.#transmit(queue) : this.#receiveBatch(queue);
    if (queue.publish()) this.#host.used(index);
    if (queue.broken === undefined) return more;
    this.#host.needsReset(`queue ${index}: ${queue.broken}`);
    return false;
  }

  #transmit(queue: DeviceQueue): boolean {
    const chain = this.#chain;
    queue.noKicks();
    for (let i = 0; i < BATCH; i++) {
      const outcome = queue.next(chain);
      if (outcome === Pop.EMPTY) {
        // Asking for kicks and looking again belong together; what came meanwhile is not lost.
        if (queue.wantKicks()) continue;
        return false;
      }
      if (outcome !== Pop.CHAIN) return false;
      if (!this.port.send(chain.readable)) {
        queue.rewind(1);
        return false;
      }
      this.counters.transmitted++;
      queue.complete(chain.head, 0);
    }
    return true;
  }

  #receiveSingle(queue: DeviceQueue): boolean {
    const chain = this.#chain;
    queue.noKicks();
    for (let i = 0; i < BATCH; i++) {
      const wanted = this.port.nextLength();
      if (wanted === 0) return false;
      const outcome = queue.next(chain);
      if (outcome === Pop.EMPTY) {
        if (queue.wantKicks()) continue;
        return false;
      }
      if (outcome !== Pop.CHAIN) return false;
      if (chain.writable.length < wanted) {
        this.counters.tooLong++;
        this.port.discard();
        queue.rewind(1);
        continue;
      }
      const length = this.port.receive(chain.writable, 0);
      if (length < NET_HEADER_SIZE) {
        queue.rewind(1);
        return false;
      }
      this.counters.received++;
      queue.complete(chain.head, length);
    }
    return true;
  }

  #receiveMergeable(queue: DeviceQueue): boolean {
    const buffers = this.#sequence;
    queue.noKicks();
    for (let i = 0; i < BATCH; i++) {
      const wanted = this.port.nextLength();
      if (wanted === 0) return false;
      if (!buffers.fill(queue, wanted) && !this.#fillAfterAsking(queue, wanted)) return false;
      if (buffers.bytes < wanted) continue;
      const first = buffers.firstSegment;
      const length = this.port.receive(buffers.writable, first);
      if (length < NET_HEADER_SIZE) return false;
      buffers.writable.setUint16(NUM_BUFFERS_OFFSET, buffers.buffersFor(length), first);
      this.counters.received++;
      buffers.complete(queue, length);
    }
    return true;
  }

  /** The ring was empty: asks for kicks and looks again; true if that brought buffers. */
  #fillAfterAsking(queue: DeviceQueue, wanted: number): boolean {
    const buffers = this.#sequence;
    if (queue.broken !== undefined || !queue.wantKicks()) return false;
    const held = buffers.buffers;
    if (buffers.fill(queue, wanted) || buffers.buffers > held) return true;
    // There are buffers and none can be taken: the sequence is full of too small ones.
    queue.refuse("receive buffers are too small for a frame");
    return false;
  }

  [Symbol.dispose](): void {
    for (const index of this.#queues.keys()) this.stopQueue(index);
    this.port[Symbol.dispose]();
  }
}
