/**
 * A bus: how virtio-msg messages travel between one driver side and one device side.
 *
 * Theory of operation. A bus has two queues (message_queue.ts), one each way, and some doorbell. It is *attached*
 * while a peer is known to be there, or always where nobody can know; attach and detach are events, and
 * a bus goes on waiting for the next peer by itself. A message is encoded straight into the slot that `claim` gives, then published
 * with `send`. The doorbell rings once per turn of the reactor, after everything of that turn has been
 * published. Incoming messages are copied once into a private slot and given to the listener, at most
 * {@link RECEIVE_BUDGET} per turn, so that a flood of messages cannot starve the queues.
 *
 * A subclass brings the memory and the doorbell: {@link QueueBus.ring} rings it.
 */

import type { LentVector } from "../ivshmem/end.ts";
import { VmsgError } from "../linux/errors.ts";
import type { Fd } from "../linux/fd.ts";
import type { Reactor, Task } from "../linux/reactor.ts";
import type { MappedMemory, MemoryRegion } from "../memory/mod.ts";
import type { Tracer } from "../observe/trace.ts";
import type { IncomingQueue, OutgoingQueue } from "./message_queue.ts";

export type { LentVector } from "../ivshmem/end.ts";

/** Which end of a bus: "driver" is where the virtio driver is, "device" where the device is. */
export type Side = "driver" | "device";

/** Messages given to the listener per turn of the reactor. */
export const RECEIVE_BUDGET = 256;

/** Who uses a bus: the device side or the driver side of the transport. */
export interface BusListener {
  /** A peer is there; messages can be sent. */
  attached(): void;
  /** The peer is gone; what was sent may not have arrived. */
  detached(reason: string): void;
  /**
   * The newest message that was dropped because it was queued before the attach (`discardOnAttach`). A
   * peer of another dialect may have said all it will say there, so it is worth a look, not an answer.
   */
  discarded?(slot: DataView): void;
  /** See {@link KernelBus}: memory is there, for all devices. @returns 0 or an errno; then nothing has changed */
  windowAdded?(region: MemoryRegion): number;
  /** It is to go; `done` is called, once, when nobody looks at it any more. */
  windowRemoved?(region: MemoryRegion, done: () => void): void;
  /** One message. The view is private, {@link Bus.slotSize} bytes, and reused for the next one. */
  received(slot: DataView): void;
}

/** What decides how a bus treats queues it finds; the dialect knows. */
export interface BusOptions {
  /**
   * Drop what is queued when a peer attaches (`v1`), use the queues as found (`proto`), or drop it if
   * the peer is a vmsg process, which holds its lock, where the dialect is not known before.
   */
  readonly discardOnAttach: boolean | "from vmsg";
  /** Ring after every message, as peers of the prototype do, instead of once per turn. */
  readonly ringPerMessage: boolean;
}

/** Memory that both sides of a bus see besides its queues. */
export interface SharedSegment {
  /** All of the shared memory, queues included. */
  readonly memory: MappedMemory;
  /** The first byte that belongs to nobody yet: the queues lie before it. */
  readonly start: number;
}

