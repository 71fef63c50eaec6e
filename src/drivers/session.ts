/**
 * Brings the device at the other end of the bus to the state that a driver wants.
 *
 * Theory of operation. A driver describes a state in many small steps and in any order; the device side can be
 * there or not, and can be replaced at any moment. So nothing is forwarded step by step. {@link Wanted} is what
 * the driver has said so far, {@link Told} what the device side knows, and {@link Session.apply} closes the
 * difference, always in this order:
 *
 *     stop rings that must not run, or all when memory changes (STOP_VQUEUE)
 *     REMOVE_MEMORY, ADD_MEMORY                                     as the sharing has it
 *     status 0, ACKNOWLEDGE, DRIVER, features, FEATURES_OK          if a ring may start
 *     SET_VQUEUE_STATE and SET_VQUEUE for each ring that may run
 *     DRIVER_OK, then one kick and one call per started ring
 *     SET_NOTIFIER for each ring whose kick and call the device side can take, and has not
 *
 * A device side that was replaced has been told nothing: {@link Session.lost} says so, and the next `apply` replays
 * everything. Where a ring goes on whose device died is ring_position.ts.
 *
 * Towards a device side that is not vmsg there are no private messages: memory comes from its own
 * command line, a stop is RESET_VQUEUE or else a reset of the device, and a ring cannot go on from a base other than 0.
 *
 * What the device side gets to see of memory and rings is the sharing's (sharing/sharing.ts). Which rings run and
 * when is the same for all, and for all kinds of drivers.
 */

import { VmsgError } from "../linux/errors.ts";
import type { Deferred, Reactor, Timer } from "../linux/reactor.ts";
import type { Log } from "../observe/log.ts";
import type { OutOfBand, SharedRegion, Sharing } from "../sharing/sharing.ts";
import type { DeviceInfo, RemoteDevice } from "../transport/remote_device.ts";
import { PeerLost } from "../transport/requests.ts";
import { goesOn } from "../virtio/device.ts";
import { DEVICE_NET, hasFeature, NetFeature, RingFeature, Status } from "../virtio/features.ts";
import { checkAddresses, positionAfterLoss, ringPosition } from "./ring_position.ts";
import { ToldState } from "./told_state.ts";
import { Told, type ToldRing, type Wanted, type WantedRing } from "./wanted.ts";

const BLOCK_OF_33 = RingFeature.ACCESS_PLATFORM >> 5;
const MASK_OF_33 = 1 << (RingFeature.ACCESS_PLATFORM & 31);

const NO_FEATURES = new Uint32Array(2);
/** Queues that are counted where a device does not say how many it has; as many as a network card has at most. */
const MAX_COUNTED = 129;
/** How often a foreign device is asked whether it still is what it was. */
const LOOK_MS = 1000;
/** A driver that is about to reset the device stops its rings one after another: only then rings stand still. */
const TELL_STUCK_MS = 500;

/** Who hands us the driver. */
export interface SessionOwner extends Wanted {
  /** Its rings are made anew for each device: where one was when its device was lost does not matter. */
  readonly beginsAnew?: boolean;
  /**
   * A device side is there and has said what it is; nothing has been told to it yet.
   *
   * @throws VmsgError if it will not do
   */
  known?(): void | Promise<void>;
  /** The device changed its configuration or its status by itself. */
  configChanged(status: number): void;
}

/** What a session is made of. */
export interface SessionOptions {
  /** The loop it runs in. */
  readonly reactor: Reactor;
  /** The device at the other end of the bus. */
  readonly device: RemoteDevice;
  /** How it gets to see the driver's memory. */
  readonly sharing: Sharing;
  /** What is wanted. */
  readonly owner: SessionOwner;
  /** Whose the driver is, in lines for people: "our", "the guest's". */
  readonly whose: string;
  /** Where lines for people go. */
  readonly log: Log;
}

/** Whoever waited for a device side does not want it any more. */
export class SessionEnded extends VmsgError {
  /** Its code is always SESSION_ENDED. */
  constructor() {
    super("SESSION_ENDED", "the driver is gone");
  }
}

/** See the head of this file. */
export class Session implements Disposable {
  /** What the device side knows. */
  readonly told: Told = new Told();
  readonly #seen: ToldState;
  /** The latest run; the next one waits for it. */
  #last: Promise<void> = Promise.resolve();
  readonly #waiters: Deferred<void>[] = [];
  readonly #look: Timer;
  /** What the driver was told that the device is. */
  #deviceId: number | undefined;
  /** How many queues the driver was told of. */
  #queues: number | undefined;
  #ended = false;

