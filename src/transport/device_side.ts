/**
 * The device side of the transport: it answers (wire document 2.3, 5N.5, 5N.6).
 *
 * Theory of operation. One bus, several devices by number. Every request is answered inside the
 * handler, before any queue is worked on; events go out as room allows: a used notification is one
 * pending bit per queue, so a full message queue never blocks and never loses one.
 *
 * Peers. What the first message after an attach is decides who is there:
 *
 *     unknown --HELLO--> greeted --HELLO that names our epoch--> vmsg
 *     unknown --GET_DEVICE_INFO, GET_DEVICES--> foreign
 *
 * Where the dialect knows no HELLO, any request makes the peer foreign. All else that comes while
 * unknown, and everything but HELLO while greeted, is dropped: it was meant for an earlier process.
 * A HELLO with another epoch is a new peer: queues stop, memory is unmapped, status becomes 0, then it
 * is answered.
 *
 * The lease (design 6.3). Each answer to HELLO carries a fresh nonce, the next HELLO returns it. Memory
 * of a vmsg peer is touched until {@link LEASE_MS} after the nonce that came back was *issued*, so a
 * driver side that stands still (a paused machine, a dead kernel) is left alone in time. A stall of
 * this process between that check and the last store of a batch is not covered.
 *
 * In dialects without these messages, memory comes from the command line and the peer is trusted to
 * say goodbye.
 *
 * A bus that notices no peers (two machines) is attached once; there a driver side that comes, vmsg or
 * not, is known by its first message alone, and one that goes by its silence.
 */

import type { Bus, BusListener } from "../bus/bus.ts";
import { linuxErrno } from "../linux/errors.ts";
import { type Fd, fileSize } from "../linux/fd.ts";
import { type Mapping, mapShared, PAGE_SIZE } from "../linux/mapping.ts";
import type { Reactor, Timer } from "../linux/reactor.ts";
import { AddressSpace, type MappedMemory } from "../memory/mod.ts";
import type { Codec } from "../message/codec.ts";
import { detectDialect } from "../message/detect.ts";
import { RingFeature, Status } from "../virtio/features.ts";
import { Kind, MEMORY_SEGMENT, MEMORY_WINDOW, Message, QUEUE_ENABLED } from "../message/message.ts";
import { isPrivate } from "../message/private.ts";
import { limitedLog, type Log } from "../observe/log.ts";
import type { Tracer } from "../observe/trace.ts";
import type {
  Answer,
  DeviceHost,
  DeviceModel,
  MemoryRegion,
  QueueSetup,
} from "../virtio/device.ts";
import { PRIVATE_VERSION, randomEpoch, randomNonce } from "./epoch.ts";

/** How long a returned nonce lets the device side touch memory, from when the nonce was issued. */
export const LEASE_MS = 250;
/** Nonces that may still come back. */
const NONCES = 8;
/** Feature blocks that are stored; bits beyond the device's own blocks are kept to be refused. */
const FEATURE_BLOCKS = 16;
/** Slots that events leave free for answers. */
const ANSWER_RESERVE = 16;
/** How soon a full message queue is tried again. */
const FULL_RETRY_MS = 1;
/** How long a vmsg driver side may be silent before we say so; it speaks every 100 ms. */
const SILENCE_MS = 1000;
/** Lines about driver sides that come. */
const TOLD_PER_SECOND = 10;

const EBADF = linuxErrno("EBADF");
const EBUSY = linuxErrno("EBUSY");
const EEXIST = linuxErrno("EEXIST");
const EFAULT = linuxErrno("EFAULT");
const EINVAL = linuxErrno("EINVAL");
const ENODEV = linuxErrno("ENODEV");
const ENOENT = linuxErrno("ENOENT");
const EPERM = linuxErrno("EPERM");
const EPROTO = linuxErrno("EPROTO");
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
  /** Milliseconds that never go back, for the lease; by default `performance.now`. */
  readonly now?: (() => number) | undefined;
}

/** An answer that is there. */
function now<T>(answer: Answer<T>): T {
  if (answer instanceof Promise) throw new Error("a device that answers later");
  return answer;
}

function hex(address: number): string {
  return `0x${address.toString(16)}`;
}

/** Who is at the other end, see the head of this file. */
type Peer = "none" | "unknown" | "greeted" | "vmsg" | "foreign";

/** Memory that ADD_MEMORY brought. */
interface Region {
  readonly length: number;
  /** Its windows; several where it is scattered over several of the device side's own. */
  readonly windows: readonly { readonly at: number; readonly size: number }[];
  /** Undefined where the memory was mapped already. */
  readonly mapping?: Mapping;
}

