/**
 * A virtio-net driver in user space: a network card with no guest and no kernel driver.
 *
 * Theory of operation. Rings and buffers lie in one piece of memory that the device side sees
 * (sharing/driver_memory.ts, net_buffers.ts). What the driver wants of a device is all that it says: a session
 * (session.ts) brings each device side that comes to it, and the rings are made anew for each:
 *
 *     down --device side ready, brought up--> up --device side lost, or in need of a reset--> down
 *
 * Frames in flight when a device side dies are lost, as on a cable that is pulled; nothing else is.
 *
 * A received frame is given to the listener as the list of its buffers, for one writev. They are handed back at
 * once. Transmit buffers are reclaimed when they are needed.
 */

import {
  NET_HEADER_SIZE,
  NetConfig,
  NetStatus,
  NUM_BUFFERS_OFFSET,
} from "../../virtio/net_header.ts";
import { VmsgError } from "../../linux/errors.ts";
import type { Reactor, Task } from "../../linux/reactor.ts";
import {
  DEVICE_NET,
  featureNames,
  hasFeature,
  NetFeature,
  RingFeature,
  Status,
} from "../../virtio/features.ts";
import type { QueueSetup } from "../../virtio/device.ts";
import { IovecList } from "../../memory/mod.ts";
import { counterShape } from "../../observe/counters.ts";
import type { Log } from "../../observe/log.ts";
import { Descriptors } from "../../sharing/descriptors.ts";
import { type DriverMemory, ownMemory } from "../../sharing/driver_memory.ts";
import type { DriverSide, PeerListener } from "../../transport/driver_side.ts";
import type { RemoteDevice } from "../../transport/remote_device.ts";
import { PeerLost } from "../../transport/requests.ts";
import { DriverQueue } from "../../virtio/split/mod.ts";
import { Session } from "../session.ts";
import type { WantedRing } from "../wanted.ts";
import {
  DRIVER_MEMORY_SIZE,
  MAX_MERGED,
  NetBuffers,
  QUEUE_SIZE,
  RECEIVE_SIZE,
  TRANSMIT_SIZE,
} from "./net_buffers.ts";

const RECEIVE = 0;
const TRANSMIT = 1;
const BATCH = 64;

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

export interface NetDriverOptions {
  /** Where rings and buffers go, the caller's own; otherwise the driver makes its own memory. */
  readonly memory?: DriverMemory | undefined;
  /** Offload features that whoever uses the driver can handle; none unless given. */
  readonly offloads?: readonly number[];
}

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

const DriverCounters = counterShape("received", "sent", "badQueues");

/** See the head of this file. */
export class NetDriver implements PeerListener, Disposable {
  /** Can frames be sent? */
  isUp = false;
  mac: Uint8Array = new Uint8Array(6);
  /** Is the link up, as the device says? */
  linkIsUp = true;
  /** The largest payload of a frame, if the device says so. */
  mtu: number | undefined;
  /** Accepted features by name, for people. */
  features: string[] = [];
  /** The same as bits, in blocks of 32. */
  accepted: Uint32Array = new Uint32Array(2);
  readonly counters: InstanceType<typeof DriverCounters>;
  readonly #memory: DriverMemory;
  readonly #ownsMemory: boolean;
  readonly #device: RemoteDevice;
  readonly #session: Session;
  readonly #rings: readonly WantedRing[] = [this.#ring(RECEIVE), this.#ring(TRANSMIT)];
  /** What is wanted of the device; nothing before it is known. */
  #wanted: Uint32Array | undefined;
  /** As made for the latest device; used while {@link isUp}. */
  readonly #queues: DriverQueue[] = [];
  readonly #buffers: NetBuffers;
  readonly #freeTransmit: number[] = [];
  readonly #offloads: readonly number[];
  #mergeable = false;
  readonly #frame = new IovecList(MAX_MERGED);
  readonly #merged: number[] = [];
  #held = false;
  /** The claimed transmit buffer. */
  readonly #claimed = new IovecList(1);
  #starved = false;
  /** Of the configuration as it was read last. */
  #generation = 0;
  #reads = false;
  readonly #receiveTask: Task = { run: () => this.#receive() };
  readonly #publishTask: Task = { run: () => this.#publish() };

