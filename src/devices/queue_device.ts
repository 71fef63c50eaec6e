/**
 * The life of a device's virtqueues, written once. A device says what it is and what it does with a batch
 * of buffers; when a ring opens, rests, breaks or ends is settled here.
 *
 * Theory of operation. One task a queue in the reactor:
 *
 *     asleep --driver kicks, or `wake`--> batch --nothing left to do--> asleep
 *                                           |--- budget used up: again in the next turn ---> batch
 *                                           |--- memory not to be touched ---> asleep until `resume`
 *                                           '--- ring broken ---> DEVICE_NEEDS_RESET
 *
 * Before a batch the host is asked whether the driver's memory may be touched (DRIVER_OK, lease). After it
 * the used buffers are published once, and the driver is notified at most once; of a queue whose used buffers are only room to
 * the driver, together with what the next look at the descriptors brings: an answer to a frame is often there when the frame
 * has been sent, and whom a first notification wakes may take the processor that the answer needs. A batch ends also when its buffers have had
 * many segments (queue/device_queue.ts): how long it takes is bounded, whatever a driver makes of them. A queue is opened by
 * `startQueue` and forgotten by `stopQueue`, which publishes what was completed, takes back what was not,
 * and answers the index where a successor goes on. A batch function touches a queue only while it runs:
 * whoever gets work done elsewhere keeps the results and calls `wake`.
 *
 * This is a whole device, one that answers every buffer with its bytes turned round, and the loop that
 * every batch function has:
 *
 * @example
 * ```ts
 * import { Reactor } from "../linux/reactor.ts";
 * import { allocate } from "../linux/arena.ts";
 * import { Chain, type DeviceQueue } from "../virtio/queue/mod.ts";
 *
 * const chain = new Chain();
 * const text = allocate(4096);
 *
 * function turnRound(queue: DeviceQueue, budget: number): boolean {
 *   for (let i = 0; i < budget; i++) {
 *     // No buffer left, and a kick asked for: sleep. (Also when the ring is broken.)
 *     if (!take(queue, chain)) return false;
 *     const { readable, writable } = chain;
 *     const length = readable.copyOut(0, text.address, text.bytes.length);
 *     text.bytes.subarray(0, length).reverse();
 *     queue.complete(chain.head, writable.copyIn(0, text.address, length));
 *   }
 *   return true; // there may be more
 * }
 *
 * using reactor = new Reactor();
 * using device = new QueueDevice(reactor, { deviceId: 42, queues: [turnRound] });
 * // deviceSide.add(0, device);
 * ```
 *
 * A device that waits for something else than buffers (a port that is full, a frame that has not come)
 * gives the buffer back with `queue.rewind(1)`, returns false, and calls `wake` when its time has come.
 *
 * Buffers are completed in the order they came, unless the device chose `anyOrder`; what it then owes the
 * driver when a queue stops is told in virtio/split/open_buffers.ts.
 */

import type { Reactor, Task } from "../linux/reactor.ts";
import { counterShape } from "../observe/counters.ts";
import type { Answer, DeviceHost, DeviceModel, QueueSetup } from "../virtio/device.ts";
import { hasFeature, RingFeature } from "../virtio/features.ts";
import {
  type Chain,
  type ChainBatch,
  type DeviceQueue,
  openDeviceQueue,
  Pop,
} from "../virtio/queue/mod.ts";

/** Buffers per batch; more would let requests wait. */
export const BATCH = 64;
/** As large as QEMU allows; a front end chooses less. */
const MAX_QUEUE_SIZE = 1024;
/** The vendor id of every QEMU device, which drivers expect. */
const VENDOR_ID = 0x554d4551;

