/**
 * One vhost-user front end: its requests, and the vrings and memory they describe.
 *
 * Theory of operation. Requests are handled one after another. Each changes the wanted state; those
 * after which the front end relies on the device (a memory table, a ring's start or stop, the status,
 * a reply that is a barrier) wait until the device has been brought there, or until there is no device
 * side: then the wanted state alone is kept, and replayed when one comes. The answer to GET_FEATURES is
 * held back until the device is known, because what is answered once cannot be taken back.
 *
 * Peculiarities of front ends that this file serves: ring addresses are user addresses; features may be
 * set several times and in parts; User-Mode Linux never stops a ring (its driver removal disables the
 * rings and then asks for the features), knows no status, and gives a pipe as call descriptor; QEMU
 * sends status 0 before it asks for the ring bases.
 */

import { VmsgError } from "../../linux/errors.ts";
import { clearEventFd, signalEventFd } from "../../linux/eventfd.ts";
import { type Fd, setNonBlocking } from "../../linux/fd.ts";
import { type Deferred, EPOLLERR, EPOLLHUP, EPOLLIN, type Reactor } from "../../linux/reactor.ts";
import { UnixStream } from "../../linux/unix_socket.ts";
import { MAX_WINDOWS } from "../../memory/mod.ts";
import { RingFeature, Status } from "../../virtio/features.ts";
import { limitedLog, type Log } from "../../observe/log.ts";
import type { RemoteDevice } from "../../transport/remote_device.ts";
import { PeerLost } from "../../transport/requests.ts";
import type { ShadowDevice } from "../../sharing/shadow_device.ts";
import { type FrontEndConnection, type FrontEndMessage, sendMessage } from "./connection.ts";
import { DeviceState, type Wanted } from "../session.ts";
import { MappedRegion, MemoryTable, type Region } from "../../sharing/memory_table.ts";
import * as protocol from "./protocol.ts";
import { ProtocolFeature, Request } from "./protocol.ts";
import { Vring } from "./vring.ts";

/** Queues a front end may describe; as many as a virtio-net device with 64 pairs and control has. */
const MAX_VRINGS = 129;
/** The largest virtqueue there is (VIRTIO 1.2, 2.7). */
const MAX_QUEUE_SIZE = 32768;

/** Bits that never reach the device: dirty logging, and the protocol's own. */
const NOT_VIRTIO = (1 << 26) | (1 << protocol.FEATURE_PROTOCOL_FEATURES);

/** The front end hung up while its request waited. */
class FrontEndGone extends VmsgError {
  constructor() {
    super("FRONT_END_GONE", "the front end is gone");
  }
}

/** See the head of this file. */
export class FrontEnd implements Wanted, Disposable {
  features: Uint32Array | undefined;
  memory: MemoryTable | undefined;
  /** Every region that is open: of the wanted table, or still mapped by the device side. */
  readonly #regions = new Set<MappedRegion>();
  readonly vrings: Vring[] = [];
  readonly #state: DeviceState;
  #protocolFeatures: number | undefined;
  #status = 0;
  #backendChannel: UnixStream | undefined;
  /** The latest run of the state machine; the next one waits for it. */
  #applying: Promise<void> = Promise.resolve();
  #waiters: Deferred<void>[] = [];
  /** For what the device side can make us say as often as it likes. */
  readonly #complain: (line: string) => void;

  constructor(
    readonly connection: FrontEndConnection,
    readonly device: RemoteDevice,
    readonly reactor: Reactor,
    readonly log: Log,
    readonly shadows?: ShadowDevice | undefined,
  ) {
    this.#state = new DeviceState(device, log, shadows);
    this.#complain = limitedLog(log.warn);
    const call = (queue: number) => {
      const fd = this.vrings[queue]?.call;
      if (fd !== undefined) signalEventFd(fd);
    };
    if (shadows !== undefined) {
      shadows.call = call;
      shadows.fail = (queue) => this.#tellBroken(queue);
    }
    device.onUsed = shadows === undefined ? call : (queue) => shadows.moved(queue);
    device.onConfig = (status) => this.#configChanged(status);
  }

  // --- the device side comes and goes ------------------------------------------------------------

