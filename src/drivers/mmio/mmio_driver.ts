/**
 * A driver that reads and writes the registers of a virtio-mmio device, as the session has it (session.ts): its
 * registers (registers.ts) are what it wants, and what they ask is asked of the device side.
 *
 * A driver goes on, and its processor waits, while the device side is away: {@link Session.ask} asks again when
 * there is one. Memory is looked at first when queues are to run; whoever hosts us may take its time to map it.
 * What goes wrong and cannot be told in an answer is told as DEVICE_NEEDS_RESET, and in a line for people.
 *
 * Registers that another process has left are gone on with: what its device had and did not give back is done once
 * more, from where the ring says, as after a device side that was lost (ring_position.ts). That is right for every
 * type of device where buffers go by way of a ring of ours, which gives them back in order (sharing/forwarding.ts).
 */

import { VmsgError } from "../../linux/errors.ts";
import type { Reactor } from "../../linux/reactor.ts";
import { limitedLog, type Log } from "../../observe/log.ts";
import type { SharedRegion, Sharing } from "../../sharing/sharing.ts";
import type { DeviceInfo, RemoteDevice } from "../../transport/remote_device.ts";
import { PeerLost } from "../../transport/requests.ts";
import type { Answer, QueueSetup } from "../../virtio/device.ts";
import { hasFeature, RingFeature, Status } from "../../virtio/features.ts";
import { carriedFeatures } from "../offer.ts";
import { ringPosition } from "../ring_position.ts";
import { Session, SessionEnded, type SessionOwner } from "../session.ts";
import type { WantedRing } from "../wanted.ts";
import { type MmioDevice, Registers, type RegisterState } from "./registers.ts";

/** Of the ring and the transport what every front end carries, and a queue's reset; commands are between the two sides. */
const CARRIED = carriedFeatures(0);
CARRIED[RingFeature.RING_RESET >> 5]! |= 1 << (RingFeature.RING_RESET & 31);

/** Where the registers are. */
export interface MmioHost {
  /** Maps the memory of whoever has the driver; called once. */
  map(): Promise<readonly SharedRegion[]>;
  /** The interrupt line is asserted, or not. */
  interrupt(asserted: boolean): void;
  /** Keeps the registers' state for whoever goes on with it. */
  keep(): void;
}

/** What a driver is made of. */
export interface MmioDriverOptions {
  readonly reactor: Reactor;
  readonly device: RemoteDevice;
  readonly sharing: Sharing;
  readonly log: Log;
  readonly host: MmioHost;
  /** Whose driver it is, in lines for people. */
  readonly name: string;
  /** As another process has left it. */
  readonly state?: RegisterState | undefined;
}

/** A queue as the registers describe it. */
class MmioRing implements WantedRing {
  /** @param base where it goes on; undefined: where the ring says */
  constructor(
    readonly driver: MmioDriver,
    readonly index: number,
    private base: number | undefined,
  ) {}

  setup(): QueueSetup {
    const { size, descriptor, driver, device } = this.driver.registers.state.queues[this.index]!;
    const setup = {
      size,
      descriptorAddress: descriptor,
      driverAddress: driver,
      deviceAddress: device,
      base: 0,
    };
    const { regions, features } = this.driver;
    const isPacked = features !== undefined && hasFeature(features, RingFeature.RING_PACKED);
    return { ...setup, base: this.base ?? ringPosition(regions, setup, isPacked) ?? 0 };
  }

  stopped(base: number): void {
    this.base = base;
  }

  call(): void {
    this.driver.registers.used();
  }

  fail(): void {
    this.driver.registers.needsReset();
  }
}

/** See the head of this file. */
export class MmioDriver implements SessionOwner, MmioDevice, Disposable {
  readonly registers: Registers;
  /** Of whoever has the driver; none before queues are to run. */
  regions: readonly SharedRegion[] = [];
  readonly complain: (line: string) => void;
  readonly #session: Session;
  readonly #rings = new Map<number, MmioRing>();
  #mapping: Promise<void> | undefined;
  #isOver = false;
  /** Someone else had the registers: what it said to the driver is not known. */
  #isContinued: boolean;

  /** Serves the registers at once. */
  constructor(readonly options: MmioDriverOptions) {
    const { reactor, device, sharing, log, name, state } = options;
    this.registers = new Registers(this, state);
    this.#isContinued = state !== undefined;
    for (const [index, { ready }] of this.registers.state.queues.entries()) {
      if (ready) this.#rings.set(index, new MmioRing(this, index, undefined));
    }
    this.#session = new Session({ reactor, device, sharing, owner: this, whose: name, log });
    const complain = limitedLog(log.warn, reactor);
    this.complain = (line) => complain(`device ${device.number}, ${name} driver: ${line}`);
    if (device.isReady) this.ready();
  }

  // --- what is wanted ----------------------------------------------------------------------------

