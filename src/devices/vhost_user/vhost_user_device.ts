/**
 * A virtio device that lives in another process: a vhost-user front end behind the device door, for whatever speaks the other
 * end of the protocol (virtiofsd, vhost-device-*, qemu-storage-daemon, SPDK, DPDK).
 *
 * Theory of operation. What the driver side has said (features, memory, rings) is kept here, and the back end is told of it one
 * request after another. A back end comes and goes:
 *
 *     none --connects--> introduced --features, memory, rings--> served --hangs up, is cut--> none, tried again with back-off
 *
 * While there is none every question is answered from what is known, and a back end that comes is told everything; the
 * driver notices a pause. What it was told must still be so: a back end that offers less than the driver has accepted is given
 * no ring, and the device needs a reset. The first one says what the device is, so nothing is known before it has come
 * ({@link VhostUserDevice.ready}).
 *
 * Where a ring goes on whose back end died. With INFLIGHT_SHMFD the back end writes down which buffers it has not completed,
 * in a file that we keep for its successor, which does them again. Without, we know it (ring.ts): where it is not just the
 * last ones, the successor begins with a ring of ours in which they stand (second_chance.ts).
 *
 * A stop is GET_VRING_BASE. Back ends may still complete buffers when they have answered it, so it is waited until as many
 * have come back as were taken, for a while: a disk's requests do, buffers that a back end keeps do not. Memory is taken
 * back afterwards. A back end that does not answer in time has its connection cut, after which a sound one touches nothing
 * any more; one that is not sound cannot be held to that, nor to the lease (docs/security.md).
 */

import type { Block } from "../../linux/arena.ts";
import { VmsgError } from "../../linux/errors.ts";
import { mapAnonymous, type Mapping } from "../../linux/mapping.ts";
import type { Reactor, Timer } from "../../linux/reactor.ts";
import { connectUnix, type UnixStream } from "../../linux/unix_socket.ts";
import type { MemoryRegion } from "../../memory/mod.ts";
import { TranslatedSpace } from "../../memory/translated_space.ts";
import { counterShape } from "../../observe/counters.ts";
import { limitedLog, type Log } from "../../observe/log.ts";
import { MESSAGE_BUFFER_SIZE } from "../../vhost_user/connection.ts";
import {
  type Answer,
  type DeviceHost,
  type DeviceModel,
  type QueueSetup,
  VENDOR_ELSEWHERE,
} from "../../virtio/device.ts";
import { DEVICE_NET, hasFeature, RingFeature, Status } from "../../virtio/features.ts";
import { BackEnd, BackEndLost, type Inflight, type Introduction, shown } from "./back_end.ts";
import { ConfigSpace } from "./config_space.ts";
import { type DeviceType, typeOf } from "./device_types.ts";
import { areAmong, offeredFeatures, passedOn, withoutOwn } from "./passed_on.ts";
import { openRing, type Ring } from "./ring.ts";
import { SecondChances } from "./second_chance.ts";

/** For all that one question of the driver side needs of a back end; less than the device may take. */
const ANSWER_MS = 3000;
/** How long buffers that were taken may still come back after a stop, and how often it is looked. */
const DRAIN_MS = 1000;
const LOOK_MS = 2;
/** Pauses between attempts to connect. */
const FIRST_PAUSE_MS = 50;
const LAST_PAUSE_MS = 2000;
/** One that was served so long is looked for without a long pause. */
const GOOD_MS = 5000;
/** Between lines about what a back end asks for. */
const COMPLAINT_MS = 10_000;
/** As many as a network card with 64 pairs and control has. */
const MAX_QUEUES = 129;

const NEGOTIATED = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK;

/** What the device is, as far as its back end does not say. */
export interface VhostUserOptions {
  /** Where the back end listens. */
  readonly socket: string;
  /** The virtio device id. */
  readonly deviceId: number;
  /** How many queues; as many as the back end says, or its kind of device has, unless given. */
  readonly queues?: number | undefined;
  /** The most entries of a queue; no back end says. */
  readonly queueSize: number;
  /** The configuration space, instead of the back end's. */
  readonly config?: Uint8Array | undefined;
  /** What its counters are called. */
  readonly name: string;
}

