/**
 * The driver side of the transport: it asks (wire document 2.4, 5N.5; design section 6).
 *
 * Theory of operation. {@link DriverSide} owns the driver end of a bus: it finds out who is at the
 * other end, pairs answers with requests, fails requests in time, and keeps the heartbeat going.
 * A {@link RemoteDevice} is one device number on it, with one method per request.
 *
 *     none --attach--> probing --HELLO answered--> vmsg
 *                      probing --GET_DEVICE_INFO answered first--> foreign
 *                      vmsg    --another epoch answers--> vmsg again, after everything was failed
 *
 * Users are told through {@link PeerListener}: `ready` after each of the transitions on the right,
 * `lost` before each of them and on detach. When `lost` is called every open request has failed with
 * {@link PeerLost}; none is sent again. Who wants to go on replays its state after `ready`.
 *
 * In dialects without our private messages a peer that attached counts as foreign at once. On a bus that
 * notices no peers (a PCI function: the other machine may not even run) it is probed all the same, until
 * it answers; and a peer that vanishes there, unless it is vmsg and comes back with another epoch, is
 * noticed by nobody.
 *
 * Requests are promises of async sequences (see reactor.ts); several may be open, answers are paired
 * by token, or by kind where the dialect has no tokens. What is wanted of an answer is read inside
 * the receive handler, because the record it comes in is reused.
 */

import type { Bus, BusListener } from "../bus/bus.ts";
import { errnoName, VmsgError } from "../linux/errors.ts";
import type { Fd } from "../linux/fd.ts";
import type { Deferred, Reactor, Timer } from "../linux/reactor.ts";
import type { Codec } from "../message/codec.ts";
import { Kind, Message, QUEUE_ENABLED } from "../message/message.ts";
import { kindName } from "../message/table.ts";
import { limitedLog, type Log } from "../observe/log.ts";
import type { Tracer } from "../observe/trace.ts";
import type { QueueSetup } from "../virtio/device.ts";
import { PRIVATE_VERSION, randomEpoch, randomToken } from "./epoch.ts";

/** How long an answer may take; the Linux transport waits as long. */
const REQUEST_TIMEOUT_MS = 5000;
/** The heartbeat. */
const HELLO_MS = 100;
/** The first HELLO may be lost while the other side attaches, so it is repeated soon. */
const FIRST_HELLO_MS = 5;
/** How long the other side may be silent before we say so. */
const SILENCE_MS = 1500;
/** How soon a full message queue is tried again. */
const FULL_RETRY_MS = 1;
/** How long a reset may take (wire document 5N.5 row 4). */
const RESET_TIMEOUT_MS = 10_000;
const RESET_POLL_MS = 10;
/** 2048 feature bits; VIRTIO 1.2 defines less than 128. */
const MAX_FEATURE_BLOCKS = 64;

/** The peer went away or was replaced while a request was open. */
export class PeerLost extends VmsgError {
  /** The class, for printing. */
  override readonly name: string = "PeerLost";

  /** Its code is always PEER_LOST. */
  constructor(reason: string) {
    super("PEER_LOST", reason);
  }
}

/** Who is at the other end, see the head of this file. */
export type PeerKind = "none" | "probing" | "vmsg" | "foreign";

/** Who wants to know whether there is a device side. */
export interface PeerListener {
  /** Requests can be sent; the other side knows nothing of what was set up before. */
  ready(): void;
  /** The other side is gone, with all that was set up there. */
  lost(reason: string): void;
}

/** What a driver side is made of. */
export interface DriverSideOptions {
  /** The loop it runs in. */
  readonly reactor: Reactor;
  /** The driver end of a bus. */
  readonly bus: Bus;
  /** The dialect that is spoken. */
  readonly codec: Codec;
  /** Where lines for people go. */
  readonly log: Log;
  /** Sees every message. */
  readonly tracer?: Tracer | undefined;
  /** How long an answer may take, instead of {@link REQUEST_TIMEOUT_MS}. */
  readonly requestTimeoutMs?: number | undefined;
}

interface OpenRequest {
  readonly kind: Kind;
  readonly device: number;
  readonly deadlineMs: number;
  /** Reads what is wanted from the answer, and settles the promise. */
  readonly answer: (message: Message) => void;
  readonly fail: (error: VmsgError) => void;
}