/** What every device on this base offers besides its own features. */
const RING_FEATURES = [
  RingFeature.INDIRECT_DESC,
  RingFeature.EVENT_IDX,
  RingFeature.RING_RESET,
  RingFeature.VERSION_1,
  // Linux's own virtio-msg buses demand it (rule V43); addresses are the same with and without.
  RingFeature.ACCESS_PLATFORM,
];
/** The same of those that complete buffers in order: neither is for others (packed/device_queue.ts). */
const ORDERED_FEATURES = [RingFeature.RING_PACKED, RingFeature.IN_ORDER];

/**
 * Works on at most `budget` buffers of a queue, without blocking.
 *
 * @returns true if there is more to do now; false to sleep until a kick or {@link QueueDevice.wake}
 */
export type Batch = (queue: DeviceQueue, budget: number) => boolean;

/** What is counted for every device. */
export interface BatchCounters {
  /** Batches of any queue. */
  batches: number;
  /** Used buffer notifications. */
  notified: number;
  /** Batches that used buffers of which the driver did not want to hear, by its event index or flag. */
  suppressed: number;
}

/** What a device is. */
export interface QueueDeviceOptions {
  /** The virtio device id (VIRTIO 1.3, section 5). */
  readonly deviceId: number;
  /** The device's own feature bits; those of rings and transport are added. */
  readonly features?: readonly number[];
  /** The configuration space, kept by the device; the driver reads it. None unless given. */
  readonly config?: Uint8Array;
  /** What to do with each queue's buffers. */
  readonly queues: readonly Batch[];
  /** Of which queues is what was used nothing that a driver waits for, unless it has no buffers left? */
  readonly givesRoom?: (index: number) => boolean;
  /** Does the device keep buffers and complete them in any order? */
  readonly anyOrder?: boolean;
  /** What the device counts; batches are counted for it, and how many notifications they took. */
  readonly counters?: BatchCounters;
}

/**
 * Pops the next buffer; if there is none, asks for a kick and looks once more, so that what came
 * meanwhile is not lost.
 *
 * @returns whether `chain` holds a buffer; false if the ring is empty or broken
 */
export function take(queue: DeviceQueue, chain: Chain): boolean {
  // A broken ring is asked for nothing.
  return queue.next(chain) === Pop.CHAIN || queue.wantKicks() && queue.next(chain) === Pop.CHAIN;
}

/** The same for up to `most` buffers; `batch` forgets what it held. @returns how many there are */
export function popOrAsk(queue: DeviceQueue, batch: ChainBatch, most: number): number {
  batch.clear();
  const count = queue.pop(batch, most);
  return count > 0 || !queue.wantKicks() ? count : queue.pop(batch, most);
}

/** Of {@link BatchCounters}, with which each device's shape begins. */
export const BATCH_COUNTERS = ["batches", "notified", "suppressed"] as const;
const Batches = counterShape(...BATCH_COUNTERS);

/** See the head of this file. */
export class QueueDevice implements DeviceModel {
  readonly deviceId: number;
  /** That of every QEMU device. */
  readonly vendorId: number = VENDOR_ID;
  readonly features: Uint32Array = new Uint32Array(2);
  readonly configSize: number;
  readonly queueCount: number;
  readonly maxQueueSize: number = MAX_QUEUE_SIZE;
  readonly outOfOrder: boolean;
  /** What the device has done. */
  readonly counters: BatchCounters;
  /** The configuration space; whoever changes it calls `host.configChanged`. */
  protected readonly config: Uint8Array;
  /** Whom the device serves; there from {@link connect} on. */
  protected host!: DeviceHost;
  /** What the driver accepted, in blocks of 32. */
  protected accepted: Uint32Array = new Uint32Array(2);
  readonly #batches: readonly Batch[];
  readonly #tasks: readonly Task[];
  /** Of queues that give room: tells the driver, if that is not done. */
  readonly #tellers: readonly (Task | undefined)[];
  readonly #untold: boolean[];
  readonly #queues: (DeviceQueue | undefined)[];