/** A memory window that is known beforehand. */
export interface FixedWindow {
  /** First bus address. */
  readonly at: number;
  /** In bytes. */
  readonly size: number;
  /** What the window shows. */
  readonly memory: MappedMemory;
  /** Of the window's first byte in `memory`. */
  readonly offset: number;
}

/** A queue as the transport knows it. */
interface QueueRecord {
  setup: QueueSetup | undefined;
  /** SET_VQUEUE_STATE's index, for the next SET_VQUEUE. */
  base: number;
  usedPending: boolean;
}

/** One device number: the model, and the state every virtio device has. */
class DeviceSlot implements DeviceHost {
  readonly memory = new AddressSpace();
  readonly regions: MemoryRegion[] = [];
  readonly #tables = new Map<number, Region>();
  readonly queues: QueueRecord[];
  readonly driverFeatures: Uint32Array;
  status = 0;
  generation = 0;
  configPending = false;
  paused = false;

  constructor(
    readonly number: number,
    readonly model: DeviceModel,
    readonly side: DeviceSide,
    readonly fixed: readonly FixedWindow[],
  ) {
    this.driverFeatures = new Uint32Array(FEATURE_BLOCKS);
    this.queues = Array.from({ length: model.queueCount }, () => ({
      setup: undefined,
      base: 0,
      usedPending: false,
    }));
    model.connect(this);
  }

  mayTouchMemory(): boolean {
    const running = Status.DRIVER_OK | Status.DEVICE_NEEDS_RESET;
    if ((this.status & running) !== Status.DRIVER_OK) return false;
    if (this.side.leaseHolds()) return true;
    this.paused = true;
    return false;
  }

  used(queue: number): void {
    this.queues[queue].usedPending = true;
    this.side.eventsPending();
  }

  configChanged(): void {
    // The generation is never 0 twice for two contents (rules V11, V16), and survives a reset (V10).
    this.generation = (this.generation + 1) >>> 0;
    this.announce();
  }

  needsReset(reason: string): void {
    if ((this.status & Status.DEVICE_NEEDS_RESET) !== 0) return;
    this.side.options.log.warn(`device ${this.number} needs a reset: ${reason}`);
    // In reset it needs none, and nothing is announced before the first status write (rule U3).
    if (this.status === 0) return;
    this.status |= Status.DEVICE_NEEDS_RESET;
    this.announce();
  }

  private announce(): void {
    // Before the driver has found the device there is nobody to tell (5N.6, rule U3).
    if (this.status === 0) return;
    this.configPending = true;
    this.side.eventsPending();
  }

  /** Status 0: everything but the memory windows and the generation starts over. */
  reset(): void {
    this.status = 0;
    this.stopQueues();
    this.driverFeatures.fill(0);
    this.configPending = false;
    this.paused = false;
  }

  private stopQueues(): void {
    this.queues.forEach((queue, index) => {
      if (queue.setup !== undefined) this.model.stopQueue(index);
      queue.setup = undefined;
      queue.base = 0;
      queue.usedPending = false;
    });
  }

  get hasRunningQueue(): boolean {
    return this.queues.some((queue) => queue.setup !== undefined);
  }

  addMemory(fd: Fd, address: number, length: number, offset: number): number {
    if (![address, length, offset].every(Number.isSafeInteger) || length === 0) return EINVAL;
    // A mapping starts at a page; a region of the front end need not.
    const slack = offset % PAGE_SIZE;
    try {
      // Beyond the end of the file every access would be a SIGBUS.
      if (offset + length > fileSize(fd)) return EINVAL;
      const mapping = mapShared(fd.number, length + slack, offset - slack);
      const result = this.addWindow(address, length, mapping, slack);
      if (result === 0) {
        this.#tables.set(address, { length, windows: [{ at: address, size: length }], mapping });
      } else {
        mapping[Symbol.dispose]();
      }
      return result;
    } catch (error) {
      this.side.options.log.warn(`device ${this.number}: memory refused: ${error}`);
      return EINVAL;
    }
  }

  private addWindow(at: number, size: number, memory: MappedMemory, offset: number): number {
    const problem = this.memory.add(at, size, memory, offset);
    if (problem === undefined) return 0;
    return problem === "overlap" ? EEXIST : EINVAL;
  }

  /** Part of the memory that holds the bus's queues. */
  addSegment(address: number, length: number, offset: number): number {
    const { segment } = this.side.options.bus;
    if (segment === undefined) return EBADF;
    if (!(offset >= segment.start)) return EINVAL;
    const result = this.addWindow(address, length, segment.memory, offset);
    if (result === 0) {
      this.#tables.set(address, { length, windows: [{ at: address, size: length }] });
    }
    return result;
  }