/** The driver side of one bus. */
export class DriverSide implements BusListener, Disposable {
  /** What it is made of. */
  readonly options: DriverSideOptions;
  /** What came in and could not be used. */
  readonly counters = { received: 0, malformed: 0, dropped: 0 };
  readonly #devices = new Map<number, RemoteDevice>();
  readonly #listeners: PeerListener[] = [];
  /** Open requests by token; without tokens, by a number of our own. */
  readonly #open = new Map<number, OpenRequest>();
  readonly #in = new Message();
  readonly #out = new Message();
  readonly #heartbeat: Timer;
  readonly #timeouts: Timer;
  readonly #retry: Timer;
  readonly #flushTask = { run: (): boolean => this.#flush() };
  readonly #complain: (line: string) => void;
  #peer: PeerKind = "none";
  #ownEpoch = 0;
  #peerEpoch = 0;
  #nonce = 0;
  #probeToken = 0;
  /** Counts device sides: what began with one is not sent to the next. */
  #session = 0;
  #nextToken = randomToken();
  #attachedMs = 0;
  #heardMs = 0;
  #toldSilence = false;

  /** {@link open} starts it. */
  constructor(options: DriverSideOptions) {
    this.options = options;
    const { reactor } = options;
    this.#heartbeat = reactor.timer(() => this.#beat());
    this.#timeouts = reactor.timer(() => this.#failLate());
    this.#retry = reactor.timer(() => reactor.schedule(this.#flushTask));
    this.#complain = limitedLog(options.log.warn);
  }

  /** Who is at the other end. */
  get peer(): PeerKind {
    return this.#peer;
  }

  /** True while requests can be sent. */
  get isReady(): boolean {
    return this.#peer === "vmsg" || this.#peer === "foreign";
  }

  /** The epoch that private requests carry. */
  get epoch(): number {
    return this.#ownEpoch;
  }

  /** Starts to look for a device side. */
  open(): void {
    this.options.bus.open(this);
  }

  /** Adds a listener; it is called for what happens from now on. */
  listen(listener: PeerListener): void {
    this.#listeners.push(listener);
  }

  /** The device with this number; the same object each time. */
  device(number: number): RemoteDevice {
    let device = this.#devices.get(number);
    if (device === undefined) {
      device = new RemoteDevice(this, number);
      this.#devices.set(number, device);
    }
    return device;
  }

  attached(): void {
    this.#ownEpoch = randomEpoch();
    this.#peerEpoch = 0;
    this.#nonce = 0;
    this.#probeToken = randomToken();
    this.#toldSilence = false;
    this.#attachedMs = this.#heardMs = performance.now();
    const { bus, codec } = this.options;
    if (!codec.has(Kind.HELLO) && bus.noticesPeers) return this.#becomeReady("foreign");
    this.#peer = "probing";
    this.#probe();
    this.#heartbeat.arm(FIRST_HELLO_MS);
  }

  detached(reason: string): void {
    this.#heartbeat.cancel();
    this.options.log.info(`${this.options.bus.description}: ${reason}`);
    this.#lose(reason);
    this.#peer = "none";
  }

  #becomeReady(peer: PeerKind): void {
    this.#peer = peer;
    const who = peer === "vmsg" ? "a vmsg device side" : "a device side";
    this.options.log.info(`${this.options.bus.description}: ${who} is there`);
    for (const listener of this.#listeners) listener.ready();
  }

