/**
 * A virtio network card (VIRTIO 1.2, section 5.1): queue pairs, a control queue, a network port with a queue for each pair.
 *
 * Theory of operation. What a pair does with a batch is queue_pair.ts, the rest of a queue's life queue_device.ts. The
 * control queue follows the pairs, of which there is one unless the driver accepts several (MQ):
 *
 *     receive 0, transmit 0, receive 1, transmit 1, ... control:  pop a command -> carry it out -> write its outcome
 *
 * Frames are sent from every pair. They are received on as many as the driver has commanded, at first on one. A front end
 * of vhost-user keeps commands to itself, so no control queue runs; then the receive queues that run tell how many. Which
 * pair a frame is for is the port's to know (network/port.ts).
 *
 * The pairs behind the first are in threads of their own, as far as there are any and the port's queues can be lent to them
 * (pair_line.ts): where one of their queues starts decides for the pair, until none runs.
 *
 * Offloads are the port's: the virtio-net header goes through unchanged, and no checksum is computed here.
 * Buffers are used in the order they came, which is what makes a restarted device able to go on.
 */

import { NetConfig, NetStatus } from "../../virtio/net_header.ts";
import type { Fd } from "../../linux/fd.ts";
import type { Reactor, Task } from "../../linux/reactor.ts";
import type { NetworkPort } from "../../network/port.ts";
import { TapQueue } from "../../network/tap_queue.ts";
import { counterShape } from "../../observe/counters.ts";
import {
  type Answer,
  type DeviceHost,
  goesOn,
  type MemoryRegion,
  type QueueNotifier,
  type QueueSetup,
} from "../../virtio/device.ts";
import { DEVICE_NET, NetFeature } from "../../virtio/features.ts";
import { Chain, type DeviceQueue } from "../../virtio/queue/mod.ts";
import {
  type Batch,
  BATCH_COUNTERS,
  type BatchCounters,
  QueueDevice,
  take,
} from "../queue_device.ts";
import { type ControlTarget, GUEST_OFFLOADS, runCommand } from "./control_queue.ts";
import { FarPair, type PairLine } from "./pair_line.ts";
import { QueuePair } from "./queue_pair.ts";
import { macKey, ReceiveFilter } from "./receive_filter.ts";

const RECEIVE = 0;
const TRANSMIT = 1;
/** The most queue pairs of a card: as many queues as front ends may describe without asking, and each costs memory of ours. */
export const MAX_PAIRS = 8;
/** Mbit/s; what a TAP reports, since memory has no line rate. */
const SPEED = 10_000;
const DUPLEX_FULL = 1;
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
  /** How many queue pairs it has, 1 unless given; the port has as many queues. */
  readonly pairs?: number;
  /** To threads for the pairs behind the first; none unless given, and those that lack work in this one. */
  readonly lines?: readonly PairLine[];
  /** What its counters are called; what the port is, unless given. */
  readonly name?: string;
}

/** What went through a card, and what could not. */
export interface NetCounters extends BatchCounters {
  /** Frames the driver got. */
  received: number;
  /** Frames the driver sent. */
  transmitted: number;
  /** Bytes of the frames it received, without their virtio-net headers. */
  bytesReceived: number;
  /** The same of those it sent. */
  bytesTransmitted: number;
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
  ...BATCH_COUNTERS,
  "received",
  "transmitted",
  "bytesReceived",
  "bytesTransmitted",
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
  readonly #pairs: readonly QueuePair[];
  /** By pair, those in threads of their own. */
  readonly #far: (FarPair | undefined)[] = [];
  /** On how many of them the driver has commanded to receive. */
  #commanded: number | undefined;
  /** The same as commanded to another device, as far as its queues tell. */
  #inherited = 1;
  #isOver = false;
  #isPlugged = true;
  #hasNetwork = true;
  /** What each queue does, which depends on the features. */
  #work: readonly Batch[];
  readonly #steer: Task = { run: () => this.#setPortQueues() };
  readonly #card: { filter: ReceiveFilter; readonly counters: NetCounters };
  readonly #configView = new DataView(this.config.buffer);
  readonly #ownMac: Uint8Array;

