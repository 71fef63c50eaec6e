/**
 * One device number: the device, and the state that every virtio device has.
 *
 * A device may take its time for every answer, so what is wanted of it (to be reset, to let go of memory) is
 * not done in one go. {@link DeviceSlot.advance} takes the steps that are left, in this order:
 *
 *     on a reset: stop each queue that the device has, then tell it of the reset
 *     for each table of memory that is to go: hide it, tell the device, unmap it
 *
 * It runs when something is wanted and again whenever the device has answered, so it does not matter what the
 * device was busy with when its driver side went away. For the driver a reset takes effect at once: with
 * status 0 nothing of its memory is touched, and it is told nothing.
 */

import type { AddressSpace, MemoryRegion } from "../memory/mod.ts";
import { DeviceState } from "../observe/state.ts";
import {
  type Answer,
  type DeviceHost,
  type DeviceModel,
  type QueueNotifier,
  type QueueSetup,
  VENDOR_ELSEWHERE,
} from "../virtio/device.ts";
import { areOffered, hasFeature, RingFeature, Status } from "../virtio/features.ts";
import type { Conversation } from "./conversation.ts";
import type { DeviceContext } from "./device_context.ts";
import { ConfigNotification } from "./notifications.ts";
import { newQueue, type QueueRecord, UNSET } from "./queue_operation.ts";
import type { SlotMemory } from "./slot_memory.ts";
import { Translation } from "./translation.ts";

/** Feature blocks that are stored; bits beyond the device's own blocks are kept to be refused. */
const FEATURE_BLOCKS = 16;

/** See the head of this file. */
export class DeviceSlot implements DeviceHost {
  /** By index. */
  readonly queues: readonly QueueRecord[];
  /** What the driver has written, accepted or not. */
  readonly driverFeatures: Uint32Array = new Uint32Array(FEATURE_BLOCKS);
  /** Is the format of the queues the packed one? */
  get isPacked(): boolean {
    return hasFeature(this.driverFeatures, RingFeature.RING_PACKED);
  }

  /** Of the configuration space: no two contents have the same one (V11, V59), not even by a reset (V10). */
  generation = 0;
  /** Of addresses that only the driver side can translate. */
  readonly translation: Translation;
  /** What others can read of it while it runs. */
  readonly seen: DeviceState;
  readonly #configEvent: ConfigNotification;
  #status = 0;
  /** The device was found to have to wait for the lease. */
  #isPaused = false;
  #isResetting = false;
  #isToldOfReset = true;
  #isLeaving = false;
  #awaitsForeign = false;
  /** Called when no step is left. */
  #whenDone: (() => void) | undefined;
  /** The same of a device that is removed. */
  #whenGone: (() => void) | undefined;

  constructor(
    readonly number: number,
    readonly model: DeviceModel,
    readonly conversation: Conversation,
    readonly tables: SlotMemory,
    readonly owner: DeviceContext,
  ) {
    this.queues = Array.from({ length: model.queueCount }, (_, index) => newQueue(number, index));
    this.#configEvent = new ConfigNotification(this);
    const { reactor, link } = owner.notifications;
    const leavesPlace = model.vendorId !== VENDOR_ELSEWHERE;
    this.seen = new DeviceState(number, model.deviceId, model.queueCount, reactor, { leavesPlace });
    this.translation = new Translation(reactor, link, number, {
      regions: tables.regions,
      retake: (request) => this.#retake(request),
      resume: () => model.resume(),
      needsReset: (reason) => this.needsReset(reason),
      complain: owner.complain,
    });
  }