  /** A device side is there: learn what it is, and bring it where the front end is. */
  deviceReady(): void {
    this.reactor.spawn(async () => {
      try {
        await this.#state.discover();
        this.#checkAgainstNewDevice();
        await this.#apply();
      } catch (error) {
        this.#failed(error);
      }
      for (const waiter of this.#waiters.splice(0)) waiter.resolve();
    });
  }

  /** The device side is gone. */
  deviceLost(): void {
    this.#state.lost(this);
    this.#closeUnusedRegions();
    for (const vring of this.vrings) {
      // Wakes a driver that waits for a used notification that the dead device still owed.
      if (vring.call !== undefined) signalEventFd(vring.call);
    }
  }

  /** A replaced device must be able to do what was promised to the guest. */
  #checkAgainstNewDevice(): void {
    const lacking = this.features?.some((word, i) => (word & ~this.#state.offered[i]) !== 0);
    if (lacking) {
      throw new VmsgError(
        "FEATURES_LOST",
        "the new device lacks features that the guest uses: restart the guest",
      );
    }
  }

  /** Waits until a device is known; throws when the front end hangs up meanwhile. */
  async #deviceKnown(): Promise<void> {
    if (!this.device.side.isReady) {
      this.log.info("the front end waits for the device side");
    }
    while (this.#state.info === undefined) {
      if (this.connection.closed !== undefined) throw new FrontEndGone();
      const waiter = this.reactor.defer<void>();
      this.#waiters.push(waiter);
      await waiter.promise;
    }
  }

  /** Asks a device; one that is lost meanwhile is asked again when it is back: the front end waits. */
  async #withDevice<T>(ask: () => Promise<T>): Promise<T> {
    for (;;) {
      await this.#deviceKnown();
      try {
        return await ask();
      } catch (error) {
        if (!(error instanceof PeerLost)) throw error;
      }
    }
  }

