/**
 * The driver side of the transport: it asks (docs/wire.md 3.6, 6, 7.3).
 *
 * Theory of operation. {@link DriverSide} owns the driver end of a bus: it finds out who is at the other end
 * and keeps the heartbeat going. A {@link RemoteDevice} is one device number on it, with one method per
 * request; requests.ts pairs answers with requests and fails them in time.
 *
 *     none --attach--> probing --HELLO answered--> vmsg
 *                      probing --GET_DEVICE_INFO answered first--> foreign
 *                      vmsg    --another epoch answers--> vmsg again, after everything was failed
 *
 * Users are told through {@link PeerListener}, of the side or of one device: `ready` after each of the
 * transitions on the right, `lost` before each of them and on detach. When `lost` is called every open request
 * has failed with {@link PeerLost}; none is sent again. Who wants to go on replays its state after `ready`.
 *
 * In dialects without our private messages a peer that attached counts as foreign at once. On a bus that
 * notices no peers (a PCI function: the other machine may not even run) it is probed all the same, until
 * it answers; and a peer that vanishes there, unless it is vmsg and comes back with another epoch, is
 * noticed by nobody.
 */

import type { Bus, BusListener } from "../bus/bus.ts";
import type { Reactor, Timer } from "../linux/reactor.ts";
import type { Codec, Malformed } from "../message/codec.ts";
import { dialectOfAnswer } from "../message/detect.ts";
import { DEVICE_ADDED, DEVICE_REMOVED, Kind } from "../message/message.ts";
import { limitedLog, type Log } from "../observe/log.ts";
import type { Tracer } from "../observe/trace.ts";
import {
  capabilitiesOf,
  CAPABILITY_DOORBELLS,
  CAPABILITY_GRANT,
  CAPABILITY_NOTIFIERS,
  grantOf,
  PRIVATE_VERSION,
  randomEpoch,
  randomToken,
} from "./epoch.ts";
import { Link } from "./link.ts";
import { Notifications } from "./notifications.ts";
import { RemoteDevice } from "./remote_device.ts";
import {
  OpenRequests,
  type PeerKind,
  type PeerListener,
  REQUEST_TIMEOUT_MS,
  type Requests,
} from "./requests.ts";

export type { PeerListener } from "./requests.ts";

/** The heartbeat. */
const HELLO_MS = 100;
/** The first HELLO may be lost while the other side attaches, so it is repeated soon. */
const FIRST_HELLO_MS = 5;
const MAX_TOKEN = 0xffff;
/** How long the other side may be silent before we say so. */
const SILENCE_MS = 1500;

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
  /** Are all notifications messages, also where kicks and calls could be the device side's? */
  readonly notifiesInBand?: boolean | undefined;
}

/** The driver side of one bus. */
export class DriverSide implements BusListener, Requests, Disposable {
  readonly reactor: Reactor;
  readonly link: Link;
  readonly #devices = new Map<number, RemoteDevice>();
  readonly #listeners: PeerListener[] = [];
  readonly requests: OpenRequests;
  readonly notifications: Notifications;
  readonly #heartbeat: Timer;
  readonly complain: (line: string) => void;
  peer: PeerKind = "none";
  /** A device came that nobody has asked for by its number. */
  onDevice: ((number: number) => void) | undefined;
  epoch = 0;
  takesNotifiers = false;
  #peerEpoch = 0;
  /** What a device side that heeds it is granted; 0 for nothing. */
  #grant = 0;
  #nonce = 0;
  /** The first one's token; those behind it count on (rule G8), and any may be answered. */
  #probeToken = 0;
  #probes = 0;
  #attachedMs = 0;
  #heardMs = 0;
  #toldSilence = false;

  /** {@link open} starts it. */
  constructor(readonly options: DriverSideOptions) {
    const { reactor, bus, codec, tracer, requestTimeoutMs = REQUEST_TIMEOUT_MS } = options;
    this.reactor = reactor;
    this.link = new Link(bus, codec, { reactor, tracer, pauses: false });
    this.requests = new OpenRequests(reactor, this.link, requestTimeoutMs);
    this.notifications = new Notifications(this.link, reactor, { atOnce: true, reserve: 0 });
    this.#heartbeat = reactor.timer(() => this.#beat());
    this.complain = limitedLog(options.log.warn, reactor);
  }

  /** What came in, and what of it could not be used. */
  get counters(): Link["counters"] {
    return this.link.counters;
  }

