/**
 * A virtio network card (VIRTIO 1.2, section 5.1): one queue pair, a control queue, a network port.
 *
 * Theory of operation. What each queue does with a batch (queue_device.ts has the rest):
 *
 *     transmit: pop buffers of queue 1 -> port.send -> complete; sleeps until the driver kicks,
 *               or, when the port is full, until it is writable
 *     receive:  port has a frame -> pop buffers of queue 0 -> port.receive -> complete;
 *               sleeps until the port is readable, or, when buffers lack, until the driver kicks
 *     control:  pop a command of queue 2 -> carry it out -> write its outcome -> complete
 *
 * Offloads are the port's: the virtio-net header goes through unchanged, and no checksum is computed here.
 * Buffers are used in the order they came, which is what makes a restarted device able to go on.
 *
 * Buffers are popped many at once. Those for receiving are kept until frames come. Which receive function runs, for one buffer a frame or for several (MRG_RXBUF), is chosen with the features.
 */

import {
  NET_HEADER_SIZE,
  NetConfig,
  NetStatus,
  NUM_BUFFERS_OFFSET,
} from "../../virtio/net_header.ts";
import type { Reactor } from "../../linux/reactor.ts";
import type { IovecList } from "../../memory/mod.ts";
import type { NetworkPort } from "../../network/port.ts";
import { counterShape } from "../../observe/counters.ts";
import type { Answer, DeviceHost, QueueSetup } from "../../virtio/device.ts";
import { DEVICE_NET, NetFeature } from "../../virtio/features.ts";
import { Chain, ChainBatch, ChainSequence, type DeviceQueue } from "../../virtio/split/mod.ts";
import { BATCH, type Batch, popOrAsk, QueueDevice, take } from "../queue_device.ts";
import { type ControlTarget, GUEST_OFFLOADS, runCommand } from "./control_queue.ts";
import { macKey, ReceiveFilter } from "./receive_filter.ts";

const RECEIVE = 0;
const TRANSMIT = 1;
/** Buffers for frames are popped so many at once, and those that are not needed now are kept. */
const AHEAD = 16;
/** As many as one system call takes. */
const MAX_SEGMENTS = 1024;
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
];

/** What the device is. */
export interface NetDeviceOptions {
  /** Six bytes. */
  readonly mac: Uint8Array;
  /** The largest payload of a frame, in bytes. */
  readonly mtu: number;
  /** What its counters are called; what the port is, unless given. */
  readonly name?: string;
}

/** What went through a card, and what could not. */
export interface NetCounters {
  /** Batches of any queue. */
  batches: number;
  /** Frames the driver got. */
  received: number;
  /** Frames the driver sent. */
  transmitted: number;
  /** Frames that were dropped because the driver's buffer was too small. */
  tooLong: number;
  /** Frames the driver did not want. */
  filtered: number;
  /** Commands of the control queue. */
  commands: number;
  /** Those of them that were refused. */
  refusedCommands: number;
}

const CardCounters = counterShape<keyof NetCounters>(
  "batches",
  "received",
  "transmitted",
  "tooLong",
  "filtered",
  "commands",
  "refusedCommands",
);

/** See the head of this file. */
export class NetDevice extends QueueDevice {
  /** What it has done. */
  declare readonly counters: NetCounters;
  readonly #chain = new Chain();
  readonly #sent = new ChainBatch(BATCH, MAX_SEGMENTS);
  /** Buffers for frames, of which those from `#nextBuffer` on are unused. */
  readonly #buffers = new ChainBatch(AHEAD, MAX_SEGMENTS);
  #nextBuffer = 0;
  readonly #sequence = new ChainSequence();
  #filter = new ReceiveFilter();
  readonly #configView = new DataView(this.config.buffer);
  readonly #ownMac: Uint8Array;
  #receive: Batch = this.#receiveSingle;

