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
 * Each queue pair is a driver_pair.ts. Where the device has several, and as many are wanted, it is commanded to use them
 * (driver_commands.ts) as soon as it is up; before that only the first is used.
 */

import { NetConfig, NetStatus } from "../../virtio/net_header.ts";
import { VmsgError } from "../../linux/errors.ts";
import type { Reactor } from "../../linux/reactor.ts";
import { DEVICE_NET, featureNames, hasFeature, NetFeature, Status } from "../../virtio/features.ts";
import type { IovecList } from "../../memory/mod.ts";
import { counterShape } from "../../observe/counters.ts";
import type { Log } from "../../observe/log.ts";
import { Descriptors } from "../../sharing/descriptors.ts";
import { type DriverMemory, ownMemory } from "../../sharing/driver_memory.ts";
import type { DriverSide, PeerListener } from "../../transport/driver_side.ts";
import type { RemoteDevice } from "../../transport/remote_device.ts";
import { PeerLost } from "../../transport/requests.ts";
import { Session } from "../session.ts";
import { KICK_COUNTERS } from "../kicks.ts";
import { chooseFeatures, type RingFormat, ringTerms } from "../own_features.ts";
import type { WantedRing } from "../wanted.ts";
import { COMMANDS_SIZE, DriverCommands } from "./driver_commands.ts";
import { DriverPair, type PairOwner } from "./driver_pair.ts";
import { driverMemorySize, shareOf } from "./net_buffers.ts";

/** What is taken if offered, besides what rings have. */
const WANTED = [NetFeature.MAC, NetFeature.STATUS, NetFeature.MTU, NetFeature.MRG_RXBUF];

export interface NetDriverOptions {
  /** Where rings and buffers go, the caller's own; otherwise the driver makes its own memory. */
  readonly memory?: DriverMemory | undefined;
  /** Offload features that whoever uses the driver can handle; none unless given. */
  readonly offloads?: readonly number[];
  /** How many queue pairs to use if the device has as many; 1 unless given. */
  readonly pairs?: number | undefined;
  /** The format of the rings; split unless given. */
  readonly rings?: RingFormat | undefined;
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
  frame(frame: IovecList, pair: number): boolean;
  /** A transmit buffer of a pair is free after {@link DriverPair.claim} found none. */
  writable(pair: number): void;
  /** So many pairs are used from here on; one since it is up. */
  pairs?(count: number): void;
}

const DriverCounters = counterShape(
  "received",
  "sent",
  "bytesReceived",
  "bytesSent",
  ...KICK_COUNTERS,
  "badQueues",
);

/** See the head of this file. */
export class NetDriver implements PeerListener, PairOwner, Disposable {
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
  /** Those there is memory for. */
  readonly pairs: readonly DriverPair[];
  readonly #commands: DriverCommands | undefined;
  /** How many pairs are used of the device that is there, and which queue commands them. */
  #given = { count: 1, control: 0 };
  #rings: readonly WantedRing[] = [];
  terms: PairOwner["terms"] = { ...ringTerms(new Uint32Array(2)), mergeable: false };
  /** What is wanted of the device; nothing before it is known. */
  #wanted: Uint32Array | undefined;
  /** What becomes of a bring-up that fails: it ends the loop, unless somebody else takes it. */
  failed: (error: unknown) => void = (error) => this.reactor.fail(error);
  readonly #offloads: readonly number[];
  readonly #format: RingFormat;
  /** Of the configuration as it was read last. */
  #generation = 0;
  #reads = false;