  /** True while requests can be sent. */
  get isReady(): boolean {
    return this.peer === "vmsg" || this.peer === "foreign";
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

  // --- who is there ------------------------------------------------------------------------------

  attached(): void {
    // In memory that outlives us, an earlier process of ours may have left one.
    this.revoke();
    this.epoch = randomEpoch();
    this.#peerEpoch = 0;
    this.#nonce = 0;
    this.#probeToken = randomToken();
    this.#probes = 0;
    this.#toldSilence = false;
    this.#attachedMs = this.#heardMs = this.reactor.now();
    const { bus, codec } = this.options;
    if (!codec.has(Kind.HELLO) && bus.noticesPeers) return this.#becomeReady("foreign");
    this.peer = "probing";
    this.#probe();
    this.#heartbeat.arm(FIRST_HELLO_MS);
  }

  detached(reason: string): void {
    this.#heartbeat.cancel();
    this.options.log.info(`${this.options.bus.description}: ${reason}`);
    this.#lose(reason);
    this.peer = "none";
  }

  replaced(reason: string): void {
    this.options.log.warn(`${this.options.bus.description}: ${reason}`);
    this.#lose(reason);
    this.attached();
  }

  #becomeReady(peer: PeerKind): void {
    this.peer = peer;
    const who = peer === "vmsg" ? "a vmsg device side" : "a device side";
    this.options.log.info(`${this.options.bus.description}: ${who} is there`);
    for (const listener of this.#listeners) listener.ready();
    for (const device of this.#devices.values()) device.arrived();
  }

  /**
   * Takes the grant back: a device side that looks at it from here on touches no memory any more, however late. Called
   * before anybody who listens may let memory go, and by who is about to end.
   */
  revoke(): void {
    this.#grant = 0;
    this.options.bus.grant(0);
  }

  #lose(reason: string): void {
    this.revoke();
    const wasReady = this.isReady;
    this.peer = "probing";
    this.takesNotifiers = false;
    this.link.forget();
    this.notifications.cancelAll();
    for (const device of this.#devices.values()) device.left(reason);
    if (wasReady) { for (const listener of this.#listeners) listener.lost(reason); }
  }

  // --- heartbeat ---------------------------------------------------------------------------------

  #beat(): void {
    if (this.peer === "none" || this.peer === "foreign") return;
    const probing = this.peer === "probing";
    // Early repeats for an attach that raced, a steady beat afterwards.
    const early = probing && this.reactor.now() - this.#attachedMs < HELLO_MS;
    if (early || (probing && !this.options.bus.noticesPeers)) this.#probe();
    else this.#sendHello();
    this.#heartbeat.arm(early ? FIRST_HELLO_MS * 4 : HELLO_MS);
    this.#tellSilence();
  }

  #probe(): void {
    const { bus, codec } = this.options;
    // Where nobody tells that a peer came, it may have emptied the queues.
    if (!bus.noticesPeers) bus.resume();
    if (!codec.has(Kind.HELLO)) return this.#sendProbe();
    // In one publication: a device side that attaches between them would take us for foreign, because
    // the first thing it sees were the probe.
    this.#fillHello();
    if (this.link.sendWithNext()) this.#sendProbe();
  }

  #tellSilence(): void {
    if (this.#toldSilence || this.reactor.now() - this.#heardMs < SILENCE_MS) return;
    this.#toldSilence = true;
    const { bus, codec, log } = this.options;
    if (this.peer === "vmsg") {
      log.warn(`${bus.description}: the device side is silent; waiting for it`);
    } else if (!bus.noticesPeers) {
      const hint = bus.silenceHint === "" ? "" : ` (${bus.silenceHint})`;
      log.info(`${bus.description}: waiting for a device side that speaks ${codec.dialect}${hint}`);
    } else {
      log.warn(
        `${bus.description}: no ${codec.dialect} answer, the peer may speak another dialect ` +
          `(v1-2025, rfc, proto) or hang: try dialect=`,
      );
    }
  }

  #sendHello(): void {
    // Said with each: somebody may have emptied the queues.
    this.options.bus.grant(this.#grant);
    this.#fillHello();
    this.link.send();
  }

  #fillHello(): void {
    const out = this.link.start(Kind.HELLO, 0);
    out.token = randomToken();
    out.epoch = this.epoch;
    out.peerEpoch = this.#peerEpoch;
    out.nonce = this.#nonce;
    out.version = PRIVATE_VERSION;
    const { bus, notifiesInBand } = this.options;
    out.capabilities = capabilitiesOf(bus) & ~(notifiesInBand === true ? CAPABILITY_NOTIFIERS : 0);
  }

  /** GET_DEVICE_INFO, which every device side answers, also one that knows no HELLO. */
  #sendProbe(): void {
    const [number = 0] = this.#devices.keys();
    const token = (this.#probeToken - 1 + this.#probes++) % MAX_TOKEN + 1;
    this.link.start(Kind.GET_DEVICE_INFO, number).token = token;
    this.link.send();
  }

  #helloAnswered(): void {
    const { epoch, peerEpoch, nonce, version, capabilities } = this.link.in;
    // Our epoch is new with every attachment, so this is no leftover of an earlier one. The answer may
    // be to any HELLO of this one: where a round trip is longer than a beat, no latest is ever answered.
    if (peerEpoch !== this.epoch) return this.link.drop("out of turn");
    if (version !== PRIVATE_VERSION) {
      return this.complain(`the device side is a vmsg of another version (${version})`);
    }
    if (this.peer === "foreign") return this.link.drop("out of turn");
    this.#nonce = nonce;
    if (this.#toldSilence && this.peer === "vmsg") {
      this.options.log.info(`${this.options.bus.description}: the device side answers again`);
    }
    this.#toldSilence = false;
    if (epoch === this.#peerEpoch) return;
    if (this.peer === "vmsg") this.#lose("the device side was replaced");
    this.#peerEpoch = epoch;
    if ((capabilities & CAPABILITY_GRANT) !== 0) this.#grant = grantOf(this.epoch);
    this.takesNotifiers = (capabilities & CAPABILITY_NOTIFIERS) !== 0;
    // The device side drops all else until a HELLO names its epoch; one queue keeps the order.
    this.#sendHello();
    this.#heartbeat.arm(HELLO_MS);
    if ((capabilities & CAPABILITY_DOORBELLS) !== 0) this.#offerDoorbells();
    this.#becomeReady("vmsg");
  }

  #offerDoorbells(): void {
    const ordinal = this.options.bus.offerDoorbells?.() ?? -1;
    if (ordinal < 0) return;
    const out = this.link.start(Kind.SET_DOORBELLS, 0);
    out.token = randomToken();
    out.epoch = this.epoch;
    out.ordinal = ordinal;
    this.link.send();
  }