  /** Makes a card on a port that is not open yet; the device owns the port. */
  constructor(reactor: Reactor, readonly port: NetworkPort, options: NetDeviceOptions) {
    const switchable = port.features.some((bit) => GUEST_OFFLOADS.includes(bit));
    super(reactor, {
      deviceId: DEVICE_NET,
      features: [
        ...OFFERED,
        ...port.features,
        ...(switchable ? [NetFeature.CTRL_GUEST_OFFLOADS] : []),
      ],
      config: new Uint8Array(NetConfig.SIZE),
      queues: [
        (queue, budget) => this.#receive(queue, budget),
        (queue, budget) => this.#transmit(queue, budget),
        (queue, budget) => this.#control(queue, budget),
      ],
      counters: new CardCounters("device", options.name ?? `net, ${port.description}`),
    });
    this.#ownMac = options.mac.slice(0, 6);
    const config = this.#configView;
    config.setUint16(NetConfig.STATUS, NetStatus.LINK_UP, true);
    config.setUint16(NetConfig.PAIRS, 1, true);
    config.setUint16(NetConfig.MTU, options.mtu, true);
    config.setUint32(NetConfig.SPEED, SPEED, true);
    config.setUint8(NetConfig.DUPLEX, DUPLEX_FULL);
    this.#setMac(this.#ownMac);
  }