  #lose(reason: string): void {
    const wasReady = this.isReady;
    this.#peer = "probing";
    this.#session++;
    const error = new PeerLost(reason);
    for (const request of this.#open.values()) request.fail(error);
    this.#open.clear();
    for (const device of this.#devices.values()) device.forget();
    if (!wasReady) return;
    for (const listener of this.#listeners) listener.lost(reason);
  }

  // --- heartbeat -------------------------------------------------------------------------------

  #beat(): void {
    if (this.#peer === "none" || this.#peer === "foreign") return;
    const probing = this.#peer === "probing";
    // Early repeats for an attach that raced, a steady beat afterwards.
    const early = probing && performance.now() - this.#attachedMs < HELLO_MS;
    if (early || (probing && !this.options.bus.noticesPeers)) this.#probe();
    else this.#sendHello();
    this.#heartbeat.arm(early ? FIRST_HELLO_MS * 4 : HELLO_MS);
    this.#tellSilence();
  }

  #probe(): void {
    const { bus, codec } = this.options;
    // Where nobody tells that a peer came, it may have emptied the queues.
    if (!bus.noticesPeers) bus.resume();
    if (codec.has(Kind.HELLO)) this.#greetAndProbe();
    else this.#sendProbe();
  }

  #tellSilence(): void {
    if (this.#toldSilence || performance.now() - this.#heardMs < SILENCE_MS) return;
    this.#toldSilence = true;
    const { bus, codec, log } = this.options;
    if (this.#peer === "vmsg") {
      log.warn(`${bus.description}: the device side is silent; waiting for it`);
    } else if (!bus.noticesPeers) {
      const hint = bus.silenceHint === "" ? "" : ` (${bus.silenceHint})`;
      log.info(`${bus.description}: waiting for a device side that speaks ${codec.dialect}${hint}`);
    } else {
      log.warn(
        `${bus.description}: no ${codec.dialect} answer, the peer may speak another dialect ` +
          `(proto, v1-2025) or hang: try dialect=`,
      );
    }
  }

  /**
   * HELLO and the probe in one publication: a device side that attaches between them would take us for
   * foreign, because the first thing it sees were the probe.
   */
  #greetAndProbe(): void {
    const { bus, codec, tracer } = this.options;
    this.#fillHello();
    const offset = bus.claim(1);
    if (offset < 0) return;
    codec.encode(this.#out, bus.view, offset);
    tracer?.message("->", this.#out, bus.view, offset, this.#out.size);
    bus.sendWithNext();
    this.#sendProbe();
  }

  #sendHello(): void {
    this.#fillHello();
    this.#send();
  }

  #fillHello(): void {
    const out = this.#out;
    out.reset(Kind.HELLO, false);
    out.token = randomToken();
    out.epoch = this.#ownEpoch;
    out.peerEpoch = this.#peerEpoch;
    out.nonce = this.#nonce;
    out.version = PRIVATE_VERSION;
  }

