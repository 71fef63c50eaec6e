/**
 * A virtio-net driver in user space: a network card with no guest and no kernel driver.
 *
 * Theory of operation. Rings and buffers lie in one piece of memory that the device side sees
 * (driver_memory.ts); where it is small there are fewer buffers. Bring-up follows VIRTIO 1.2 section
 * 3.1.1 and, per queue, asks, sets and asks again as the Linux transport does (wire document 5N.5). It is
 * run anew for every device side that comes:
 *
 *     down --device side ready, bring-up done--> up --device side lost--> down
 *
 * Frames in flight when a device side dies are lost, as on a cable that is pulled; nothing else is.
 *
 * Receive buffers are small and mergeable (5.1.6.3.1): a large frame takes several, and is given to the
 * listener as the list of their segments, for one writev. They are handed back at once. A transmit buffer
 * holds the largest frame in one piece; they are reclaimed when they are needed.
 */

import { NET_HEADER_SIZE, NUM_BUFFERS_OFFSET } from "../../virtio/net_header.ts";
import { VmsgError } from "../../linux/errors.ts";
import { PAGE_SIZE } from "../../linux/mapping.ts";
import type { Reactor, Task } from "../../linux/reactor.ts";
import {
  DEVICE_NET,
  featureNames,
  hasFeature,
  NetFeature,
  RingFeature,
  Status,
} from "../../virtio/features.ts";
import { IovecList, MemoryWindow } from "../../memory/mod.ts";
import { limitedLog, type Log } from "../../observe/log.ts";
import type { DriverSide, PeerListener } from "../../transport/driver_side.ts";
import type { RemoteDevice } from "../../transport/remote_device.ts";
import { PeerLost } from "../../transport/requests.ts";
import { DriverQueue } from "../../virtio/split/mod.ts";
import { type DriverMemory, ownMemory } from "../../sharing/driver_memory.ts";

const RECEIVE = 0;
const TRANSMIT = 1;
const QUEUE_SIZE = 256;
const RECEIVE_SIZE = 4096;
/** The largest frame with its header: 64 KiB of payload for segmentation offload, and the headers. */
const TRANSMIT_SIZE = 66_048;
const TRANSMIT_BUFFERS = 128;
/** Buffers that one received frame may take. */
const MAX_MERGED = Math.ceil(TRANSMIT_SIZE / RECEIVE_SIZE);
/** Frames taken per task run. */
const BATCH = 64;
/** The fewest transmit buffers, and receive buffers that are two of the largest frames, to go on well. */
const MIN_TRANSMIT = 2;
const MIN_RECEIVE = 2 * MAX_MERGED;
const RINGS_SIZE = Math.ceil(2 * DriverQueue.bytesNeeded(QUEUE_SIZE, true) / PAGE_SIZE) * PAGE_SIZE;
/** The memory that a driver makes use of. */
export const DRIVER_MEMORY_SIZE: number = RINGS_SIZE + QUEUE_SIZE * RECEIVE_SIZE +
  TRANSMIT_BUFFERS * TRANSMIT_SIZE;
const DRIVER_MEMORY_MINIMUM = RINGS_SIZE + MIN_RECEIVE * RECEIVE_SIZE +
  MIN_TRANSMIT * TRANSMIT_SIZE;

/** What is taken if offered. The last two are what a modern device cannot do without. */
const WANTED = [
  NetFeature.MAC,
  NetFeature.STATUS,
  NetFeature.MTU,
  NetFeature.MRG_RXBUF,
  RingFeature.INDIRECT_DESC,
  RingFeature.EVENT_IDX,
  RingFeature.VERSION_1,
  RingFeature.ACCESS_PLATFORM,
];

/** What a driver may be given. */
export interface NetDriverOptions {
  /** Where rings and buffers go, the caller's own; otherwise the driver makes its own memory. */
  readonly memory?: DriverMemory | undefined;
  /** Offload features that whoever uses the driver can handle; none unless given. */
  readonly offloads?: readonly number[];
}

/** Who uses the driver. */
export interface NetDriverListener {
  /** Frames can be sent. */
  up(): void;
  /** They cannot any more, until the next `up`. */
  down(reason: string): void;
  /**
   * A frame, virtio-net header first, valid during the call; false if it cannot be taken now: it is
   * given again after {@link NetDriver.resume}.
   */
  frame(frame: IovecList): boolean;
  /** A transmit buffer is free after {@link NetDriver.claim} found none. */
  writable(): void;
}