  /** Part of what was given by `--memory`, which may be in several pieces there. */
  addFixed(address: number, length: number, from: number): number {
    if (address === 0 && length === 0 && from === 0) return this.addAllFixed();
    if (![address, length, from].every(Number.isSafeInteger) || length === 0) return EINVAL;
    const windows: { at: number; size: number }[] = [];
    let result = 0;
    for (let done = 0, size; done < length && result === 0; done += size) {
      const start = from + done;
      const fixed = this.fixed.find(({ at, size }) => start >= at && start < at + size);
      size = fixed === undefined ? 0 : Math.min(length - done, fixed.at + fixed.size - start);
      result = fixed === undefined
        ? EFAULT
        : this.addWindow(address + done, size, fixed.memory, fixed.offset + start - fixed.at);
      if (result === 0) windows.push({ at: address + done, size });
    }
    if (result === 0) this.#tables.set(address, { length, windows });
    else for (const { at, size } of windows) this.memory.remove(at, size);
    if (result === EFAULT) this.tellUnseen(`at ${hex(from)} to ${hex(from + length)}`);
    return result;
  }

  private tellUnseen(where: string): void {
    this.side.complain(
      `device ${this.number}: the driver side's memory is ${where} of its machine, ` +
        (this.fixed.length === 0 ? "give --memory to see it" : "which no --memory covers"),
    );
  }

  /** All of it, at its own addresses. */
  private addAllFixed(): number {
    let result = this.fixed.length === 0 ? EFAULT : 0;
    const windows: { at: number; size: number }[] = [];
    for (const { at, size, memory, offset } of this.fixed) {
      if (result === 0) result = this.addWindow(at, size, memory, offset);
      if (result === 0) windows.push({ at, size });
    }
    if (result === 0) this.#tables.set(0, { length: 0, windows });
    else for (const { at, size } of windows) this.memory.remove(at, size);
    if (this.fixed.length === 0) this.tellUnseen("anywhere in RAM");
    return result;
  }

  hasMemoryAt(address: number): boolean {
    return this.#tables.has(address);
  }

  removeMemory(address: number, length: number): number {
    if (this.hasRunningQueue) return EBUSY;
    const region = this.#tables.get(address);
    if (region?.length !== length) return ENOENT;
    this.dropRegion(address, region);
    return 0;
  }

  private dropRegion(address: number, region: Region): void {
    for (const { at, size } of region.windows) this.memory.remove(at, size);
    region.mapping?.[Symbol.dispose]();
    this.#tables.delete(address);
  }

  /** Shows the memory that a foreign peer has and cannot announce. */
  showFixedMemory(): void {
    const { bus: { segment }, confined = false } = this.side.options;
    if (confined) {
      // Addresses are offsets in it.
      if (segment === undefined) return;
      const { memory, start } = segment;
      this.addSegment(start, memory.size - start, start);
      return;
    }
    for (const { at, size, memory, offset } of this.fixed) {
      const problem = this.memory.add(at, size, memory, offset);
      if (problem !== undefined) this.side.options.log.error(`memory at ${at}: ${problem}`);
    }
  }

  /** Unmaps what ADD_MEMORY mapped, and hides what was fixed. */
  dropMemory(): void {
    for (const { at, size } of this.fixed) this.memory.remove(at, size);
    for (const [address, region] of this.#tables) this.dropRegion(address, region);
  }
}

/** The device side of one bus. */
export class DeviceSide implements BusListener, Disposable {
  /** What it is made of. */
  readonly options: DeviceSideOptions;
  /** What came in and could not be used. */
  readonly counters = { received: 0, malformed: 0, dropped: 0, unansweredFull: 0 };
  readonly #slots = new Map<number, DeviceSlot>();
  readonly #in = new Message();
  readonly #out = new Message();
  readonly #retry: Timer;
  /** Goes off when a vmsg driver side has not been heard for a while. */
  readonly #silence: Timer;
  #isSilent = false;
  readonly #flushTask = { run: (): boolean => this.#flush() };
  readonly #complain: (line: string) => void;
  /** Says who comes, which a driver side can have us say with each message. */
  readonly #tell: (line: string) => void;
  readonly #now: () => number;
  #codec: Codec;
  #peer: Peer = "none";
  #ownEpoch = 0;
  #peerEpoch = 0;
  #leaseEndMs = 0;
  #toldMalformed = false;
  readonly #nonces = new Float64Array(NONCES);
  readonly #issuedMs = new Float64Array(NONCES);
  #nextNonce = 0;

  /** Makes a side without devices; {@link open} starts it. */
  constructor(options: DeviceSideOptions) {
    this.options = options;
    this.#codec = options.codec;
    this.#retry = options.reactor.timer(() => options.reactor.schedule(this.#flushTask));
    this.#silence = options.reactor.timer(() => this.#tellSilence());
    this.#complain = limitedLog(options.log.warn);
    this.#tell = limitedLog(options.log.info, 1000, TOLD_PER_SECOND);
    this.#now = options.now ?? (() => performance.now());
  }

