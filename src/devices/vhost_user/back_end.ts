/**
 * One connection to a vhost-user back end: what we ask of it, and what may come back.
 *
 * Requests go out one after another; each waits for its reply, or with REPLY_ACK for its acknowledgement, so the peer's
 * socket is never full. Whoever asks has it all done {@link BackEnd.within} a limit. A back end that is silent longer, sends
 * anything that is no reply to what was asked, or descriptors that were not asked for, has its connection cut: there is no
 * way to go on with a stream whose messages are not understood. Then, as when it hangs up, every question ends with
 * {@link BackEndLost}; that it refused something, with {@link Refused}.
 *
 * Ring addresses and regions name user addresses of the front end, of which only the offsets matter to a back end: ours are
 * the bus addresses.
 */

import { createSealedMemory, type Fd } from "../../linux/fd.ts";
import { mapShared, PAGE_SIZE } from "../../linux/mapping.ts";
import { VmsgError } from "../../linux/errors.ts";
import type { Reactor, Timer } from "../../linux/reactor.ts";
import type { Block } from "../../linux/arena.ts";
import { type UnixStream, unixStreamPair } from "../../linux/unix_socket.ts";
import type { MemoryRegion } from "../../memory/mod.ts";
import { Connection, type Message, sendMessage } from "../../vhost_user/connection.ts";
import {
  BackEndRequest,
  backEndRequestName,
  CONFIG_HEADER,
  FEATURE_PROTOCOL_FEATURES,
  FLAG_NEED_REPLY,
  FLAG_REPLY,
  FLAG_VERSION,
  FLAG_VERSION_MASK,
  getUint64,
  MAX_REGIONS,
  ProtocolFeature,
  Request,
  requestName,
} from "../../vhost_user/protocol.ts";
import type { QueueSetup } from "../../virtio/device.ts";

/** What we make use of. */
const WANTED = Object.values<number>(ProtocolFeature).reduce((bits, bit) => bits | 1 << bit, 0);
/** Of GET_INFLIGHT_FD and SET_INFLIGHT_FD: u64 size, u64 offset, u16 queues, u16 entries, and as C pads it. */
const INFLIGHT_SIZE = 24;
const INFLIGHT_FIELDS = 20;
/** More than the descriptions of all buffers take. */
const MAX_INFLIGHT = 1 << 30;

/** The connection has ended, or was cut. */
export class BackEndLost extends VmsgError {
  /** Its code is always BACK_END_LOST. */
  constructor(reason: string) {
    super("BACK_END_LOST", reason);
  }
}

/** The back end does not do what it was asked; the connection goes on. */
export class Refused extends VmsgError {
  /** Its code is always REFUSED. */
  constructor(request: number) {
    super("REFUSED", `the back end refuses ${requestName(request)}`);
  }
}

/** What a back end writes of buffers that it has not completed. The file is its own; we keep it for its successor. */
export interface Inflight extends Disposable {
  /** As it was told. */
  readonly payload: Uint8Array;
  /** Never looked at by us. */
  readonly fd: Fd;
}

/** What it says of itself. */
export interface Introduction {
  /** In blocks of 32, without the bit of protocol features. */
  readonly features: Uint32Array;
  /** What GET_QUEUE_NUM was answered; undefined if it cannot say. */
  readonly queues: number | undefined;
}

/** What a back end does by itself. */
export interface BackEndListener {
  /** Once: the connection has ended. */
  lost(reason: string): void;
  /** The configuration reads otherwise. */
  configChanged(): void;
  /** It asked for what we do not do, such as memory of its own that the driver is to see. */
  refused(request: string): void;
}

/** A region as a back end is shown it. */
interface ShownRegion {
  readonly at: number;
  readonly size: number;
  readonly fd: { readonly number: number };
  readonly offset: number;
}

