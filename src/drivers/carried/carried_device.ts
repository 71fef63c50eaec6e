/**
 * A device at the other end of a bus, as a device of another bus: whoever drives it there is its driver here.
 *
 *     driver == bus B == device side, this model | session, driver side == bus A == device
 *
 * Theory of operation. Towards B it is a device like others (virtio/device.ts), towards A what a driver wants
 * (session.ts). No message of one bus becomes one of the other: what the driver has said is kept, and the session closes
 * the difference to what the device has been told. So each side speaks its own dialect, and each may be started anew.
 *
 * Questions to the device are answered when it has answered. While there is none, those wait that a driver can wait for, for as
 * long as a device may take (transport/conversation.ts). Rings that ran go on from where they are when a device is there
 * again; if nobody knows where that is, the driver is told that its device needs a reset.
 *
 * Where rings and buffers are copied, A knows nothing of B's memory, and only this process looks at it, as it is at that moment: a
 * kernel's windows come and go (bus/bus.ts, KernelBus) without a word to A, and a ring stops only if what it was given lies in one that goes.
 *
 * DRIVER_OK is passed on together with the rings that were set up until then: so it is what a device can refuse last, and then it
 * needs a reset. What the device touches of the driver's memory it touches while the driver is at work, and for the
 * rings that are carried over, no longer than its lease holds ({@link RingOwner.mayTouch}).
 */

import { VmsgError } from "../../linux/errors.ts";
import type { Reactor } from "../../linux/reactor.ts";
import type { AddressSpace } from "../../memory/mod.ts";
import { TranslatedSpace } from "../../memory/translated_space.ts";
import { limitedLog, type Log } from "../../observe/log.ts";
import type { SharedRegion } from "../../sharing/sharing.ts";
import type { RemoteDevice } from "../../transport/remote_device.ts";
import { PeerLost } from "../../transport/requests.ts";
import type {
  Answer,
  DeviceHost,
  DeviceModel,
  MemoryRegion,
  QueueSetup,
} from "../../virtio/device.ts";
import { hasFeature, RingFeature, Status } from "../../virtio/features.ts";
import { whyNoQueue } from "../../virtio/queue/open.ts";
import { Session, SessionEnded } from "../session.ts";
import type { WantedRing } from "../wanted.ts";
import type { Description } from "./description.ts";
import type { Share } from "./shares.ts";

/** What one is made of. */
export interface CarriedDeviceOptions {
  readonly reactor: Reactor;
  /** The device on bus A. */
  readonly device: RemoteDevice;
  /** How it gets to see the memory of the driver on bus B. */
  readonly share: Share;
  readonly description: Description;
  readonly log: Log;
}

/** A queue that the driver has set up. */
class CarriedRing implements WantedRing {
  base: number;
  /** Its driver has it back. */
  isOver = false;

  constructor(
    readonly host: DeviceHost,
    readonly index: number,
    private readonly given: QueueSetup,
    private readonly isAtWork: () => boolean,
  ) {
    this.base = given.base;
  }

  get memory(): AddressSpace {
    return this.host.memory;
  }

  setup(): QueueSetup {
    return { ...this.given, base: this.base };
  }

  stopped(base: number): void {
    this.base = base;
  }

  mayTouch(): boolean {
    return !this.isOver && this.host.mayTouchMemory();
  }

  /** A driver that has to reset its device is told nothing of a ring, which may have gone with its memory. */
  call(): void {
    if (this.isAtWork()) this.host.used(this.index);
  }

  fail(): void {
    this.host.needsReset(`queue ${this.index}: the device cannot go on with it`);
  }
}

/** See the head of this file. */
export class CarriedDevice implements DeviceModel {
  readonly deviceId: number;
  readonly vendorId: number;
  readonly features: Uint32Array;
  readonly configSize: number;
  readonly queueCount: number;
  readonly maxQueueSize: number;
  readonly maxQueueSizes: readonly number[];
  readonly #session: Session;
  #host!: DeviceHost;
  #accepted: Uint32Array | undefined;
  readonly #rings: (CarriedRing | undefined)[];
  /** The driver has set DRIVER_OK, and no reset since. */
  #isAtWork = false;
  /** Of the configuration, as the driver has been told; the device's own. */
  #generation: number;
  #isOver = false;
  readonly #complain: (problem: string) => void;