/** See the head of this file. */
export class NetDriver implements PeerListener, Disposable {
  /** Can frames be sent? */
  isUp = false;
  /** The device's MAC address, once it is up. */
  mac: Uint8Array = new Uint8Array(6);
  /** Accepted features by name, for people. */
  features: string[] = [];
  /** The same as bits, in blocks of 32. */
  accepted: Uint32Array = new Uint32Array(2);
  /** What went through. */
  readonly counters = { received: 0, sent: 0, badQueues: 0 };
  readonly #memory: DriverMemory;
  readonly #ownsMemory: boolean;
  readonly #device: RemoteDevice;
  #queues: [DriverQueue, DriverQueue] | undefined;
  /** All of the memory, for segments; the offsets below count in it. */
  readonly #window: MemoryWindow;
  readonly #receiveOffset: number = RINGS_SIZE;
  readonly #receiveCount: number;
  readonly #transmitOffset: number;
  readonly #transmitCount: number;
  readonly #freeTransmit: number[] = [];
  readonly #transmitHeaders: Uint8Array[] = [];
  readonly #transmitFrames: Uint8Array[] = [];
  readonly #offloads: readonly number[];
  #mergeable = false;
  /** The frame being received, and the buffers it takes. */
  readonly #frame = new IovecList(MAX_MERGED);
  readonly #merged: number[] = [];
  /** A frame that the listener did not take. */
  #held = false;
  /** The claimed transmit buffer. */
  readonly #claimed = new IovecList(1);
  #starved = false;
  /** For what the device side can make us say as often as it likes. */
  readonly #complain: (line: string) => void;
  readonly #receiveTask: Task = { run: () => this.#receive() };
  readonly #publishTask: Task = { run: () => this.#publish() };

  /** Makes rings and buffers; the bring-up begins when the device side is there. */
  constructor(
    readonly reactor: Reactor,
    readonly side: DriverSide,
    number: number,
    readonly listener: NetDriverListener,
    log: Log,
    options: NetDriverOptions = {},
  ) {
    const { memory, offloads = [] } = options;
    this.#offloads = offloads;
    this.#complain = limitedLog(log.warn, reactor);
    this.#ownsMemory = memory === undefined;
    this.#memory = memory ?? ownMemory(DRIVER_MEMORY_SIZE);
    const { size } = this.#memory;
    if (size < DRIVER_MEMORY_MINIMUM) {
      throw new VmsgError(
        "MEMORY",
        `the driver needs at least ${DRIVER_MEMORY_MINIMUM} bytes of shared memory, not ${size}: ` +
          "1M is enough",
      );
    }
    // Where memory is short, half of it is for either direction.
    const room = size - RINGS_SIZE;
    this.#receiveCount = Math.min(
      QUEUE_SIZE,
      Math.max(MIN_RECEIVE, Math.floor(room / 2 / RECEIVE_SIZE)),
    );
    this.#transmitOffset = RINGS_SIZE + this.#receiveCount * RECEIVE_SIZE;
    this.#transmitCount = Math.min(
      TRANSMIT_BUFFERS,
      Math.floor((size - this.#transmitOffset) / TRANSMIT_SIZE),
    );
    const { offset, memory: { buffer } } = this.#memory;
    this.#window = new MemoryWindow(this.#memory.at, size, this.#memory.memory, offset);
    for (let i = 0; i < this.#transmitCount; i++) {
      const at = offset + this.#transmitOffset + i * TRANSMIT_SIZE;
      const view = (start: number, end: number) => new Uint8Array(buffer, at + start, end - start);
      this.#transmitHeaders.push(view(0, NET_HEADER_SIZE));
      this.#transmitFrames.push(view(NET_HEADER_SIZE, TRANSMIT_SIZE));
    }
    this.#device = side.device(number);
    this.#device.onUsed = (queue) => this.#used(queue);
    this.#device.onConfig = (status) => this.#configChanged(status);
    side.listen(this);
  }

  ready(): void {
    this.#start(() => this.#bringUp());
  }

