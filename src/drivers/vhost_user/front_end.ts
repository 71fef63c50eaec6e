/**
 * One vhost-user front end: its requests, and what they say that its driver wants.
 *
 * Theory of operation. Requests are handled one after another. Each changes the wanted state; those
 * after which the front end relies on the device (a memory table, a ring's start or stop, the status,
 * a reply that is a barrier) wait until the device has been brought there (session.ts), or until there is no device
 * side: then the wanted state alone is kept, and replayed when one comes. The answer to GET_FEATURES is
 * held back until the device is known, because what is answered once cannot be taken back.
 *
 * Peculiarities of front ends that this file serves: ring addresses are user addresses (memory_table.ts); features
 * may be set several times and in parts; User-Mode Linux never stops a ring (its driver removal disables the
 * rings and then asks for the features) and knows no status (vrings.ts); QEMU sends status 0 before it asks for the
 * ring bases.
 */

import { VmsgError } from "../../linux/errors.ts";
import type { Fd } from "../../linux/fd.ts";
import { mapsPrivately } from "../../linux/process_files.ts";
import type { Reactor } from "../../linux/reactor.ts";
import { describeFd, kindOf } from "../../linux/received_fd.ts";
import { UnixStream } from "../../linux/unix_socket.ts";
import { MAX_WINDOWS, type MemoryQuota } from "../../memory/mod.ts";
import { hasFeature, RingFeature, Status } from "../../virtio/features.ts";
import type { Log } from "../../observe/log.ts";
import type { Sharing } from "../../sharing/sharing.ts";
import type { RemoteDevice } from "../../transport/remote_device.ts";
import { PeerLost } from "../../transport/requests.ts";
import { Session, SessionEnded, type SessionOwner } from "../session.ts";
import { type Connection, type Message, sendMessage } from "../../vhost_user/connection.ts";
import { MemoryTable, type TableRegion } from "./memory_table.ts";
import { offeredProtocolFeatures, queueNumber } from "./offered.ts";
import { carriedFeatures } from "../offer.ts";
import * as protocol from "../../vhost_user/protocol.ts";
import { ProtocolFeature, Request } from "../../vhost_user/protocol.ts";
import type { FrontEndCounts } from "./front_end_counters.ts";
import { checkSize, type Vring, type VringHost, Vrings } from "./vrings.ts";

/** A front end that leaves so soon after it was told how many queues there are wanted more. */
const LEFT_SOON_MS = 1000;
/** The most configuration bytes of one answer: what a message has room for. */
const MAX_CONFIG = protocol.MAX_PAYLOAD - protocol.CONFIG_HEADER;

/** A reply's payload; undefined for a request that has none of its own. */
type Reply = Uint8Array | undefined;

/** See the head of this file. */
export class FrontEnd implements SessionOwner, VringHost, Disposable {
  features: Uint32Array | undefined;
  readonly #memory: MemoryTable;
  readonly #vrings = new Vrings(this);
  readonly #session: Session;
  #protocolFeatures: number | undefined;
  /** What this front end may acknowledge. */
  #carried = carriedFeatures(0);
  #status = 0;
  /** A front end that negotiated status may still never use it; then the rings tell. */
  #statusUsed = false;
  #backendChannel: UnixStream | undefined;
  /** When it was told how many queues there are. */
  #toldQueuesMs = -Infinity;
  #showedMemory = false;