  /** Makes a card on a port that is not open yet; the device owns the port. */
  constructor(reactor: Reactor, readonly port: NetworkPort, readonly options: NetDeviceOptions) {
    const { pairs = 1 } = options;
    const switchable = port.features.some((bit) => GUEST_OFFLOADS.includes(bit));
    super(reactor, {
      deviceId: DEVICE_NET,
      features: [
        ...OFFERED,
        ...port.features,
        ...(pairs > 1 ? [NetFeature.MQ] : []),
        ...(switchable ? [NetFeature.CTRL_GUEST_OFFLOADS] : []),
      ],
      config: new Uint8Array(NetConfig.SIZE),
      queues: Array.from(
        { length: 2 * pairs + 1 },
        (_, index) => (queue, budget) => this.#work[index]!(queue, budget),
      ),
      givesRoom: (index) => index % 2 === TRANSMIT,
      counters: new CardCounters("device", options.name ?? `net, ${port.description}`),
    });
    this.#ownMac = options.mac.slice(0, 6);
    this.#card = { filter: new ReceiveFilter(), counters: this.counters };
    const queues = port.queues ?? [port];
    this.#pairs = Array.from({ length: pairs }, (_, i) => new QueuePair(this.#card, queues[i]!));
    // For a driver that goes on to DRIVER_OK without any features.
    this.#work = this.#assign();
    const config = this.#configView;
    config.setUint16(NetConfig.STATUS, NetStatus.LINK_UP, true);
    config.setUint16(NetConfig.PAIRS, pairs, true);
    config.setUint16(NetConfig.MTU, options.mtu, true);
    config.setUint32(NetConfig.SPEED, SPEED, true);
    config.setUint8(NetConfig.DUPLEX, DUPLEX_FULL);
    this.#setMac(this.#ownMac);
  }