  #start(sequence: () => Promise<void>): void {
    this.reactor.spawn(async () => {
      try {
        await sequence();
      } catch (error) {
        // The next device side starts another bring-up.
        if (!(error instanceof PeerLost)) throw error;
      }
    });
  }

  lost(reason: string): void {
    this.#down(reason);
  }

  #down(reason: string): void {
    this.#queues = undefined;
    if (!this.isUp) return;
    this.isUp = false;
    this.listener.down(reason);
  }

  /** VIRTIO 1.2 section 3.1.1, in its order. */
  async #bringUp(): Promise<void> {
    const device = this.#device;
    const info = await device.info();
    if (info.deviceId !== DEVICE_NET) {
      throw new VmsgError(
        "NO_DEVICE",
        info.deviceId === 0
          ? `the device side has no device ${device.number}`
          : `device ${device.number} is no network card but has device id ${info.deviceId}`,
      );
    }
    await this.#memory.announce(device);
    await device.reset();
    let status = await device.setStatus(Status.ACKNOWLEDGE);
    status = await device.setStatus(status | Status.DRIVER);
    const accepted = this.#choose(await device.features(Math.max(2, info.featureBlocks)));
    await device.setFeatures(accepted);
    status = await device.setStatus(status | Status.FEATURES_OK);
    if ((status & Status.FEATURES_OK) === 0) {
      throw new VmsgError("FEATURES_REFUSED", `device ${device.number} refuses our features`);
    }
    this.features = featureNames(accepted, DEVICE_NET);
    this.accepted = accepted;
    this.#mergeable = hasFeature(accepted, NetFeature.MRG_RXBUF);
    if (hasFeature(accepted, NetFeature.MAC)) this.mac = await device.config(0, 6);
    const queues = this.#makeQueues(accepted);
    for (const [index, queue] of queues.entries()) await this.#startQueue(index, queue);
    await device.setStatus(status | Status.DRIVER_OK);
    this.#queues = queues;
    this.isUp = true;
    this.#fillReceive(queues[RECEIVE]);
    this.listener.up();
  }

  #choose(offered: Uint32Array): Uint32Array {
    const accepted = new Uint32Array(offered.length);
    for (const bit of [...WANTED, ...this.#offloads]) {
      if (hasFeature(offered, bit)) accepted[bit >> 5] |= 1 << (bit & 31);
    }
    if (!hasFeature(accepted, RingFeature.VERSION_1)) {
      throw new VmsgError("LEGACY_DEVICE", `device ${this.#device.number} is no modern device`);
    }
    return accepted;
  }

  #makeQueues(accepted: Uint32Array): [DriverQueue, DriverQueue] {
    const { memory, offset, at } = this.#memory;
    const bytes = DriverQueue.bytesNeeded(QUEUE_SIZE, true);
    const make = (index: number) =>
      new DriverQueue({
        place: { memory, offset: offset + index * bytes, size: bytes, at: at + index * bytes },
        size: QUEUE_SIZE,
        eventIndex: hasFeature(accepted, RingFeature.EVENT_IDX),
        indirect: hasFeature(accepted, RingFeature.INDIRECT_DESC),
      });
    this.#freeTransmit.length = 0;
    for (let i = this.#transmitCount - 1; i >= 0; i--) this.#freeTransmit.push(i);
    this.#starved = false;
    this.#held = false;
    return [make(RECEIVE), make(TRANSMIT)];
  }

  async #startQueue(index: number, queue: DriverQueue): Promise<void> {
    const { descriptorAddress, driverAddress, deviceAddress } = queue;
    const { maxSize } = await this.#device.queue(index);
    if (maxSize < QUEUE_SIZE) {
      throw new VmsgError(
        "QUEUE_SIZE",
        `queue ${index} has ${maxSize} entries, ${QUEUE_SIZE} needed`,
      );
    }
    await this.#device.startQueue(index, {
      size: QUEUE_SIZE,
      descriptorAddress,
      driverAddress,
      deviceAddress,
      base: 0,
    });
    if (!this.side.link.codec.conduct.queueStateIsNamed) return;
    const { size, enabled } = await this.#device.queue(index);
    if (size !== QUEUE_SIZE || !enabled) {
      throw new VmsgError("QUEUE_REFUSED", `the device did not take queue ${index}`);
    }
  }

  #giveReceiveBuffer(queue: DriverQueue, buffer: number): void {
    const address = this.#memory.at + this.#receiveOffset + buffer * RECEIVE_SIZE;
    queue.addOne(address, RECEIVE_SIZE, true, buffer);
  }

  #fillReceive(queue: DriverQueue): void {
    for (let i = 0; i < this.#receiveCount; i++) this.#giveReceiveBuffer(queue, i);
    if (queue.publish()) this.#device.available(RECEIVE);
    this.reactor.schedule(this.#receiveTask);
  }

  #configChanged(status: number): void {
    if ((status & Status.DEVICE_NEEDS_RESET) === 0 || !this.isUp) return;
    this.#complain(`device ${this.#device.number} needs a reset`);
    this.#down("the device needed a reset");
    this.#start(async () => {
      await this.#memory.withdraw(this.#device);
      await this.#bringUp();
    });
  }

  #used(queue: number): void {
    if (queue === RECEIVE) return this.reactor.schedule(this.#receiveTask);
    if (!this.#starved) return;
    this.#starved = false;
    this.listener.writable();
  }

  /** The listener can take the frame that it refused. */
  resume(): void {
    this.reactor.schedule(this.#receiveTask);
  }

  #receive(): boolean {
    const queue = this.#queues?.[RECEIVE];
    if (queue === undefined) return false;
    let more = true;
    for (let i = 0; i < BATCH; i++) {
      if (!this.#held && !this.#collect(queue)) {
        more = queue.wantCalls();
        if (!more) break;
        continue;
      }
      this.#held = !this.listener.frame(this.#frame);
      more = !this.#held;
      if (this.#held) break;
      this.counters.received++;
      for (const buffer of this.#merged) this.#giveReceiveBuffer(queue, buffer);
    }
    if (queue.publish()) this.#device.available(RECEIVE);
    return this.#checkBroken(queue, RECEIVE) && more;
  }

  /** Gathers the buffers of the next frame; false if there is none. */
  #collect(queue: DriverQueue): boolean {
    this.#frame.clear();
    this.#merged.length = 0;
    for (let wanted = 1; this.#merged.length < wanted;) {
      if (!queue.nextUsed()) {
        // All buffers of a frame are shown at once (5.1.6.4.1), so a part of one is the device's fault.
        if (this.#merged.length > 0) {
          queue.broken ??= "the device merged fewer buffers than it said";
        }
        return false;
      }
      const offset = this.#receiveOffset + queue.usedToken * RECEIVE_SIZE;
      if (wanted === 1 && this.#merged.length === 0) {
        const { view } = this.#window;
        wanted = this.#mergeable ? view.getUint16(offset + NUM_BUFFERS_OFFSET, true) : 1;
        if (wanted < 1 || wanted > MAX_MERGED || queue.usedLength < NET_HEADER_SIZE) {
          queue.broken ??=
            `the device gave a frame of ${wanted} buffers, ${queue.usedLength} bytes`;
          return false;
        }
      }
      this.#frame.push(this.#window, offset, queue.usedLength);
      this.#merged.push(queue.usedToken);
    }
    return true;
  }

  /** True while the queue is whole; otherwise the device is given up for now. */
  #checkBroken(queue: DriverQueue, index: number): boolean {
    if (queue.broken === undefined) return true;
    if (this.#queues?.[index] !== queue) return false;
    this.counters.badQueues++;
    this.#complain(`queue ${index}: ${queue.broken}`);
    this.#down("the device broke a queue");
    return false;
  }

  /**
   * Claims a transmit buffer, to be filled through {@link frame} or {@link buffer} and followed by
   * {@link send}.
   *
   * @returns false when all are with the device: `writable` will be called
   */
  claim(): boolean {
    const queue = this.#queues?.[TRANSMIT];
    if (queue === undefined) return false;
    if (this.#freeTransmit.length === 0) this.#reclaim(queue);
    if (this.#freeTransmit.length === 0) {
      // Publish first: what has not been shown to the device cannot come back.
      this.#publish();
      while (this.#freeTransmit.length === 0 && queue.wantCalls()) this.#reclaim(queue);
      // The look for used buffers may be what finds the queue broken.
      this.#checkBroken(queue, TRANSMIT);
    }
    // Buffers that came back before the queue broke are there, but the queue is not any more.
    const claimed = this.isUp && this.#freeTransmit.length > 0;
    if (!claimed) this.#starved = true;
    return claimed;
  }

  /** The claimed buffer as room for a frame; the virtio-net header before it becomes zeros. */
  get frame(): Uint8Array {
    const buffer = this.#freeTransmit.at(-1)!;
    this.#transmitHeaders[buffer].fill(0);
    return this.#transmitFrames[buffer];
  }

  /** The claimed buffer as a segment, for a port to fill. */
  get buffer(): IovecList {
    this.#claimed.clear();
    const offset = this.#transmitOffset + this.#freeTransmit.at(-1)! * TRANSMIT_SIZE;
    this.#claimed.push(this.#window, offset, TRANSMIT_SIZE);
    return this.#claimed;
  }

  #reclaim(queue: DriverQueue): void {
    while (queue.nextUsed()) this.#freeTransmit.push(queue.usedToken);
    queue.noCalls();
    this.#checkBroken(queue, TRANSMIT);
  }

  /** Sends the claimed buffer's first `length` bytes, header included, at the end of the turn. */
  send(length: number): void {
    const queue = this.#queues?.[TRANSMIT];
    const buffer = this.#freeTransmit.pop();
    if (queue === undefined || buffer === undefined) throw new Error("send without claim");
    const address = this.#memory.at + this.#transmitOffset + buffer * TRANSMIT_SIZE;
    queue.addOne(address, length, false, buffer);
    this.counters.sent++;
    this.reactor.schedule(this.#publishTask);
  }

  #publish(): boolean {
    if (this.#queues?.[TRANSMIT].publish()) this.#device.available(TRANSMIT);
    return false;
  }

  /** Unmaps memory of its own. */
  [Symbol.dispose](): void {
    // Memory that was given belongs to whoever gave it.
    if (this.#ownsMemory) this.#memory[Symbol.dispose]();
  }
}