  /** Takes the device's notifications. */
  constructor(readonly options: SessionOptions) {
    const { reactor, device, owner } = options;
    this.#look = reactor.timer(() => this.#lookAtDevice());
    this.#seen = new ToldState(this.told, options);
    device.onUsed = (queue) => this.told.rings[queue]?.shared.used();
    device.onConfig = (status) => owner.configChanged(status);
  }

  // --- the device side comes and goes ------------------------------------------------------------

  /**
   * A device side is there: asks what it is, and brings it where the driver is.
   *
   * @throws PeerLost if it is gone again; VmsgError if it will not do, or has other things than the last one
   */
  async bringUp(): Promise<void> {
    try {
      await this.#discover();
      this.#checkPromises();
      await this.options.owner.known?.();
      await this.apply();
    } finally {
      for (const waiter of this.#waiters.splice(0)) waiter.resolve();
    }
  }

  async #discover(): Promise<void> {
    const { told, options: { device, sharing } } = this;
    const { session } = device;
    const named = await device.info();
    const offered = await device.features(Math.max(2, named.featureBlocks));
    const info = await this.#complete(named);
    device.checkSession(session);
    told.offers = offered.slice();
    for (const bit of sharing.withheld) offered[bit >> 5]! &= ~(1 << (bit & 31));
    for (const bit of sharing.own) offered[bit >> 5]! |= 1 << (bit & 31);
    told.offered = offered;
    told.info = info;
  }