  /** Makes a device that is connected to nothing yet. */
  constructor(readonly reactor: Reactor, options: QueueDeviceOptions) {
    const { deviceId, features = [], config = new Uint8Array(), queues } = options;
    this.deviceId = deviceId;
    this.outOfOrder = options.anyOrder ?? false;
    const ordered = this.outOfOrder ? [] : ORDERED_FEATURES;
    for (const bit of [...RING_FEATURES, ...ordered, ...features]) {
      this.features[bit >> 5] |= 1 << (bit & 31);
    }
    this.config = config;
    this.configSize = config.length;
    this.queueCount = queues.length;
    this.counters = options.counters ?? new Batches("device", `device id ${deviceId}`);
    this.#batches = queues;
    this.#tasks = queues.map((_, index) => ({ run: () => this.#run(index) }));
    this.#tellers = queues.map((_, index) =>
      options.givesRoom?.(index) ? { run: () => this.#tell(index) } : undefined
    );
    this.#untold = queues.map(() => false);
    this.#queues = queues.map(() => undefined);
  }

  connect(host: DeviceHost): void {
    this.host = host;
  }

  acceptFeatures(words: Uint32Array): boolean {
    this.accepted = words.slice();
    return true;
  }

  /** Is this feature negotiated? */
  protected has(feature: number): boolean {
    return hasFeature(this.accepted, feature);
  }

  readConfig(offset: number, length: number): Uint8Array {
    return this.config.subarray(offset, offset + length);
  }

  /** Nothing is for the driver to write, unless a device says otherwise. */
  writeConfig(_offset: number, _bytes: Uint8Array): boolean {
    return false;
  }

  startQueue(index: number, setup: QueueSetup): string | undefined {
    const queue = openDeviceQueue(this.host.memory, {
      ...setup,
      eventIndex: this.has(RingFeature.EVENT_IDX),
      indirect: this.has(RingFeature.INDIRECT_DESC),
      packed: this.has(RingFeature.RING_PACKED),
      inOrder: this.has(RingFeature.IN_ORDER),
      anyOrder: this.outOfOrder,
    });
    if (typeof queue === "string") return queue;
    this.#queues[index] = queue;
    return undefined;
  }

  /** Is this queue open? */
  protected runs(index: number): boolean {
    return this.#queues[index] !== undefined;
  }

  stopQueue(index: number): Answer<number> {
    const queue = this.#queues[index];
    if (queue === undefined) return 0;
    this.#queues[index] = undefined;
    this.#untold[index] ||= queue.stop();
    this.#tell(index);
    return queue.base;
  }

  available(index: number): void {
    this.wake(index);
  }

  /** Has a queue's batch function called soon, whether or not the driver kicked. */
  wake(index: number): void {
    this.reactor.schedule(this.#tasks[index]);
  }

  resume(): void {
    for (let index = 0; index < this.queueCount; index++) this.wake(index);
  }

  /** One batch of a queue, if there is one and its memory may be touched. */
  #run(index: number): boolean {
    const queue = this.#queues[index];
    if (queue === undefined || !this.host.mayTouchMemory()) return false;
    this.counters.batches++;
    queue.noKicks();
    const more = this.#batches[index](queue, BATCH);
    if (queue.publish()) {
      this.#untold[index] = true;
      const teller = this.#tellers[index];
      if (more || teller === undefined) this.#tell(index);
      else this.reactor.scheduleLate(teller);
    } else if (queue.suppressed > 0) {
      this.counters.suppressed += queue.suppressed;
      queue.suppressed = 0;
    }
    if (queue.broken === undefined) return more || queue.isSpent;
    this.host.needsReset(`queue ${index}: ${queue.broken}`);
    return false;
  }

  #tell(index: number): boolean {
    if (this.#untold[index]) {
      this.#untold[index] = false;
      this.counters.notified++;
      this.host.used(index);
    }
    return false;
  }

  /** Stops the queues. */
  [Symbol.dispose](): void {
    for (let index = 0; index < this.queueCount; index++) this.stopQueue(index);
  }
}