  get features(): Uint32Array | undefined {
    return this.registers.features;
  }

  get mayRun(): boolean {
    return !this.#isOver && this.registers.mayRun && this.regions.length > 0;
  }

  get rings(): readonly MmioRing[] {
    const rings: MmioRing[] = [];
    for (const [index, { ready }] of this.registers.state.queues.entries()) {
      const ring = this.#rings.get(index) ?? new MmioRing(this, index, 0);
      if (!ready) this.#rings.delete(index);
      else {
        this.#rings.set(index, ring);
        rings.push(ring);
      }
    }
    return rings;
  }

  // --- the device side comes and goes ------------------------------------------------------------

  /** A device side is there. */
  ready(): void {
    if (this.#isOver) return;
    this.options.reactor.spawn(() => this.#guarded(() => this.#session.bringUp()));
  }

  /** It is gone. */
  lost(): void {
    if (this.#isOver) return;
    this.#session.lost();
    // What it said of its configuration may not hold for the next one.
    this.registers.configChanged();
  }

  /** Has what the registers want of memory before the device side is brought there. */
  async known(): Promise<void> {
    if (this.registers.mayRun) await this.#map();
    if (!this.#isContinued) return;
    this.#isContinued = false;
    this.registers.configChanged();
  }

  configChanged(status: number): void {
    if ((status & Status.DEVICE_NEEDS_RESET) === 0) return this.registers.configChanged();
    this.complain("the device needs a reset: restart the driver");
    this.registers.needsReset();
  }

  #map(): Promise<void> {
    this.#mapping ??= this.options.host.map().then((regions) => {
      this.regions = regions;
    });
    return this.#mapping;
  }

  /** What fails here has to be told in another way than in an answer. */
  async #guarded(work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      if (error instanceof PeerLost || error instanceof SessionEnded || this.#isOver) return;
      if (!(error instanceof VmsgError || error instanceof RangeError)) throw error;
      this.complain(error.message);
      this.registers.needsReset();
    }
  }

  // --- what the registers ask --------------------------------------------------------------------

  info(): Answer<DeviceInfo> {
    return this.#session.told.info ?? this.#known(() => this.#session.told.info!);
  }

  offered(): Answer<Uint32Array> {
    return this.#known(() => {
      const words = this.#session.told.offered.slice();
      for (const [block, mask] of CARRIED.entries()) words[block]! &= mask;
      return words;
    });
  }

  async #known<T>(answer: () => T): Promise<T> {
    if (!this.options.device.isReady) {
      this.options.log.info(`${this.options.name} driver waits for the device side`);
    }
    await this.#session.whenKnown();
    return answer();
  }

  async maxQueueSize(queue: number): Promise<number> {
    return (await this.#session.ask(() => this.options.device.queue(queue))).maxSize;
  }

  async readConfig(offset: number, length: number): Promise<Uint8Array> {
    const { device } = this.options;
    const before = device.generation;
    const bytes = await this.#session.ask(() => device.config(offset, length));
    // It changed, and its word for it is still to come.
    if (device.generation !== before) this.#newGeneration();
    return bytes;
  }

  async writeConfig(offset: number, bytes: Uint8Array): Promise<void> {
    await this.#session.ask(() => this.options.device.setConfig(offset, bytes));
  }

  #newGeneration(): void {
    const { state } = this.registers;
    state.generation = (state.generation + 1) >>> 0;
  }

  async agree(features: Uint32Array): Promise<boolean> {
    for (;;) {
      await this.#session.whenKnown();
      try {
        if (await this.#session.agree(features)) return true;
      } catch (error) {
        if (!(error instanceof VmsgError) || error instanceof SessionEnded) throw error;
        this.complain(error.message);
        return false;
      }
    }
  }

  async changed(): Promise<void> {
    await this.#guarded(async () => {
      if (this.registers.mayRun) await this.#map();
      await this.#session.apply();
    });
  }

  async reset(): Promise<void> {
    this.#rings.clear();
    try {
      await this.#session.reset();
    } catch (error) {
      if (!(error instanceof VmsgError)) throw error;
      // What the device side still works on would be in the next driver's way.
      this.complain(error.message);
      this.options.device.side.link.bus.drop("the device could not be reset");
    }
  }

  notify(queue: number): void {
    this.#session.available(queue);
  }

  interrupt(asserted: boolean): void {
    this.options.host.interrupt(asserted);
  }

  keep(): void {
    this.options.host.keep();
  }

  /**
   * The driver is gone: the device side is left reset, and nothing looks at memory any more.
   *
   * A device side that does not answer is not waited for; it touches nothing but the segment.
   */
  async end(): Promise<void> {
    Object.assign(this.registers.state, { status: 0, queues: [] });
    await this.#guarded(() => this.#session.reset());
    this[Symbol.dispose]();
  }

  /** At once. */
  [Symbol.dispose](): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#session[Symbol.dispose]();
  }
}
