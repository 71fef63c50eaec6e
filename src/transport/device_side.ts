/**
 * The device side of the transport: it answers (docs/wire.md 3.6, 7.2).
 *
 * Theory of operation. One bus, several devices by number. What comes goes through {@link Peer}, which knows
 * who is there and drops what was meant for somebody else, then to the device it is about: requests to
 * device_requests.ts or private_requests.ts, by way of the device's {@link Conversation}, where they wait if the
 * device has not answered an earlier one. A request is answered inside its handler, before any queue is
 * worked on, if the device answers at once; the other devices and the bus are served meanwhile if not.
 * Events go out as room allows (notifications.ts).
 *
 * In dialects without private messages, memory comes from the command line and the peer is trusted to
 * say goodbye.
 */

import type { Bus, BusListener } from "../bus/bus.ts";
import { linuxErrno } from "../linux/errors.ts";
import type { Reactor } from "../linux/reactor.ts";
import { MemoryQuota, type MemoryRegion } from "../memory/mod.ts";
import type { Codec, Malformed } from "../message/codec.ts";
import { codecFor } from "../message/codecs.ts";
import { detectDialect } from "../message/detect.ts";
import { Kind } from "../message/message.ts";
import { isPrivate } from "../message/private.ts";
import { limitedLog, type Log } from "../observe/log.ts";
import type { Tracer } from "../observe/trace.ts";
import type { DeviceHost, DeviceModel } from "../virtio/device.ts";
import { answerAbsent, answerDevices, Arrivals } from "./arrivals.ts";
import { Conversation } from "./conversation.ts";
import type { DeviceContext } from "./device_context.ts";
import { DeviceRequests } from "./device_requests.ts";
import { DeviceSlot } from "./device_slot.ts";
import { Link } from "./link.ts";
import { Notifications } from "./notifications.ts";
import { Peer } from "./peer.ts";
import { answerPrivately, dropDescriptors, PrivateRequests } from "./private_requests.ts";
import { SharedWindows } from "./shared_windows.ts";
import { SlotMemory } from "./slot_memory.ts";

/** Slots that events leave free for answers. */
const ANSWER_RESERVE = 16;

const EBADF = linuxErrno("EBADF");
const ENODEV = linuxErrno("ENODEV");
const ESTALE = linuxErrno("ESTALE");

/** What a device side is made of. */
export interface DeviceSideOptions {
  /** The loop it runs in. */
  readonly reactor: Reactor;
  /** The device end of a bus. */
  readonly bus: Bus;
  /** The dialect that is spoken; with {@link detect}, until the first message tells. */
  readonly codec: Codec;
  /** Other dialects to speak, if the driver side's first message is in one of them. */
  readonly detect?: readonly Codec[];
  /** Where lines for people go. */
  readonly log: Log;
  /** Sees every message. */
  readonly tracer?: Tracer | undefined;
  /** Take no memory but the segment: what lies outside of it is never touched, whoever asks. */
  readonly confined?: boolean | undefined;
  /** How much of the driver side's memory may be mapped. */
  readonly quota?: MemoryQuota | undefined;
}

/** A device number with all that belongs to it. */
interface Device {
  readonly slot: DeviceSlot;
  readonly requests: DeviceRequests;
  readonly privates: PrivateRequests;
  /** It is being removed: nothing finds it any more. */
  isLeaving: boolean;
}

/** The device side of one bus. */
export class DeviceSide implements BusListener, Disposable {
  readonly #notifications: Notifications;
  readonly #devices = new Map<number, Device>();
  readonly #link: Link;
  readonly #peer: Peer;
  readonly #context: DeviceContext;
  readonly #arrivals: Arrivals;
  /** Of driver sides, one after another. */
  #sessions = 0;
  /** Those that wait for any of the devices. */
  readonly #requests = { waiting: 0 };
  readonly #windows: SharedWindows;
  #toldMalformed = false;