  #setMac(mac: Uint8Array): void {
    const changes = mac.some((byte, i) => this.config[i] !== byte);
    this.config.set(mac);
    this.#card.filter.ownKey = macKey(this.#configView.getUint16(0), this.#configView.getUint32(2));
    if (changes) this.host?.configChanged();
  }

  /** Opens the port too. */
  override connect(host: DeviceHost): void {
    super.connect(host);
    this.port.open({
      readable: (queue = 0) => this.wake(2 * queue + RECEIVE),
      writable: (queue = 0) => this.wake(2 * queue + TRANSMIT),
      link: (up) => {
        this.#hasNetwork = up;
        this.#setLink();
      },
    });
    this.options.lines?.forEach((line, i) => this.#connectPair(i + 1, line));
  }

  #connectPair(pair: number, line: PairLine): void {
    const { options, port, reactor } = this;
    const queue = port.queues?.[pair];
    if (!(queue instanceof TapQueue)) return;
    const name = `${options.name ?? port.description}, pair ${pair}`;
    this.#far[pair] = new FarPair(line, reactor, queue, name, {
      used: (side) => this.host.used(2 * pair + side),
      needsReset: (reason) => this.host.needsReset(`queue pair ${pair}: ${reason}`),
    });
  }

  /** The thread of a queue that runs there. */
  #farOf(index: number): FarPair | undefined {
    const far = this.#far[index >> 1];
    return far?.runs(index & 1) === true ? far : undefined;
  }

  /** Plugs the card's cable in, or pulls it: a driver that is told so sends nothing. It is in at first. */
  plug(isIn: boolean): void {
    this.#isPlugged = isIn;
    this.#setLink();
  }

  #setLink(): void {
    this.#setStatusBit(NetStatus.LINK_UP, this.#isPlugged && this.#hasNetwork);
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
    this.#work = this.#assign();
    this.#commanded = undefined;
    this.#inherited = 1;
    this.reactor.schedule(this.#steer);
    this.#setMac(this.#ownMac);
    // Asked of the driver before this one, which took the request with it.
    this.#setStatusBit(NetStatus.ANNOUNCE, false);
    const { ownKey } = this.#card.filter;
    this.#card.filter = new ReceiveFilter(ownKey, this.has(NetFeature.CTRL_VLAN));
    this.port.startOver?.();
    this.port.setFeatures?.(words);
    return true;
  }

  /** How many pairs the driver knows of. */
  get #known(): number {
    return this.has(NetFeature.MQ) ? this.#pairs.length : 1;
  }

  /** What each queue is for. Those behind the control queue, if the driver does not know of them, are for nothing. */
  #assign(): Batch[] {
    const mergeable = this.has(NetFeature.MRG_RXBUF);
    const work = this.#pairs.slice(0, this.#known).flatMap((pair): Batch[] => {
      pair.useMergeable(mergeable);
      return [
        (queue, budget) => pair.receive(queue, budget),
        (queue, budget) => pair.transmit(queue, budget),
      ];
    });
    work.push((queue, budget) => {
      const { commands } = this.counters;
      const more = this.#control(queue, budget);
      // Once for all of them, and before the driver sees that they are done.
      if (this.counters.commands !== commands) this.#tellPairs();
      return more;
    });
    while (work.length < this.queueCount) work.push(() => false);
    return work;
  }

  /** Tells the port on how many queues frames are received. */
  #setPortQueues(): boolean {
    if (this.#isOver) return false;
    let count = this.#commanded ?? this.#inherited;
    if (!this.runs(2 * this.#known)) {
      count = 1;
      while (count < this.#known && this.runs(2 * count + RECEIVE)) count++;
    }
    this.port.setQueues?.(count);
    return false;
  }

  /** Opens a queue where its pair is. */
  #open(index: number, setup: QueueSetup): string | undefined {
    const pair = index >> 1;
    const far = pair < this.#known ? this.#far[pair] : undefined;
    const isHere = super.runs(index ^ 1) || this.host.terms === undefined;
    if (far === undefined || isHere) return super.startQueue(index, setup);
    return far.start(index & 1, setup, this.accepted, this.#card.filter, this.host);
  }

  /** Also one that another thread has. */
  protected override runs(index: number): boolean {
    return super.runs(index) || this.#farOf(index) !== undefined;
  }

  /** Opens a queue; one that ran before elsewhere makes the card announce itself. */
  override startQueue(index: number, setup: QueueSetup): string | undefined {
    const problem = this.#open(index, setup);
    if (problem !== undefined) return problem;
    // A device that goes on where another one was may be on another wire: the guest's neighbours shall
    // learn where it is now (5.1.6.5.4).
    const moved = index === TRANSMIT && goesOn(setup);
    // So was how many pairs it uses: one that was used before counts.
    const pair = index >> 1;
    if (goesOn(setup) && pair < this.#known) {
      this.#inherited = Math.max(this.#inherited, pair + 1);
    }
    this.reactor.schedule(this.#steer);
    // Which VLANs the driver wants was told to the other device, on a control queue that nobody replays.
    // Filtering is best-effort (5.1.6.5.3): rather too many frames than none.
    if (moved) {
      this.#card.filter.filtersVlans = false;
      this.#tellPairs();
    }
    if (moved && this.has(NetFeature.GUEST_ANNOUNCE)) this.#setStatusBit(NetStatus.ANNOUNCE, true);
    return undefined;
  }

  /** Gives back the buffers that are kept for the next frame too. */
  override stopQueue(index: number): Answer<number> {
    if (index % 2 === RECEIVE) this.#pairs[index >> 1]?.forgetBuffers();
    this.reactor.schedule(this.#steer);
    return this.#farOf(index)?.stop(index & 1) ?? super.stopQueue(index);
  }

  /** See DeviceModel: receive buffers are kept. */
  holdsIn(region: MemoryRegion): number {
    const pair = this.#pairs.findIndex((pair) => pair.holdsIn(region));
    return pair < 0 ? -1 : 2 * pair + RECEIVE;
  }

  #tellPairs(): void {
    for (const far of this.#far) far?.tell(this.#card.filter);
  }

  /** Kicks the pair where it is. */
  override available(index: number): void {
    const far = this.#farOf(index);
    if (far === undefined) super.available(index);
    else far.available(index & 1);
  }

  /** Has all threads look. */
  override resume(): void {
    super.resume();
    for (const far of this.#far) far?.resume();
  }

  /** Shows it to all threads. */
  memoryAdded(regions: readonly MemoryRegion[]): undefined {
    for (const far of this.#far) far?.addMemory(regions);
  }

  /** Tells all threads. */
  termsChanged(): void {
    for (const far of this.#far) far?.setTerms(this.host.terms);
  }

  /** For a queue that another thread has. */
  takeNotifier(index: number, kick: Fd, call: Fd | undefined): QueueNotifier | undefined {
    return this.#farOf(index)?.takeNotifier(index & 1, kick, call);
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
    receiveFilter: () => this.#card.filter,
    has: (feature) => this.has(feature),
    setMac: (bytes) => this.#setMac(bytes),
    setPairs: (count) => {
      if (!this.has(NetFeature.MQ) || count < 1 || count > this.#pairs.length) return false;
      this.#commanded = count;
      this.#setPortQueues();
      return true;
    },
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

  /** Stops the queues and closes the port. */
  override [Symbol.dispose](): void {
    super[Symbol.dispose]();
    this.#isOver = true;
    for (const far of this.#far) far?.[Symbol.dispose]();
    this.port[Symbol.dispose]();
  }
}