/** What a back end maps for a region, from a page's start on, as some insist; undefined if there is no file. */
export function shown(region: MemoryRegion): ShownRegion | undefined {
  const { at, size, fd, fileOffset = 0, memory: { file } } = region;
  const whole = fd === undefined
    ? file && { fd: file.fd, offset: file.offset + region.offset }
    : { fd, offset: fileOffset };
  if (whole === undefined) return undefined;
  const before = whole.offset % PAGE_SIZE;
  return { at: at - before, size: size + before, fd: whole.fd, offset: whole.offset - before };
}

function payload(size: number, fill: (view: DataView) => void = () => {}): Uint8Array {
  const bytes = new Uint8Array(size);
  fill(new DataView(bytes.buffer));
  return bytes;
}

function u32s(...values: number[]): Uint8Array {
  return payload(
    4 * values.length,
    (view) => values.forEach((n, i) => view.setUint32(4 * i, n, true)),
  );
}

function setUint64(view: DataView, at: number, value: number): void {
  view.setBigUint64(at, BigInt(value), true);
}

function setRegion(view: DataView, at: number, region: MemoryRegion): void {
  const { at: start, size, offset } = shown(region)!;
  [start, size, start, offset].forEach((n, i) => setUint64(view, at + 8 * i, n));
}

/** See the head of this file. */
export class BackEnd implements Disposable {
  readonly #connection: Connection;
  readonly #patience: Timer;
  #channel: Connection | undefined;
  /** Does it have protocol features, whichever? Then rings begin disabled. */
  #isModern = false;
  #protocol = 0;
  #slots = 0;