  /** Makes room for rings and buffers; the bring-up begins when the device side is there. */
  constructor(
    readonly reactor: Reactor,
    readonly side: DriverSide,
    readonly number: number,
    readonly listener: NetDriverListener,
    readonly log: Log,
    options: NetDriverOptions = {},
  ) {
    const { memory, offloads = [], pairs = 1, rings = "split" } = options;
    this.#format = rings;
    this.counters = new DriverCounters("driver", `device ${number}`);
    this.#offloads = offloads;
    this.#ownsMemory = memory === undefined;
    this.#memory = memory ?? ownMemory(driverMemorySize(pairs));
    this.#device = side.device(number);
    const commands = pairs === 1 ? 0 : COMMANDS_SIZE;
    this.pairs = Array.from(
      { length: pairs },
      (_, i) => new DriverPair(this, i, shareOf(this.#memory, commands, i, pairs)),
    );
    if (pairs > 1) {
      this.#commands = new DriverCommands(
        reactor,
        { ...this.#memory, size: commands },
        (queue) => this.available(queue),
      );
    }
    this.#session = this.#openSession(log);
    this.#device.listen(this);
  }

  #openSession(log: Log): Session {
    const wanted = () => this.#wanted;
    const rings = () => this.#rings;
    const owner = {
      get features() {
        return wanted();
      },
      regions: this.#memory.regions,
      get rings() {
        return rings();
      },
      mayRun: true,
      beginsAnew: true,
      known: () => this.#known(),
      configChanged: (status: number) => this.#configChanged(status),
    };
    const { reactor } = this;
    const device = this.#device;
    const sharing = new Descriptors(device, true);
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
        if (!(error instanceof PeerLost)) this.failed(error);
      }
    });
  }

  lost(reason: string): void {
    this.#down(reason);
    this.#session.lost();
  }

  #down(reason: string): void {
    this.#wanted = undefined;
    this.#commands?.lost();
    if (!this.isUp) return;
    this.isUp = false;
    this.listener.down(reason);
  }

  async #bringUp(): Promise<void> {
    await this.#session.bringUp();
    // Lost meanwhile: the next device side has a bring-up of its own.
    if (this.isUp || !this.#session.told.driverOk) return;
    this.isUp = true;
    for (const pair of this.pairs) pair.resume();
    this.listener.up();
    await this.#usePairs();
  }

  received(pair: number, frame: IovecList): boolean {
    return this.listener.frame(frame, pair);
  }

  writable(pair: number): void {
    this.listener.writable(pair);
  }

  available(queue: number): void {
    this.#session.available(queue);
  }

  broke(queue: number, why: string): void {
    this.counters.badQueues++;
    this.log.warn(`queue ${queue}: ${why}`);
    this.#down("the device broke a queue");
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
    this.terms = { ...ringTerms(accepted), mergeable: hasFeature(accepted, NetFeature.MRG_RXBUF) };
    // A driver may read before it accepts (VIRTIO 1.2, 3.1.1 step 4).
    await this.#readConfig();
    await this.#findPairs();
    this.#wanted = accepted;
  }

  /** How many pairs the device has, and where its control queue is then (5.1.2). */
  async #findPairs(): Promise<void> {
    this.#given = { count: 1, control: 0 };
    if (hasFeature(this.accepted, NetFeature.MQ)) {
      const [low, high] = await this.#device.config(NetConfig.PAIRS, 2);
      const most = low! | high! << 8;
      this.#given = { count: Math.min(this.pairs.length, Math.max(1, most)), control: 2 * most };
    }
    const { count, control } = this.#given;
    this.#rings = this.#ringsOf(count, control);
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
    const queues = this.pairs.length > 1 ? [NetFeature.MQ, NetFeature.CTRL_VQ] : [];
    const wanted = [...WANTED, ...queues, ...this.#offloads];
    return chooseFeatures(this.#device.number, offered, wanted, this.#format);
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

  /** The rings of the pairs that this device has, and its control queue if it has several. */
  #ringsOf(pairs: number, control: number): readonly WantedRing[] {
    const rings = this.pairs.slice(0, pairs).flatMap((pair) => pair.rings);
    return pairs === 1 ? rings : [...rings, this.#commands!.ring(control, this.terms)];
  }

  /** Asks the device to use all pairs; one that refuses uses the first. */
  async #usePairs(): Promise<void> {
    const { count, control } = this.#given;
    if (count === 1) return;
    if (await this.#commands!.setPairs(control, count)) this.listener.pairs?.(count);
    else if (this.isUp) this.log.warn(`device ${this.#device.number} refuses ${count} queue pairs`);
  }

  /** Frames are looked for on a pair: the one that was refused may be taken now. */
  resume(pair = 0): void {
    this.pairs[pair]!.resume();
  }

  /** {@link DriverPair.claim} of the first pair. */
  claim(): boolean {
    return this.pairs[0]!.claim();
  }

  /** {@link DriverPair.frame} of the first pair. */
  get frame(): Uint8Array {
    return this.pairs[0]!.frame;
  }

  /** {@link DriverPair.send} of the first pair. */
  send(length: number): void {
    this.pairs[0]!.send(length);
  }

  [Symbol.dispose](): void {
    this.isUp = false;
    this.#session[Symbol.dispose]();
    // Memory that was given belongs to whoever gave it.
    if (this.#ownsMemory) this.#memory[Symbol.dispose]();
  }
}