  /**
   * Adds a device; before {@link open}.
   *
   * @param fixed memory that a driver side has which cannot announce any
   */
  add(number: number, model: DeviceModel, fixed: readonly FixedWindow[] = []): DeviceHost {
    if (this.#slots.has(number)) throw new Error(`device number ${number} is given twice`);
    const slot = new DeviceSlot(number, model, this, fixed);
    this.#slots.set(number, slot);
    return slot;
  }

  /** Starts to wait for driver sides. */
  open(): void {
    this.options.bus.open(this);
  }

  attached(): void {
    this.#peer = "unknown";
    this.#speak(this.options.codec);
    this.#toldMalformed = false;
    this.#ownEpoch = randomEpoch();
    this.#peerEpoch = 0;
    const { bus, log } = this.options;
    const what = bus.noticesPeers ? "the driver side is there" : "waiting for a driver side";
    log.info(`${bus.description}: ${what}`);
  }

  /** Where nobody else has told that a driver side came. */
  #tellCame(who: string): void {
    const { bus } = this.options;
    if (!bus.noticesPeers) this.#tell(`${bus.description}: ${who} is there`);
  }

  discarded(slot: DataView): void {
    this.#tellDialect(slot);
  }

  detached(reason: string): void {
    this.options.log.info(`${this.options.bus.description}: ${reason}`);
    this.#peer = "none";
    this.#silence.cancel();
    this.#isSilent = false;
    this.#startOver();
  }

  /** The peer is new or gone: nothing of the old one's memory is touched from here on. */
  #startOver(): void {
    this.#leaseEndMs = 0;
    this.#nonces.fill(0);
    for (const slot of this.#slots.values()) {
      slot.reset();
      slot.dropMemory();
    }
  }

