/**
 * A virtio network card (VIRTIO 1.2, section 5.1): one queue pair, a control queue, a network port.
 *
 * Theory of operation. One task a queue in the reactor, each working on one batch at a time.
 *
 *     transmit: pop buffers of queue 1 -> port.send -> complete; sleeps until the driver kicks
 *     receive:  port has a frame -> pop buffers of queue 0 -> port.receive -> complete;
 *               sleeps until the port is readable, or, when buffers lack, until the driver kicks
 *
 *     control:  pop a command of queue 2 -> carry it out -> write its outcome -> complete
 *
 * Frames for the guest pass the receive filter only when the driver has set one. Offloads are the port's:
 * the virtio-net header goes through unchanged, and no checksum is computed here.
 *
 * Each batch first asks whether the driver's memory may be touched (DRIVER_OK, lease); if not, the task
 * ends and `resume` starts it again. A batch publishes once and notifies at most once. Buffers are used in
 * the order they came, which is what makes a restarted device able to go on (design section 6).
 *
 * Which receive function runs, for one buffer a frame or for several (MRG_RXBUF), is chosen when the
 * features are accepted, not per frame.
 */

import { NET_HEADER_SIZE, NUM_BUFFERS_OFFSET } from "../../virtio/net_header.ts";
import type { Reactor, Task } from "../../linux/reactor.ts";
import { DEVICE_NET, hasFeature, NetFeature, RingFeature } from "../../virtio/features.ts";
import type { IovecList } from "../../memory/mod.ts";
import type { NetworkPort } from "../../network/port.ts";
import type { DeviceHost, DeviceModel, QueueSetup } from "../../virtio/device.ts";
import {
  Chain,
  ChainSequence,
  type DeviceQueue,
  openDeviceQueue,
  Pop,
} from "../../virtio/split/mod.ts";
import { type ControlTarget, GUEST_OFFLOADS, runCommand } from "./control_queue.ts";
import { macKey, ReceiveFilter } from "./receive_filter.ts";

/** Frames per task run; more would let requests wait. */
const BATCH = 64;
const RECEIVE = 0;
const TRANSMIT = 1;
const CONTROL = 2;
/** As large as QEMU allows; a front end chooses less. */
const MAX_QUEUE_SIZE = 1024;
/** The vendor id of every QEMU device, which drivers expect (wire document 1.6). */
const VENDOR_ID = 0x554d4551;
const STATUS_LINK_UP = 1;
const STATUS_ANNOUNCE = 2;
/** struct virtio_net_config: mac, u16 status, u16 max_virtqueue_pairs, u16 mtu, u32 speed, u8 duplex. */
const CONFIG_SIZE = 17;
const CONFIG_STATUS = 6;
const CONFIG_PAIRS = 8;
const CONFIG_MTU = 10;
const CONFIG_SPEED = 12;
const CONFIG_DUPLEX = 16;
/** Mbit/s; what a TAP reports, since memory has no line rate. */
const SPEED = 10_000;
const DUPLEX_FULL = 1;
/** Where destination and VLAN tag lie in a frame that follows its header. */
const DESTINATION = NET_HEADER_SIZE;
const ETHERTYPE = NET_HEADER_SIZE + 12;
const ETHERTYPE_VLAN = 0x8100;