const VhostUserCounters = counterShape("kicks", "calls", "connections", "refused", "repeated");

function blockOf({ address, buffer }: Mapping, offset: number, size: number): Block {
  return {
    address: address + BigInt(offset),
    bytes: new Uint8Array(buffer, offset, size),
    view: new DataView(buffer, offset, size),
  };
}

/** See the head of this file. */
export class VhostUserDevice implements DeviceModel {
  readonly deviceId: number;
  readonly vendorId: number = VENDOR_ELSEWHERE;
  readonly features: Uint32Array = new Uint32Array(2);
  readonly maxQueueSize: number;
  readonly outOfOrder = true;
  /** What the device has done. */
  readonly counters: InstanceType<typeof VhostUserCounters>;
  /** Resolves when a back end has come, and it is known what the device is. */
  readonly ready: Promise<void>;
  readonly #type: DeviceType;
  #known: (() => void) | undefined;
  #host: DeviceHost | undefined;
  readonly #config: ConfigSpace;
  /** By index; those that the driver has set up. */
  #rings: (Ring | undefined)[] = [];
  /** What the driver accepted; undefined before, and after a reset. */
  #accepted: Uint32Array | undefined;
  #regions: MemoryRegion[] = [];
  /** Shown to the back end that is there, by queue. */
  readonly #chances = new SecondChances();
  #inflight: Inflight | undefined;
  /** Who has been given that. */
  #inflightOf: BackEnd | undefined;
  /** The one that is served: it knows all of the above. */
  #backEnd: BackEnd | undefined;
  /** The one that there is a connection to. */
  #connected: BackEnd | undefined;
  /** No back end is given rings, until a reset. */
  #isUnfit = false;
  #last: Promise<unknown> = Promise.resolve();
  #isOver = false;
  readonly #retry: Timer;
  #pauseMs = FIRST_PAUSE_MS;
  #servedMs = Infinity;
  #told = "";
  readonly #complain: (line: string) => void;
  readonly #memory = mapAnonymous(2 * MESSAGE_BUFFER_SIZE);
  readonly #buffers: readonly [Block, Block];

  /** Looks for the back end from here on. */
  constructor(
    readonly reactor: Reactor,
    readonly options: VhostUserOptions,
    readonly log: Log,
  ) {
    this.deviceId = options.deviceId;
    this.maxQueueSize = options.queueSize;
    this.#type = typeOf(options.deviceId);
    this.#config = new ConfigSpace(this.#type, options.config);
    this.counters = new VhostUserCounters("device", options.name);
    this.#buffers = [
      blockOf(this.#memory, 0, MESSAGE_BUFFER_SIZE),
      blockOf(this.#memory, MESSAGE_BUFFER_SIZE, MESSAGE_BUFFER_SIZE),
    ];
    const { promise, resolve } = reactor.defer<void>();
    this.ready = promise;
    this.#known = () => resolve();
    this.#retry = reactor.timer(() => this.#connect());
    this.#complain = limitedLog(log.warn, reactor, COMPLAINT_MS);
    this.#connect();
  }

  get configSize(): number {
    return this.#config.bytes.length;
  }

  get queueCount(): number {
    return this.#rings.length;
  }

  get #name(): string {
    return `back end ${this.options.socket}`;
  }

  connect(host: DeviceHost): void {
    this.#host = host;
  }

  // --- the back end comes and goes ---------------------------------------------------------------