  /** May memory of the peer be touched at this moment? */
  leaseHolds(): boolean {
    if (this.#peer === "foreign") return true;
    return this.#peer === "vmsg" && this.#now() < this.#leaseEndMs;
  }

  received(slot: DataView): void {
    const message = this.#in;
    this.counters.received++;
    if (this.#peer === "unknown") this.#detect(slot);
    const malformed = this.#codec.decode(slot, 0, message);
    if (malformed !== undefined) {
      // Where peers come unnoticed, one of another dialect may have followed.
      if (!this.options.bus.noticesPeers && this.#detect(slot)) return this.#replaced(slot);
      return this.#notUnderstood(slot, malformed);
    }
    this.options.tracer?.message("<-", message, slot, 0, message.size);
    if (message.response) return this.#drop();
    if (this.#peer === "unknown" || this.#mayBeAnother) this.#introduce(message.kind);
    if (message.kind === Kind.HELLO) return this.#hello();
    if (this.#peer === "greeted" || this.#peer === "unknown") return this.#drop();
    if (isPrivate(message.kind)) return this.#privateRequest();
    if (message.kind === Kind.GET_DEVICES) return this.#getDevices();
    if (message.kind === Kind.PING) {
      const data = message.data;
      this.#answer().data = data;
      this.#send();
      return;
    }
    const device = this.#slots.get(message.device);
    if (device === undefined) return this.#absentDevice();
    this.#transportRequest(device);
  }

  /** Takes up the dialect of a first message, if it is one to be detected; true if it is another. */
  #detect(slot: DataView): boolean {
    const { detect = [], codec, bus } = this.options;
    if (detect.length === 0) return false;
    const theirs = detectDialect(slot, 0);
    const found = [codec, ...detect].find(({ dialect }) => dialect === theirs);
    if (found === undefined || found === this.#codec) return false;
    this.#speak(found);
    this.#tell(`${bus.description}: the driver side speaks ${theirs}`);
    return true;
  }

  #speak(codec: Codec): void {
    if (codec === this.#codec) return;
    this.#codec = codec;
    this.options.bus.ringPerMessage = !codec.hasTokens;
  }

  /** Another driver side has come unnoticed, and this is its first message. */
  #replaced(slot: DataView): void {
    this.#startOver();
    this.#peerEpoch = 0;
    // Should the former one be here after all, it has to replay.
    this.#ownEpoch = randomEpoch();
    this.#peer = "unknown";
    this.received(slot);
  }

  /** A silent vmsg may have been followed by a driver side that says no HELLO. */
  get #mayBeAnother(): boolean {
    return this.#isSilent && this.#peer !== "foreign" && !this.options.bus.noticesPeers;
  }

  /** The first message tells who is there. */
  #introduce(kind: Kind): void {
    if (kind === Kind.HELLO) {
      if (this.#peer === "unknown") this.#peer = "greeted";
      return;
    }
    const isFirst = kind === Kind.GET_DEVICE_INFO || kind === Kind.GET_DEVICES;
    if (!isFirst && this.#codec.has(Kind.HELLO)) return;
    if (this.#peer !== "unknown") {
      // The vmsg driver side that was here is gone; should it be here after all, it has to replay.
      this.#startOver();
      this.#peerEpoch = 0;
      this.#ownEpoch = randomEpoch();
    }
    this.#silence.cancel();
    this.#isSilent = false;
    this.#tellCame("a driver side");
    this.#peer = "foreign";
    for (const slot of this.#slots.values()) slot.showFixedMemory();
  }

  #notUnderstood(slot: DataView, reason: string): void {
    this.counters.malformed++;
    this.options.tracer?.malformed(slot, 0, slot.byteLength, reason);
    // Said once per attachment; the counter knows the rest.
    if (this.#toldMalformed) return;
    this.#toldMalformed = true;
    if (this.#peer === "unknown" && this.#tellDialect(slot)) return;
    this.options.log.warn(`dropped a message that is not ${this.#codec.dialect} (${reason})`);
  }

  /** Says so if a message is of another dialect. */
  #tellDialect(slot: DataView): boolean {
    const theirs = detectDialect(slot, 0);
    const ours = this.#codec.dialect;
    if (theirs === ours || theirs === "unknown") return false;
    this.#complain(
      `the driver side speaks ${theirs}, this device side speaks ${ours}: ` +
        `give both the same dialect=`,
    );
    return true;
  }

  /** Warns of what a driver side can make us say as often as it likes. */
  complain(line: string): void {
    this.#complain(line);
  }

  #drop(): void {
    this.counters.dropped++;
  }

  /** An answer to the message in hand; fill it and call {@link #send}. */
  #answer(): Message {
    const out = this.#out;
    out.reset(this.#in.kind, true);
    out.device = this.#in.device;
    out.token = this.#in.token;
    return out;
  }

  #send(reserve = 0): boolean {
    const { bus, tracer } = this.options;
    const codec = this.#codec;
    const offset = bus.claim(reserve);
    if (offset < 0) {
      if (this.#out.response) this.counters.unansweredFull++;
      return false;
    }
    codec.encode(this.#out, bus.view, offset);
    tracer?.message("->", this.#out, bus.view, offset, this.#out.size);
    bus.send();
    return true;
  }

  #hello(): void {
    const { epoch, peerEpoch, nonce, version } = this.#in;
    if (version !== PRIVATE_VERSION) {
      this.#complain(`the driver side is a vmsg of another version (${version})`);
      return this.#drop();
    }
    // Where peers come unnoticed, a vmsg may follow a foreign one.
    if (this.#peer === "foreign" && this.options.bus.noticesPeers) return this.#drop();
    if (epoch !== this.#peerEpoch || this.#peer === "foreign") {
      this.#startOver();
      this.#peerEpoch = epoch;
      this.#peer = "greeted";
      this.#tellCame("a vmsg driver side");
    }
    this.#heard();
    if (peerEpoch === this.#ownEpoch && this.#renewLease(nonce)) this.#peer = "vmsg";
    const out = this.#answer();
    out.epoch = this.#ownEpoch;
    out.peerEpoch = epoch;
    out.nonce = this.#issueNonce();
    out.version = PRIVATE_VERSION;
    this.#send();
    for (const slot of this.#slots.values()) {
      if (slot.paused && slot.mayTouchMemory()) {
        slot.paused = false;
        slot.model.resume();
      }
    }
  }

  #heard(): void {
    this.#silence.arm(SILENCE_MS);
    if (!this.#isSilent) return;
    this.#isSilent = false;
    this.options.log.info(`${this.options.bus.description}: the driver side is heard again`);
  }

  #tellSilence(): void {
    this.#isSilent = true;
    const { bus, log } = this.options;
    log.warn(`${bus.description}: the driver side is silent, its memory is not touched meanwhile`);
  }

  #issueNonce(): number {
    const i = this.#nextNonce;
    this.#nextNonce = (i + 1) % NONCES;
    this.#nonces[i] = randomNonce();
    this.#issuedMs[i] = this.#now();
    return this.#nonces[i];
  }

  #renewLease(nonce: number): boolean {
    const i = this.#nonces.indexOf(nonce);
    if (nonce === 0 || i < 0) return false;
    this.#leaseEndMs = Math.max(this.#leaseEndMs, this.#issuedMs[i] + LEASE_MS);
    return true;
  }

  #getDevices(): void {
    const { offset, count } = this.#in;
    const out = this.#answer();
    const end = offset + Math.min(count, this.#codec.limits.deviceBits);
    out.offset = offset;
    out.count = end - offset;
    for (const number of this.#slots.keys()) {
      if (number >= offset && number < end) {
        out.bytes[(number - offset) >> 3] |= 1 << ((number - offset) & 7);
      } else if (number >= end && (out.nextOffset === 0 || number < out.nextOffset)) {
        out.nextOffset = number;
      }
    }
    if (this.#codec.dialect === "v1-2025" && out.nextOffset !== 0) {
      // A multiple of 8 there, and not inside the window (rules B8, B10).
      out.nextOffset = Math.max(end, out.nextOffset - out.nextOffset % 8);
    }
    this.#send();
  }

  #absentDevice(): void {
    // Early discovery may ask for any number: all zero means that there is no device (rule V4). All
    // else is dropped: a bus invents no answer (rule B20).
    if (this.#in.kind !== Kind.GET_DEVICE_INFO) return this.#drop();
    this.#answer();
    this.#send();
  }

  #privateRequest(): void {
    const message = this.#in;
    const { kind, memoryDevice, index, address, length } = message;
    if (this.#peer !== "vmsg") return this.#drop();
    const device = this.#slots.get(memoryDevice);
    // Taken in any case: a descriptor belongs to its message, also to one that is refused.
    const from = message.flags & (MEMORY_SEGMENT | MEMORY_WINDOW);
    // A segment is the bus's own memory; a bus that has none but carries descriptors brings it.
    const { bus, confined = false } = this.options;
    const carriesFd = from === 0 || (from === MEMORY_SEGMENT && bus.segment === undefined);
    using fd = kind === Kind.ADD_MEMORY && carriesFd ? bus.takeFd(message.ordinal) : undefined;
    let result = 0;
    let base = 0;
    if (message.epoch !== this.#peerEpoch) result = ESTALE;
    else if (device === undefined) result = ENODEV;
    else if (kind === Kind.ADD_MEMORY) {
      if (confined && from !== MEMORY_SEGMENT) result = this.#refuseMemory();
      // Regions are known by their address; one that is empty there (all of --memory) overlaps nothing.
      else if (device.hasMemoryAt(address)) result = EEXIST;
      else if (from === MEMORY_SEGMENT && !carriesFd) {
        result = device.addSegment(address, length, message.offset);
      } else if (from === MEMORY_WINDOW) result = device.addFixed(address, length, message.offset);
      else if (fd === undefined) result = EBADF;
      else result = device.addMemory(fd, address, length, message.offset);
    } else if (kind === Kind.REMOVE_MEMORY) {
      result = device.removeMemory(address, length);
    } else if (kind === Kind.STOP_VQUEUE) {
      const queue = device.queues[index];
      if (queue?.setup === undefined) result = ENOENT;
      else base = this.#stopQueue(device, index);
    } else if (kind === Kind.SET_VQUEUE_STATE) {
      result = this.#setQueueState(device, index, message.base);
    }
    const out = this.#answer();
    out.epoch = this.#ownEpoch;
    out.result = result;
    out.index = index;
    out.base = base;
    this.#send();
  }

  #refuseMemory(): number {
    this.#complain("the driver side offers its memory, but --confined takes a segment only");
    return EPERM;
  }

  #stopQueue(device: DeviceSlot, index: number): number {
    const queue = device.queues[index];
    const base = now(device.model.stopQueue(index));
    queue.setup = undefined;
    queue.base = 0;
    // The last used notification goes out before the answer, or after it if there is room for one only.
    if (queue.usedPending && this.#sendUsed(device, index, 1)) queue.usedPending = false;
    return base;
  }

  #setQueueState(device: DeviceSlot, index: number, base: number): number {
    const queue = device.queues[index];
    if (queue === undefined) return ENOENT;
    if (queue.setup !== undefined) return EBUSY;
    if ((device.status & Status.FEATURES_OK) === 0) return EPROTO;
    queue.base = base;
    return 0;
  }

  #transportRequest(device: DeviceSlot): void {
    const message = this.#in;
    switch (message.kind) {
      case Kind.EVENT_AVAIL:
        return this.#available(device, message.index);
      case Kind.GET_DEVICE_INFO:
        return this.#getDeviceInfo(device);
      case Kind.GET_DEVICE_FEATURES:
        return this.#getFeatures(device);
      case Kind.SET_DRIVER_FEATURES:
        return this.#setFeatures(device);
      case Kind.GET_CONFIG:
        return this.#getConfig(device);
      case Kind.SET_CONFIG:
        return this.#setConfig(device);
      case Kind.GET_CONFIG_GENERATION:
        this.#answer().generation = device.generation;
        break;
      case Kind.GET_DEVICE_STATUS:
        this.#answer().status = device.status;
        break;
      case Kind.SET_DEVICE_STATUS:
        this.#setStatus(device, message.status);
        this.#answer().status = device.status;
        break;
      case Kind.GET_VQUEUE:
        this.#getQueue(device);
        break;
      case Kind.SET_VQUEUE:
        this.#setQueue(device);
        this.#answer();
        break;
      case Kind.RESET_VQUEUE:
        this.#resetQueue(device, message.index);
        this.#answer();
        break;
      case Kind.IOMMU_ENABLE:
        // Only buses with a software IOMMU translate (wire document 8.5), and this is none.
        if (message.state !== 0) {
          this.#complain("the driver side wants translated addresses; they are used as they are");
        }
        return this.#drop();
      case Kind.GET_SHM: {
        const index = message.index;
        // No device of ours has shared memory regions: length 0 (rule V38).
        this.#answer().index = index;
        break;
      }
      default:
        return this.#drop();
    }
    if (this.#codec.answered(message.kind)) this.#send();
  }

  #available(device: DeviceSlot, index: number): void {
    // An event for a queue that is not set up is dropped silently (design 6.5, rules V22, V25).
    if (device.queues[index]?.setup === undefined) return this.#drop();
    device.model.available(index);
  }

  #getDeviceInfo(device: DeviceSlot): void {
    const { model } = device;
    const out = this.#answer();
    out.deviceId = model.deviceId;
    out.vendorId = model.vendorId;
    out.featureBlocks = model.features.length;
    out.configSize = model.configSize;
    out.maxQueues = model.queueCount;
    out.version = 1;
    this.#send();
  }