  /** Makes a side without devices; {@link open} starts it. */
  constructor(readonly options: DeviceSideOptions) {
    const { reactor, bus, codec, log, tracer, confined = false } = options;
    const { quota = new MemoryQuota() } = options;
    const link = this.#link = new Link(bus, codec, { reactor, tracer, pauses: true });
    this.#notifications = new Notifications(link, reactor, {
      atOnce: false,
      reserve: ANSWER_RESERVE,
    });
    this.#context = {
      reactor,
      link,
      notifications: this.#notifications,
      log,
      complain: limitedLog(log.warn, reactor),
      confined,
      quota,
      leaseHolds: () => this.#peer.leaseHolds(),
      terms: () => this.#peer.terms,
      ownEpoch: () => this.#peer.ownEpoch,
    };
    this.#windows = new SharedWindows(this.#context);
    this.#peer = new Peer(this.#context, {
      startOver: () => this.#startOver(),
      hasStartedOver: () => this.#slots().every((slot) => slot.hasLeft),
      showForeignMemory: () =>
        this.#forEach((slot, isLeaving) => isLeaving || slot.showForeignMemory()),
      resume: () => this.#forEach((slot) => slot.resumeIfPaused()),
    });
    const isHeard = () =>
      this.#isKnown && link.codec.has(Kind.EVENT_DEVICE) && bus.kernel === undefined;
    this.#arrivals = new Arrivals(reactor, this.#notifications, isHeard);
  }

  /** Has a driver side said who it is? */
  get #isKnown(): boolean {
    return this.#peer.state === "vmsg" || this.#peer.state === "foreign";
  }

  #startOver(): void {
    this.#sessions++;
    this.#link.forget();
    this.#forEach((slot) => slot.leave());
  }

  #forEach(action: (slot: DeviceSlot, isLeaving: boolean) => void): void {
    for (const { slot, isLeaving } of this.#devices.values()) action(slot, isLeaving);
  }

  #present(number: number): Device | undefined {
    const device = this.#devices.get(number);
    return device?.isLeaving === false ? device : undefined;
  }

  #slots(): DeviceSlot[] {
    return [...this.#devices.values()].map(({ slot }) => slot);
  }

  /** What came, what of it could not be used, and answers that were lost for want of room. */
  get counters(): Link["counters"] {
    return this.#link.counters;
  }

  /** The status of a device, as its driver reads it. */
  status(number: number): number {
    return this.#devices.get(number)!.slot.status;
  }

  /** A number for one more device, see arrivals.ts; -1 for none. @param isTaken by one that is not added yet */
  freeNumber(isTaken: (number: number) => boolean = () => false): number {
    const most = this.options.bus.kernel?.deviceNumbers ?? Infinity;
    const cannotBe = (number: number) => number >= most || isTaken(number);
    return this.#arrivals.free((number) => this.#devices.has(number) || cannotBe(number));
  }

  /** How long this number has to rest before it is given to another device. */
  restMs(number: number): number {
    return this.#arrivals.restMs(number);
  }

  /**
   * Adds a device, to own, also while a driver side is there, which is told.
   *
   * @param fixed memory that a driver side has which cannot announce any
   */
  add(number: number, model: DeviceModel, fixed: readonly MemoryRegion[] = []): DeviceHost {
    if (this.#devices.has(number)) throw new Error(`device number ${number} is given twice`);
    const link = this.#link;
    const conversation = new Conversation(this.options.reactor, {
      link,
      handle: () => this.#answering(device).handle(),
      failed: (reason, hasRequest) => {
        slot.failed(reason);
        if (hasRequest) this.#answering(device).fail();
        slot.advance();
      },
      settled: () => slot.advance(),
    }, this.#requests);
    const tables = new SlotMemory(number, fixed, this.#context);
    const slot = new DeviceSlot(number, model, conversation, tables, this.#context);
    const device: Device = {
      slot,
      requests: new DeviceRequests(slot, link),
      privates: new PrivateRequests(slot, link),
      isLeaving: false,
    };
    try {
      model.connect(slot);
    } catch (error) {
      slot[Symbol.dispose]();
      throw error;
    }
    this.#devices.set(number, device);
    if (this.#peer.state === "foreign") slot.showForeignMemory();
    this.#windows.showTo(slot);
    this.#arrivals.added(number);
    this.#publish();
    return slot;
  }

  /**
   * Removes a device and disposes of it, when it has let go of memory: from now on requests for it are dropped. Those that came
   * before are answered as those of a device that hangs, then the driver side is told. A device that does not
   * answer is ended all the same.
   */
  async remove(number: number): Promise<void> {
    const device = this.#present(number);
    if (device === undefined) throw new Error(`there is no device number ${number}`);
    const { slot } = device;
    device.isLeaving = true;
    this.#publish();
    const owed = slot.conversation.surrender();
    const gone = this.options.reactor.defer<void>();
    const sessions = this.#sessions;
    slot.remove(() => gone.resolve());
    await gone.promise;
    // The whole side may have ended.
    if (this.#devices.get(number) !== device) return;
    slot.conversation.giveUp();
    if (sessions === this.#sessions && this.#isKnown) this.#answerOwed(device, owed);
    slot[Symbol.dispose]();
    this.#devices.delete(number);
    this.#arrivals.removed(number);
  }

  #answerOwed(device: Device, { asked, waiting }: ReturnType<Conversation["surrender"]>): void {
    const link = this.#link;
    for (const request of asked === undefined ? waiting : [asked, ...waiting]) {
      link.takeUp(request);
      // EVENT_DEVICE ends those of a vmsg, to which an errno would mean that its device has failed.
      if (isPrivate(link.in.kind)) dropDescriptors(link);
      else if (request === asked) device.requests.fail();
      else device.requests.handle();
    }
  }

  /** Who answers the request in hand. */
  #answering(device: Device): DeviceRequests | PrivateRequests {
    return isPrivate(this.#link.in.kind) ? device.privates : device.requests;
  }

  /** Starts to wait for driver sides. */
  open(): void {
    this.options.bus.open(this);
  }

  attached(): void {
    const { codec, bus: { kernel } } = this.options;
    this.#speak(kernel === undefined ? codec : codecFor(codec.dialect, kernel.maxMessage));
    this.#toldMalformed = false;
    this.#notifications.cancelAll();
    this.#peer.attached();
    this.#publish();
  }

  detached(reason: string): void {
    this.#peer.detached(reason);
  }

  discarded(slot: DataView): void {
    this.#tellDialect(slot);
  }

  received(slot: DataView): void {
    if (this.#peer.state === "unknown") this.#detect(slot);
    const malformed = this.#link.receive(slot);
    if (malformed === undefined) return this.#understood(slot);
    // Where peers come unnoticed, one of another dialect may have followed.
    if (this.options.bus.noticesPeers || !this.#detect(slot)) {
      return this.#notUnderstood(slot, malformed);
    }
    this.#peer.replaced();
    this.received(slot);
  }

  #understood(slot: DataView): void {
    const { in: message } = this.#link;
    const { kind } = message;
    if (message.response) return this.#answered();
    if (!this.#peer.admits(kind)) return this.#link.drop("out of turn");
    if (kind === Kind.HELLO) return this.#peer.hello();
    if (isPrivate(kind)) return this.#privateRequest(slot);
    if (kind === Kind.GET_DEVICES) return answerDevices(this.#link, this.#numbers);
    if (kind === Kind.PING) return this.#link.pong();
    const device = this.#present(message.device);
    if (device === undefined) return answerAbsent(this.#link);
    if (kind === Kind.EVENT_AVAIL) device.requests.available();
    else this.#take(device, slot);
  }

  /** An answer: the only request that a device side sends asks for a translation. */
  #answered(): void {
    const { in: message } = this.#link;
    const device = this.#present(message.device);
    const isAsked = message.kind === Kind.IOMMU_TRANSLATE && this.#peer.state === "foreign";
    if (device === undefined || !isAsked) return this.#link.drop("not asked for");
    device.slot.translation.answered(message);
  }

  #take(device: Device, slot: DataView): void {
    if (device.slot.conversation.take(slot)) return;
    dropDescriptors(this.#link);
    this.#context.complain(
      `device ${device.slot.number} is busy, and too many requests wait for it`,
    );
    this.#link.drop("busy");
  }

  // --- a kernel's bus ----------------------------------------------------------------------------

  get #numbers(): number[] {
    return [...this.#devices.keys()].filter((number) => this.#present(number));
  }

  #publish = (): void => this.options.bus.kernel?.publish(this.#numbers);

  readonly windowAdded = (region: MemoryRegion): number => this.#windows.add(region, this.#slots());
  readonly windowRemoved = (region: MemoryRegion, done: () => void): void =>
    this.#windows.remove(region, this.#slots(), done);

  // --- dialects ----------------------------------------------------------------------------------

  /** Takes up the dialect of a first message, if it is one to be detected; true if it is another. */
  #detect(slot: DataView): boolean {
    const { detect = [], codec, bus } = this.options;
    if (detect.length === 0) return false;
    const theirs = detectDialect(slot, 0);
    const found = [codec, ...detect].find(({ dialect }) => dialect === theirs);
    if (found === undefined || found === this.#link.codec) return false;
    this.#speak(found);
    this.#peer.tell(`${bus.description}: the driver side speaks ${theirs}`);
    return true;
  }

  #speak(codec: Codec): void {
    if (codec === this.#link.codec) return;
    this.#link.codec = codec;
    this.options.bus.ringPerMessage = codec.conduct.ringsPerMessage;
  }

  #notUnderstood(slot: DataView, reason: Malformed): void {
    this.#link.refuse(slot, reason);
    // Said once per attachment; the counter knows the rest.
    if (this.#toldMalformed) return;
    this.#toldMalformed = true;
    if (this.#peer.state === "unknown" && this.#tellDialect(slot)) return;
    this.options.log.warn(`dropped a message that is not ${this.#link.codec.dialect} (${reason})`);
  }

  /** Says so if a message is of another dialect. */
  #tellDialect(slot: DataView): boolean {
    const theirs = detectDialect(slot, 0);
    const ours = this.#link.codec.dialect;
    if (theirs === ours || theirs === "unknown") return false;
    this.#context.complain(
      `the driver side speaks ${theirs}, this device side speaks ${ours}: ` +
        `give both the same dialect=`,
    );
    return true;
  }

  // --- about the bus -----------------------------------------------------------------------------

  #privateRequest(slot: DataView): void {
    const link = this.#link;
    const { epoch, memoryDevice } = link.in;
    if (this.#peer.state !== "vmsg") return link.drop("out of turn");
    const device = this.#present(memoryDevice);
    const isStale = epoch !== this.#peer.epoch;
    if (link.in.kind === Kind.SET_DOORBELLS && !isStale) {
      const isTaken = link.bus.takeDoorbells?.(link.in.ordinal) === true;
      return answerPrivately(link, this.#peer.ownEpoch, isTaken ? 0 : EBADF);
    }
    if (device !== undefined && !isStale) {
      if (link.in.kind === Kind.SET_NOTIFIER) return device.privates.setNotifier();
      return this.#take(device, slot);
    }
    dropDescriptors(link);
    if (!isStale && this.#devices.has(memoryDevice)) return link.drop("out of turn");
    answerPrivately(link, this.#peer.ownEpoch, isStale ? ESTALE : ENODEV);
  }

  /** Stops all queues, unmaps memory, disposes of the devices. */
  [Symbol.dispose](): void {
    this.#peer[Symbol.dispose]();
    this.#forEach((slot) => slot[Symbol.dispose]());
    this.#devices.clear();
    this.#notifications[Symbol.dispose]();
    this.#link[Symbol.dispose]();
  }
}