  /**
   * What `proto` does not say: its queues are counted; of its configuration is read what a driver asks for. The first
   * peers of `rfc-q` left out the number of queues.
   */
  async #complete(info: DeviceInfo): Promise<DeviceInfo> {
    const { device } = this.options;
    const { configSizeIsNamed } = device.side.link.codec.conduct;
    if (configSizeIsNamed && info.maxQueues > 0) return info;
    let maxQueues = 0;
    while (maxQueues < MAX_COUNTED && (await device.queue(maxQueues)).maxSize > 0) maxQueues++;
    return { ...info, maxQueues, configSize: configSizeIsNamed ? info.configSize : Infinity };
  }

  /** A replaced device must be able to do what was promised to the driver. */
  #checkPromises(): void {
    const { features } = this.options.owner;
    const { deviceId, maxQueues } = this.told.info!;
    const promised = this.#queues;
    if (features !== undefined && (this.#deviceId ?? deviceId) !== deviceId) {
      throw new VmsgError(
        "ANOTHER_DEVICE",
        `the new device has device id ${deviceId}, the last one had ${this.#deviceId}: restart the guest`,
      );
    }
    this.#deviceId = deviceId;
    if (features?.some((word, i) => (word & ~this.told.offered[i]!) !== 0)) {
      throw new VmsgError(
        "FEATURES_LOST",
        "the new device lacks features that the guest uses: restart the guest",
      );
    }
    // What the queues behind the first pair are for depends on how many pairs there are.
    const hasPairs = deviceId === DEVICE_NET && features !== undefined &&
      hasFeature(features, NetFeature.MQ);
    if (hasPairs && promised !== undefined && promised !== maxQueues) {
      const pairs = (queues: number) => queues >> 1;
      throw new VmsgError(
        "QUEUES_CHANGED",
        `the new device has queues=${pairs(maxQueues)}, the last one had ${
          pairs(promised)
        }: restart the guest`,
      );
    }
    this.#queues = maxQueues;
  }

  /** The device side is gone; rings that ran go on from where they are. */
  lost(): void {
    const { told, options: { sharing, owner, device, log, whose } } = this;
    const { info } = told;
    told.info = undefined;
    for (const ring of told.running()) {
      const { wanted, setup } = ring;
      const base = this.#forget(ring) ??
        (owner.beginsAnew === true
          ? 0
          : positionAfterLoss(owner.regions, setup, info!, this.#isPacked));
      if (base !== undefined) {
        wanted.stopped(base);
      } else if (owner.regions.length > 0) {
        this.#stick(wanted);
        log.warn(
          `device ${device.number}, ring ${wanted.index}: what became of the buffers that the lost ` +
            `device had is unknown: restart ${whose} driver`,
        );
      }
      // Wakes a driver that waits for a used notification that the dead device still owed.
      wanted.call();
    }
    sharing.lost();
    told.forgetSession();
    this.#seen.show();
  }

  /** Nobody can go on with this ring: it stands still until the driver resets the device. */
  #stick(wanted: WantedRing): void {
    this.told.stuck.add(wanted.index);
    wanted.fail();
  }

  /** Tells of rings that a foreign device cannot go on with, if they are not given up soon. */
  async #tellStuck(): Promise<void> {
    const { told: { stuck }, options: { reactor, device, log, whose } } = this;
    await reactor.sleep(TELL_STUCK_MS);
    if (this.#ended || stuck.size === 0) return;
    log.warn(
      `device ${device.number}: a foreign device cannot go on in the middle of rings ` +
        `${[...stuck].join(", ")}: restart ${whose} driver`,
    );
  }

  /** Waits until a device is known; throws {@link SessionEnded} when nobody wants it any more. */
  async whenKnown(): Promise<void> {
    while (this.told.info === undefined) {
      if (this.#ended) throw new SessionEnded();
      const waiter = this.options.reactor.defer<void>();
      this.#waiters.push(waiter);
      await waiter.promise;
    }
  }

  /** Asks a device; one that is lost meanwhile is asked again when it is back: the driver waits. */
  async ask<T>(request: () => Promise<T>): Promise<T> {
    for (;;) {
      await this.whenKnown();
      try {
        return await request();
      } catch (error) {
        if (!(error instanceof PeerLost)) throw error;
      }
    }
  }

  /** Nobody waits for a device side any more. */
  end(): void {
    this.#ended = true;
    for (const waiter of this.#waiters.splice(0)) waiter.resolve();
  }

  // --- the difference is closed ------------------------------------------------------------------

  /**
   * Brings the device to the wanted state, see the head of this file; runs do not overlap. Without a device side
   * nothing is done: everything is replayed when one comes.
   *
   * @throws VmsgError if the device cannot be brought there, TIMEOUT, REFUSED; a device side that is lost
   * meanwhile is no failure
   */
  apply(): Promise<void> {
    return this.#exclusively(() => this.#bring(this.options.owner.mayRun));
  }

  /**
   * Has the device agree to features before any ring may run, for a driver that waits to be told.
   *
   * @returns false if the device side was lost meanwhile
   * @throws VmsgError FEATURES_REFUSED
   */
  async agree(features: Uint32Array): Promise<boolean> {
    let isAgreed = false;
    await this.#exclusively(async () => {
      if (this.told.info === undefined) return;
      await this.#negotiate(features);
      isAgreed = true;
    });
    return isAgreed;
  }

  /** The driver is gone or has reset the device: no ring runs, status 0. Its memory is as it wants it. */
  reset(): Promise<void> {
    return this.#exclusively(async () => {
      const { told } = this;
      if (told.info === undefined) return;
      await this.#bring(false);
      if (told.negotiated !== undefined) await this.options.device.reset();
      told.forgetSession();
      told.stuck.clear();
    });
  }

  /** The device needs a reset, which the next {@link bringUp} begins with; the rings are made anew. */
  restart(): Promise<void> {
    return this.#exclusively(() => {
      for (const ring of this.told.running()) this.#forget(ring);
      this.told.forgetSession();
      return Promise.resolve();
    });
  }

  #exclusively(run: () => Promise<void>): Promise<void> {
    const next = this.#last.then(run).catch((error) => {
      // A lost device side is no failure of the driver's: its state is replayed later.
      if (!(error instanceof PeerLost)) throw error;
    }).finally(() => this.#seen.show());
    this.#last = next.catch(() => {});
    return next;
  }

  /** Resolves when nothing is under way: what the driver takes away before, a run may still look at. */
  idle(): Promise<void> {
    return this.#last;
  }

  /** Does the device work on this ring? */
  runs(queue: number): boolean {
    return this.told.rings[queue] !== undefined;
  }

  /** The driver has made buffers available; false if the ring does not run. */
  available(queue: number): boolean {
    const ring = this.told.rings[queue];
    ring?.shared.available();
    return ring !== undefined;
  }

  /** The driver has done with a region; false while it has to stay mapped. */
  letGo(region: SharedRegion): boolean {
    return this.options.sharing.letGo(region);
  }

  get #isVmsg(): boolean {
    return this.options.device.side.peer === "vmsg";
  }

  async #bring(mayRun: boolean): Promise<void> {
    const { told, options: { device, sharing, owner } } = this;
    const { info } = told;
    if (info === undefined) return;
    const { session } = device;
    // As they are now: while this runs a driver that goes takes its memory away.
    const { features, regions } = owner;
    const { rings } = owner;
    for (const queue of told.stuck) {
      if (!rings.some(({ index }) => index === queue)) told.stuck.delete(queue);
    }
    const runnable = mayRun && features !== undefined
      ? rings.filter(({ index }) => index < info.maxQueues && !told.stuck.has(index))
      : [];
    const indices = runnable.map(({ index }) => index);
    // Other features need a reset of the device, and that stops every ring.
    const stopsAll = sharing.mustStopFor(regions, runnable) ||
      (runnable.length > 0 && told.negotiated !== undefined && !this.#isNegotiated(features!));
    for (const ring of told.running()) {
      // A foreign device stops all of them at once.
      if (!this.runs(ring.wanted.index)) continue;
      if (stopsAll || !indices.includes(ring.wanted.index)) await this.#stop(ring);
      device.checkSession(session);
    }
    const { offers } = told;
    await sharing.prepare(regions, runnable, { info, offers, features: features ?? NO_FEATURES });
    device.checkSession(session);
    if (runnable.length === 0) return;
    await this.#negotiate(features!);
    device.checkSession(session);
    const started: ToldRing[] = [];
    for (const ring of runnable) {
      const fresh = this.runs(ring.index) ? undefined : await this.#start(ring);
      device.checkSession(session);
      if (fresh !== undefined) started.push(fresh);
    }
    if (!told.driverOk) await this.#setDriverOk();
    device.checkSession(session);
    if (!this.#isVmsg) this.#look.arm(LOOK_MS);
    for (const { wanted, shared } of started) {
      // Whoever was told about buffers before is gone: both ends look once (docs/wire.md 6).
      shared.available();
      wanted.call();
    }
    for (const ring of told.running()) await this.#handOver(ring);
  }

  // --- rings -------------------------------------------------------------------------------------

  async #stop(ring: ToldRing): Promise<void> {
    const { device, owner } = this.options;
    const { index } = ring.wanted;
    const { session } = device;
    if (this.#isVmsg) {
      const base = await device.stopQueue(index);
      device.checkSession(session);
      ring.wanted.stopped(this.#forget(ring) ?? base);
      return ring.wanted.call();
    }
    let stopped = [ring];
    if (this.#hasRingReset) {
      await device.resetQueue(index);
    } else {
      // The only stop that every foreign device has: a reset, and it stops all of them.
      await device.reset();
      this.told.forgetSession();
      stopped = this.told.running();
    }
    device.checkSession(session);
    for (const one of stopped) {
      const base = this.#forget(one) ?? ringPosition(owner.regions, one.setup, this.#isPacked);
      if (base !== undefined) one.wanted.stopped(base);
      one.wanted.call();
    }
  }

  /** Does the device work on packed rings? */
  get #isPacked(): boolean {
    const { negotiated } = this.told;
    return negotiated !== undefined && hasFeature(negotiated, RingFeature.RING_PACKED);
  }

  get #hasRingReset(): boolean {
    const { negotiated } = this.told;
    return this.options.device.side.link.codec.conduct.queueStateIsNamed &&
      negotiated !== undefined &&
      hasFeature(negotiated, RingFeature.RING_RESET);
  }

  /**
   * Has the device side hear the driver's kicks and call it, if it can and there is something new. No kick is lost: whoever
   * begins to hear them looks at the ring, and until the device side is known to, both hear them.
   */
  async #handOver(ring: ToldRing): Promise<void> {
    const { wanted, shared } = ring;
    const { events } = wanted;
    if (shared.handOver === undefined || events === undefined || events === ring.events) return;
    const taken = await shared.handOver(events);
    if (this.told.rings[wanted.index] !== ring) return;
    // Whoever has changed them meanwhile comes here next.
    ring.events = events;
    this.#setOutOfBand(ring, taken);
    if (taken === "all") return;
    shared.available();
    // What was used while an interrupt changed over.
    wanted.call();
  }

  #setOutOfBand(ring: ToldRing, which: OutOfBand): void {
    const { device } = this.options;
    ring.wanted.handedOver?.(which === "all");
    if (ring.outOfBand === which) return;
    ring.outOfBand = which;
    const way =
      { none: "in band", calls: "in band, calls by an interrupt", all: "out of band" }[which];
    device.side.link.tracer?.note(
      `dev ${device.number} queue ${ring.wanted.index}: notifications ${way}`,
    );
  }

  /** The device works on it no more; where it goes on, if that is known without asking the device. */
  #forget(ring: ToldRing): number | undefined {
    this.told.rings[ring.wanted.index] = undefined;
    this.#setOutOfBand(ring, "none");
    return ring.shared.stop();
  }

  /** Has the device work on a ring; undefined if it cannot go on with it. */
  async #start(wanted: WantedRing): Promise<ToldRing | undefined> {
    const { told, options: { device, sharing, owner: { features } } } = this;
    const { index } = wanted;
    const { session } = device;
    const setup = wanted.setup();
    // A device drops what is too large without a word, and the driver would wait for ever.
    const { maxSize } = await device.queue(index);
    device.checkSession(session);
    if (setup.size > maxSize) {
      throw new VmsgError(
        "QUEUE_SIZE",
        `the device's queue ${index} has ${maxSize} entries, ${setup.size} needed`,
      );
    }
    const shared = sharing.open(wanted, setup, { features: features!, maxSize });
    checkAddresses(index, shared.setup);
    if (shared.setup.base !== 0 && !this.#isVmsg) {
      if (told.stuck.size === 0) this.options.reactor.spawn(() => this.#tellStuck());
      this.#stick(wanted);
      return undefined;
    }
    // A copied ring does not show it, and a foreign device cannot be told.
    const isSaid = this.#isVmsg && goesOn(setup);
    await device.startQueue(index, isSaid ? { ...shared.setup, goesOn: true } : shared.setup);
    device.checkSession(session);
    shared.start();
    wanted.started?.();
    const ring = { wanted, shared, setup, events: undefined, outOfBand: "none" as const };
    told.rings[index] = ring;
    return ring;
  }

  // --- a foreign device is looked at ---------------------------------------------------------------

  /**
   * Asks a foreign device for its status, which every one answers. One that is started anew, where nobody tells that
   * it was, has forgotten that its driver is at work; one that does not answer is recovered by whoever asks.
   */
  #lookAtDevice(): void {
    const { reactor, device } = this.options;
    const { session } = device;
    const isDue = () => !this.#isVmsg && this.told.driverOk && device.session === session;
    reactor.spawn(() =>
      this.#exclusively(async () => {
        if (!isDue()) return;
        const status = await device.status();
        if (!isDue()) return;
        if ((status & Status.DRIVER_OK) === 0) device.side.replaced("the device was started anew");
        else this.#look.arm(LOOK_MS);
      })
    );
  }

  // --- features and status -----------------------------------------------------------------------

  /** What the device is told for what the driver acknowledged. */
  #forDevice(features: Uint32Array): Uint32Array {
    const { offered } = this.told;
    const wanted = new Uint32Array(offered.length);
    wanted.set(features.subarray(0, wanted.length));
    // Hidden from front ends, taken when offered: the prototype refuses FEATURES_OK otherwise.
    for (const bit of this.options.sharing.own) wanted[bit >> 5]! &= ~(1 << (bit & 31));
    wanted[BLOCK_OF_33]! |= offered[BLOCK_OF_33]! & MASK_OF_33;
    return wanted;
  }

  #isNegotiated(features: Uint32Array): boolean {
    const wanted = this.#forDevice(features);
    return this.told.negotiated?.every((word, i) => word === wanted[i]) ?? false;
  }

  async #negotiate(features: Uint32Array): Promise<void> {
    if (this.#isNegotiated(features)) return;
    const { told, options: { device, whose } } = this;
    const wanted = this.#forDevice(features);
    const { session } = device;
    told.forgetSession();
    await device.reset();
    await device.setStatus(Status.ACKNOWLEDGE);
    await device.setStatus(Status.ACKNOWLEDGE | Status.DRIVER);
    await device.setFeatures(wanted);
    const status = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK;
    const result = await device.setStatus(status);
    device.checkSession(session);
    if ((result & Status.FEATURES_OK) === 0) {
      const isLegacy = !hasFeature(wanted, RingFeature.VERSION_1);
      const why = isLegacy
        ? ", which lack VERSION_1: the guest sees a legacy device (QEMU: give -global " +
          "virtio-mmio.force-legacy=false, and no disable-modern=on)"
        : "";
      throw new VmsgError(
        "FEATURES_REFUSED",
        `device ${device.number} refuses ${whose} features${why}`,
      );
    }
    told.negotiated = wanted;
  }

  async #setDriverOk(): Promise<void> {
    const status = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK;
    const { device } = this.options;
    const { session } = device;
    await device.start(status);
    device.checkSession(session);
    this.told.driverOk = true;
  }

  /** The driver is gone, and with it what the device side may have of it: no more notifications. */
  [Symbol.dispose](): void {
    const { told, options: { device, sharing } } = this;
    device.onUsed = undefined;
    device.onConfig = undefined;
    told.info = undefined;
    for (const ring of told.running()) {
      this.#forget(ring);
      ring.wanted.call();
    }
    sharing.lost();
    told.forgetSession();
    this.end();
    this.options.reactor.dropTimer(this.#look);
    this.#seen[Symbol.dispose]();
  }
}