  /** A failure that the front end cannot be told: one line, and its connection ends. */
  #failed(error: unknown): void {
    if (error instanceof PeerLost || error instanceof FrontEndGone) return;
    if (!(error instanceof VmsgError || error instanceof RangeError)) throw error;
    this.log.error(error.message);
    this.connection.close("given up");
  }

  /** Brings the device to the wanted state; runs do not overlap. */
  #apply(): Promise<void> {
    return this.#exclusively(() => this.#state.apply(this));
  }

  #exclusively(run: () => Promise<void>): Promise<void> {
    const next = this.#applying.then(run).catch((error) => {
      // A lost device side is no failure of the front end's: its state is replayed later.
      if (!(error instanceof PeerLost)) throw error;
    }).finally(() => this.#closeUnusedRegions());
    this.#applying = next.catch(() => {});
    return next;
  }

  #closeUnusedRegions(): void {
    for (const region of this.#regions) {
      if (this.memory?.regions.includes(region) || this.#state.regions.includes(region)) continue;
      this.#regions.delete(region);
      this.shadows?.removeMemory(region);
      region[Symbol.dispose]();
    }
  }

  /** True when rings may run, see {@link Wanted}. */
  get mayRun(): boolean {
    if (this.connection.closed !== undefined) return false;
    if (this.#hasStatus && (this.#status & Status.DRIVER_OK) === 0) return false;
    // Where a ring runs, the driver is at work; each further one starts when it is enabled.
    if (this.vrings.some((vring) => vring.running)) return true;
    const described = this.vrings.filter((vring) => vring.isComplete);
    const allEnabled = described.length > 0 && described.every((vring) => vring.enabled);
    return allEnabled || described.some((vring) => vring.enabled && vring.kicked);
  }

  get #hasStatus(): boolean {
    // A front end that negotiated status may still never use it; then the rings tell.
    return this.#has(ProtocolFeature.STATUS) && this.#statusUsed;
  }

  #statusUsed = false;

  #has(bit: number): boolean {
    return ((this.#protocolFeatures ?? 0) & (1 << bit)) !== 0;
  }

  #configChanged(status: number): void {
    if ((status & Status.DEVICE_NEEDS_RESET) !== 0) {
      this.#complain(`device ${this.device.number} needs a reset: restart the guest's driver`);
      for (const vring of this.vrings) this.#tellBroken(vring.index);
    }
    if (this.#backendChannel !== undefined && this.#has(ProtocolFeature.CONFIG)) {
      sendMessage(this.#backendChannel, protocol.BACKEND_CONFIG_CHANGE, 0, new Uint8Array());
    }
  }

  #tellBroken(queue: number): void {
    const fd = this.vrings[queue]?.error;
    if (fd !== undefined) signalEventFd(fd);
  }

  // --- requests ----------------------------------------------------------------------------------

  /** Serves the connection until it ends, then leaves the device reset and without memory. */
  async serve(): Promise<void> {
    for (;;) {
      const message = await this.connection.next();
      if (message === undefined) break;
      try {
        await this.#handle(message);
      } catch (error) {
        this.#failed(error);
      }
      for (const fd of message.fds) fd[Symbol.dispose]();
    }
    this.memory = undefined;
    try {
      await this.#exclusively(() => this.#state.reset(this));
    } catch (error) {
      this.#failed(error);
      // What the device side still maps and runs would refuse the next front end's memory, and so every
      // one's after it. A new attachment starts from nothing.
      this.device.side.link.bus.drop("the device could not be reset");
    }
  }

  /** The front end hung up, perhaps while a request waits. */
  hungUp(): void {
    for (const waiter of this.#waiters.splice(0)) waiter.resolve();
  }

  async #handle(message: FrontEndMessage): Promise<void> {
    const { request } = message;
    this.log.debug(`front end: ${protocol.requestName(request)}`);
    const reply = await this.#dispatch(message);
    if (reply !== undefined) return this.connection.reply(request, reply);
    const wantsAck = (message.flags & protocol.FLAG_NEED_REPLY) !== 0;
    if (wantsAck && this.#has(ProtocolFeature.REPLY_ACK)) {
      this.connection.reply(request, new Uint8Array(8));
    }
  }

  /** Carries a request out; returns the payload of a request that has a reply of its own. */
  async #dispatch(message: FrontEndMessage): Promise<Uint8Array | undefined> {
    const { request, payload } = message;
    switch (request) {
      case Request.GET_FEATURES:
        await this.#deviceKnown();
        // User-Mode Linux uses this as the barrier behind disabled rings.
        await this.#apply();
        return this.#getFeatures();
      case Request.SET_FEATURES:
        return this.#setFeatures(payload);
      case Request.GET_PROTOCOL_FEATURES:
        return words(protocol.OFFERED_PROTOCOL_FEATURES, 0);
      case Request.SET_PROTOCOL_FEATURES:
        this.#protocolFeatures = u32(payload, 0);
        return undefined;
      case Request.GET_QUEUE_NUM:
        await this.#deviceKnown();
        return words(Math.max(1, this.#state.info!.maxQueues >> 1), 0);
      case Request.SET_OWNER:
        return undefined;
      case Request.RESET_OWNER:
        for (const vring of this.vrings) vring.enabled = false;
        await this.#apply();
        return undefined;
      case Request.SET_MEM_TABLE:
        return await this.#setMemoryTable(message);
      case Request.GET_MAX_MEM_SLOTS:
        return words(MAX_WINDOWS, 0);
      case Request.ADD_MEM_REG:
      case Request.REM_MEM_REG:
        return await this.#changeRegion(message);
      case Request.SET_VRING_NUM:
        return this.#setVringSize(u32(payload, 0), u32(payload, 4));
      case Request.SET_VRING_BASE:
        this.#vring(u32(payload, 0)).base = u32(payload, 4) & 0xffff;
        return undefined;
      case Request.SET_VRING_ADDR:
        return await this.#setVringAddresses(payload);
      case Request.GET_VRING_BASE:
        return await this.#getVringBase(u32(payload, 0));
      case Request.SET_VRING_KICK:
      case Request.SET_VRING_CALL:
      case Request.SET_VRING_ERR:
        return await this.#setVringFd(message);
      case Request.SET_VRING_ENABLE: {
        const vring = this.#vring(u32(payload, 0));
        vring.enabled = u32(payload, 4) !== 0;
        // User-Mode Linux stops a ring like this only; the next driver has not kicked yet.
        if (!vring.enabled) vring.kicked = false;
        await this.#apply();
        return undefined;
      }
      case Request.SET_BACKEND_REQ_FD: {
        const [fd] = message.fds.splice(0, 1);
        this.#backendChannel?.[Symbol.dispose]();
        this.#backendChannel = fd === undefined ? undefined : new UnixStream(fd);
        return undefined;
      }
      case Request.GET_CONFIG:
        return await this.#getConfig(payload);
      case Request.SET_CONFIG:
        return await this.#setConfig(payload);
      case Request.SET_STATUS:
        return await this.#setStatus(u32(payload, 0));
      case Request.GET_STATUS:
        return words(this.#status, 0);
      default:
        throw new VmsgError(
          "BAD_REQUEST",
          `the front end sent ${protocol.requestName(request)}, which was not offered`,
        );
    }
  }

  #vring(index: number): Vring {
    if (index >= MAX_VRINGS) throw new VmsgError("BAD_REQUEST", `front end: no ring ${index}`);
    for (let i = this.vrings.length; i <= index; i++) {
      const vring = new Vring(i);
      // Without protocol features there is no SET_VRING_ENABLE and rings begin enabled.
      vring.enabled = this.#protocolFeatures === undefined;
      this.vrings.push(vring);
    }
    return this.vrings[index];
  }

  #getFeatures(): Uint8Array {
    const [low, high] = this.#state.offered;
    const hidden = 1 << (RingFeature.ACCESS_PLATFORM - 32);
    return words(low | (1 << protocol.FEATURE_PROTOCOL_FEATURES), high & ~hidden);
  }

  #setFeatures(payload: DataView): undefined {
    // A driver that negotiates while nothing runs starts over; one that runs only changes logging.
    if (!this.vrings.some((vring) => vring.running)) this.#state.forgetSession();
    this.features = new Uint32Array([u32(payload, 0) & ~NOT_VIRTIO, u32(payload, 4)]);
  }

  async #setMemoryTable(message: FrontEndMessage): Promise<undefined> {
    const regions = protocol.parseRegions(message.payload);
    if (regions === undefined || regions.length !== message.fds.length) {
      throw new VmsgError("BAD_REQUEST", "the front end sent a malformed memory table");
    }
    const before = this.memory?.regions ?? [];
    const table = regions.map((region) => {
      const mapped = this.#mapRegion(region, message);
      // A region that is there already stays, so an unchanged table is no request at all.
      return before.find((old) => old.shows(mapped)) ?? mapped;
    });
    this.memory = new MemoryTable(table);
    await this.#apply();
    return undefined;
  }

  /** Maps a region with the message's next descriptor, which stays the message's if that fails. */
  #mapRegion(region: Region, { fds }: FrontEndMessage): MappedRegion {
    const mapped = new MappedRegion(region, fds[0]);
    fds.shift();
    this.#regions.add(mapped);
    return mapped;
  }

  /** ADD_MEM_REG, REM_MEM_REG: one region more or less. */
  async #changeRegion(message: FrontEndMessage): Promise<undefined> {
    const region = protocol.parseSingleRegion(message.payload);
    const adds = message.request === Request.ADD_MEM_REG;
    if (region === undefined || (adds && message.fds.length !== 1)) {
      throw new VmsgError("BAD_REQUEST", "the front end sent a malformed memory region");
    }
    const before = this.memory?.regions ?? [];
    if (adds) {
      this.memory = new MemoryTable([...before, this.#mapRegion(region, message)]);
    } else {
      this.memory = new MemoryTable(before.filter((other) => !other.isAt(region)));
    }
    await this.#apply();
    return undefined;
  }

  #setVringSize(index: number, size: number): undefined {
    // What the device takes is asked when the ring starts; these no device does.
    if (size < 1 || size > MAX_QUEUE_SIZE) {
      throw new VmsgError("BAD_REQUEST", `front end: ring ${index} cannot have ${size} entries`);
    }
    this.#vring(index).size = size;
  }

  async #setVringAddresses(payload: DataView): Promise<undefined> {
    if (payload.byteLength < 40) throw shortPayload();
    const vring = this.#vring(u32(payload, 0));
    vring.addresses = {
      descriptor: protocol.getUint64(payload, 8),
      used: protocol.getUint64(payload, 16),
      available: protocol.getUint64(payload, 24),
    };
    await this.#apply();
    return undefined;
  }

  async #getVringBase(index: number): Promise<Uint8Array> {
    const vring = this.#vring(index);
    // GET_VRING_BASE stops the ring: it has no kick any more, so it may not run.
    this.#setKick(vring, undefined);
    await this.#apply();
    vring.kicked = false;
    return words(index, vring.base);
  }

  async #setVringFd(message: FrontEndMessage): Promise<undefined> {
    const value = u32(message.payload, 0);
    const vring = this.#vring(value & protocol.VRING_INDEX_MASK);
    const fd = (value & protocol.VRING_NO_FD) === 0 ? message.fds[0] : undefined;
    // A pipe (User-Mode Linux) or a full eventfd must not block the loop.
    if (fd !== undefined) setNonBlocking(fd);
    // Ours from here on; before, the message closes what could not be used.
    if (fd !== undefined) message.fds.shift();
    if (message.request === Request.SET_VRING_CALL) {
      vring.call?.[Symbol.dispose]();
      vring.call = fd;
      return undefined;
    }
    if (message.request === Request.SET_VRING_ERR) {
      vring.error?.[Symbol.dispose]();
      vring.error = fd;
      return undefined;
    }
    if (fd === undefined) {
      throw new VmsgError("NO_KICK", "the front end gives no kick descriptor: polling is not done");
    }
    this.#setKick(vring, fd);
    await this.#apply();
    return undefined;
  }

  #setKick(vring: Vring, fd: Fd | undefined): void {
    const old = vring.kick;
    if (old !== undefined) {
      this.reactor.unwatch(old);
      old[Symbol.dispose]();
    }
    vring.kick = undefined;
    if (fd === undefined) return;
    try {
      this.reactor.watch(fd, EPOLLIN, (events) => this.#kicked(vring, fd, events));
    } catch (error) {
      // Files of some kinds cannot be watched; what is not watched must not be unwatched later.
      fd[Symbol.dispose]();
      throw error;
    }
    vring.kick = fd;
  }

  #kicked(vring: Vring, fd: Fd, events: number): void {
    if ((events & (EPOLLHUP | EPOLLERR)) !== 0) {
      // Never an eventfd; what hung up stays ready and would keep the loop from sleeping.
      this.#setKick(vring, undefined);
      return this.connection.close(`the kick descriptor of ring ${vring.index} hung up`);
    }
    clearEventFd(fd);
    if (vring.running) {
      if (this.shadows !== undefined) return this.shadows.moved(vring.index);
      return this.device.available(vring.index);
    }
    if (vring.kicked) return;
    vring.kicked = true;
    // The first kick of an enabled ring stands for DRIVER_OK in front ends without status.
    this.reactor.spawn(() => this.#apply().catch((error) => this.#failed(error)));
  }

  async #getConfig(payload: DataView): Promise<Uint8Array> {
    if (payload.byteLength < protocol.CONFIG_HEADER) throw shortPayload();
    const [offset, size] = [u32(payload, 0), u32(payload, 4)];
    const reply = new Uint8Array(protocol.CONFIG_HEADER + Math.min(size, 256));
    reply.set(new Uint8Array(payload.buffer, 0, protocol.CONFIG_HEADER));
    // Front ends ask for as much as they know; what the device does not have reads as 0.
    const room = reply.length - protocol.CONFIG_HEADER;
    const bytes = await this.#withDevice(() =>
      this.device.config(offset, Math.min(room, this.#configLeft(offset)))
    );
    reply.set(bytes, protocol.CONFIG_HEADER);
    return reply;
  }

  #configLeft(offset: number): number {
    return Math.max(0, this.#state.info!.configSize - offset);
  }

  async #setConfig(payload: DataView): Promise<undefined> {
    if (payload.byteLength < protocol.CONFIG_HEADER) throw shortPayload();
    const [offset, size] = [u32(payload, 0), u32(payload, 4)];
    const length = Math.min(size, payload.byteLength - protocol.CONFIG_HEADER);
    const data = new Uint8Array(payload.buffer, protocol.CONFIG_HEADER, length);
    await this.#withDevice(async () => {
      if (data.length <= this.#configLeft(offset)) await this.device.setConfig(offset, data);
    });
    return undefined;
  }

  async #setStatus(status: number): Promise<undefined> {
    this.#status = status;
    this.#statusUsed = true;
    if (status !== 0) {
      await this.#apply();
      return undefined;
    }
    for (const vring of this.vrings) vring.kicked = false;
    await this.#exclusively(() => this.#state.reset(this));
    return undefined;
  }

  [Symbol.dispose](): void {
    this.device.onUsed = undefined;
    this.device.onConfig = undefined;
    for (const vring of this.vrings) {
      this.#setKick(vring, undefined);
      vring[Symbol.dispose]();
    }
    this.memory = undefined;
    this.#state.lost(this);
    this.#closeUnusedRegions();
    this.#backendChannel?.[Symbol.dispose]();
    this.connection[Symbol.dispose]();
  }
}

function u32(payload: DataView, at: number): number {
  if (payload.byteLength < at + 4) throw shortPayload();
  return payload.getUint32(at, true);
}

function shortPayload(): VmsgError {
  return new VmsgError("BAD_REQUEST", "the front end sent a message that is too short");
}

/** A payload of two u32, also as the halves of a u64. */
function words(first: number, second: number): Uint8Array {
  const bytes = new Uint8Array(8);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, first, true);
  view.setUint32(4, second, true);
  return bytes;
}