  #getFeatures(device: DeviceSlot): void {
    const { index, count } = this.#in;
    const out = this.#answer();
    const { featureBlocks } = this.#codec.limits;
    const blocks = this.#codec.hasTokens ? Math.min(count, featureBlocks) : 2;
    // `proto` names no block and always means all 64 bits, whatever index it sends (2.3).
    const first = this.#codec.hasTokens ? index : 0;
    out.index = first;
    out.count = blocks;
    for (let i = 0; i < blocks; i++) out.words[i] = device.model.features[first + i] ?? 0;
    this.#send();
  }

  #setFeatures(device: DeviceSlot): void {
    const { index, count, words } = this.#in;
    const first = this.#codec.hasTokens ? index : 0;
    const fixed = (device.status & Status.FEATURES_OK) !== 0;
    // Bits that are stored are judged when FEATURES_OK is set; afterwards they stay.
    for (let i = 0; i < count && !fixed; i++) {
      if (first + i < device.driverFeatures.length) device.driverFeatures[first + i] = words[i];
    }
    const out = this.#answer();
    out.index = first;
    out.count = count;
    out.words.set(device.driverFeatures);
    this.#send();
  }

  #getConfig(device: DeviceSlot): void {
    const { offset, length } = this.#in;
    const { configSize } = device.model;
    const config = (): Uint8Array =>
      now(device.model.readConfig(offset, Math.min(length, configSize - offset)));
    const out = this.#answer();
    out.generation = device.generation;
    out.offset = offset;
    out.length = length;
    if (length > this.#codec.limits.configBytes) return this.#drop();
    if (offset + length <= configSize) {
      out.bytes.set(config());
    } else if (!this.#codec.hasTokens) {
      // The prototype answers a read across the end with 32 bits of ones (2.3).
      out.bytes.fill(0xff, 0, 4);
    } else if (offset > configSize) {
      return this.#drop();
    } else {
      out.bytes.set(config());
    }
    this.#send();
  }

  #setConfig(device: DeviceSlot): void {
    const { offset, length, bytes, generation } = this.#in;
    const { model } = device;
    // All or nothing (rule V37); the generation is not a reason to refuse (rule V35), but in `v1-2025`
    // who has not seen the latest one must read first (rule V13).
    const isStale = this.#codec.dialect === "v1-2025" && generation !== device.generation;
    const fits = length > 0 && offset + length <= model.configSize;
    const applied = fits && !isStale && now(model.writeConfig(offset, bytes.subarray(0, length)));
    const out = this.#answer();
    out.generation = device.generation;
    out.offset = offset;
    out.length = applied || !this.#codec.hasTokens ? length : 0;
    out.bytes.set(bytes.subarray(0, out.length));
    // Revision 1 answers what there is now (rule V14), the prototype what was written.
    if (applied && this.#codec.hasTokens) {
      out.bytes.set(now(model.readConfig(offset, length)));
    }
    this.#send();
  }

  #setStatus(device: DeviceSlot, status: number): void {
    if (status === 0) return device.reset();
    const before = device.status;
    // NEEDS_RESET is the device's own bit. FEATURES_OK stays until a reset (a driver must not clear a
    // bit, VIRTIO 1.2 section 2.1.1): features do not change under a running queue.
    const kept = before & (Status.DEVICE_NEEDS_RESET | Status.FEATURES_OK);
    let next = (status & 0xff & ~Status.DEVICE_NEEDS_RESET) | kept;
    const becomes = (bit: number) => (next & ~before & bit) !== 0;
    if (becomes(Status.FEATURES_OK) && !this.#featuresAcceptable(device)) {
      next &= ~Status.FEATURES_OK;
    }
    const starts = becomes(Status.DRIVER_OK);
    device.status = next;
    if (starts) device.model.resume();
  }

  #featuresAcceptable(device: DeviceSlot): boolean {
    const { driverFeatures, model } = device;
    const block = RingFeature.VERSION_1 >> 5;
    if ((driverFeatures[block] & (1 << (RingFeature.VERSION_1 & 31))) === 0) return false;
    const offered = driverFeatures.every((word, i) => (word & ~(model.features[i] ?? 0)) === 0);
    return offered && now(model.acceptFeatures(driverFeatures.subarray(0, model.features.length)));
  }

  #getQueue(device: DeviceSlot): void {
    const { index } = this.#in;
    const queue = device.queues[index];
    const out = this.#answer();
    out.index = index;
    if (queue === undefined) return;
    out.maxSize = device.model.maxQueueSize;
    if (queue.setup === undefined) return;
    out.flags = QUEUE_ENABLED;
    out.queueSize = queue.setup.size;
    out.descriptorAddress = queue.setup.descriptorAddress;
    out.driverAddress = queue.setup.driverAddress;
    out.deviceAddress = queue.setup.deviceAddress;
  }

  #setQueue(device: DeviceSlot): void {
    const message = this.#in;
    const { index } = message;
    const queue = device.queues[index];
    // Another operation than "enable" is unknown and changes nothing (rule V34).
    if (this.#codec.hasTokens && message.flags !== QUEUE_ENABLED) return this.#drop();
    if (queue === undefined || message.queueSize > device.model.maxQueueSize) return this.#drop();
    if (queue.setup !== undefined) device.model.stopQueue(index);
    const setup: QueueSetup = {
      size: message.queueSize,
      descriptorAddress: message.descriptorAddress,
      driverAddress: message.driverAddress,
      deviceAddress: message.deviceAddress,
      base: queue.base,
    };
    queue.setup = undefined;
    queue.base = 0;
    const problem = now(device.model.startQueue(index, setup));
    if (problem !== undefined) return device.needsReset(`queue ${index}: ${problem}`);
    queue.setup = setup;
    // A ring is looked at when it starts, not only when kicked: nobody kicks for what is there already.
    device.model.available(index);
  }

  #resetQueue(device: DeviceSlot, index: number): void {
    const queue = device.queues[index];
    if (queue?.setup === undefined) return;
    device.model.stopQueue(index);
    queue.setup = undefined;
    queue.base = 0;
    queue.usedPending = false;
  }

  /** An event waits to be sent. */
  eventsPending(): void {
    this.options.reactor.schedule(this.#flushTask);
  }

  #flush(): boolean {
    for (const device of this.#slots.values()) {
      for (let index = 0; index < device.queues.length; index++) {
        const queue = device.queues[index];
        if (!queue.usedPending) continue;
        if (!this.#sendUsed(device, index, ANSWER_RESERVE)) return this.#tryLater();
        queue.usedPending = false;
      }
      if (!device.configPending) continue;
      if (!this.#sendConfigEvent(device)) return this.#tryLater();
      device.configPending = false;
    }
    return false;
  }

  #tryLater(): boolean {
    // A detached bus has nobody to tell; the peer that comes next starts from a reset device.
    if (this.options.bus.isAttached) this.#retry.arm(FULL_RETRY_MS);
    return false;
  }

  #sendUsed(device: DeviceSlot, index: number, reserve: number): boolean {
    this.#out.reset(Kind.EVENT_USED, false);
    this.#out.device = device.number;
    this.#out.index = index;
    return this.#send(reserve);
  }

  #sendConfigEvent(device: DeviceSlot): boolean {
    this.#out.reset(Kind.EVENT_CONFIG, false);
    this.#out.device = device.number;
    this.#out.status = device.status;
    this.#out.generation = device.generation;
    return this.#send(ANSWER_RESERVE);
  }

  /** Stops all queues, unmaps memory, disposes of the devices. */
  [Symbol.dispose](): void {
    this.#peer = "none";
    this.#startOver();
    this.options.reactor.dropTimer(this.#retry);
    this.options.reactor.dropTimer(this.#silence);
    for (const slot of this.#slots.values()) slot.model[Symbol.dispose]();
  }
}