/** One end of a bus. */
export interface Bus extends Disposable {
  /** Which end this is. */
  readonly side: Side;
  /** Bytes of a slot: the longest message. */
  readonly slotSize: number;
  /** For log lines: the kind of bus and where it is. */
  readonly description: string;
  /** Is a peer there? */
  readonly isAttached: boolean;
  /** Can file descriptors be sent with messages? */
  readonly carriesFds: boolean;
  /**
   * Is a peer that comes or goes always noticed, by attach and detach? Where it is not, a machine may
   * have been rebooted meanwhile, and only what it says tells.
   */
  readonly noticesPeers: boolean;
  /** Memory that both sides see, if there is any. */
  readonly segment: SharedSegment | undefined;
  /**
   * Keeps memory of this process where it is in physical memory, for a peer that sees this machine's RAM;
   * until what is returned or the bus is disposed. Undefined where there is no means to.
   *
   * @param address page-aligned, of this process
   * @param size in bytes, whole pages
   */
  pin(address: bigint, size: number): Disposable | undefined;
  /** Descriptors that keep what is pinned so, in whichever process they are open; none without the means. */
  readonly pinHandles: readonly Fd[];
  /** For a peer that is silent: what to check, besides the dialect. */
  readonly silenceHint: string;
  /** Ring after every message instead of once per turn; the dialect may be known only later. */
  ringPerMessage: boolean;
  /** While true nothing is received: it waits in the queue, and then its sender does. */
  isPaused: boolean;
  /** Starts to wait for a peer. */
  open(listener: BusListener): void;
  /** The view that {@link claim}'s offsets belong to. */
  readonly view: DataView;
  /**
   * The offset of a free slot, or -1 when detached or full.
   *
   * @param reserve how many slots must stay free for others; events leave room for answers
   */
  claim(reserve?: number): number;
  /** Sends the claimed slot. */
  send(): void;
  /** Sends the claimed slot with the next one: a peer that attaches sees both or neither. */
  sendWithNext(): void;
  /** Sends descriptors ahead of the message that names them; the first one's ordinal, or -1 to try again later. */
  sendFd(...fds: readonly Fd[]): number;
  /** Takes the descriptor with this ordinal, once. */
  takeFd(ordinal: number): Fd | undefined;
  /**
   * Driver side: sends two eventfds to ring by instead ({@link Doorbells}), and listens to its own.
   *
   * @returns the first one's ordinal, or -1 if they cannot be sent; without the method the bus has no such doorbells
   */
  offerDoorbells?(): number;
  /** Device side: listens and rings by what came with these ordinals; false if it is not what was agreed. */
  takeDoorbells?(ordinal: number): boolean;
  /** Driver side: the other side listens to its eventfd now. */
  useDoorbells?(): void;
  /**
   * Driver side: an interrupt of its own that signals an eventfd by itself, and that the other side can ring.
   *
   * @returns undefined if none is left, or that is no eventfd; without it the bus has no such interrupts
   */
  readonly lendVector?: ((event: Fd) => LentVector | undefined) | undefined;
  /** Device side: rings that interrupt; without it it cannot. */
  readonly ringVector?: ((vector: number) => void) | undefined;
  /** Drops the peer, because it broke the rules; the bus waits for the next one. */
  drop(reason: string): void;
  /** Driver side: has {@link granted} show a number, 0 for nothing. Only a vmsg may be shown another. */
  grant(number: number): void;
  /** Device side: what the driver side grants at this moment, in a word of its own that both see. */
  readonly granted: number;
  /** Where that word is in this process, as long as the bus is; 0 if there is none. */
  readonly grantAddress: bigint;
  /** Continues where the memory says, dropping nothing: whoever came may have emptied the queues. */
  resume(): void;
  /**
   * Device side of a bus that is a kernel's own ({@link KernelBus}): everything that only such a bus has; all
   * others leave it out.
   */
  readonly kernel?: KernelBus;
}

/**
 * A bus whose driver side is a kernel that shows memory itself, window by window and to all devices, and is told by the bus
 * which devices there are: no vmsg is at its other end, and nothing private is said.
 */
export interface KernelBus {
  /** Has a tracer see what is said about the bus itself. */
  traceBy(tracer: Tracer): void;
  /** Bytes of the largest message, at most those of a slot; others after each attach. */
  readonly maxMessage: number;
  /** The most entries a queue should have. */
  readonly maxQueueSize: number;
  /** Device numbers are below. */
  readonly deviceNumbers: number;
  /** These are the devices: once after each attach, and whenever they are others. One that is left out begins a new session. */
  publish(numbers: readonly number[]): void;
  /** Can this process end without harm to the machine? If not, says why, once. */
  mayEnd(): boolean;
}

/** @throws VmsgError NUMBER_TAKEN if no device of a bus can have this number */
export function checkDeviceNumber({ description, kernel }: Bus, number: number): void {
  if (kernel === undefined || number < kernel.deviceNumbers) return;
  const what = `device numbers are below ${kernel.deviceNumbers} there, not ${number}`;
  throw new VmsgError("NUMBER_TAKEN", `${description}: ${what}`);
}

/** What all buses made of two queues share. */
export abstract class QueueBus implements Bus {
  abstract readonly description: string;
  abstract readonly carriesFds: boolean;
  readonly noticesPeers: boolean = true;
  readonly segment: SharedSegment | undefined = undefined;
  /** See {@link Bus.silenceHint}. */
  get silenceHint(): string {
    return "";
  }
  /** Who uses the bus, once it is open. */
  protected listener: BusListener | undefined;
  ringPerMessage: boolean;
  #attached = false;
  #isPaused = false;
  #hasHeard = false;
  #claimed = false;
  readonly #slotWords: Uint32Array<ArrayBuffer>;
  readonly #slot: DataView;
  readonly #drain: Task = { run: () => this.#receive() === RECEIVE_BUDGET };
  readonly #ring: Task = {
    run: () => {
      if (this.#attached) this.ring();
      return false;
    },
  };