  #setMac(mac: Uint8Array): void {
    const changes = mac.some((byte, i) => this.config[i] !== byte);
    this.config.set(mac);
    this.#filter.ownKey = macKey(this.#configView.getUint16(0), this.#configView.getUint32(2));
    if (changes) this.host?.configChanged();
  }

  /** Opens the port too. */
  override connect(host: DeviceHost): void {
    super.connect(host);
    this.port.open({
      readable: () => this.wake(RECEIVE),
      writable: () => this.wake(TRANSMIT),
      link: (up) => this.#setStatusBit(NetStatus.LINK_UP, up),
    });
  }

  #setStatusBit(bit: number, on: boolean): void {
    const before = this.#configView.getUint16(NetConfig.STATUS, true);
    const status = on ? before | bit : before & ~bit;
    if (status === before) return;
    this.#configView.setUint16(NetConfig.STATUS, status, true);
    this.host.configChanged();
  }

  /** Starts over as a card that was reset. */
  override acceptFeatures(words: Uint32Array): boolean {
    super.acceptFeatures(words);
    this.#receive = this.has(NetFeature.MRG_RXBUF) ? this.#receiveMergeable : this.#receiveSingle;
    this.#setMac(this.#ownMac);
    // Asked of the driver before this one, which took the request with it.
    this.#setStatusBit(NetStatus.ANNOUNCE, false);
    this.#filter = new ReceiveFilter(this.#filter.ownKey, this.has(NetFeature.CTRL_VLAN));
    this.#controlTarget.filter = this.#filter;
    this.port.startOver?.();
    this.port.setFeatures?.(words);
    return true;
  }

  /** Opens a queue; one that ran before elsewhere makes the card announce itself. */
  override startQueue(index: number, setup: QueueSetup): string | undefined {
    const problem = super.startQueue(index, setup);
    if (problem !== undefined) return problem;
    // A device that goes on where another one was may be on another wire: the guest's neighbours shall
    // learn where it is now (5.1.6.5.4).
    const moved = index === TRANSMIT && setup.base !== 0;
    // Which VLANs the driver wants was told to the other device, on a control queue that nobody replays.
    // Filtering is best-effort (5.1.6.5.3): rather too many frames than none.
    if (moved) this.#filter.filtersVlans = false;
    if (moved && this.has(NetFeature.GUEST_ANNOUNCE)) this.#setStatusBit(NetStatus.ANNOUNCE, true);
    return undefined;
  }

  /** Gives back the buffers that are kept for the next frame too. */
  override stopQueue(index: number): Answer<number> {
    if (index === RECEIVE) {
      this.#sequence.clear();
      this.#buffers.clear();
      this.#nextBuffer = 0;
    }
    return super.stopQueue(index);
  }

  #transmit(queue: DeviceQueue, budget: number): boolean {
    const frames = this.#sent;
    let sent = 0, done = 0, count = 0;
    while (sent < budget && done === count) {
      count = popOrAsk(queue, frames, budget - sent);
      if (count === 0) break;
      for (done = 0; done < count; done++) {
        frames.selectReadable(done);
        if (!this.port.send(frames.readable)) break;
      }
      queue.completeOldest(done);
      queue.rewind(count - done);
      sent += done;
    }
    // Once for all of them, which is a nanosecond or two a frame.
    this.counters.transmitted += sent;
    return sent === budget;
  }

  #receiveSingle(queue: DeviceQueue, budget: number): boolean {
    const buffers = this.#buffers;
    const { writable } = buffers;
    let received = 0;
    let i = 0;
    for (; i < budget; i++) {
      const wanted = this.port.nextLength();
      if (wanted === 0) break;
      if (this.#nextBuffer === buffers.count) {
        this.#nextBuffer = 0;
        if (popOrAsk(queue, buffers, AHEAD) === 0) break;
      }
      // A buffer that a frame does not fill serves the next one.
      buffers.selectWritable(this.#nextBuffer);
      if (writable.length < wanted) {
        this.counters.tooLong++;
        this.port.discard();
        continue;
      }
      const length = this.port.receive(writable, 0);
      if (length < NET_HEADER_SIZE) break;
      if (this.#isFiltered(writable, 0)) continue;
      received++;
      this.#nextBuffer++;
      queue.complete(buffers.head, length);
    }
    this.counters.received += received;
    return i === budget;
  }

  #receiveMergeable(queue: DeviceQueue, budget: number): boolean {
    const buffers = this.#sequence;
    let received = 0;
    let i = 0;
    for (; i < budget; i++) {
      const wanted = this.port.nextLength();
      if (wanted === 0) break;
      if (!buffers.fill(queue, wanted, AHEAD) && !this.#fillAfterAsking(queue, wanted)) break;
      if (buffers.bytes < wanted) continue;
      const first = buffers.firstSegment;
      const length = this.port.receive(buffers.writable, first);
      if (length < NET_HEADER_SIZE) break;
      if (this.#isFiltered(buffers.writable, first)) continue;
      buffers.writable.setUint16(NUM_BUFFERS_OFFSET, buffers.buffersFor(length), first);
      received++;
      buffers.complete(queue, length);
    }
    this.counters.received += received;
    return i === budget;
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

  #control(queue: DeviceQueue, budget: number): boolean {
    const chain = this.#chain;
    for (let i = 0; i < budget; i++) {
      if (!take(queue, chain)) return false;
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
    has: (feature) => this.has(feature),
    setMac: (bytes) => this.#setMac(bytes),
    announced: () => this.#setStatusBit(NetStatus.ANNOUNCE, false),
    setGuestOffloads: (low, high) => {
      const wanted = new Uint32Array([low, high]);
      const allowed = GUEST_OFFLOADS.filter((bit) => this.has(bit));
      for (const bit of allowed) wanted[bit >> 5] &= ~(1 << (bit & 31));
      if (wanted.some((word) => word !== 0)) return false;
      const words = this.accepted.slice();
      for (const bit of allowed) {
        const word = bit < 32 ? low : high;
        if ((word & (1 << (bit & 31))) === 0) words[bit >> 5] &= ~(1 << (bit & 31));
      }
      this.port.setFeatures?.(words);
      return true;
    },
  };

  /** The ring was empty: asks for kicks and looks again; true if that brought buffers. */
  #fillAfterAsking(queue: DeviceQueue, wanted: number): boolean {
    const buffers = this.#sequence;
    if (queue.broken !== undefined || !queue.wantKicks()) return false;
    const held = buffers.buffers;
    if (buffers.fill(queue, wanted) || buffers.buffers > held) return true;
    if (queue.isSpent) return false;
    // There are buffers and none can be taken: the sequence is full of too small ones.
    queue.refuse("receive buffers are too small for a frame");
    return false;
  }

  /** Stops the queues and closes the port. */
  override [Symbol.dispose](): void {
    super[Symbol.dispose]();
    this.port[Symbol.dispose]();
  }
}