  #retake(request: DataView): void {
    this.owner.notifications.link.takeUp(request);
    if (!this.conversation.take(request)) this.needsReset("too many requests wait");
  }

  // --- what the device sees ----------------------------------------------------------------------

  /** See {@link DeviceHost.memory}. */
  get memory(): AddressSpace {
    return this.translation.space ?? this.tables.space;
  }

  /** See {@link DeviceHost.regions}. */
  get regions(): readonly MemoryRegion[] {
    return this.tables.regions;
  }

  get #isRunning(): boolean {
    return (this.#status & (Status.DRIVER_OK | Status.DEVICE_NEEDS_RESET)) === Status.DRIVER_OK;
  }

  get terms(): DeviceHost["terms"] {
    // A kernel's windows come and go under queues that run.
    if (this.translation.space ?? this.owner.link.bus.kernel) return undefined;
    return this.#isRunning ? this.owner.terms() : { untilMs: 0 };
  }

  mayTouchMemory(): boolean {
    if (!this.#isRunning) return false;
    if (this.owner.leaseHolds()) return true;
    this.#isPaused = true;
    return false;
  }

  used(queue: number): void {
    // A queue that is stopped because of a reset has nobody to tell.
    if (this.#isResetting) return;
    const { notifier, used } = this.queues[queue];
    this.seen.called(queue);
    if (notifier !== undefined) notifier.call();
    else this.owner.notifications.raise(used);
  }

  configChanged(): void {
    this.contentChanged();
    this.#announce();
  }

  /** The configuration reads otherwise from now on, and the driver knows why. */
  contentChanged(): void {
    this.generation = (this.generation + 1) >>> 0;
  }

  needsReset(reason: string): void {
    if ((this.#status & Status.DEVICE_NEEDS_RESET) !== 0) return;
    this.owner.log.warn(`device ${this.number} needs a reset: ${reason}`);
    // In reset it needs none, and nothing is announced before the first status write (rule U3).
    if (this.#status === 0) return;
    this.#status |= Status.DEVICE_NEEDS_RESET;
    this.seen.device(this.#status, this.driverFeatures);
    this.model.termsChanged?.();
    this.#announce();
  }

  #announce(): void {
    // Before the driver has found the device there is nobody to tell (rule U3).
    if (this.#status !== 0) this.owner.notifications.raise(this.#configEvent);
  }

  // --- what the driver side sees -----------------------------------------------------------------

  /** Device status. A device that does not answer needs a reset, and a reset it holds up is not finished. */
  get status(): number {
    return this.conversation.isHung ? this.#status | Status.DEVICE_NEEDS_RESET : this.#status;
  }

  /** Was FEATURES_OK set, so that features do not change any more? */
  get featuresAreFixed(): boolean {
    return (this.#status & Status.FEATURES_OK) !== 0;
  }

  /** A queue is as if it had never been set up; one that the device has stays its until it is stopped. */
  unsetQueue(index: number): void {
    this.translation.drop(index);
    this.dropNotifier(index);
    this.setQueue(index, UNSET, false);
    Object.assign(this.queues[index], { base: 0, goesOn: false });
  }

  /** Where a queue lies from now on. */
  setQueue(index: number, setup: QueueSetup, isEnabled: boolean): void {
    const queue = this.queues[index];
    queue.stored = setup;
    queue.isEnabled = isEnabled;
    this.seen.queue(index, isEnabled, setup);
  }

  /** Has a queue that is enabled notify out of band, and looks at it: kicks may have gone elsewhere before. */
  setNotifier(index: number, notifier: QueueNotifier, way: string): void {
    this.queues[index].notifier = notifier;
    this.#tellWay(index, way);
    this.model.available(index);
  }

  /** From here on the driver's kick is not heard and its call not signalled. */
  dropNotifier(index: number): void {
    const queue = this.queues[index];
    if (queue.notifier === undefined) return;
    queue.notifier[Symbol.dispose]();
    queue.notifier = undefined;
    this.#tellWay(index, "in band");
  }

  #tellWay(index: number, way: string): void {
    this.owner.link.tracer?.note(`dev ${this.number} queue ${index}: notifications ${way}`);
  }

  /** Was this feature negotiated? */
  hasNegotiated(bit: number): boolean {
    return this.featuresAreFixed && hasFeature(this.driverFeatures, bit);
  }

  /** Would this status set FEATURES_OK, so that the device must be asked? */
  setsFeaturesOk(status: number): boolean {
    return (status & ~this.#status & Status.FEATURES_OK) !== 0;
  }

  /** Sets a status other than 0. */
  setStatus(status: number, featuresAreOk: boolean): void {
    const before = this.#status;
    // NEEDS_RESET is the device's own bit. FEATURES_OK stays until a reset (a driver must not clear a
    // bit, VIRTIO 1.2 section 2.1.1): features do not change under a running queue.
    const kept = before & (Status.DEVICE_NEEDS_RESET | Status.FEATURES_OK);
    const refused = this.setsFeaturesOk(status) && !featuresAreOk ? Status.FEATURES_OK : 0;
    this.#status = (status & 0xff & ~Status.DEVICE_NEEDS_RESET & ~refused) | kept;
    this.seen.device(this.#status, this.driverFeatures);
    this.model.termsChanged?.();
    if ((this.#status & ~before & Status.DRIVER_OK) !== 0) this.model.resume();
  }

  /** Did the driver choose among the offered bits, with those it must have? */
  get featuresAreOffered(): boolean {
    return areOffered(this.driverFeatures, this.model.features);
  }

  /** The most entries a queue may have. */
  maxQueueSize(index: number): number {
    const { maxQueueSizes, maxQueueSize } = this.model;
    const most = this.owner.link.bus.kernel?.maxQueueSize ?? Infinity;
    return Math.min(maxQueueSizes?.[index] ?? maxQueueSize, most);
  }

  /** Looks at the queues again if the lease ran out and holds again. */
  resumeIfPaused(): void {
    this.model.termsChanged?.();
    if (!this.#isPaused || !this.mayTouchMemory()) return;
    this.#isPaused = false;
    this.model.resume();
  }

  // --- step by step ------------------------------------------------------------------------------

  /** Asks the device to stop a queue, which then is as if it had never been set up. */
  stopQueue(index: number): Answer<number> {
    this.unsetQueue(index);
    this.queues[index].isHeld = false;
    return this.model.stopQueue(index);
  }

  /**
   * Status 0: everything but the memory and the generation starts over.
   *
   * @param done called when the device has followed, or cannot, which {@link status} tells
   */
  reset(done: () => void): void {
    this.#startReset();
    if (this.conversation.isHung) return done();
    this.#whenDone = done;
    this.advance();
  }

  #startReset(): void {
    this.#isResetting = true;
    if (this.#status !== 0) this.#isToldOfReset = false;
    this.#status = 0;
    this.model.termsChanged?.();
    this.#isPaused = false;
    this.translation.reset();
    this.driverFeatures.fill(0);
    this.seen.device(this.#status, this.driverFeatures);
    this.queues.forEach(({ used }, index) => {
      this.unsetQueue(index);
      this.owner.notifications.cancel(used);
    });
    this.owner.notifications.cancel(this.#configEvent);
  }

  /** The driver side is gone or another has come: nothing of the old one's memory is touched from here on. */
  leave(): void {
    this.conversation.abandon();
    this.#whenDone = undefined;
    this.#awaitsForeign = false;
    this.#isLeaving = true;
    this.translation.leave();
    this.tables.unwantAll();
    this.#startReset();
    this.advance();
  }

  /**
   * The device is removed: nothing of it is wanted any more but that it lets go of memory.
   *
   * @param gone called when it has, or does not answer; perhaps more than once
   */
  remove(gone: () => void): void {
    this.#whenGone = gone;
    this.leave();
    if (this.conversation.isHung) gone();
  }

  /** Has the device let go of all that an earlier driver side gave it? One that hangs is not waited for. */
  get hasLeft(): boolean {
    return !this.#isLeaving || this.conversation.isHung;
  }

  /** Has the device unmap a table. */
  removeMemory(address: number, done: () => void): void {
    this.tables.unwant(this.tables.table(address)!);
    this.#whenDone = done;
    this.advance();
  }

  /** Has the device let go of a window that is lent; `done` is called when it has. */
  takeBack(window: MemoryRegion, done: () => void): void {
    this.tables.takeBack(window, done);
    this.advance();
  }

  /** Shows the memory of a foreign driver side, as soon as nothing of an earlier one is left. */
  showForeignMemory(): void {
    this.#awaitsForeign = this.#isLeaving;
    if (this.#isLeaving) return;
    const regions = this.tables.addForForeign();
    if (regions.length === 0) return;
    this.conversation.ask(this.model.memoryAdded?.(regions), this.#foreignMemoryShown);
  }

  readonly #foreignMemoryShown = (problem: string | undefined): void => {
    if (problem === undefined) return;
    this.owner.log.warn(`device ${this.number} refuses the driver side's memory: ${problem}`);
  };

  /** The device did not answer as it should; whoever waits for a step is told elsewhere. */
  failed(reason: string): void {
    this.#whenDone = undefined;
    this.needsReset(reason);
    this.#whenGone?.();
  }

  /** Takes the steps that are left; goes on by itself when one had to wait. */
  readonly advance = (): void => {
    while (!this.conversation.isAsked) {
      if (!this.#takeStep()) return this.#arrived();
    }
  };

  #takeStep(): boolean {
    const { conversation, model, tables } = this;
    if (this.#isResetting) {
      const index = this.queues.findIndex((queue) => queue.isHeld);
      if (index >= 0) {
        conversation.defers(this.stopQueue(index), this.advance);
        return true;
      }
      this.translation.release();
      if (!this.#isToldOfReset) {
        this.#isToldOfReset = true;
        conversation.defers(model.reset?.(), this.advance);
        return true;
      }
    }
    const undermined = tables.undermined(model, this.queues, this.isPacked);
    if (undermined >= 0) {
      this.needsReset(`the memory of queue ${undermined} is gone`);
      conversation.defers(this.stopQueue(undermined), this.advance);
      return true;
    }
    tables.unmapHidden();
    const table = tables.hideNext();
    if (table === undefined) return false;
    if (!table.isLent) conversation.defers(model.memoryRemoved?.(table.regions), this.advance);
    return true;
  }

  #arrived(): void {
    this.#isResetting = false;
    this.#isLeaving = false;
    if (this.#awaitsForeign) this.showForeignMemory();
    const done = this.#whenDone;
    this.#whenDone = undefined;
    done?.();
    this.#whenGone?.();
  }

  /** Ends the device, and takes everything away that it had. */
  [Symbol.dispose](): void {
    this.leave();
    this.conversation[Symbol.dispose]();
    this.model[Symbol.dispose]();
    this.translation[Symbol.dispose]();
    this.tables.dropAll();
    this.seen[Symbol.dispose]();
  }
}