  /** GET_DEVICE_INFO, which every device side answers, also one that knows no HELLO. */
  #sendProbe(): void {
    this.#out.reset(Kind.GET_DEVICE_INFO, false);
    const [number = 0] = this.#devices.keys();
    this.#out.device = number;
    this.#out.token = this.#probeToken;
    this.#send();
  }

  #helloAnswered(): void {
    const { epoch, peerEpoch, nonce, version } = this.#in;
    // Our epoch is new with every attachment, so this is no leftover of an earlier one. The answer may
    // be to any HELLO of this one: where a round trip is longer than a beat, no latest is ever answered.
    if (peerEpoch !== this.#ownEpoch) return this.#drop();
    if (version !== PRIVATE_VERSION) {
      return this.#complain(`the device side is a vmsg of another version (${version})`);
    }
    if (this.#peer === "foreign") return this.#drop();
    this.#nonce = nonce;
    if (this.#toldSilence && this.#peer === "vmsg") {
      this.options.log.info(`${this.options.bus.description}: the device side answers again`);
    }
    this.#toldSilence = false;
    if (epoch === this.#peerEpoch) return;
    if (this.#peer === "vmsg") this.#lose("the device side was replaced");
    this.#peerEpoch = epoch;
    // The device side drops all else until a HELLO names its epoch; one queue keeps the order.
    this.#sendHello();
    this.#heartbeat.arm(HELLO_MS);
    this.#becomeReady("vmsg");
  }

  #probeAnswered(): void {
    const { hasTokens } = this.options.codec;
    if (hasTokens && this.#in.token !== this.#probeToken) return this.#drop();
    this.#heartbeat.cancel();
    this.#becomeReady("foreign");
  }

  // --- messages --------------------------------------------------------------------------------

  received(slot: DataView): void {
    const message = this.#in;
    this.counters.received++;
    const malformed = this.options.codec.decode(slot, 0, message);
    if (malformed !== undefined) {
      this.counters.malformed++;
      this.options.tracer?.malformed(slot, 0, slot.byteLength, malformed);
      return this.#complain(this.#explain(slot, malformed));
    }
    this.#heardMs = performance.now();
    this.options.tracer?.message("<-", message, slot, 0, message.size);
    if (!message.response) return this.#event();
    if (message.kind === Kind.HELLO) return this.#helloAnswered();
    if (this.#peer === "probing") {
      return message.kind === Kind.GET_DEVICE_INFO ? this.#probeAnswered() : this.#drop();
    }
    this.#answered();
  }

  #explain(slot: DataView, reason: string): string {
    const { codec } = this.options;
    // The answer of revision 1's first form is the one thing that tells it apart (5N.7).
    if (
      codec.dialect === "v1" && slot.getUint8(0) === 1 && slot.getUint8(1) === 2 &&
      slot.getUint16(6, true) < 52
    ) {
      return `no ${codec.dialect} answer, the peer speaks v1-2025: try dialect=v1-2025`;
    }
    if (codec.dialect === "v1-2025" && reason === "long" && slot.getUint8(1) === 2) {
      return `no ${codec.dialect} answer, the peer speaks v1: try dialect=v1`;
    }
    return `dropped a message that is not ${codec.dialect} (${reason})`;
  }

  #drop(): void {
    this.counters.dropped++;
  }

  #answered(): void {
    const message = this.#in;
    for (const [key, request] of this.#open) {
      if (this.options.codec.hasTokens && key !== message.token) continue;
      if (request.kind !== message.kind || request.device !== message.device) continue;
      this.#open.delete(key);
      return request.answer(message);
    }
    this.#drop();
  }

  #event(): void {
    const message = this.#in;
    const device = this.#devices.get(message.device);
    if (message.kind === Kind.PING) return this.#pong();
    if (!this.isReady || device === undefined) return this.#drop();
    if (message.kind === Kind.EVENT_USED) return device.onUsed?.(message.index);
    if (message.kind === Kind.EVENT_CONFIG) {
      device.generation = message.generation;
      return device.onConfig?.(message.status, message.generation);
    }
    this.#drop();
  }

  #pong(): void {
    const { data, token } = this.#in;
    this.#out.reset(Kind.PING, true);
    this.#out.token = token;
    this.#out.data = data;
    this.#send();
  }

  #send(): boolean {
    const { bus, codec, tracer } = this.options;
    const offset = bus.claim();
    if (offset < 0) return false;
    codec.encode(this.#out, bus.view, offset);
    tracer?.message("->", this.#out, bus.view, offset, this.#out.size);
    bus.send();
    return true;
  }

  /**
   * Sends one request and reads its answer.
   *
   * @param fill fills the payload of the request
   * @param read takes what is wanted from the answer; the record is reused afterwards
   * @throws PeerLost, or VmsgError "TIMEOUT"
   */
  async request<T>(
    kind: Kind,
    device: number,
    fill: (request: Message) => void,
    read: (answer: Message) => T,
  ): Promise<T> {
    const { reactor, codec } = this.options;
    const session = this.#session;
    const deadlineMs = performance.now() + this.#timeoutMs;
    if (!this.isReady) throw new PeerLost("there is no device side");
    const deferred: Deferred<T> = reactor.defer();
    for (;;) {
      const token = this.#freeToken();
      this.#out.reset(kind, false);
      this.#out.device = device;
      this.#out.token = codec.hasTokens ? token : 0;
      fill(this.#out);
      if (this.#send()) {
        if (!codec.answered(kind)) return read(this.#out);
        this.#open.set(token, {
          kind,
          device,
          deadlineMs,
          answer: (message) => deferred.resolve(read(message)),
          fail: deferred.reject,
        });
        this.#armTimeouts();
        const value = await deferred.promise;
        // Answered and lost in one turn of the loop: whoever went on would speak to the next device
        // side, and remember of it what the last one was told.
        if (session !== this.#session) throw new PeerLost("the device side is gone");
        return value;
      }
      await reactor.sleep(FULL_RETRY_MS);
      if (!this.isReady || session !== this.#session) throw new PeerLost("the device side is gone");
      if (performance.now() > deadlineMs) throw this.#tooLate();
    }
  }

  #tooLate(): VmsgError {
    // Who never said anything may not have understood anything.
    const hint = this.counters.received === 0 ? ": it may speak another dialect or hang" : "";
    return new VmsgError(
      "TIMEOUT",
      `the device side did not answer within ${this.#timeoutMs} ms${hint}`,
    );
  }

  get #timeoutMs(): number {
    return this.options.requestTimeoutMs ?? REQUEST_TIMEOUT_MS;
  }

  /** Changes when the device side is lost; equal values are the same device side. */
  get session(): number {
    return this.#session;
  }

  #freeToken(): number {
    do this.#nextToken = (this.#nextToken + 1) & 0xffff; while (
      this.#nextToken === 0 || this.#open.has(this.#nextToken)
    );
    return this.#nextToken;
  }

  #armTimeouts(): void {
    if (this.#timeouts.armed || this.#open.size === 0) return;
    let deadlineMs = Infinity;
    for (const request of this.#open.values()) {
      deadlineMs = Math.min(deadlineMs, request.deadlineMs);
    }
    this.#timeouts.arm(Math.max(0, deadlineMs - performance.now()));
  }

  #failLate(): void {
    const nowMs = performance.now();
    for (const [key, request] of this.#open) {
      if (request.deadlineMs > nowMs) continue;
      this.#open.delete(key);
      request.fail(this.#tooLate());
    }
    this.#armTimeouts();
  }

  // --- events ----------------------------------------------------------------------------------

  /** A device has an available notification to send. */
  eventsPending(): void {
    // Usually there is room, and the doorbell rings at the end of this turn.
    this.#flush();
  }

  #flush(): boolean {
    for (const device of this.#devices.values()) {
      for (let index = 0; index < device.availablePending.length; index++) {
        if (!device.availablePending[index]) continue;
        this.#out.reset(Kind.EVENT_AVAIL, false);
        this.#out.device = device.number;
        this.#out.index = index;
        if (!this.#send()) {
          if (this.isReady) this.#retry.arm(FULL_RETRY_MS);
          return false;
        }
        device.availablePending[index] = false;
      }
    }
    return false;
  }

  /** Fails what is open. */
  [Symbol.dispose](): void {
    this.#lose("shut down");
    this.#peer = "none";
    for (const timer of [this.#heartbeat, this.#timeouts, this.#retry]) {
      this.options.reactor.dropTimer(timer);
    }
  }
}