  #connect(): void {
    let stream: UnixStream | undefined;
    try {
      stream = connectUnix(this.options.socket);
    } catch (error) {
      return this.#again((error as Error).message);
    }
    if (stream === undefined) return this.#again("nobody listens");
    const backEnd = new BackEnd(stream, this.reactor, this.#buffers, {
      lost: (reason) => this.#lost(backEnd, reason),
      configChanged: () => this.#configIsStale(),
      refused: (request) => this.#complain(`${this.#name} asks for ${request}, and is refused`),
    });
    this.#connected = backEnd;
    this.reactor.spawn(() =>
      this.#exclusively(async () => {
        const problem = await this.#attempt(backEnd, () => this.#serve(backEnd));
        if (problem !== undefined) backEnd.cut(problem);
      })
    );
  }

  /** The connection to a back end has ended. */
  #lost(backEnd: BackEnd, reason: string): void {
    if (this.#isOver || this.#connected !== backEnd) return;
    if (this.reactor.now() - this.#servedMs >= GOOD_MS) this.#pauseMs = FIRST_PAUSE_MS;
    this.#backEnd = undefined;
    this.#connected = undefined;
    this.#servedMs = Infinity;
    for (const ring of this.#rings) ring?.leave();
    this.#chances.clear();
    backEnd[Symbol.dispose]();
    this.#again(reason);
  }

  #again(reason: string): void {
    if (this.#told !== reason) this.log.info(`${this.#name}: ${reason}; waits for it`);
    this.#told = reason;
    this.#retry.arm(this.#pauseMs);
    this.#pauseMs = Math.min(2 * this.#pauseMs, LAST_PAUSE_MS);
  }

  /** Brings a back end that has come to where the driver is. */
  async #serve(backEnd: BackEnd): Promise<void> {
    const found = await backEnd.introduce();
    const config = await this.#config.read(backEnd);
    this.counters.connections++;
    if (this.#known !== undefined) this.#learn(found, config);
    else if (!this.#isAsBefore(found, config)) this.#isUnfit = true;
    const rings = this.#isUnfit ? [] : this.#rings.filter((ring) => ring !== undefined);
    // Before it sees any memory, which it must not lose under a ring that runs.
    for (const ring of rings) this.#findChance(backEnd, ring);
    if (this.#regions.length > 0) await backEnd.showMemory(this.#table);
    if (!this.#isUnfit) {
      if (this.#accepted !== undefined) await this.#negotiate(backEnd, this.#accepted);
      for (const ring of rings) await this.#goOn(backEnd, ring);
    }
    this.#backEnd = backEnd;
    this.#servedMs = this.reactor.now();
    this.#told = "";
    this.log.info(`${this.#name}: it is there`);
    this.#known?.();
    this.#known = undefined;
  }

  /** The first back end says what the device is. */
  #learn({ features, queues }: Introduction, config: Uint8Array): void {
    const { options, deviceId } = this;
    if (!hasFeature(features, RingFeature.VERSION_1)) {
      throw new VmsgError("LEGACY", "it is a legacy device, without VERSION_1");
    }
    // Of a network card it counts pairs, and without commands the first is used.
    const most = deviceId === DEVICE_NET ? 2 : Math.min(queues ?? MAX_QUEUES, MAX_QUEUES);
    const count = options.queues ?? (queues === undefined ? this.#type.queues : most);
    if (count > most) {
      throw new VmsgError("QUEUES", `it has ${most} queues, ${count} are asked for`);
    }
    this.features.set(offeredFeatures(features, deviceId));
    this.#rings = Array.from({ length: Math.max(1, count) }, () => undefined);
    this.#config.set(config, this.queueCount);
  }

  /** May one that has come later stand in for the first? */
  #isAsBefore({ features, queues }: Introduction, config: Uint8Array): boolean {
    const { deviceId } = this;
    const needed = this.#accepted === undefined ? new Uint32Array(2) : withoutOwn(this.#accepted);
    const most = deviceId === DEVICE_NET ? 2 : queues ?? MAX_QUEUES;
    let lacks: string | undefined;
    if (!areAmong(needed, passedOn(features, deviceId))) {
      lacks = "lacks features that the driver uses";
    } else if (most < this.queueCount) lacks = `has ${most} queues, not ${this.queueCount}`;
    else if (config.length !== this.configSize) {
      lacks = `has ${config.length} bytes of configuration, not ${this.configSize}`;
    }
    if (lacks === undefined) {
      if (this.#config.set(config, this.queueCount)) this.#host?.configChanged();
      return true;
    }
    this.#host?.needsReset(`the ${this.#name} that came ${lacks}`);
    return false;
  }

  // --- one after another -------------------------------------------------------------------------

  /** Runs when all that was asked before is done. */
  #exclusively<T>(run: () => Promise<T>): Promise<T> {
    const next = this.#last.then(run);
    this.#last = next.catch(() => {});
    return next;
  }

  /**
   * Has a back end asked something, if there is one. That it is lost is no failure: the next one is told everything.
   *
   * @returns why it refuses
   */
  async #attempt(
    backEnd: BackEnd | undefined,
    run: (backEnd: BackEnd) => Promise<void>,
  ): Promise<string | undefined> {
    if (backEnd === undefined) return undefined;
    try {
      await backEnd.within(ANSWER_MS, () => run(backEnd));
      return undefined;
    } catch (error) {
      if (error instanceof BackEndLost) return undefined;
      if (!(error instanceof VmsgError)) throw error;
      this.counters.refused++;
      return error.message;
    }
  }

  // --- configuration -----------------------------------------------------------------------------

  #configIsStale(): void {
    this.reactor.spawn(() =>
      this.#exclusively(async () => {
        await this.#attempt(this.#backEnd, async (backEnd) => {
          if (await this.#config.refresh(backEnd)) this.#host?.configChanged();
        });
      })
    );
  }

  readConfig(offset: number, length: number): Uint8Array {
    return this.#config.bytes.subarray(offset, offset + length);
  }

  writeConfig(offset: number, bytes: Uint8Array): Answer<boolean> {
    if (this.#config.isFixed) return false;
    const copy = bytes.slice();
    return this.#exclusively(async () => {
      let isWritten = false;
      await this.#attempt(this.#backEnd, async (backEnd) => {
        await backEnd.writeConfig(offset, copy);
        await this.#config.refresh(backEnd);
        isWritten = true;
      });
      return isWritten;
    });
  }

  // --- features and status -----------------------------------------------------------------------

  acceptFeatures(words: Uint32Array): Answer<boolean> {
    const accepted = words.slice();
    return this.#exclusively(async () => {
      const problem = await this.#attempt(
        this.#backEnd,
        (backEnd) => this.#negotiate(backEnd, accepted),
      );
      if (problem === undefined) this.#accepted = accepted;
      else this.log.warn(`${this.#name}: ${problem}`);
      return problem === undefined;
    });
  }

  async #negotiate(backEnd: BackEnd, accepted: Uint32Array): Promise<void> {
    await backEnd.setStatus(Status.ACKNOWLEDGE | Status.DRIVER);
    await backEnd.setFeatures(withoutOwn(accepted));
    if (!await backEnd.setStatus(NEGOTIATED)) {
      throw new VmsgError("FEATURES_REFUSED", "it does not take the driver's features");
    }
    // What there is to read may depend on them.
    await this.#config.refresh(backEnd);
  }

  reset(): Answer<void> {
    return this.#exclusively(async () => {
      this.#accepted = undefined;
      this.#isUnfit = false;
      this.#inflight?.[Symbol.dispose]();
      this.#inflight = undefined;
      this.#inflightOf = undefined;
      const problem = await this.#attempt(this.#backEnd, (backEnd) => backEnd.reset());
      // As it is now it may not be what it was.
      if (problem !== undefined) this.#backEnd?.cut(problem);
    });
  }

  // --- memory ------------------------------------------------------------------------------------

  /** All that a back end is to see. */
  get #table(): MemoryRegion[] {
    return [...this.#regions, ...this.#chances.regions];
  }

  memoryAdded(regions: readonly MemoryRegion[]): Answer<string | undefined> {
    if (regions.some((region) => (shown(region)?.at ?? -1) < 0)) {
      return "it has no file that could be handed to a vhost-user back end";
    }
    return this.#exclusively(async () => {
      const before = this.#regions;
      this.#regions = [...before, ...regions];
      const problem = await this.#attempt(this.#backEnd, async (backEnd) => {
        if (this.#table.length > backEnd.maxRegions) {
          throw new VmsgError("REGIONS", `the back end takes ${backEnd.maxRegions} regions`);
        }
        await (backEnd.takesRegions
          ? backEnd.showMemory(regions)
          : backEnd.showMemory(this.#regions));
      });
      if (problem !== undefined) this.#regions = before;
      return problem;
    });
  }

  memoryRemoved(regions: readonly MemoryRegion[]): Answer<void> {
    return this.#exclusively(async () => {
      this.#regions = this.#regions.filter((region) => !regions.includes(region));
      const problem = await this.#attempt(this.#backEnd, async (backEnd) => {
        if (!backEnd.takesRegions) return await backEnd.showMemory(this.#table);
        for (const region of regions) await backEnd.removeRegion(region);
      });
      // It must not keep it.
      if (problem !== undefined) this.#backEnd?.cut(problem);
    });
  }

  // --- rings -------------------------------------------------------------------------------------

  startQueue(index: number, setup: QueueSetup): Answer<string | undefined> {
    const { memory } = this.#host!;
    if (this.#accepted === undefined) return "no features were agreed on";
    if (memory instanceof TranslatedSpace) {
      return "its addresses are to be translated, which vhost-user back ends are not asked to do";
    }
    return this.#exclusively(async () => {
      const ring = openRing(
        this.reactor,
        memory,
        index,
        setup,
        !hasFeature(this.#accepted!, RingFeature.IN_ORDER),
        {
          used: () => this.#used(index),
          wrong: () => this.#host!.needsReset(`queue ${index}: the back end reports an error`),
        },
      );
      if (typeof ring === "string") return ring;
      this.#rings[index] = ring;
      const problem = await this.#attempt(
        this.#isUnfit ? undefined : this.#backEnd,
        (backEnd) => this.#give(backEnd, ring, ring.begin),
      );
      if (problem !== undefined) this.#drop(ring);
      return problem;
    });
  }

  #used(index: number): void {
    this.counters.calls++;
    this.#host!.used(index);
    const chance = this.#chances.get(index);
    if (chance !== undefined && this.#rings[index]?.usedIndex === chance.end) {
      this.#chanceWasTaken(index);
    }
  }

  async #give(backEnd: BackEnd, ring: Ring, base: number): Promise<void> {
    await this.#shareInflight(backEnd);
    const { at: driverAddress = ring.setup.driverAddress } =
      this.#chances.get(ring.index)?.region ?? {};
    await backEnd.giveRing(ring.index, { ...ring.setup, driverAddress, base }, ring.events);
    ring.isGiven = true;
    if (this.#host!.mayTouchMemory()) await this.#enable(backEnd, ring);
  }

  async #shareInflight(backEnd: BackEnd): Promise<void> {
    this.#inflight ??= await backEnd.getInflight(this.queueCount, this.maxQueueSize);
    if (this.#inflight === undefined || this.#inflightOf === backEnd || !backEnd.writesInflight) {
      return;
    }
    await backEnd.setInflight(this.#inflight);
    this.#inflightOf = backEnd;
  }

  /** Work begins; what is there already is looked at. */
  async #enable(backEnd: BackEnd, ring: Ring): Promise<void> {
    await backEnd.enableRing(ring.index);
    ring.isEnabled = true;
    ring.kick();
  }

  // --- from one back end to the next -------------------------------------------------------------

  #findChance(backEnd: BackEnd, ring: Ring): void {
    const { index, isCounted } = ring;
    if (!isCounted || this.#inflight !== undefined && backEnd.writesInflight) return;
    const count = this.#chances.find(ring, this.#table, backEnd.maxRegions);
    if (count !== undefined) {
      this.counters.repeated += count;
      if (count > 0) {
        this.log.info(`${this.#name}: does ${count} buffers of queue ${index} once more`);
      }
      return;
    }
    this.#isUnfit = true;
    this.#host!.needsReset(
      `queue ${index}: what became of the buffers that the lost ${this.#name} had is unknown`,
    );
  }

  /** Gives a ring to another back end than had it. */
  async #goOn(backEnd: BackEnd, ring: Ring): Promise<void> {
    await this.#give(backEnd, ring, ring.usedIndex);
    // What the last one still owed.
    this.#used(ring.index);
  }

  /** All that the lost back end had has come back: its successor goes on with the driver's own ring. */
  #chanceWasTaken(index: number): void {
    this.reactor.spawn(() =>
      this.#exclusively(async () => {
        const problem = await this.#attempt(this.#backEnd, async (backEnd) => {
          const ring = this.#rings[index];
          if (ring === undefined || this.#chances.get(index) === undefined) return;
          const base = await backEnd.stopRing(index);
          ring.leave();
          await this.#chances.forget(backEnd, index);
          await this.#give(backEnd, ring, base);
        });
        if (problem !== undefined) this.#backEnd?.cut(problem);
      })
    );
  }

  // --- a ring ends -------------------------------------------------------------------------------

  stopQueue(index: number): Answer<number> {
    return this.#exclusively(async () => {
      const ring = this.#rings[index];
      if (ring === undefined) return 0;
      let base: number | undefined;
      const problem = await this.#attempt(
        ring.isGiven ? this.#backEnd : undefined,
        async (backEnd) => {
          // First what is to be done again: where that ends is where the ring goes on.
          const chance = this.#chances.get(index);
          if (chance !== undefined) await this.#drain(ring, chance.end);
          base = await backEnd.stopRing(index);
          await this.#drain(ring, base);
        },
      );
      if (problem !== undefined) this.#backEnd?.cut(problem);
      // Its memory may be gone by now.
      if (this.#isOver) return 0;
      const end = base ?? ring.usedIndex;
      this.#drop(ring);
      return end;
    });
  }

  /** Waits until all that was taken has come back. */
  async #drain(ring: Ring, base: number): Promise<void> {
    const endMs = this.reactor.now() + DRAIN_MS;
    while (!this.#isOver && ring.usedIndex !== base && this.reactor.now() < endMs) {
      await this.reactor.sleep(LOOK_MS);
    }
  }

  #drop(ring: Ring): void {
    this.#rings[ring.index] = undefined;
    ring[Symbol.dispose]();
  }

  available(index: number): void {
    const ring = this.#rings[index];
    if (ring === undefined || !ring.isEnabled) return;
    this.counters.kicks++;
    ring.kick();
  }

  resume(): void {
    for (const ring of this.#rings) if (ring?.isEnabled) ring.kick();
    if (this.#rings.every((ring) => ring === undefined || ring.isEnabled)) return;
    this.reactor.spawn(() =>
      this.#exclusively(async () => {
        const problem = await this.#attempt(this.#backEnd, async (backEnd) => {
          await backEnd.setStatus(NEGOTIATED | Status.DRIVER_OK);
          for (const ring of this.#rings) {
            const isDue = ring?.isGiven && !ring.isEnabled && this.#host!.mayTouchMemory();
            if (isDue) await this.#enable(backEnd, ring);
          }
        });
        if (problem !== undefined) this.#host!.needsReset(problem);
      })
    );
  }

  /** Cuts the connection; what the back end has of ours it may keep until it notices. */
  [Symbol.dispose](): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.reactor.dropTimer(this.#retry);
    this.#connected?.[Symbol.dispose]();
    this.#connected = undefined;
    this.#backEnd = undefined;
    for (const ring of this.#rings) if (ring !== undefined) this.#drop(ring);
    this.#chances.clear();
    this.#inflight?.[Symbol.dispose]();
    this.#memory[Symbol.dispose]();
  }
}
