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

import { VmsgError } from "../../linux/errors.ts";
import type { Reactor } from "../../linux/reactor.ts";
import type { MemoryRegion } from "../../memory/mod.ts";
import { TranslatedSpace } from "../../memory/translated_space.ts";
import { counterShape } from "../../observe/counters.ts";
import type { Log } from "../../observe/log.ts";
import {
  type Answer,
  type DeviceHost,
  type DeviceModel,
  type QueueSetup,
  VENDOR_ELSEWHERE,
} from "../../virtio/device.ts";
import { DEVICE_NET, hasFeature, RingFeature, Status } from "../../virtio/features.ts";
import { type BackEnd, type Inflight, type Introduction, shown } from "./back_end.ts";
import { ConfigSpace } from "./config_space.ts";
import { type DeviceType, typeOf } from "./device_types.ts";
import { LastingBackEnd } from "./lasting_back_end.ts";
import { areAmong, offeredFeatures, passedOn, withoutOwn } from "./passed_on.ts";
import { openRing, type Ring } from "./ring.ts";
import { SecondChances } from "./second_chance.ts";

/** How long buffers that were taken may still come back after a stop, and how often it is looked. */
const DRAIN_MS = 1000;
const LOOK_MS = 2;
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
  /** No back end is given rings, until a reset. */
  #isUnfit = false;
  /** What the back end that is there offers. */
  #offered: Uint32Array = new Uint32Array(2);
  readonly #backEnd: LastingBackEnd;
  #isOver = false;

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
    const { promise, resolve } = reactor.defer<void>();
    this.ready = promise;
    this.#known = () => resolve();
    this.#backEnd = new LastingBackEnd(reactor, options.socket, {
      begin: (backEnd) => this.#begin(backEnd),
      lost: () => this.#lost(),
      configChanged: () => this.#configIsStale(),
      counters: this.counters,
    }, log);
    this.#backEnd.open();
  }

  get configSize(): number {
    return this.#config.bytes.length;
  }

  get queueCount(): number {
    return this.#rings.length;
  }

  connect(host: DeviceHost): void {
    this.#host = host;
  }

  // --- the back end comes and goes ---------------------------------------------------------------

  /** Brings a back end that has come to where the driver is. */
  async #begin(backEnd: BackEnd): Promise<void> {
    const found = await backEnd.introduce();
    const config = await this.#config.read(backEnd);
    this.#offered = passedOn(found.features, this.#type, config.length);
    if (this.#known !== undefined) this.#learn(found, config);
    else if (!this.#isAsBefore(found, config)) this.#isUnfit = true;
    const rings = this.#isUnfit ? [] : this.#rings.filter((ring) => ring !== undefined);
    // Before it sees any memory, which it must not lose under a ring that runs.
    for (const ring of rings) this.#findChance(backEnd, ring);
    if (this.#regions.length > 0) await backEnd.showMemory(this.#table);
    if (!this.#isUnfit) {
      if (this.#accepted !== undefined) await this.#negotiate(backEnd, this.#accepted);
      for (const ring of rings) await this.#give(backEnd, ring, ring.usedIndex);
      if (this.#host?.mayTouchMemory()) await this.#run(backEnd);
      // What the last one still owed.
      for (const { index } of rings) this.#used(index);
    }
    this.#known?.();
    this.#known = undefined;
  }

  /** The connection to it has ended. */
  #lost(): void {
    for (const ring of this.#rings) ring?.leave();
    this.#chances.clear();
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
    this.features.set(offeredFeatures(features, this.#type, config.length));
    this.#rings = Array.from({ length: Math.max(1, count) }, () => undefined);
    this.#config.set(config, this.queueCount);
  }

  /** May one that has come later stand in for the first? */
  #isAsBefore({ queues }: Introduction, config: Uint8Array): boolean {
    const { deviceId } = this;
    const needed = this.#accepted === undefined ? new Uint32Array(2) : withoutOwn(this.#accepted);
    const most = deviceId === DEVICE_NET ? 2 : queues ?? MAX_QUEUES;
    let lacks: string | undefined;
    if (!areAmong(needed, this.#offered)) {
      lacks = "lacks features that the driver uses";
    } else if (most < this.queueCount) lacks = `has ${most} queues, not ${this.queueCount}`;
    else if (config.length !== this.configSize) {
      lacks = `has ${config.length} bytes of configuration, not ${this.configSize}`;
    }
    if (lacks === undefined) {
      if (this.#config.set(config, this.queueCount)) this.#host?.configChanged();
      return true;
    }
    this.#host?.needsReset(`the ${this.#backEnd.name} that came ${lacks}`);
    return false;
  }

  // --- configuration -----------------------------------------------------------------------------

  #configIsStale(): void {
    this.reactor.spawn(() =>
      this.#backEnd.exclusively(async () => {
        await this.#backEnd.ask(async (backEnd) => {
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
    return this.#backEnd.exclusively(async () => {
      let isWritten = false;
      await this.#backEnd.ask(async (backEnd) => {
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
    return this.#backEnd.exclusively(async () => {
      const problem = await this.#backEnd.ask((backEnd) => this.#negotiate(backEnd, accepted));
      if (problem === undefined) this.#accepted = accepted;
      else this.log.warn(`${this.#backEnd.name}: ${problem}`);
      return problem === undefined;
    });
  }

  async #negotiate(backEnd: BackEnd, accepted: Uint32Array): Promise<void> {
    const words = withoutOwn(accepted);
    // It may be another one than that whose features were offered.
    const isOffered = areAmong(words, this.#offered);
    await backEnd.setStatus(Status.ACKNOWLEDGE | Status.DRIVER);
    if (isOffered) await backEnd.setFeatures(words);
    if (!isOffered || !await backEnd.setStatus(NEGOTIATED)) {
      throw new VmsgError("FEATURES_REFUSED", "it does not take the driver's features");
    }
    // What there is to read may depend on them.
    await this.#config.refresh(backEnd);
  }

  reset(): Answer<void> {
    return this.#backEnd.exclusively(async () => {
      this.#accepted = undefined;
      this.#isUnfit = false;
      this.#inflight?.[Symbol.dispose]();
      this.#inflight = undefined;
      this.#inflightOf = undefined;
      await this.#backEnd.demand((backEnd) => backEnd.reset());
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
    return this.#backEnd.exclusively(async () => {
      const before = this.#regions;
      this.#regions = [...before, ...regions];
      const problem = await this.#backEnd.ask(async (backEnd) => {
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
    return this.#backEnd.exclusively(async () => {
      this.#regions = this.#regions.filter((region) => !regions.includes(region));
      await this.#backEnd.demand(async (backEnd) => {
        if (!backEnd.takesRegions) return await backEnd.showMemory(this.#table);
        for (const region of regions) await backEnd.removeRegion(region);
      });
    });
  }

  // --- rings -------------------------------------------------------------------------------------

  startQueue(index: number, setup: QueueSetup): Answer<string | undefined> {
    const { memory } = this.#host!;
    if (this.#accepted === undefined) return "no features were agreed on";
    if (memory instanceof TranslatedSpace) {
      return "its addresses are to be translated, which vhost-user back ends are not asked to do";
    }
    return this.#backEnd.exclusively(async () => {
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
      const problem = await this.#backEnd.ask(async (backEnd) => {
        if (this.#isUnfit) return;
        await this.#give(backEnd, ring, ring.begin);
        if (this.#host!.mayTouchMemory()) await this.#enable(backEnd, ring);
      });
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
        this.log.info(`${this.#backEnd.name}: does ${count} buffers of queue ${index} once more`);
      }
      return;
    }
    this.#isUnfit = true;
    this.#host!.needsReset(
      `queue ${index}: what became of the buffers that the lost ${this.#backEnd.name} had is unknown`,
    );
  }

  /** All that the lost back end had has come back: its successor goes on with the driver's own ring. */
  #chanceWasTaken(index: number): void {
    this.reactor.spawn(() =>
      this.#backEnd.exclusively(async () => {
        await this.#backEnd.demand(async (backEnd) => {
          const ring = this.#rings[index];
          if (ring === undefined || this.#chances.get(index) === undefined) return;
          const base = await backEnd.stopRing(index);
          ring.leave();
          await this.#chances.forget(backEnd, index);
          await this.#give(backEnd, ring, base);
          if (this.#host!.mayTouchMemory()) await this.#enable(backEnd, ring);
        });
      })
    );
  }

  // --- a ring ends -------------------------------------------------------------------------------

  stopQueue(index: number): Answer<number> {
    return this.#backEnd.exclusively(async () => {
      const ring = this.#rings[index];
      if (ring === undefined) return 0;
      let base: number | undefined;
      await this.#backEnd.demand(async (backEnd) => {
        if (!ring.isGiven) return;
        // First what is to be done again: where that ends is where the ring goes on.
        const chance = this.#chances.get(index);
        if (chance !== undefined) await this.#drain(ring, chance.end);
        const end = base = await backEnd.stopRing(index);
        await this.#drain(ring, end);
        await this.#chances.forget(backEnd, index);
      });
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
      this.#backEnd.exclusively(async () => {
        const problem = await this.#backEnd.ask((backEnd) => this.#run(backEnd));
        if (problem !== undefined) this.#host!.needsReset(problem);
      })
    );
  }

  /** The driver is at work: rings run that the back end has. */
  async #run(backEnd: BackEnd): Promise<void> {
    await backEnd.setStatus(NEGOTIATED | Status.DRIVER_OK);
    for (const ring of this.#rings) {
      const isDue = ring?.isGiven && !ring.isEnabled && this.#host!.mayTouchMemory();
      if (isDue) await this.#enable(backEnd, ring);
    }
  }

  /** Cuts the connection; what the back end has of ours it may keep until it notices. */
  [Symbol.dispose](): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#backEnd[Symbol.dispose]();
    for (const ring of this.#rings) if (ring !== undefined) this.#drop(ring);
    this.#chances.clear();
    this.#inflight?.[Symbol.dispose]();
  }
}
