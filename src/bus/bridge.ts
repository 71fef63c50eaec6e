/**
 * The bus of Linux's user-space bridge: this process is the device side, the driver side is the virtio-msg transport of the kernel
 * that has the node (docs/wire.md 4.7).
 *
 * Theory of operation. A *session* is rings, eventfds and an ATTACH with them; within it the endpoint comes and goes:
 *
 *     none --ATTACH--> offline <--ENDPOINT_ONLINE, ENDPOINT_OFFLINE--> online (attached, for whoever uses the bus)
 *
 * - online: the devices are published (TOPOLOGY_*), the kernel asks, windows of its memory come and go (bridge_windows.ts). Frames
 *   about the bridge are done here, before the next slot is looked at; all others are messages of `v1`.
 * - offline: devices, windows and requests are forgotten, nothing is sent and nothing rung. The node stays open: a kernel of 2026
 *   does not survive DETACH or close then, see {@link BridgeNode.isKernel}.
 * - a fault (the kernel found what it does not take) or a device that is removed, which the kernel stalls over if it is
 *   left out of a new list: DETACH, then another session with fresh rings. Where faults follow one another there are pauses.
 *
 * The kernel takes a session offline when an event comes for a device whose driver has not looked yet, so events of a device wait for its
 * first status write in this epoch: those before are dropped here, whatever is above.
 *
 * Rings and cursors: bridge_ring.ts. One kick a turn. While frames are not read, a timer looks whether our cursor was set back.
 */

import { LinuxError, VmsgError } from "../linux/errors.ts";
import { createEventFd } from "../linux/eventfd.ts";
import { createSealedMemory } from "../linux/fd.ts";
import { mapShared } from "../linux/mapping.ts";
import type { Reactor, Timer } from "../linux/reactor.ts";
import { limitedLog, type Log } from "../observe/log.ts";
import { BridgeState } from "../observe/state.ts";
import type { Tracer } from "../observe/trace.ts";
import {
  awokenDevice,
  BridgeId,
  bridgeIdOf,
  endpointLimitOf,
  epochOf,
  eventDevice,
  isBridgeFrame,
  offlineReasonOf,
  writeTopology,
} from "./bridge_frames.ts";
import {
  BRIDGE_RING_OFFSETS,
  BRIDGE_RINGS,
  type BridgeEndpoint,
  type BridgeNode,
} from "./bridge_node.ts";
import { BRIDGE_SLOT, BridgeConsumer, BridgeProducer } from "./bridge_ring.ts";
import { BridgeTrace } from "./bridge_trace.ts";
import { BridgeWindows } from "./bridge_windows.ts";
import { type BusListener, type BusOptions, type KernelBus, QueueBus } from "./bus.ts";
import { Doorbells } from "./doorbells.ts";

/** How often unread frames are looked after. */
const LOOK_MS = 10;
/** A session that held for so long has no part in what went wrong before. */
const SOUND_MS = 30_000;
const FIRST_PAUSE_MS = 1000;
const MAX_PAUSE_MS = 30_000;
/** Entries of a queue: Linux takes whole pages of a pool for each receive buffer. */
const MAX_QUEUE_SIZE = 256;
/** The largest frame about the bridge itself: endpoints have at least messages of this size. */
const LEAST_MESSAGE = 72;
/** Of the loopback endpoint; other numbers are ignored there. */
const LOOPBACK_NUMBERS = 32;
const NUMBERS = 0x1_0000;
/** What goes for a head of ENDPOINT_OFFLINE: type and id. */
const OFFLINE_HEAD = 0x02 | BridgeId.ENDPOINT_OFFLINE << 8;

const OTHER = "is the bridge of a kernel of another time: one as of mid 2026 is needed";
const REBOOT = "reboot this machine";
const KEPT_OPEN =
  "the node is kept open, because kernels of 2026 do not survive that it is closed now: wait until it is online, or reboot";

interface Session {
  readonly bells: Doorbells;
  readonly startMs: number;
  /** Of all that it is made of. */
  readonly owner: Disposable;
}