  /** Serves nothing before {@link serve}. */
  constructor(
    readonly connection: Connection,
    readonly device: RemoteDevice,
    readonly reactor: Reactor,
    readonly log: Log,
    sharing: Sharing,
    quota: MemoryQuota,
    readonly counters: FrontEndCounts,
  ) {
    counters.connections++;
    this.#memory = new MemoryTable((region, fd) => this.#isShared(region, fd), quota);
    const whose = "the guest's";
    this.#session = new Session({ reactor, device, sharing, owner: this, whose, log });
    reactor.cutHandlers.add(this.#memoryCut);
  }

  readonly #memoryCut = (address: bigint): void => {
    if (this.#memory.isCut(address)) this.connection.close("the guest's memory was cut off");
  };

  // --- what is wanted ----------------------------------------------------------------------------

  get regions(): readonly TableRegion[] {
    return this.#memory.regions;
  }

  get rings(): readonly Vring[] {
    return this.#vrings.wanted;
  }

  get isPacked(): boolean {
    return this.features !== undefined && hasFeature(this.features, RingFeature.RING_PACKED);
  }

  get mayRun(): boolean {
    if (this.connection.closed !== undefined) return false;
    const hasStatus = this.#has(ProtocolFeature.STATUS) && this.#statusUsed;
    if (hasStatus && (this.#status & Status.DRIVER_OK) === 0) return false;
    // Where a ring runs, the driver is at work; each further one starts when it is enabled.
    return this.#isRunning || this.#vrings.areUsed;
  }

  get #isRunning(): boolean {
    return this.#vrings.all.some(({ index }) => this.#session.runs(index));
  }

  #has(bit: number): boolean {
    return ((this.#protocolFeatures ?? 0) & (1 << bit)) !== 0;
  }

  busAddress(ring: number, userAddress: number): number {
    return this.#memory.busAddress(ring, userAddress);
  }

  kicked(vring: Vring): void {
    this.counters.kicks++;
    if (this.#session.available(vring.index) || vring.kicked) return;
    vring.kicked = true;
    // The first kick of an enabled ring stands for DRIVER_OK in front ends without status.
    this.reactor.spawn(() => this.#apply().catch((error) => this.#failed(error)));
  }

  // --- the device side comes and goes ------------------------------------------------------------

  /** A device side is there: learn what it is, and bring it where the front end is. */
  deviceReady(): void {
    this.reactor.spawn(async () => {
      try {
        await this.#session.bringUp();
      } catch (error) {
        this.#failed(error);
      }
      this.#closeUnused();
    });
  }

  /** The device side is gone. */
  deviceLost(): void {
    this.#session.lost();
    this.#closeUnused();
  }

  configChanged(status: number): void {
    if ((status & Status.DEVICE_NEEDS_RESET) !== 0) {
      this.log.warn(
        `device ${this.device.number} needs a reset, its own log says why: restart the guest's driver, ` +
          "or the guest if it lost memory",
      );
      for (const vring of this.#vrings.all) vring.fail();
    }
    if (this.#backendChannel !== undefined && this.#has(ProtocolFeature.CONFIG)) {
      sendMessage(
        this.#backendChannel,
        protocol.BackEndRequest.CONFIG_CHANGE_MSG,
        0,
        new Uint8Array(),
      );
    }
  }

  async #deviceKnown(): Promise<void> {
    if (!this.device.isReady) this.log.info("the front end waits for the device side");
    await this.#session.whenKnown();
  }

  /** A failure that the front end cannot be told: one line, and its connection ends. */
  #failed(error: unknown): void {
    if (error instanceof PeerLost || error instanceof SessionEnded) return;
    if (!(error instanceof VmsgError || error instanceof RangeError)) throw error;
    this.log.error(error.message);
    this.connection.close("given up");
  }

  /** Brings the device to the wanted state. */
  #apply(): Promise<void> {
    return this.#session.apply().finally(() => this.#closeUnused());
  }

  #closeUnused(): void {
    this.#memory.closeUnused((region) => this.#session.letGo(region));
  }

  // --- requests ----------------------------------------------------------------------------------

  /** Serves the connection until it ends, then leaves the device reset and without memory. */
  async serve(): Promise<void> {
    for (;;) {
      const message = await this.connection.next();
      if (message === undefined) break;
      this.counters.messages++;
      try {
        await this.#handle(message);
      } catch (error) {
        this.#failed(error);
      }
      for (const fd of message.fds) fd[Symbol.dispose]();
    }
    await this.#session.idle();
    this.#memory.clear();
    try {
      await this.#session.reset();
    } catch (error) {
      this.#failed(error);
      // What the device side still maps and runs would refuse the next front end's memory, and so every
      // one's after it. A new attachment starts from nothing.
      this.device.side.link.bus.drop("the device could not be reset");
    }
    this.#closeUnused();
  }

  /** The front end hung up, perhaps while a request waits. */
  hungUp(): void {
    this.#session.end();
  }

  /** Why it may have hung up, for people; "" if nothing is known. */
  get guess(): string {
    const { info } = this.#session.told;
    const isSoon = this.reactor.now() - this.#toldQueuesMs < LEFT_SOON_MS;
    if (this.#showedMemory || !isSoon || info === undefined) return "";
    return `, told that device ${this.device.number} has queues=${queueNumber(info)}: ` +
      "perhaps it wants more (vmsg device --net ...,queues=N, or fewer queues= of QEMU)";
  }

  async #handle(message: Message): Promise<void> {
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
  async #dispatch(message: Message): Promise<Reply> {
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
        await this.#deviceKnown();
        return words(offeredProtocolFeatures(this.#session.told.info!), 0);
      case Request.SET_PROTOCOL_FEATURES:
        this.#protocolFeatures = u32(payload, 0);
        return undefined;
      case Request.GET_QUEUE_NUM:
        await this.#deviceKnown();
        this.#toldQueuesMs = this.reactor.now();
        return words(queueNumber(this.#session.told.info!), 0);
      case Request.SET_OWNER:
        return undefined;
      case Request.RESET_OWNER:
        for (const vring of this.#vrings.all) vring.enabled = false;
        await this.#apply();
        return undefined;
      case Request.SET_MEM_TABLE:
        return await this.#setMemoryTable(message);
      case Request.GET_MAX_MEM_SLOTS:
        return words(Math.min(MAX_WINDOWS, this.#memory.quota.limits.regions), 0);
      case Request.ADD_MEM_REG:
      case Request.REM_MEM_REG:
        return await this.#changeRegion(message);
      case Request.SET_VRING_NUM:
        return this.#setVringSize(u32(payload, 0), u32(payload, 4));
      case Request.SET_VRING_BASE:
        this.#vring(u32(payload, 0)).setBase(u32(payload, 4));
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
        const [fd] = message.fds;
        if (fd !== undefined && kindOf(fd) !== "unix stream socket") {
          throw new VmsgError(
            "CHANNEL",
            `the back-end channel is no socket, but ${describeFd(fd)}`,
          );
        }
        this.#backendChannel?.[Symbol.dispose]();
        this.#backendChannel = fd && new UnixStream(fd);
        message.fds.shift();
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
    // Without protocol features there is no SET_VRING_ENABLE and rings begin enabled.
    const queues = this.#session.told.info?.maxQueues ?? 0;
    return this.#vrings.named(index, this.#protocolFeatures === undefined, queues);
  }

  #getFeatures(): Uint8Array {
    const { offered, info } = this.#session.told;
    if (info !== undefined) {
      this.#carried = carriedFeatures(info.deviceId, this.device.side.peer !== "vmsg");
    }
    const [low, high] = offered.map((word, i) => word & this.#carried[i]!);
    return words(low | (1 << protocol.FEATURE_PROTOCOL_FEATURES), high);
  }

  #setFeatures(payload: DataView): undefined {
    // A driver that negotiates while nothing runs starts over; one that runs only changes logging.
    if (!this.#isRunning) this.#session.told.forgetSession();
    this.features = this.#carried.map((word, i) => word & u32(payload, 4 * i));
  }

  async #setMemoryTable({ payload, fds }: Message): Promise<undefined> {
    const regions = protocol.parseRegions(payload);
    if (regions === undefined || regions.length !== fds.length) {
      throw new VmsgError("BAD_REQUEST", "the front end sent a malformed memory table");
    }
    this.#showedMemory = true;
    this.#memory.set(regions, fds);
    await this.#apply();
    return undefined;
  }

  /** ADD_MEM_REG, REM_MEM_REG: one region more or less. */
  async #changeRegion({ request, payload, fds }: Message): Promise<undefined> {
    const region = protocol.parseSingleRegion(payload);
    const adds = request === Request.ADD_MEM_REG;
    if (region === undefined || (adds && fds.length !== 1)) {
      throw new VmsgError("BAD_REQUEST", "the front end sent a malformed memory region");
    }
    this.#showedMemory = true;
    if (adds) this.#memory.add(region, fds);
    else this.#memory.remove(region);
    await this.#apply();
    return undefined;
  }

  #isShared({ guestAddress, size, userAddress }: protocol.Region, fd: Fd): boolean {
    if (!mapsPrivately(this.connection.stream.peerProcess, fd, userAddress)) return true;
    this.log.warn(
      `the guest's memory at 0x${guestAddress.toString(16)} (${
        Math.round(size / 2 ** 20)
      } MiB) is not shared, and not used: ` +
        "share it (QEMU: share=on on its memory-backend, also for a DIMM that is plugged in later)",
    );
    return false;
  }

  #setVringSize(index: number, size: number): undefined {
    checkSize(index, size);
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
    vring.setKick(undefined);
    await this.#apply();
    vring.kicked = false;
    return words(index, vring.baseToSay);
  }

  async #setVringFd(message: Message): Promise<undefined> {
    const value = u32(message.payload, 0);
    const vring = this.#vring(value & protocol.VRING_INDEX_MASK);
    const fd = (value & protocol.VRING_NO_FD) === 0 ? message.fds[0] : undefined;
    const isKick = message.request === Request.SET_VRING_KICK;
    if (isKick && fd === undefined) {
      throw new VmsgError("NO_KICK", "the front end gives no kick descriptor: polling is not done");
    }
    const isCall = message.request === Request.SET_VRING_CALL;
    if (isKick) vring.setKick(fd);
    else if (isCall) vring.setCall(fd);
    else vring.setError(fd);
    // Taken; what could not be used is closed with the message.
    if (fd !== undefined) message.fds.shift();
    const isRunning = this.#session.runs(vring.index);
    if (isKick || (isCall && isRunning)) await this.#apply();
    // QEMU masks an interrupt by another call, and looks at that one only once, when it takes it back.
    if (isCall && isRunning) vring.call();
    return undefined;
  }

  async #getConfig(payload: DataView): Promise<Uint8Array> {
    if (payload.byteLength < protocol.CONFIG_HEADER) throw shortPayload();
    const [offset, size] = [u32(payload, 0), u32(payload, 4)];
    const reply = new Uint8Array(protocol.CONFIG_HEADER + Math.min(size, MAX_CONFIG));
    reply.set(new Uint8Array(payload.buffer, 0, protocol.CONFIG_HEADER));
    // Front ends ask for as much as they know; what the device does not have reads as 0.
    const room = reply.length - protocol.CONFIG_HEADER;
    const bytes = await this.#session.ask(() =>
      this.device.config(offset, Math.min(room, this.#configLeft(offset)))
    );
    reply.set(bytes, protocol.CONFIG_HEADER);
    return reply;
  }

  #configLeft(offset: number): number {
    return Math.max(0, this.#session.told.info!.configSize - offset);
  }

  async #setConfig(payload: DataView): Promise<undefined> {
    if (payload.byteLength < protocol.CONFIG_HEADER) throw shortPayload();
    const [offset, size] = [u32(payload, 0), u32(payload, 4)];
    const length = Math.min(size, payload.byteLength - protocol.CONFIG_HEADER);
    const data = new Uint8Array(payload.buffer, protocol.CONFIG_HEADER, length);
    await this.#session.ask(async () => {
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
    for (const vring of this.#vrings.all) vring.kicked = false;
    await this.#session.reset().finally(() => this.#closeUnused());
    return undefined;
  }

  /** Closes everything that the front end gave, as if the device side were gone. */
  [Symbol.dispose](): void {
    this.reactor.cutHandlers.delete(this.#memoryCut);
    this.#session[Symbol.dispose]();
    this.#vrings[Symbol.dispose]();
    this.#memory.clear();
    this.#closeUnused();
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