  /** Makes room for rings and buffers; the bring-up begins when the device side is there. */
  constructor(
    readonly reactor: Reactor,
    readonly side: DriverSide,
    number: number,
    readonly listener: NetDriverListener,
    readonly log: Log,
    options: NetDriverOptions = {},
  ) {
    const { memory, offloads = [] } = options;
    this.counters = new DriverCounters("driver", `device ${number}`);
    this.#offloads = offloads;
    this.#ownsMemory = memory === undefined;
    this.#memory = memory ?? ownMemory(DRIVER_MEMORY_SIZE);
    this.#buffers = new NetBuffers(this.#memory);
    this.#device = side.device(number);
    this.#session = this.#openSession(log);
    this.#device.listen(this);
  }

  #openSession(log: Log): Session {
    const wanted = () => this.#wanted;
    const owner = {
      get features() {
        return wanted();
      },
      regions: this.#memory.regions,
      rings: this.#rings,
      mayRun: true,
      known: () => this.#known(),
      configChanged: (status: number) => this.#configChanged(status),
    };
    const { reactor } = this;
    const device = this.#device;
    const sharing = new Descriptors(device);
    return new Session({ reactor, device, sharing, owner, whose: "our", log });
  }

  // --- the device comes and goes -----------------------------------------------------------------

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
    this.#session.lost();
  }

  #down(reason: string): void {
    this.#wanted = undefined;
    if (!this.isUp) return;
    this.isUp = false;
    this.listener.down(reason);
  }

  async #bringUp(): Promise<void> {
    await this.#session.bringUp();
    // Lost meanwhile: the next device side has a bring-up of its own.
    if (this.isUp || !this.#session.told.driverOk) return;
    this.isUp = true;
    this.reactor.schedule(this.#receiveTask);
    this.listener.up();
  }

  /** A device is there: what is wanted of it depends on what it has. */
  async #known(): Promise<void> {
    const device = this.#device;
    const { info, offered } = this.#session.told;
    const { deviceId } = info!;
    if (deviceId !== DEVICE_NET) {
      const what = `is no network card but has device id ${deviceId}`;
      throw new VmsgError("NO_DEVICE", `device ${device.number} ${what}`);
    }
    const accepted = this.#choose(offered);
    this.features = featureNames(accepted, DEVICE_NET);
    this.accepted = accepted;
    this.#mergeable = hasFeature(accepted, NetFeature.MRG_RXBUF);
    // A driver may read before it accepts (VIRTIO 1.2, 3.1.1 step 4).
    await this.#readConfig();
    this.#wanted = accepted;
  }

  /** Reads what of the configuration space is there (5.1.4). */
  async #readConfig(): Promise<void> {
    const device = this.#device;
    const u16 = async (at: number) => {
      const [low, high] = await device.config(at, 2);
      return low! | high! << 8;
    };
    const has = (bit: number) => hasFeature(this.accepted, bit);
    if (has(NetFeature.MAC)) this.mac = await device.config(0, 6);
    if (has(NetFeature.STATUS)) {
      this.linkIsUp = (await u16(NetConfig.STATUS) & NetStatus.LINK_UP) !== 0;
    }
    if (has(NetFeature.MTU)) this.mtu = await u16(NetConfig.MTU);
    this.#generation = device.generation;
  }

  /** Reads it again until it is the latest (rule R12), once at a time however often changes are announced. */
  async #readConfigAgain(): Promise<void> {
    if (this.#reads) return;
    this.#reads = true;
    const before = this.linkIsUp;
    try {
      while (this.isUp && this.#device.generation !== this.#generation) await this.#readConfig();
    } catch (error) {
      if (!(error instanceof VmsgError) || error instanceof PeerLost) throw error;
      this.log.warn(error.message);
    } finally {
      this.#reads = false;
    }
    if (before !== this.linkIsUp) {
      this.log.warn(`device ${this.#device.number}: link ${this.linkIsUp ? "up" : "down"}`);
    }
  }

  #choose(offered: Uint32Array): Uint32Array {
    const accepted = new Uint32Array(offered.length);
    for (const bit of [...WANTED, ...this.#offloads]) {
      if (hasFeature(offered, bit)) accepted[bit >> 5]! |= 1 << (bit & 31);
    }
    if (!hasFeature(accepted, RingFeature.VERSION_1)) {
      throw new VmsgError("LEGACY_DEVICE", `device ${this.#device.number} is no modern device`);
    }
    return accepted;
  }

  #configChanged(status: number): void {
    if (!this.isUp) return;
    if ((status & Status.DEVICE_NEEDS_RESET) === 0) {
      return this.#start(() => this.#readConfigAgain());
    }
    this.log.warn(`device ${this.#device.number} needs a reset`);
    this.#down("the device needed a reset");
    this.#start(async () => {
      await this.#session.restart();
      await this.#bringUp();
    });
  }

  // --- rings -------------------------------------------------------------------------------------

  #ring(index: number): WantedRing {
    return {
      index,
      setup: () => this.#makeQueue(index),
      started: () => this.#fill(index),
      // It is made anew for the next device.
      stopped: () => {},
      call: () => this.#used(index),
      fail: () => {},
    };
  }

  /** Makes a queue, empty; the session kicks it when the device is ready. */
  #makeQueue(index: number): QueueSetup {
    const queue = new DriverQueue({
      place: this.#buffers.ring(index),
      size: QUEUE_SIZE,
      eventIndex: hasFeature(this.accepted, RingFeature.EVENT_IDX),
      indirect: hasFeature(this.accepted, RingFeature.INDIRECT_DESC),
    });
    this.#queues[index] = queue;
    const { size, descriptorAddress, driverAddress, deviceAddress } = queue;
    return { size, descriptorAddress, driverAddress, deviceAddress, base: 0 };
  }

  /** All receive buffers go to the device, all transmit buffers are free. */
  #fill(index: number): void {
    if (index === RECEIVE) {
      const queue = this.#queues[RECEIVE]!;
      this.#held = false;
      for (let i = 0; i < this.#buffers.receiveCount; i++) this.#giveReceiveBuffer(queue, i);
      queue.publish();
    } else {
      this.#starved = false;
      this.#freeTransmit.length = 0;
      for (let i = this.#buffers.transmitCount - 1; i >= 0; i--) this.#freeTransmit.push(i);
    }
  }

  #giveReceiveBuffer(queue: DriverQueue, buffer: number): void {
    const address = this.#memory.at + this.#buffers.receiveOffset(buffer);
    queue.addOne(address, RECEIVE_SIZE, true, buffer);
  }

  #used(queue: number): void {
    if (!this.isUp) return;
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
    if (!this.isUp) return false;
    const queue = this.#queues[RECEIVE]!;
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
    if (queue.publish()) this.#session.available(RECEIVE);
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
      const offset = this.#buffers.receiveOffset(queue.usedToken);
      if (wanted === 1 && this.#merged.length === 0) {
        const { view } = this.#buffers.window;
        wanted = this.#mergeable ? view.getUint16(offset + NUM_BUFFERS_OFFSET, true) : 1;
        if (wanted < 1 || wanted > MAX_MERGED || queue.usedLength < NET_HEADER_SIZE) {
          queue.broken ??=
            `the device gave a frame of ${wanted} buffers, ${queue.usedLength} bytes`;
          return false;
        }
      }
      this.#frame.push(this.#buffers.window, offset, queue.usedLength);
      this.#merged.push(queue.usedToken);
    }
    return true;
  }

  /** True while the queue is whole; otherwise the device is given up for now. */
  #checkBroken(queue: DriverQueue, index: number): boolean {
    if (queue.broken === undefined) return true;
    if (!this.isUp) return false;
    this.counters.badQueues++;
    this.log.warn(`queue ${index}: ${queue.broken}`);
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
    if (!this.isUp) return false;
    const queue = this.#queues[TRANSMIT]!;
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
    this.#buffers.transmitHeaders[buffer]!.fill(0);
    return this.#buffers.transmitFrames[buffer]!;
  }

  get buffer(): IovecList {
    this.#claimed.clear();
    const offset = this.#buffers.transmitOffset(this.#freeTransmit.at(-1)!);
    this.#claimed.push(this.#buffers.window, offset, TRANSMIT_SIZE);
    return this.#claimed;
  }

  #reclaim(queue: DriverQueue): void {
    while (queue.nextUsed()) this.#freeTransmit.push(queue.usedToken);
    queue.noCalls();
    this.#checkBroken(queue, TRANSMIT);
  }

  /** Sends the claimed buffer's first `length` bytes, header included, at the end of the turn. */
  send(length: number): void {
    const buffer = this.#freeTransmit.pop();
    if (!this.isUp || buffer === undefined) throw new Error("send without claim");
    const address = this.#memory.at + this.#buffers.transmitOffset(buffer);
    this.#queues[TRANSMIT]!.addOne(address, length, false, buffer);
    this.counters.sent++;
    this.reactor.schedule(this.#publishTask);
  }

  #publish(): boolean {
    if (this.isUp && this.#queues[TRANSMIT]!.publish()) this.#session.available(TRANSMIT);
    return false;
  }

  [Symbol.dispose](): void {
    this.isUp = false;
    this.#session[Symbol.dispose]();
    // Memory that was given belongs to whoever gave it.
    if (this.#ownsMemory) this.#memory[Symbol.dispose]();
  }
}