/** See the head of this file. */
export class BridgeBus extends QueueBus implements KernelBus {
  override readonly carriesFds = false;
  readonly kernel: KernelBus = this;
  readonly maxQueueSize: number = MAX_QUEUE_SIZE;
  maxMessage: number = BRIDGE_SLOT;
  readonly deviceNumbers: number;
  /** Events that were dropped because they came before their time. */
  earlyEvents = 0;
  readonly #windows: BridgeWindows;
  readonly #look: Timer;
  readonly #state: BridgeState;
  readonly #pause: Timer;
  readonly #complain: (line: string) => void;
  #trace: BridgeTrace | undefined;
  #session: Session | undefined;
  #isResolved = false;
  #epoch = 0n;
  /** ENDPOINT_ONLINE came, and windows of the epoch before are left. */
  #next: bigint | undefined;
  #pauseMs = 0;
  #wasAttached = false;
  #isWarned = false;
  #wanted: readonly number[] = [];
  /** What the kernel was told in this epoch; undefined before. */
  #published: ReadonlySet<number> | undefined;
  #isPublished = true;
  /** Devices whose status was written in this epoch. */
  readonly #awake = new Set<number>();
  #offset = -1;

  /** Attaches when it is opened; the bus owns the node. */
  constructor(
    reactor: Reactor,
    readonly node: BridgeNode,
    readonly endpoint: BridgeEndpoint,
    readonly log: Log,
    options: BusOptions,
    readonly tx: BridgeProducer = new BridgeProducer(),
    readonly rx: BridgeConsumer = new BridgeConsumer(),
  ) {
    super("device", reactor, options, tx, rx);
    this.deviceNumbers = endpoint.name === "loopback" ? LOOPBACK_NUMBERS : NUMBERS;
    this.#complain = limitedLog(log.warn, reactor);
    this.#state = new BridgeState(reactor);
    this.#look = reactor.timer(() => this.#lookAfter());
    this.#pause = reactor.timer(() => this.#goOn());
    this.#windows = new BridgeWindows(reactor, {
      map: (offset, length) => node.map(offset, length),
      windowAdded: (region) => this.listener!.windowAdded!(region),
      windowRemoved: (region, done) => this.listener!.windowRemoved!(region, done),
      answered: () => this.#flush(),
      // Not at once: what lets go of them may be coming to its end, and this bus after it.
      emptied: () => this.#pause.armed || this.#pause.arm(0),
      refused: () => this.#state.words.refused++,
      complain: (line) => this.#complain(`${this.description}: ${line}`),
    });
  }

  /** Cursors, for whoever inspects this process. */
  #showCursors(): void {
    const { tx, rx } = this;
    const { words } = this.#state;
    words["tx prod"] = tx.ours;
    words["tx cons"] = tx.theirs;
    words["rx prod"] = rx.theirs;
    words["rx cons"] = rx.ours;
  }

  traceBy(tracer: Tracer): void {
    this.#trace = new BridgeTrace(tracer);
  }

  /** For log lines. */
  get description(): string {
    const { node, endpoint: { name, id } } = this;
    return `bridge ${node.path}, endpoint ${name}${id === "" ? "" : ` ${id}`}`;
  }

  /** Begins the first session as soon as somebody is there. */
  override open(listener: BusListener): void {
    super.open(listener);
    this.node.open(() => this.#opened());
  }

  // --- sessions ----------------------------------------------------------------------------------

  #opened(): void {
    this.#pause.cancel();
    this.#isResolved = false;
    this.#begin();
  }

  /** What fails the first time ends the process, later it is tried again. */
  #try(action: () => void): void {
    try {
      action();
    } catch (error) {
      if (!(error instanceof VmsgError)) throw error;
      if (!this.#wasAttached && this.node.isOpen) throw this.#explained(error);
      this.log.warn(`${this.description}: ${error.message}`);
      this.#beginLater(Math.max(this.#pauseMs, FIRST_PAUSE_MS));
    }
  }

  #explained(error: VmsgError): VmsgError {
    const { description, node: { path } } = this;
    const none = `${description}: the kernel has no such endpoint (${error.code}): ` +
      "load its module, as virtio_msg_loopback, or name another";
    const problem = ({
      EBUSY: `${description}: it has a device side already: end that one`,
      ...{ ENOTTY: `${path} is no virtio-msg bridge (ENOTTY)`, ENOENT: none, ENODEV: none },
    } as Record<string, string>)[error.code];
    if (problem === undefined) return error;
    return new VmsgError(error.code === "EBUSY" ? "BUS_IN_USE" : "NO_BRIDGE", problem);
  }

  #beginLater(ms: number): void {
    this.#pauseMs = Math.min(MAX_PAUSE_MS, Math.max(FIRST_PAUSE_MS, 2 * ms));
    this.#pause.arm(ms);
  }

  #goOn(): void {
    if (this.#next === undefined) this.#begin();
    else this.#goOnline();
  }

  #begin(): void {
    const isWanted = this.#session === undefined && this.listener !== undefined;
    if (!isWanted || !this.node.isOpen || this.#pause.armed || !this.#windows.isEmpty) return;
    this.#try(() => {
      if (!this.#isResolved) this.node.resolve(this.endpoint);
      this.#isResolved = true;
      this.#attachNode();
    });
  }

  #attachNode(): void {
    const { node, tx, rx, reactor } = this;
    using stack = new DisposableStack();
    const ring = stack.use(createSealedMemory("vmsg bridge rings", BRIDGE_RINGS));
    const memory = stack.use(mapShared(ring.number, BRIDGE_RINGS));
    tx.begin(memory, BRIDGE_RING_OFFSETS.tx);
    rx.begin(memory, BRIDGE_RING_OFFSETS.rx);
    stack.defer(() => [tx, rx].forEach((one) => one.end()));
    const [call, kick] = [stack.use(createEventFd()), stack.use(createEventFd())];
    const bells = stack.use(new Doorbells(reactor, call, kick, () => this.#called()));
    const { isOnline, isKnown, epoch, maxMessage } = node.attach({ ring, kick, call });
    if (isOnline && (!isKnown || maxMessage < LEAST_MESSAGE)) {
      node.detach();
      throw isKnown
        ? this.#tooSmall(maxMessage)
        : new VmsgError("NO_BRIDGE", `${node.path} ${OTHER}`);
    }
    this.#session = { bells, startMs: reactor.now(), owner: stack.move() };
    this.#wasAttached = true;
    this.#state.words.sessions++;
    this.#state.is("offline");
    node.watch(() => this.#faulted(), () => this.#end("whoever played the kernel is gone", false));
    this.#trace?.note(
      `attached, the endpoint is ${isOnline ? `online, epoch ${epoch}` : "offline"}`,
    );
    if (isOnline) this.#goOnline(epoch, maxMessage);
    else this.log.info(`${this.description}: the endpoint is offline, waiting for it`);
  }

  #tooSmall(maxMessage: number): VmsgError {
    const what = `messages of ${maxMessage} bytes are its largest`;
    return new VmsgError("BUS_MEMORY", `${this.description}: ${what}, ${LEAST_MESSAGE} are needed`);
  }

  #faulted(): void {
    const session = this.#session!;
    this.#state.words.faults++;
    if (this.isOffline && this.node.isKernel) {
      // Attaching anew would need a DETACH.
      return this.log.error(
        `${this.description}: the session is at fault while offline: ${REBOOT}`,
      );
    }
    const isSound = this.reactor.now() - session.startMs >= SOUND_MS;
    this.#restart(
      "the kernel does not go on with this session (fault)",
      isSound ? 0 : this.#pauseMs,
    );
  }

  /** Ends the session, then begins another. */
  #restart(reason: string, pauseMs = 0): void {
    if (this.node.isKernel && this.#isGoingOffline) return this.#leave(reason);
    if (pauseMs > 0) this.log.warn(`${this.description}: the next session in ${pauseMs} ms`);
    this.#beginLater(pauseMs);
    this.#end(reason, true);
    if (pauseMs > 0) return;
    this.#pause.cancel();
    this.#begin();
  }

  #end(reason: string, detaches: boolean): void {
    const session = this.#session;
    if (session === undefined) return;
    this.node.unwatch();
    this.#look.cancel();
    this.#leave(reason);
    if (detaches) this.#try(() => this.node.detach());
    this.#session = undefined;
    this.#state.is("none");
    session.owner[Symbol.dispose]();
  }

  // --- the endpoint ------------------------------------------------------------------------------

  /** Is there a session whose endpoint is not there, be it that the frame that says so is not read yet? */
  get isOffline(): boolean {
    return this.#session !== undefined && (!this.isAttached || this.#isGoingOffline);
  }

  #goOnline(epoch: bigint = this.#next!, maxMessage = this.maxMessage): void {
    // Whole words, as codecs have it.
    this.maxMessage = Math.min(BRIDGE_SLOT, maxMessage) & ~7;
    this.#next = epoch;
    if (!this.#windows.isEmpty) return;
    this.#next = undefined;
    this.#isWarned = false;
    this.#epoch = epoch;
    this.#published = undefined;
    this.#awake.clear();
    this.#state.is("online", epoch);
    this.attach();
  }

  /** Nothing of this epoch counts any more. */
  #leave(reason: string): void {
    this.#next = undefined;
    this.#trace?.note(reason);
    this.detach(reason);
    this.#state.is("offline");
    this.#windows.dropAll();
    this.#windows.show(this.#state);
  }

  #online(slot: DataView): void {
    if (this.isAttached) this.#leave("the endpoint comes anew");
    const limit = endpointLimitOf(slot);
    if (limit < LEAST_MESSAGE) return this.log.error(this.#tooSmall(limit).message);
    // What is left there would be taken for one of the new epoch, and end it.
    if (!this.tx.isRead) return this.#restart("frames were left from before");
    this.#goOnline(epochOf(slot), limit);
  }

  #offline(slot: DataView): void {
    if (epochOf(slot) === this.#next) this.#next = undefined;
    if (!this.isAttached || epochOf(slot) !== this.#epoch) return;
    const what = `the endpoint went offline (${offlineReasonOf(slot)})`;
    this.#leave(this.node.isKernel ? `${what}; ${KEPT_OPEN}` : what);
  }

  // --- devices -----------------------------------------------------------------------------------

  publish(numbers: readonly number[]): void {
    const wanted = new Set(numbers);
    this.#wanted = numbers.toSorted((a, b) => a - b);
    if (!this.isAttached) return;
    const published = this.#published;
    if (published?.isSubsetOf(wanted) === false) {
      return this.#restart("a device is removed, the others come anew");
    }
    if (published?.size === wanted.size) return;
    this.#isPublished = false;
    this.#flush();
  }

  /** Says which devices there are, if there is room for it. */
  #tellTopology(): boolean {
    const { tx } = this;
    if (tx.free < this.#wanted.length + 2) return false;
    const say = (id: number, value?: number) => {
      const at = tx.claim();
      writeTopology(tx.view, at, id, this.#epoch, value);
      this.#trace?.sent(tx.view, at);
      tx.publish();
    };
    say(BridgeId.TOPOLOGY_RESET);
    for (const number of this.#wanted) say(BridgeId.TOPOLOGY_DEV_ADD, number);
    say(BridgeId.TOPOLOGY_COMMIT, this.#wanted.length);
    this.#published = new Set(this.#wanted);
    this.#isPublished = true;
    this.#state.published(this.#wanted.length);
    return true;
  }

  // --- frames ------------------------------------------------------------------------------------

  /** Sends what the bus itself has to say. */
  #flush(): void {
    if (!this.isAttached) return;
    const isTold = !this.#isPublished && this.#tellTopology();
    const isAnswered = this.#windows.answer(this.tx, this.#trace);
    this.#windows.show(this.#state);
    if (isAnswered || isTold) this.ringSoon();
    else if (this.#hasToSay && !this.#look.armed) this.#look.arm(LOOK_MS);
  }

  get #hasToSay(): boolean {
    return !this.#isPublished || this.#windows.isReady;
  }

  override claim(reserve = 0): number {
    return this.#offset = super.claim(reserve);
  }

  override send(): void {
    const device = eventDevice(this.tx.view, this.#offset);
    // A claim that is not sent is the next one's.
    if (device < 0 || this.#awake.has(device)) return super.send();
    this.earlyEvents++;
    this.#trace?.note(`dev ${device}: not sent, since its status was not written so far`);
  }

  protected override ring(): void {
    // Which would be a fault.
    if (this.#isGoingOffline) return;
    this.#session!.bells.ring();
    this.#showCursors();
    if (!this.#look.armed) this.#look.arm(LOOK_MS);
  }

  #called(): void {
    this.#restore();
    this.rung();
    this.#showCursors();
  }

  /** Cursors that were set back are stored again; whoever did not see them is told. */
  #restore(): void {
    const [sent, received] = [this.tx.lags(), this.rx.lags()];
    if (!sent && !received) return;
    this.#trace?.note(`a cursor was set back (${sent ? "tx.prod" : "rx.cons"}): stored again`);
    if (this.isAttached) this.ringSoon();
  }

  #lookAfter(): void {
    if (this.#session === undefined) return;
    this.#restore();
    if (this.isPaused && this.#isGoingOffline) this.#leave("the endpoint went offline");
    this.#flush();
    if (this.isAttached && (!this.tx.isRead || this.#hasToSay)) this.#look.arm(LOOK_MS);
    this.#showCursors();
  }

  /** Does ENDPOINT_OFFLINE wait, perhaps behind what is not read because answers have no room, which nobody makes any more? */
  get #isGoingOffline(): boolean {
    // One of an epoch that is over says nothing.
    return this.rx.awaits(OFFLINE_HEAD, this.#epoch);
  }

  protected override get reads(): boolean {
    return this.#session !== undefined;
  }

  protected override keeps(slot: DataView): boolean {
    const isOwn = isBridgeFrame(slot);
    if (isOwn) this.#trace?.received(slot);
    if (isOwn) this.#take(slot);
    else this.#noteAwake(slot);
    // The kernel may wait for room.
    if (this.rx.wasFull() && this.isAttached) this.ringSoon();
    return isOwn || !this.isAttached;
  }

  #noteAwake(slot: DataView): void {
    const device = awokenDevice(slot);
    if (device >= 0 && this.#published?.has(device) === true) {
      this.#awake.add(device);
      this.#state.words.awake = this.#awake.size;
    }
  }

  #take(slot: DataView): void {
    const id = bridgeIdOf(slot);
    if (id === BridgeId.ENDPOINT_ONLINE) return this.#online(slot);
    if (id === BridgeId.ENDPOINT_OFFLINE) return this.#offline(slot);
    if (id !== BridgeId.MAP_ADD && id !== BridgeId.MAP_DEL) {
      return this.#complain(`${this.description}: a frame about the bridge is not understood`);
    }
    // Of an epoch that is over.
    if (!this.isAttached || epochOf(slot) !== this.#epoch) return;
    if (!this.#windows.take(slot)) return this.#restart("too many windows are asked for at once");
    this.#flush();
  }

  // --- the end -----------------------------------------------------------------------------------

  mayEnd(): boolean {
    if (!this.isOffline || !this.node.isKernel || this.#isWarned) return true;
    this.#isWarned = true;
    this.log.error(
      `${this.description} is offline: ${KEPT_OPEN}; a second signal ends this process all the same`,
    );
    return false;
  }

  /** The kernel cannot be sent away: another session begins. */
  override drop(reason: string): void {
    if (this.isAttached) this.#restart(reason, this.#pauseMs);
  }

  /** Ends the session, unless that is what the machine would not survive. */
  override [Symbol.dispose](): void {
    const { node } = this;
    const session = this.#session;
    const { isOffline } = this;
    this.listener = undefined;
    this.detach("closed");
    for (const timer of [this.#look, this.#pause]) this.reactor.dropTimer(timer);
    node.unwatch();
    try {
      if (session !== undefined && !isOffline) node.detach();
      if (node.isOpen && this.#isResolved && !isOffline) node.release();
    } catch (error) {
      // It is gone anyway.
      if (!(error instanceof LinuxError)) throw error;
    }
    this.#session = undefined;
    session?.owner[Symbol.dispose]();
    this.#windows[Symbol.dispose]();
    node[Symbol.dispose]();
  }
}