  /**
   * Takes both queues; nothing is read or written before a peer attaches.
   *
   * @param outgoing the queue this side produces into
   * @param incoming the queue this side consumes from
   */
  constructor(
    readonly side: Side,
    protected readonly reactor: Reactor,
    readonly options: BusOptions,
    protected readonly outgoing: OutgoingQueue,
    protected readonly incoming: IncomingQueue,
  ) {
    this.#slotWords = new Uint32Array(incoming.slotSize / 4);
    this.#slot = new DataView(this.#slotWords.buffer);
    this.ringPerMessage = options.ringPerMessage;
  }

  /** See {@link Bus.isAttached}. */
  get isAttached(): boolean {
    return this.#attached;
  }

  /** Has the peer that is attached said anything? */
  protected get hasHeard(): boolean {
    return this.#hasHeard;
  }

  get view(): DataView {
    return this.outgoing.view;
  }

  get slotSize(): number {
    return this.outgoing.slotSize;
  }

  get isPaused(): boolean {
    return this.#isPaused;
  }

  set isPaused(isPaused: boolean) {
    if (this.#isPaused && !isPaused) this.reactor.schedule(this.#drain);
    this.#isPaused = isPaused;
  }

  open(listener: BusListener): void {
    this.listener = listener;
  }

  claim(reserve = 0): number {
    if (!this.#attached) return -1;
    if (reserve > 0 && this.outgoing.free <= reserve) return -1;
    const offset = this.outgoing.claim();
    this.#claimed = offset >= 0;
    return offset;
  }

  send(): void {
    if (!this.#claimed) throw new Error("send without claim");
    this.#claimed = false;
    this.outgoing.publish();
    if (this.ringPerMessage) this.ring();
    else this.ringSoon();
  }

  /** Wakes the peer at the end of this turn. */
  protected ringSoon(): void {
    this.reactor.schedule(this.#ring);
  }

  sendWithNext(): void {
    if (!this.#claimed) throw new Error("send without claim");
    this.#claimed = false;
    this.outgoing.withhold();
  }

  /** Wakes the peer. */
  protected abstract ring(): void;

  /** To be called when the peer may have sent something; had it? */
  protected rung(): boolean {
    // The first batch at once: requests come before the tasks of this turn.
    const received = this.#receive();
    if (received === RECEIVE_BUDGET) this.reactor.schedule(this.#drain);
    return received > 0;
  }

  #receive(): number {
    for (let i = 0; i < RECEIVE_BUDGET; i++) {
      if (!this.reads || this.#isPaused || !this.incoming.receive(this.#slotWords)) return i;
      this.#hasHeard = true;
      if (!this.keeps(this.#slot)) this.listener?.received(this.#slot);
    }
    return RECEIVE_BUDGET;
  }

  /** Is there a queue to read? */
  protected get reads(): boolean {
    return this.#attached;
  }

  /** Was that one for the bus itself, which has done what it says? */
  protected keeps(_slot: DataView): boolean {
    return false;
  }

  /** Whether what is queued is dropped when a peer attaches now. */
  protected get discards(): boolean {
    return this.options.discardOnAttach === true;
  }

  /** A peer is there: both indices are taken up, the listener is told. */
  protected attach(): void {
    this.outgoing.attachProducer();
    const discarded = this.incoming.attachConsumer(this.discards, this.#slotWords);
    this.#attached = true;
    this.#hasHeard = false;
    this.listener?.attached();
    if (discarded) this.listener?.discarded?.(this.#slot);
    // What was found in the queue may have been announced to an earlier process.
    this.reactor.schedule(this.#drain);
  }

  /** The peer is gone: the listener is told, once. */
  protected detach(reason: string): void {
    if (!this.#attached) return;
    this.#attached = false;
    this.#claimed = false;
    this.listener?.detached(reason);
  }

  /** A bus without the means. */
  pin(_address: bigint, _size: number): Disposable | undefined {
    return undefined;
  }

  /** A bus without the means. */
  get pinHandles(): readonly Fd[] {
    return [];
  }

  resume(): void {
    if (!this.#attached) return;
    this.outgoing.attachProducer();
    this.incoming.attachConsumer(false);
  }

  grant(number: number): void {
    this.outgoing.grant(number);
  }

  get granted(): number {
    return this.incoming.granted;
  }

  get grantAddress(): bigint {
    return this.incoming.grantAddress;
  }

  /** A bus on which descriptors do not travel. */
  sendFd(..._fds: readonly Fd[]): number {
    return -1;
  }

  takeFd(_ordinal: number): Fd | undefined {
    return undefined;
  }

  abstract drop(reason: string): void;
  /** Closes what the bus is made of. */
  abstract [Symbol.dispose](): void;
}