  /**
   * Says nothing yet.
   *
   * @param buffers for what comes on the connection, and on the channel of the back end's own requests
   */
  constructor(
    readonly stream: UnixStream,
    readonly reactor: Reactor,
    readonly buffers: readonly [Block, Block],
    readonly listener: BackEndListener,
  ) {
    this.#connection = new Connection(
      stream,
      reactor,
      buffers[0],
      "the back end",
      (reason) => listener.lost(reason),
    );
    this.#patience = reactor.timer(() => this.cut("it does not answer"));
  }

  /** Has it agreed to this part of the protocol? */
  #has(bit: number): boolean {
    return (this.#protocol & (1 << bit)) !== 0;
  }

  /** Ends the connection, for a reason. */
  cut(reason: string): void {
    this.#connection.close(reason);
  }

  /** Has all that `run` asks answered within so many milliseconds; or cuts the connection. */
  async within<T>(limitMs: number, run: () => Promise<T>): Promise<T> {
    this.#patience.arm(limitMs);
    try {
      return await run();
    } finally {
      this.#patience.cancel();
    }
  }

  // --- messages ----------------------------------------------------------------------------------

  #send(request: number, bytes: Uint8Array, fds: readonly Fd[], flags: number): void {
    const { closed } = this.#connection;
    if (closed !== undefined) throw new BackEndLost(closed);
    if (!sendMessage(this.stream, request, flags, bytes, fds)) this.#fail("it takes no message");
  }

  #fail(reason: string): never {
    this.cut(reason);
    throw new BackEndLost(this.#connection.closed!);
  }

  /** The reply to a request; its descriptors are the caller's. */
  async #reply(request: number): Promise<Message> {
    const message = await this.#connection.next();
    if (message === undefined) throw new BackEndLost(this.#connection.closed!);
    const { flags, fds } = message;
    const isReply = message.request === request && (flags & FLAG_REPLY) !== 0 &&
      (flags & FLAG_VERSION_MASK) === FLAG_VERSION;
    const mostFds = request === Request.GET_INFLIGHT_FD ? 1 : 0;
    if (isReply && fds.length <= mostFds) return message;
    for (const fd of fds) fd[Symbol.dispose]();
    const name = requestName(request);
    this.#fail(
      isReply
        ? `it sent descriptors with the reply to ${name}`
        : `it sent no reply to ${name}, but something else`,
    );
  }

  /** Asks what has a reply of its own, of `size` bytes. */
  async #ask(request: number, size: number, bytes: Uint8Array = u32s()): Promise<DataView> {
    this.#send(request, bytes, [], 0);
    const { payload } = await this.#reply(request);
    if (payload.byteLength === size) return payload;
    this.#fail(`its reply to ${requestName(request)} has ${payload.byteLength} bytes, not ${size}`);
  }

  async #askNumber(request: number): Promise<number> {
    return getUint64(await this.#ask(request, 8), 0);
  }

  /** Asks for what has no reply of its own, and waits until it is done where the back end tells. */
  async #tell(request: number, bytes: Uint8Array, fds: readonly Fd[] = []): Promise<void> {
    const acknowledges = this.#has(ProtocolFeature.REPLY_ACK);
    this.#send(request, bytes, fds, acknowledges ? FLAG_NEED_REPLY : 0);
    if (!acknowledges) return;
    const { payload } = await this.#reply(request);
    if (payload.byteLength !== 8) this.#fail(`it acknowledges ${requestName(request)} oddly`);
    if (getUint64(payload, 0) !== 0) throw new Refused(request);
  }

  /** The same, and waits until it is done where the back end does not tell: it answers what it is asked in turn. */
  async #tellAndWait(request: number, bytes: Uint8Array, fds: readonly Fd[] = []): Promise<void> {
    await this.#tell(request, bytes, fds);
    if (!this.#has(ProtocolFeature.REPLY_ACK)) await this.#ask(Request.GET_FEATURES, 8);
  }

  // --- what it is --------------------------------------------------------------------------------

  /** Gets to know it; the first thing to do. */
  async introduce(): Promise<Introduction> {
    const reply = await this.#ask(Request.GET_FEATURES, 8);
    const features = Uint32Array.of(reply.getUint32(0, true), reply.getUint32(4, true));
    const bit = 1 << FEATURE_PROTOCOL_FEATURES;
    if ((features[0]! & bit) !== 0) {
      const offered = (await this.#ask(Request.GET_PROTOCOL_FEATURES, 8)).getUint32(0, true);
      const chosen = offered & WANTED;
      await this.#tell(Request.SET_PROTOCOL_FEATURES, u32s(chosen, 0));
      this.#protocol = chosen;
      this.#isModern = true;
      features[0]! &= ~bit;
    }
    await this.#tell(Request.SET_OWNER, u32s());
    const queues = this.#has(ProtocolFeature.MQ)
      ? await this.#askNumber(Request.GET_QUEUE_NUM)
      : undefined;
    if (this.#has(ProtocolFeature.CONFIGURE_MEM_SLOTS)) {
      this.#slots = await this.#askNumber(Request.GET_MAX_MEM_SLOTS);
    }
    if (this.#has(ProtocolFeature.BACKEND_REQ)) await this.#openChannel();
    return { features, queues };
  }

  async #openChannel(): Promise<void> {
    const [ours, theirs] = unixStreamPair();
    this.#channel = new Connection(ours, this.reactor, this.buffers[1], "the back end", () => {});
    const channel = this.#channel;
    this.reactor.spawn(() => this.#hear(channel));
    using _theirs = theirs;
    await this.#tell(Request.SET_BACKEND_REQ_FD, u32s(), [theirs.fd]);
  }

  /** What the back end asks by itself. */
  async #hear(channel: Connection): Promise<void> {
    for (;;) {
      const message = await channel.next();
      if (message === undefined) return;
      const { request, flags, fds } = message;
      for (const fd of fds) fd[Symbol.dispose]();
      const isKnown = request === BackEndRequest.CONFIG_CHANGE_MSG;
      if (isKnown) this.listener.configChanged();
      else this.listener.refused(backEndRequestName(request));
      if ((flags & FLAG_NEED_REPLY) !== 0) channel.reply(request, u32s(isKnown ? 0 : 1, 0));
    }
  }

  /** The first bytes of its configuration; undefined if it has none, or not so many. */
  async readConfig(size: number): Promise<Uint8Array | undefined> {
    if (!this.#has(ProtocolFeature.CONFIG) || size === 0) return undefined;
    const bytes = payload(CONFIG_HEADER + size, (view) => view.setUint32(4, size, true));
    this.#send(Request.GET_CONFIG, bytes, [], 0);
    const { payload: reply } = await this.#reply(Request.GET_CONFIG);
    // What it does not have, it says by an answer without any.
    if (reply.byteLength !== bytes.length || reply.getUint32(4, true) !== size) return undefined;
    return new Uint8Array(reply.buffer, CONFIG_HEADER, size).slice();
  }

  /** The driver writes configuration bytes. */
  async writeConfig(offset: number, bytes: Uint8Array): Promise<void> {
    if (!this.#has(ProtocolFeature.CONFIG)) throw new Refused(Request.SET_CONFIG);
    const header = u32s(offset, bytes.length, 0);
    await this.#tell(Request.SET_CONFIG, new Uint8Array([...header, ...bytes]));
  }

  /** Says what the driver chose. */
  async setFeatures(words: Uint32Array): Promise<void> {
    const bit = this.#isModern ? 1 << FEATURE_PROTOCOL_FEATURES : 0;
    await this.#tell(Request.SET_FEATURES, u32s((words[0]! | bit) >>> 0, words[1]!));
  }

  /** Says the device status; true if the back end shows it, or has none. */
  async setStatus(status: number): Promise<boolean> {
    if (!this.#has(ProtocolFeature.STATUS)) return true;
    await this.#tell(Request.SET_STATUS, u32s(status, 0));
    if (status === 0) return true;
    const shown = (await this.#ask(Request.GET_STATUS, 8)).getUint32(0, true);
    return (shown & status) === status;
  }

  /** The driver has reset the device; no ring runs. */
  async reset(): Promise<void> {
    if (this.#has(ProtocolFeature.STATUS)) await this.setStatus(0);
    else if (this.#has(ProtocolFeature.RESET_DEVICE)) {
      await this.#tell(Request.RESET_DEVICE, u32s());
    }
  }

  // --- memory ------------------------------------------------------------------------------------

  /** The most regions it can be shown. */
  get maxRegions(): number {
    return this.#slots > 0 ? this.#slots : MAX_REGIONS;
  }

  /** Shows it all memory there is, at first or where it takes no single regions. */
  async showMemory(regions: readonly MemoryRegion[]): Promise<void> {
    if (this.#slots > 0) {
      for (const region of regions) await this.addRegion(region);
      return;
    }
    if (regions.length > 0) return await this.#showTable(regions);
    // It is to let go of all. No front end has an empty table, at which rust-vmm's back ends end: this one has a page of ours.
    using fd = createSealedMemory("vmsg-nothing", PAGE_SIZE);
    using memory = mapShared(fd.number, PAGE_SIZE);
    await this.#showTable([{ at: 0, size: PAGE_SIZE, memory, offset: 0, fd }]);
  }

  async #showTable(regions: readonly MemoryRegion[]): Promise<void> {
    const bytes = payload(8 + 32 * regions.length, (view) => {
      view.setUint32(0, regions.length, true);
      regions.forEach((region, i) => setRegion(view, 8 + 32 * i, region));
    });
    const fds = regions.map((region) => shown(region)!.fd as Fd);
    await this.#tellAndWait(Request.SET_MEM_TABLE, bytes, fds);
  }

  /** Can it be told of one region at a time? */
  get takesRegions(): boolean {
    return this.#slots > 0;
  }

  /** Shows it one region more. */
  async addRegion(region: MemoryRegion): Promise<void> {
    const bytes = payload(40, (view) => setRegion(view, 8, region));
    await this.#tellAndWait(Request.ADD_MEM_REG, bytes, [shown(region)!.fd as Fd]);
  }

  /** Has it let go of a region. */
  async removeRegion(region: MemoryRegion): Promise<void> {
    await this.#tellAndWait(Request.REM_MEM_REG, payload(40, (view) => setRegion(view, 8, region)));
  }

  // --- buffers in flight -------------------------------------------------------------------------

  /** Does it write down which buffers it has not completed? */
  get writesInflight(): boolean {
    return this.#has(ProtocolFeature.INFLIGHT_SHMFD);
  }

  /** Where it will write what it has not completed; undefined if it does not. */
  async getInflight(queues: number, size: number): Promise<Inflight | undefined> {
    if (!this.writesInflight) return undefined;
    const wanted = payload(INFLIGHT_SIZE, (view) => {
      view.setUint16(16, queues, true);
      view.setUint16(18, size, true);
    });
    this.#send(Request.GET_INFLIGHT_FD, wanted, [], 0);
    const { payload: told, fds: [fd] } = await this.#reply(Request.GET_INFLIGHT_FD);
    const isSound = told.byteLength >= INFLIGHT_FIELDS && told.byteLength <= INFLIGHT_SIZE;
    const bytes = isSound ? getUint64(told, 0) : 0;
    if (fd === undefined || !(bytes > 0 && bytes <= MAX_INFLIGHT)) {
      fd?.[Symbol.dispose]();
      this.#fail("it sent no usable file for buffers in flight");
    }
    const kept = payload(INFLIGHT_SIZE);
    kept.set(new Uint8Array(told.buffer));
    return { payload: kept, fd, [Symbol.dispose]: () => fd[Symbol.dispose]() };
  }

  /** Gives it what it, or the one before it, wrote. */
  async setInflight({ payload, fd }: Inflight): Promise<void> {
    await this.#tell(Request.SET_INFLIGHT_FD, payload, [fd]);
  }

  // --- rings -------------------------------------------------------------------------------------

  /** Gives it a ring; it does not run before {@link enableRing}. */
  async giveRing(
    index: number,
    { size, descriptorAddress, driverAddress, deviceAddress, base }: QueueSetup,
    { kick, call, error }: { kick: Fd; call: Fd; error: Fd },
  ): Promise<void> {
    try {
      await this.#tell(Request.SET_VRING_NUM, u32s(index, size));
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      const advice = "give a smaller queue-size=";
      throw new VmsgError("REFUSED", `the back end takes no ring of ${size} entries: ${advice}`);
    }
    await this.#tell(Request.SET_VRING_BASE, u32s(index, base));
    const addresses = payload(40, (view) => {
      view.setUint32(0, index, true);
      [descriptorAddress, deviceAddress, driverAddress].forEach((address, i) =>
        setUint64(view, 8 + 8 * i, address)
      );
    });
    await this.#tell(Request.SET_VRING_ADDR, addresses);
    await this.#tell(Request.SET_VRING_CALL, u32s(index, 0), [call]);
    await this.#tell(Request.SET_VRING_ERR, u32s(index, 0), [error]);
    await this.#tell(Request.SET_VRING_KICK, u32s(index, 0), [kick]);
  }

  /** Lets a ring run. When it is done the ring may be kicked: before, rust-vmm's back ends take a kick and do nothing. */
  async enableRing(index: number): Promise<void> {
    if (this.#isModern) await this.#tellAndWait(Request.SET_VRING_ENABLE, u32s(index, 1));
  }

  /** Stops a ring. @returns where it has come to */
  async stopRing(index: number): Promise<number> {
    const reply = await this.#ask(Request.GET_VRING_BASE, 8, u32s(index, 0));
    const [stopped, base] = [reply.getUint32(0, true), reply.getUint32(4, true)];
    if (stopped === index && base <= 0xffff) return base;
    this.#fail(`it says of ring ${stopped}, asked for ring ${index}, that it has come to ${base}`);
  }

  /** Closes the connection. */
  [Symbol.dispose](): void {
    this.reactor.dropTimer(this.#patience);
    this.#channel?.[Symbol.dispose]();
    this.#connection[Symbol.dispose]();
  }
}