  /** Serves the device that was described. */
  constructor(readonly options: CarriedDeviceOptions) {
    const { reactor, device, share: { sharing }, description, log } = options;
    this.deviceId = description.deviceId;
    this.vendorId = description.vendorId;
    this.features = description.features;
    this.configSize = description.configSize;
    this.maxQueueSizes = description.queueSizes;
    this.queueCount = description.queueSizes.length;
    this.maxQueueSize = Math.max(0, ...description.queueSizes);
    this.#rings = description.queueSizes.map(() => undefined);
    this.#generation = device.generation;
    const complain = limitedLog(log.warn, reactor);
    this.#complain = (problem) => complain(`device ${device.number}: ${problem}`);
    const accepted = () => this.#accepted;
    const regions = () => this.#regions;
    const rings = () => this.#rings.filter((ring) => ring !== undefined);
    const mayRun = () => this.#isAtWork;
    const owner = {
      get features() {
        return accepted();
      },
      get regions() {
        return regions();
      },
      get rings() {
        return rings();
      },
      get mayRun() {
        return mayRun();
      },
      configChanged: (status: number) => this.#configChanged(status),
    };
    this.#session = new Session({ reactor, device, sharing, owner, whose: "the other bus's", log });
  }

  get #regions(): readonly SharedRegion[] {
    const { show, isCopied } = this.options.share;
    return this.#isOver || isCopied ? [] : this.#host.regions.map(show);
  }

  connect(host: DeviceHost): void {
    this.#host = host;
  }

  // --- the device comes and goes -----------------------------------------------------------------

  /** A device of the same description is there. */
  async deviceReady(): Promise<void> {
    const problem = await this.#guarded(() => this.#session.bringUp());
    if (problem !== undefined) this.#host.needsReset(problem);
    if (this.#isOver) return;
    // What the last one said of its configuration may not hold.
    this.#generation = this.options.device.generation;
    this.#host.configChanged();
  }

  /** It is gone. */
  deviceLost(): void {
    if (!this.#isOver) this.#session.lost();
  }

  #configChanged(status: number): void {
    if ((status & Status.DEVICE_NEEDS_RESET) !== 0) {
      const { device } = this.options;
      return this.#host.needsReset(`device ${device.number} of ${this.#bus} needs one`);
    }
    this.#generation = this.options.device.generation;
    this.#host.configChanged();
  }

  get #bus(): string {
    return this.options.device.side.link.bus.description;
  }

  /** Why it did not come about; a device that is lost meanwhile is brought there when it is back. */
  async #guarded(work: () => Promise<void>): Promise<string | undefined> {
    try {
      await work();
      return undefined;
    } catch (error) {
      const isLost = error instanceof PeerLost || error instanceof SessionEnded;
      if (isLost || this.#isOver) return undefined;
      if (!(error instanceof VmsgError || error instanceof RangeError)) throw error;
      return error.message;
    }
  }

  /** Brings the device to where the driver is. */
  #bring(): Promise<string | undefined> {
    return this.#guarded(() => this.#session.apply());
  }

  #bringLater(): void {
    this.options.reactor.spawn(async () => {
      const problem = await this.#bring();
      if (problem !== undefined) this.#host.needsReset(problem);
    });
  }

  /** The same where what the device has must be given up, whatever it says: it starts from nothing then. */
  async #giveUp(work: () => Promise<void>): Promise<void> {
    const problem = await this.#guarded(work);
    if (problem === undefined) return;
    this.#complain(problem);
    this.options.device.side.link.bus.drop("a device could not be reset");
  }

  // --- configuration -----------------------------------------------------------------------------

  async readConfig(offset: number, length: number): Promise<Uint8Array> {
    const { device } = this.options;
    const bytes = await this.#session.ask(() => device.config(offset, length));
    if (device.generation !== this.#generation) {
      // It changed, and its word for it is still to come, or never does.
      this.#generation = device.generation;
      this.#host.configChanged();
    }
    return bytes;
  }

  async writeConfig(offset: number, bytes: Uint8Array): Promise<boolean> {
    const { device } = this.options;
    const copy = bytes.slice();
    let isTaken = false;
    // Not asked again of the next one, which may come much later.
    const problem = await this.#guarded(async () => {
      isTaken = await device.setConfig(offset, copy);
      this.#generation = device.generation;
    });
    if (problem !== undefined) this.#complain(problem);
    return isTaken;
  }

  // --- features and status -----------------------------------------------------------------------

  async acceptFeatures(words: Uint32Array): Promise<boolean> {
    const accepted = words.slice();
    // The session's own to accept, where the device has it.
    accepted[RingFeature.ACCESS_PLATFORM >> 5]! &= ~(1 << (RingFeature.ACCESS_PLATFORM & 31));
    let isAgreed = false;
    const problem = await this.#guarded(async () => {
      while (!isAgreed) {
        await this.#session.whenKnown();
        isAgreed = await this.#session.agree(accepted);
      }
      this.#accepted = accepted;
    });
    if (problem !== undefined) this.#complain(problem);
    return isAgreed;
  }

  termsChanged(): void {
    const { terms } = this.#host;
    // A kernel's bus has none, and no lease that could run out.
    const isOver = terms === undefined ? !this.#host.mayTouchMemory() : terms.untilMs === 0;
    if (isOver) this.#isAtWork = false;
  }

  reset(): Promise<void> {
    this.#isAtWork = false;
    this.#accepted = undefined;
    return this.#giveUp(() => this.#session.reset());
  }

  // --- memory ------------------------------------------------------------------------------------

  async memoryAdded(): Promise<string | undefined> {
    const problem = await this.#bring();
    // Rings that stood still for it go on without it.
    if (problem !== undefined) this.#bringLater();
    return problem;
  }

  async memoryRemoved(regions: readonly MemoryRegion[]): Promise<void> {
    await this.#giveUp(() => this.#session.apply());
    for (const region of regions) this.#session.letGo(this.options.share.show(region));
  }

  holdsIn(region: MemoryRegion): number {
    return this.#session.told.rings.findIndex((ring) => ring?.shared.holdsIn?.(region) === true);
  }

  // --- rings -------------------------------------------------------------------------------------

  startQueue(index: number, setup: QueueSetup): Answer<string | undefined> {
    const { memory } = this.#host;
    if (this.#accepted === undefined) return "no features were agreed on";
    if (memory instanceof TranslatedSpace) {
      return "its addresses are to be translated, which is not carried";
    }
    const packed = hasFeature(this.#accepted, RingFeature.RING_PACKED);
    const config = { ...setup, packed, eventIndex: false, indirect: false };
    const problem = whyNoQueue(memory, config);
    if (problem !== undefined) return problem;
    this.#rings[index] = new CarriedRing(this.#host, index, setup, () => this.#isAtWork);
    return this.#isAtWork ? this.#startNow(index) : undefined;
  }

  /** One that comes while others run. */
  async #startNow(index: number): Promise<string | undefined> {
    const problem = await this.#bring();
    if (problem !== undefined) this.#rings[index] = undefined;
    return problem;
  }

  async stopQueue(index: number): Promise<number> {
    const ring = this.#rings[index];
    if (ring === undefined) return 0;
    this.#rings[index] = undefined;
    await this.#giveUp(() => this.#session.apply());
    ring.isOver = true;
    return ring.base;
  }

  available(index: number): void {
    this.#session.available(index);
  }

  resume(): void {
    for (let index = 0; index < this.queueCount; index++) this.#session.available(index);
    if (this.#isAtWork || !this.#host.mayTouchMemory()) return;
    this.#isAtWork = true;
    this.#bringLater();
  }

  /** At once; the device is left as it is, and its bus tells it. */
  [Symbol.dispose](): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#session[Symbol.dispose]();
  }
}