const OFFERED = [
  NetFeature.MAC,
  NetFeature.STATUS,
  NetFeature.MTU,
  NetFeature.MRG_RXBUF,
  NetFeature.SPEED_DUPLEX,
  NetFeature.CTRL_VQ,
  NetFeature.CTRL_RX,
  NetFeature.CTRL_RX_EXTRA,
  NetFeature.CTRL_VLAN,
  NetFeature.CTRL_MAC_ADDR,
  NetFeature.GUEST_ANNOUNCE,
  RingFeature.INDIRECT_DESC,
  RingFeature.EVENT_IDX,
  RingFeature.RING_RESET,
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

/** See the head of this file. */
export class NetDevice implements DeviceModel {
  readonly deviceId: number = DEVICE_NET;
  /** That of every QEMU device. */
  readonly vendorId: number = VENDOR_ID;
  readonly features: Uint32Array = new Uint32Array(2);
  readonly configSize: number = CONFIG_SIZE;
  /** Receive, transmit, control. */
  readonly queueCount: number = 3;
  readonly maxQueueSize: number = MAX_QUEUE_SIZE;
  /** What went through, and what could not. */
  readonly counters = {
    received: 0,
    transmitted: 0,
    tooLong: 0,
    filtered: 0,
    commands: 0,
    refusedCommands: 0,
    batches: 0,
  };
  readonly #chain = new Chain();
  readonly #sequence = new ChainSequence();
  readonly #receiveTask: Task = { run: () => this.#guarded(RECEIVE) };
  readonly #transmitTask: Task = { run: () => this.#guarded(TRANSMIT) };
  readonly #controlTask: Task = { run: () => this.#guarded(CONTROL) };
  readonly #filter = new ReceiveFilter();
  readonly #config = new Uint8Array(CONFIG_SIZE);
  readonly #configView = new DataView(this.#config.buffer);
  readonly #ownMac: Uint8Array;
  #host!: DeviceHost;
  #queues: (DeviceQueue | undefined)[] = [undefined, undefined, undefined];
  #accepted = new Uint32Array(2);
  #eventIndex = false;
  #indirect = false;
  #receiveBatch: (queue: DeviceQueue) => boolean = this.#receiveSingle;

  /** Makes a card on a port that is not open yet; the device owns the port. */
  constructor(
    readonly reactor: Reactor,
    readonly port: NetworkPort,
    options: NetDeviceOptions,
  ) {
    for (const bit of [...OFFERED, ...port.features]) this.features[bit >> 5] |= 1 << (bit & 31);
    if (port.features.some((bit) => GUEST_OFFLOADS.includes(bit))) {
      this.features[0] |= 1 << NetFeature.CTRL_GUEST_OFFLOADS;
    }
    this.#ownMac = options.mac.slice(0, 6);
    const config = this.#configView;
    config.setUint16(CONFIG_STATUS, STATUS_LINK_UP, true);
    config.setUint16(CONFIG_PAIRS, 1, true);
    config.setUint16(CONFIG_MTU, options.mtu, true);
    config.setUint32(CONFIG_SPEED, SPEED, true);
    config.setUint8(CONFIG_DUPLEX, DUPLEX_FULL);
    this.#setMac(this.#ownMac);
  }

  #setMac(mac: Uint8Array): void {
    this.#config.set(mac);
    this.#filter.ownKey = macKey(this.#configView.getUint16(0), this.#configView.getUint32(2));
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
    this.#setStatusBit(STATUS_LINK_UP, up);
  }

  #setStatusBit(bit: number, on: boolean): void {
    const before = this.#configView.getUint16(CONFIG_STATUS, true);
    const status = on ? before | bit : before & ~bit;
    if (status === before) return;
    this.#configView.setUint16(CONFIG_STATUS, status, true);
    this.#host.configChanged();
  }

  acceptFeatures(words: Uint32Array): boolean {
    this.#accepted = words.slice();
    this.#eventIndex = hasFeature(words, RingFeature.EVENT_IDX);
    this.#indirect = hasFeature(words, RingFeature.INDIRECT_DESC);
    this.#receiveBatch = hasFeature(words, NetFeature.MRG_RXBUF)
      ? this.#receiveMergeable
      : this.#receiveSingle;
    this.#setMac(this.#ownMac);
    // Asked of the driver before this one, which took the request with it.
    this.#setStatusBit(STATUS_ANNOUNCE, false);
    this.#filter.reset(this.#filter.ownKey);
    this.#filter.filtersVlans = hasFeature(words, NetFeature.CTRL_VLAN);
    this.port.startOver?.();
    this.port.setFeatures(words);
    return true;
  }

  readConfig(offset: number, length: number): Uint8Array {
    return this.#config.subarray(offset, offset + length);
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
    // A device that goes on where another one was may be on another wire: the guest's neighbours shall
    // learn where it is now (5.1.6.5.4).
    const moved = index === TRANSMIT && setup.base !== 0;
    // Which VLANs the driver wants was told to the other device, on a control queue that nobody replays.
    // Filtering is best-effort (5.1.6.5.3): rather too many frames than none.
    if (moved) this.#filter.filtersVlans = false;
    if (moved && hasFeature(this.#accepted, NetFeature.GUEST_ANNOUNCE)) {
      this.#setStatusBit(STATUS_ANNOUNCE, true);
    }
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
    if (index === TRANSMIT) this.reactor.schedule(this.#transmitTask);
    else if (index === RECEIVE) this.reactor.schedule(this.#receiveTask);
    else this.reactor.schedule(this.#controlTask);
  }

  resume(): void {
    for (const index of [RECEIVE, TRANSMIT, CONTROL]) this.available(index);
  }

  /** One batch of a queue, if there is one and its memory may be touched. */
  #guarded(index: number): boolean {
    const queue = this.#queues[index];
    if (queue === undefined || !this.#host.mayTouchMemory()) return false;
    this.counters.batches++;
    const more = this.#batch(index, queue);
    if (queue.publish()) this.#host.used(index);
    if (queue.broken === undefined) return more;
    this.#host.needsReset(`queue ${index}: ${queue.broken}`);
    return false;
  }

  #batch(index: number, queue: DeviceQueue): boolean {
    if (index === TRANSMIT) return this.#transmit(queue);
    return index === RECEIVE ? this.#receiveBatch(queue) : this.#control(queue);
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
      if (this.#isFiltered(chain.writable, 0)) {
        queue.rewind(1);
        continue;
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
      if (this.#isFiltered(buffers.writable, first)) continue;
      buffers.writable.setUint16(NUM_BUFFERS_OFFSET, buffers.buffersFor(length), first);
      this.counters.received++;
      buffers.complete(queue, length);
    }
    return true;
  }

  /** A frame the driver does not want; its buffers serve the next one. */
  #isFiltered(frame: IovecList, first: number): boolean {
    return !this.#filter.acceptsAll && this.#isRefused(frame, first);
  }

  #isRefused(frame: IovecList, first: number): boolean {
    const u16 = (at: number) => (frame.getUint8(at, first) << 8) | frame.getUint8(at + 1, first);
    const high = u16(DESTINATION);
    const low = u16(DESTINATION + 2) * 0x1_0000 + u16(DESTINATION + 4);
    const vlan = u16(ETHERTYPE) === ETHERTYPE_VLAN ? u16(ETHERTYPE + 2) & 0xfff : -1;
    if (this.#filter.accepts(high, low, vlan)) return false;
    this.counters.filtered++;
    return true;
  }

  #control(queue: DeviceQueue): boolean {
    const chain = this.#chain;
    for (let i = 0; i < BATCH; i++) {
      const outcome = queue.next(chain);
      if (outcome === Pop.EMPTY) {
        if (queue.wantKicks()) continue;
        return false;
      }
      if (outcome !== Pop.CHAIN) return false;
      const done = runCommand(chain.readable, this.#controlTarget);
      this.counters.commands++;
      if (!done) this.counters.refusedCommands++;
      const written = chain.writable.setUint8(0, done ? 0 : 1) ? 1 : 0;
      queue.complete(chain.head, written);
    }
    return true;
  }

  readonly #controlTarget: ControlTarget = {
    filter: this.#filter,
    has: (feature) => hasFeature(this.#accepted, feature),
    setMac: (bytes) => this.#setMac(bytes),
    announced: () => this.#setStatusBit(STATUS_ANNOUNCE, false),
    setGuestOffloads: (low, high) => {
      const wanted = new Uint32Array([low, high]);
      const allowed = GUEST_OFFLOADS.filter((bit) => hasFeature(this.#accepted, bit));
      for (const bit of allowed) wanted[bit >> 5] &= ~(1 << (bit & 31));
      if (wanted.some((word) => word !== 0)) return false;
      const words = this.#accepted.slice();
      for (const bit of allowed) {
        const word = bit < 32 ? low : high;
        if ((word & (1 << (bit & 31))) === 0) words[bit >> 5] &= ~(1 << (bit & 31));
      }
      this.port.setFeatures(words);
      return true;
    },
  };

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

  /** Stops the queues and closes the port. */
  [Symbol.dispose](): void {
    for (const index of this.#queues.keys()) this.stopQueue(index);
    this.port[Symbol.dispose]();
  }
}