  #doorbellsAnswered(): void {
    const { epoch, result } = this.link.in;
    // One that refuses, or forgets to answer, goes on hearing the bus as before.
    if (this.peer !== "vmsg" || epoch !== this.#peerEpoch || result !== 0) {
      return this.link.drop("out of turn");
    }
    this.options.bus.useDoorbells?.();
    this.options.log.debug(`${this.options.bus.description}: doorbells are eventfds`);
  }

  #probeAnswered(): void {
    const { link } = this;
    const probe = (link.in.token - this.#probeToken + MAX_TOKEN) % MAX_TOKEN;
    if (link.codec.conduct.hasTokens && probe >= this.#probes) return link.drop("not asked for");
    this.#heartbeat.cancel();
    this.#becomeReady("foreign");
  }

  // --- messages ----------------------------------------------------------------------------------

  received(slot: DataView): void {
    const { link } = this;
    const malformed = link.receive(slot);
    if (malformed !== undefined) {
      link.refuse(slot, malformed);
      return this.complain(this.#explain(slot, malformed));
    }
    this.#heardMs = this.reactor.now();
    const { kind, response } = link.in;
    if (!response) return this.#event();
    if (kind === Kind.HELLO) return this.#helloAnswered();
    if (kind === Kind.SET_DOORBELLS) return this.#doorbellsAnswered();
    if (this.peer !== "probing") return this.requests.answered();
    if (kind === Kind.GET_DEVICE_INFO) this.#probeAnswered();
    else link.drop("not asked for");
  }

  #explain(slot: DataView, reason: Malformed): string {
    const ours = this.link.codec.dialect;
    const theirs = dialectOfAnswer(ours, slot, reason);
    if (theirs === undefined) return `dropped a message that is not ${ours} (${reason})`;
    return `no ${ours} answer, the peer speaks ${theirs}: try dialect=${theirs}`;
  }

  #event(): void {
    const { link } = this;
    const { kind, device: from, number, state, status, generation, index } = link.in;
    if (kind === Kind.PING) return link.pong();
    const isArrival = kind === Kind.EVENT_DEVICE;
    const device = this.#devices.get(isArrival ? number : from);
    if (this.isReady && device === undefined && isArrival && state === DEVICE_ADDED) {
      if (this.onDevice !== undefined) return this.onDevice(number);
    }
    if (!this.isReady || device === undefined) return link.drop("no such device");
    // Either may come twice, or without the other (rules R38, B23).
    if (isArrival && state === DEVICE_ADDED) return device.arrived();
    if (isArrival && state === DEVICE_REMOVED) return device.removed();
    if (device.isReady && kind === Kind.EVENT_USED) return device.onUsed?.(index);
    if (!device.isReady || kind !== Kind.EVENT_CONFIG) return link.drop("out of turn");
    device.generation = generation;
    device.onConfig?.(status, generation);
  }

  /** Fails what is open. */
  [Symbol.dispose](): void {
    this.#lose("shut down");
    this.peer = "none";
    this.reactor.dropTimer(this.#heartbeat);
    this.requests[Symbol.dispose]();
    this.notifications[Symbol.dispose]();
    this.link[Symbol.dispose]();
  }
}