/** What GET_DEVICE_INFO says. */
export interface DeviceInfo {
  /** 0: there is no such device. */
  readonly deviceId: number;
  /** Who made the device. */
  readonly vendorId: number;
  /** Feature bits in blocks of 32. */
  readonly featureBlocks: number;
  /** Bytes of the configuration space. */
  readonly configSize: number;
  /** How many queues there are. */
  readonly maxQueues: number;
}

/** What GET_VQUEUE says. */
export interface QueueInfo {
  /** 0: there is no such queue. */
  readonly maxSize: number;
  /** Entries it has; 0 before it was set up. */
  readonly size: number;
  /** Does the device work on it? */
  readonly enabled: boolean;
}

/** One device number at the other end. Every request may throw what {@link DriverSide.request} does. */
export class RemoteDevice {
  /** Buffers of a queue were used. */
  onUsed: ((queue: number) => void) | undefined;
  /** The device changed its configuration or status by itself. */
  onConfig: ((status: number, generation: number) => void) | undefined;
  /** The last generation of the configuration that the device has named. */
  generation = 0;
  /** Queues whose available notification waits for room. */
  readonly availablePending: boolean[] = [];
  /** What GET_DEVICE_INFO said; `proto` does not say. */
  #configSize = Infinity;

  /** Use {@link DriverSide.device}. */
  constructor(readonly side: DriverSide, readonly number: number) {}

  /** Forgets notifications for a peer that is gone. */
  forget(): void {
    this.availablePending.fill(false);
    this.generation = 0;
    this.#configSize = Infinity;
  }

  /** Tells the device that a queue has new buffers; sent once however often it is called. */
  available(queue: number): void {
    if (!this.side.isReady) return;
    for (let i = this.availablePending.length; i <= queue; i++) this.availablePending[i] = false;
    this.availablePending[queue] = true;
    this.side.eventsPending();
  }

  #request<T>(
    kind: Kind,
    fill: (request: Message) => void,
    read: (answer: Message) => T,
  ): Promise<T> {
    return this.side.request(kind, this.number, fill, read);
  }

  /** GET_DEVICE_INFO. */
  async info(): Promise<DeviceInfo> {
    const info = await this.#request(Kind.GET_DEVICE_INFO, () => {}, (answer) => ({
      deviceId: answer.deviceId,
      vendorId: answer.vendorId,
      featureBlocks: answer.featureBlocks,
      configSize: answer.configSize,
      maxQueues: answer.maxQueues,
    }));
    if (this.side.options.codec.hasTokens) this.#configSize = info.configSize;
    return info;
  }

  /** The offered feature bits, `blocks` words of 32 but at most {@link MAX_FEATURE_BLOCKS}. */
  async features(blocks: number): Promise<Uint32Array> {
    // Read from a message: a device may say anything. Bits that are not read are not accepted.
    blocks = Math.min(blocks, MAX_FEATURE_BLOCKS);
    const features = new Uint32Array(blocks);
    const most = this.side.options.codec.limits.featureBlocks;
    for (let first = 0; first < blocks; first += most) {
      const count = Math.min(most, blocks - first);
      await this.#request(Kind.GET_DEVICE_FEATURES, (request) => {
        request.index = first;
        request.count = count;
      }, (answer) => {
        if (answer.count === count) features.set(answer.words.subarray(0, count), first);
        return answer.count === count;
      }).then((whole) => this.#checkWhole(whole, Kind.GET_DEVICE_FEATURES));
    }
    return features;
  }

  /** An answer with less than was asked for would be read as zeros. */
  #checkWhole(whole: boolean, kind: Kind): void {
    if (whole) return;
    throw new VmsgError(
      "BAD_ANSWER",
      `device ${this.number} answered ${kindName(kind)} with other than what was asked for`,
    );
  }

  /** Writes the accepted feature bits; whether they are accepted shows in FEATURES_OK. */
  async setFeatures(words: Uint32Array): Promise<void> {
    const most = this.side.options.codec.limits.featureBlocks;
    for (let first = 0; first < words.length; first += most) {
      const part = words.subarray(first, first + most);
      await this.#request(Kind.SET_DRIVER_FEATURES, (request) => {
        request.index = first;
        request.count = part.length;
        request.words.set(part);
      }, () => {});
    }
  }

  /** The device status bits. */
  status(): Promise<number> {
    return this.#request(Kind.GET_DEVICE_STATUS, () => {}, (answer) => answer.status);
  }

  /** Sets the device status; the resulting one, which may lack FEATURES_OK. */
  async setStatus(status: number): Promise<number> {
    const { codec } = this.side.options;
    const result = await this.#request(Kind.SET_DEVICE_STATUS, (request) => {
      request.status = status;
    }, (answer) => answer.status);
    // `proto` does not answer a status write; asking tells (rule P6).
    return codec.answered(Kind.SET_DEVICE_STATUS) ? result : await this.status();
  }

  /** Status 0, complete only when 0 was read back (rule R23). */
  async reset(): Promise<void> {
    const endMs = performance.now() + RESET_TIMEOUT_MS;
    let status = await this.setStatus(0);
    while (status !== 0) {
      if (performance.now() > endMs) {
        throw new VmsgError("TIMEOUT", `device ${this.number} does not finish its reset`);
      }
      await this.#poll();
      status = await this.status();
    }
  }

  /**
   * Configuration bytes. Read in parts where a message is too short; a change between the parts
   * starts over (rule R21).
   */
  async config(offset: number, length: number): Promise<Uint8Array> {
    this.#checkRange(offset, length);
    const bytes = new Uint8Array(length);
    for (let attempt = 0; attempt < 5; attempt++) {
      const generations = new Set<number>();
      for (let at = 0, part; at < length; at += part) {
        part = this.#chunk(length - at);
        await this.#request(Kind.GET_CONFIG, (request) => {
          request.offset = offset + at;
          request.length = part;
        }, (answer) => {
          bytes.set(answer.bytes.subarray(0, part), at);
          generations.add(answer.generation);
          this.generation = answer.generation;
          return answer.offset === offset + at && answer.length === part;
        }).then((whole) => this.#checkWhole(whole, Kind.GET_CONFIG));
      }
      if (generations.size <= 1) return bytes;
    }
    throw new VmsgError("CONFIG_UNSTABLE", `device ${this.number} changes its configuration`);
  }

  /** How many of that many configuration bytes go into one message. */
  #chunk(length: number): number {
    const { codec } = this.side.options;
    const chunk = Math.min(codec.limits.configChunk, length);
    // The prototype aborts on 3 (rule P4).
    return chunk === 3 && !codec.hasTokens ? 2 : chunk;
  }

  /** A device is not asked for what it does not have (rule R7). */
  #checkRange(offset: number, length: number): void {
    if (length === 0 || offset + length <= this.#configSize) return;
    throw new VmsgError(
      "CONFIG_RANGE",
      `device ${this.number} has ${this.#configSize} bytes of configuration, ` +
        `not ${offset + length}`,
    );
  }

  /** Writes configuration bytes; false if the device refuses them. */
  async setConfig(offset: number, bytes: Uint8Array): Promise<boolean> {
    this.#checkRange(offset, bytes.length);
    for (let at = 0, chunk; at < bytes.length; at += chunk) {
      chunk = this.#chunk(bytes.length - at);
      if (!await this.#setConfigPart(offset + at, bytes.subarray(at, at + chunk))) return false;
    }
    return true;
  }

  async #setConfigPart(offset: number, bytes: Uint8Array, again = true): Promise<boolean> {
    // The last one seen (rule R8); in `v1` it is 0 and means nothing (rule R20).
    const named = this.side.options.codec.dialect === "v1-2025" ? this.generation : 0;
    const answered = await this.#request(Kind.SET_CONFIG, (request) => {
      request.generation = named;
      request.offset = offset;
      request.length = bytes.length;
      request.bytes.set(bytes);
    }, ({ length, generation }) => ({ length, generation }));
    if (this.side.options.codec.dialect !== "v1-2025") return answered.length === bytes.length;
    this.generation = answered.generation;
    if (answered.length === bytes.length) return true;
    // The refusal names the generation that was not known (rule R9); a second one is the device's will.
    return again && answered.generation !== named &&
      this.#setConfigPart(offset, bytes, false);
  }

  /** What the device says of a queue. */
  queue(index: number): Promise<QueueInfo> {
    return this.#request(Kind.GET_VQUEUE, (request) => {
      request.index = index;
    }, (answer) => ({
      maxSize: answer.maxSize,
      size: answer.queueSize,
      enabled: answer.flags === QUEUE_ENABLED,
    }));
  }

  /** Sets a queue up and starts it; its base, if not 0, first. */
  async startQueue(index: number, setup: QueueSetup): Promise<void> {
    if (setup.base !== 0) await this.#setQueueState(index, setup.base);
    await this.#request(Kind.SET_VQUEUE, (request) => {
      request.index = index;
      request.flags = QUEUE_ENABLED;
      request.queueSize = setup.size;
      request.descriptorAddress = setup.descriptorAddress;
      request.driverAddress = setup.driverAddress;
      request.deviceAddress = setup.deviceAddress;
    }, () => {});
  }

  /** RESET_VQUEUE, then GET_VQUEUE until it is cleared (rule R25); only with RING_RESET negotiated. */
  async resetQueue(index: number): Promise<void> {
    await this.#request(Kind.RESET_VQUEUE, (request) => {
      request.index = index;
    }, () => {});
    const endMs = performance.now() + RESET_TIMEOUT_MS;
    while ((await this.queue(index)).size !== 0) {
      if (performance.now() > endMs) {
        throw new VmsgError("TIMEOUT", `device ${this.number} does not reset queue ${index}`);
      }
      await this.#poll();
    }
  }

  /** Waits before a device is asked once more; throws PeerLost if another has taken its place. */
  async #poll(): Promise<void> {
    const { session, options } = this.side;
    await options.reactor.sleep(RESET_POLL_MS);
    if (session !== this.side.session) throw new PeerLost("the device side is gone");
  }

  // --- private messages, to a vmsg device side only ----------------------------------------------

  async #private<T>(
    kind: Kind,
    fill: (request: Message) => void,
    read: (answer: Message) => T,
  ): Promise<T> {
    let result = 0;
    const value = await this.side.request(kind, 0, (request) => {
      request.epoch = this.side.epoch;
      request.memoryDevice = this.number;
      fill(request);
    }, (answer) => {
      result = answer.result;
      return read(answer);
    });
    if (result !== 0) throw new RequestRefused(kind, this.number, result);
    return value;
  }

  /** SET_VQUEUE_STATE: where the next SET_VQUEUE goes on. */
  #setQueueState(index: number, base: number): Promise<void> {
    return this.#private(Kind.SET_VQUEUE_STATE, (request) => {
      request.index = index;
      request.base = base;
    }, () => {});
  }

  /** STOP_VQUEUE: when it resolves, the device touches nothing of the queue; the next index. */
  stopQueue(index: number): Promise<number> {
    return this.#private(Kind.STOP_VQUEUE, (request) => {
      request.index = index;
    }, (answer) => answer.base);
  }

  /**
   * ADD_MEMORY: when it resolves, the device side has mapped the memory.
   *
   * @param fd the file that holds it; the caller keeps owning it
   * @param address of its first byte on the bus
   * @param length in bytes
   * @param offset of the first byte in the file
   * @param flags MEMORY_SEGMENT if it is confined mode's segment
   */
  async addMemory(
    fd: Fd,
    address: number,
    length: number,
    offset: number,
    flags = 0,
  ): Promise<void> {
    const { bus, reactor } = this.side.options;
    if (!bus.carriesFds) {
      throw new VmsgError(
        "NO_MEMORY",
        `${bus.description} carries no files, so it cannot give the device side a guest's memory: ` +
          "use confined mode (vmsg proxy --confined)",
      );
    }
    const { session } = this.side;
    const endMs = performance.now() + REQUEST_TIMEOUT_MS;
    let ordinal = -1;
    while (ordinal < 0) {
      // The peer does not read its socket, or the kernel takes no more descriptors.
      if (performance.now() > endMs) {
        throw new VmsgError("TIMEOUT", "the device side takes no memory");
      }
      if (!this.side.isReady || session !== this.side.session) {
        throw new PeerLost("the device side is gone");
      }
      ordinal = bus.sendFd(fd);
      if (ordinal < 0) await reactor.sleep(FULL_RETRY_MS);
    }
    await this.#private(Kind.ADD_MEMORY, (request) => {
      request.flags = flags;
      request.ordinal = ordinal;
      request.address = address;
      request.length = length;
      request.offset = offset;
    }, () => {});
  }

  /**
   * ADD_MEMORY without a descriptor, for systems that share memory instead of files.
   *
   * @param from MEMORY_SEGMENT: the memory beside the bus's queues; MEMORY_WINDOW: what the device side
   * was given by `--memory`
   * @param address of its first byte on the bus
   * @param length in bytes
   * @param offset of the first byte in the segment, or its address as `--memory` counts
   */
  addSharedMemory(from: number, address: number, length: number, offset: number): Promise<void> {
    return this.#private(Kind.ADD_MEMORY, (request) => {
      request.flags = from;
      request.address = address;
      request.length = length;
      request.offset = offset;
    }, () => {});
  }

  /** REMOVE_MEMORY: when it resolves, the device side has unmapped it. */
  removeMemory(address: number, length: number): Promise<void> {
    return this.#private(Kind.REMOVE_MEMORY, (request) => {
      request.address = address;
      request.length = length;
    }, () => {});
  }
}

/** The device side answered a private request with an errno. */
export class RequestRefused extends VmsgError {
  /** The class, for printing. */
  override readonly name: string = "RequestRefused";

  /** Its code is always REFUSED. */
  constructor(kind: Kind, device: number, readonly errno: number) {
    super("REFUSED", `device ${device} refused ${kindName(kind)}: ${errnoName(errno)}`);
  }
}
