/**
 * A queue pair of a network card in a thread of its own: the line between that and the plane, where the card is.
 *
 * Theory of operation. The plane keeps the card: transport, lease, control queue, the first pair. Another pair can be in a
 * Worker that does nothing else ({@link PairThread}), which has a reactor, the pair's queue of a TAP, its kicks and its
 * calls, and sees the same memory at the same addresses. Frames cross no thread. What does cross the line:
 *
 *     letters     plane -> pair, one at a time, each answered before the plane goes on: {@link Letters}
 *     flags       either way, without an answer: buffers are there; buffers were used (in band, so each costs a thread more
 *                 than in the plane), a ring is broken
 *     terms       plane -> pair, words that are read before each batch: may memory be touched, and until when
 *
 * The plane *waits* for the answer to a letter, in a futex. The pair's thread takes up a letter between two batches, so that
 * is as long as the plane waits for a batch of a pair of its own, and for that whatever the transport says to a driver side
 * is true of all threads when it is said: a queue that was stopped, a notifier that was dropped, memory that is unmapped next
 * are touched by nobody, also where a reset, a lost lease or the end of the process is why. Answers that come later would
 * need all that a second time, for a card that is taken down while one is outstanding. A thread that never comes back from
 * a batch holds the plane up, as it would in the plane, and the watchdog, which looks at both, ends the process.
 *
 * Terms end by themselves: the lease's deadline is CLOCK_MONOTONIC, and the word that the driver side grants by is looked
 * at in the bus's memory. Who finds them ended leaves a mark, and is woken when they are renewed. Closing them stops the
 * next batch at once; the one at hand is over when the stop is answered, which follows before memory goes.
 *
 * The pair has the memory only while one of its queues runs: all of it comes with the first start, and its views are
 * gone with the last stop. Regions are removed when no queue runs (virtio/device.ts), so no letter says so. Meanwhile the
 * TAP's descriptor is the pair's. Otherwise it is the plane's, where the pair works too when its addresses can be
 * translated there only.
 *
 * The line is a SharedArrayBuffer of words and a letter, and two eventfds. The main thread makes it before either end is
 * there (a Worker that blocks in epoll cannot start another), and ends the pair's.
 */

import { VmsgError } from "../../linux/errors.ts";
import { clearEventFd, createEventFd, signalEventFd } from "../../linux/eventfd.ts";
import { BorrowedFd, type Fd } from "../../linux/fd.ts";
import { borrowMapping, type Mapping } from "../../linux/mapping.ts";
import { Notifier } from "../../linux/notifier.ts";
import { EPOLLIN, type Reactor } from "../../linux/reactor.ts";
import {
  addBits,
  AddressSpace,
  loadAcquire32,
  storeRelease32,
  takeBits,
  waitWhile,
  wakeWaiting,
} from "../../memory/mod.ts";
import { TapQueue } from "../../network/tap_queue.ts";
import { addressOf, countAt, counterShape } from "../../observe/counters.ts";
import type {
  DeviceHost,
  MemoryRegion,
  QueueNotifier,
  QueueSetup,
  Terms,
} from "../../virtio/device.ts";
import { DEVICE_NET, hasFeature, NetFeature } from "../../virtio/features.ts";
import { BATCH_COUNTERS, QueueDevice } from "../queue_device.ts";
import { QueuePair } from "./queue_pair.ts";
import { ReceiveFilter } from "./receive_filter.ts";

/** Words of the line: flags to each end, what is asked and answered, terms. */
const [TO_PAIR, TO_PLANE, ASKED, ANSWERED, LENGTH, OPEN, UNTIL, PAUSED] = [0, 1, 2, 3, 4, 5, 6, 7];
/** Behind them, in bytes: the letter, or its answer. One with as many regions as there can be takes 50 KiB. */
const LETTER_AT = 64;
const LINE_SIZE = 128 << 10;

/** Flags to the pair: the first two of each by queue. */
const [AVAILABLE, CALL, LETTER, END] = [1, 4, 16, 32];
/** Flags to the plane. */
const [USED, BROKEN] = [1, 4];

/** What {@link OPEN} holds: closed, open until {@link UNTIL} (the lower 32 bits of milliseconds), until something changes. */
const [CLOSED, LIMITED, UNLIMITED] = [0, 1, 2];

/** Longer than the watchdog looks on; only tests, which have none, come to it. */
const ANSWER_LIMIT_MS = 30_000;

const [RECEIVE, TRANSMIT] = [0, 1];

/** What both ends are made from: plain data, which can be sent to Workers. */
export interface PairLine {
  /** Words and a letter. */
  readonly memory: SharedArrayBuffer;
  /** Eventfds by number, of who made the line: to the pair, to the plane. */
  readonly bells: readonly [number, number];
}

/** Makes a line, for the time that `stack` is there. */
export function openPairLine(stack: DisposableStack): PairLine {
  const bell = () => stack.use(createEventFd()).number;
  return { memory: new SharedArrayBuffer(LINE_SIZE), bells: [bell(), bell()] };
}

/** Has the pair's thread end; none of its queues runs. */
export function endPair(line: PairLine): void {
  new End(line).raise(TO_PAIR, END);
}

/** A region with the address of what it lies in; as a Number, since user space is below 2^47. */
type PlainRegion = Pick<MemoryRegion, "at" | "size" | "offset"> & { readonly address: number };

/** What the plane asks of the pair; queues by side, 0 to receive and 1 to transmit. */
interface Letters {
  /** The first one: its queue of the TAP, and where it counts (`addressOf`). */
  begin(fd: number, name: string, frameCounters: number, counters: number): void;
  /** Opens a queue; the first that runs brings the regions. */
  start(
    side: number,
    setup: QueueSetup,
    features: readonly number[],
    grant: readonly [address: number, number: number] | null,
    regions: readonly PlainRegion[] | null,
  ): string | null;
  /** Closes it; with the last one that runs goes the memory. */
  stop(side: number, isLast: boolean): number;
  /** What the control queue has set, and the room that a frame may need. */
  state(filter: ReceiveFilter, room: number): void;
  /** More memory is there. */
  show(regions: readonly PlainRegion[]): void;
  /** Descriptors that the plane has open until it said that there are none. */
  notifier(side: number, kick?: number, call?: number): void;
  /** Why a ring is broken. */
  reason(): string;
}

/** What was thrown (a code, a line for people), or the value. */
type LetterAnswer = { readonly thrown?: readonly [string, string]; readonly value?: unknown };

const PairCounters = counterShape(
  ...BATCH_COUNTERS,
  "received",
  "transmitted",
  "bytesReceived",
  "bytesTransmitted",
  "tooLong",
  "filtered",
);

/** What both ends do with the line. */
class End {
  readonly words: Uint32Array;
  readonly #bytes: Uint8Array;
  readonly #bells: readonly Fd[];

  constructor({ memory, bells }: PairLine) {
    this.words = new Uint32Array(memory);
    this.#bytes = new Uint8Array(memory);
    this.#bells = bells.map((number) => new BorrowedFd(number));
  }

  raise(to: number, flags: number): void {
    if (addBits(this.words, to, flags) === 0) signalEventFd(this.#bells[to]!);
  }

  listen(to: number, reactor: Reactor, wake: () => void): void {
    const bell = this.#bells[to]!;
    reactor.watch(bell, EPOLLIN, () => {
      clearEventFd(bell);
      wake();
    });
  }

  unlisten(to: number, reactor: Reactor): void {
    reactor.unwatch(this.#bells[to]!);
  }

  write(value: unknown): void {
    const text = new TextEncoder().encode(JSON.stringify(value));
    if (text.length > LINE_SIZE - LETTER_AT) throw new Error(`a letter of ${text.length} bytes`);
    this.#bytes.set(text, LETTER_AT);
    this.words[LENGTH] = text.length;
  }

  read<T>(): T {
    // A copy: what is shared is not decoded.
    const text = this.#bytes.slice(LETTER_AT, LETTER_AT + this.words[LENGTH]!);
    return JSON.parse(new TextDecoder().decode(text));
  }
}

/** The plane's end. It owns neither the line nor the TAP's queue. */
export class FarPair implements Disposable {
  readonly #end: End;
  /** By side, the bits of queues that run. */
  #running = 0;

  /** Waits until the pair's thread is there. */
  constructor(
    line: PairLine,
    readonly reactor: Reactor,
    readonly queue: TapQueue,
    name: string,
    readonly owner: Pick<DeviceHost, "used" | "needsReset">,
  ) {
    const end = this.#end = new End(line);
    const counters = addressOf(new PairCounters("device", name));
    this.#ask("begin", queue.fd.number, queue.name, addressOf(queue.frames.counters), counters);
    end.listen(TO_PLANE, reactor, () => this.#takeFlags());
  }

  #ask<Kind extends keyof Letters>(kind: Kind, ...rest: Parameters<Letters[Kind]>) {
    const end = this.#end;
    end.write([kind, ...rest]);
    const asked = ++end.words[ASKED]! >>> 0;
    end.raise(TO_PAIR, LETTER);
    for (let last; (last = loadAcquire32(end.words, ANSWERED)) !== asked;) {
      if (waitWhile(end.words, ANSWERED, last, ANSWER_LIMIT_MS)) continue;
      throw new VmsgError("BLOCKED", `the thread of ${this.queue.name} is stuck`);
    }
    const { thrown, value } = end.read<LetterAnswer>();
    // What was used comes before what follows from the answer.
    this.#takeFlags();
    if (thrown !== undefined) throw new VmsgError(...thrown);
    return value as ReturnType<Letters[Kind]>;
  }

  #takeFlags(): void {
    const flags = takeBits(this.#end.words, TO_PLANE);
    for (const side of [RECEIVE, TRANSMIT]) if ((flags & USED << side) !== 0) this.owner.used(side);
    if ((flags & BROKEN) !== 0) this.owner.needsReset(this.#ask("reason"));
  }

  /** Has it this queue, or any? */
  runs(side?: number): boolean {
    return (side === undefined ? this.#running : this.#running & 1 << side) !== 0;
  }

  /** See `DeviceModel.startQueue`; the host has terms. */
  start(
    side: number,
    setup: QueueSetup,
    features: Uint32Array,
    filter: ReceiveFilter,
    { regions, terms }: DeviceHost,
  ): string | undefined {
    const isFirst = !this.runs();
    if (isFirst) this.queue.lend();
    this.setTerms(terms);
    this.#ask("state", filter, this.queue.room);
    const grant = terms?.grant && [Number(terms.grant.address), terms.grant.number] as const;
    const all = isFirst ? regions.map(plain) : null;
    const problem = this.#ask("start", side, setup, [...features], grant ?? null, all);
    if (problem === null) this.#running |= 1 << side;
    else if (isFirst) this.queue.takeBack();
    return problem ?? undefined;
  }

  /** See `DeviceModel.stopQueue`. */
  stop(side: number): number {
    const rest = this.#running & ~(1 << side);
    const base = this.#ask("stop", side, rest === 0);
    this.#running = rest;
    if (rest === 0) this.queue.takeBack();
    return base;
  }

  /** What the card's commands make of the pair has changed. */
  tell(filter: ReceiveFilter): void {
    if (this.runs()) this.#ask("state", filter, this.queue.room);
  }

  /** More memory is there. */
  addMemory(regions: readonly MemoryRegion[]): void {
    if (this.runs()) this.#ask("show", regions.map(plain));
  }

  /** Memory may be touched otherwise from here on. */
  setTerms({ untilMs }: Terms = { untilMs: 0 }): void {
    const { words } = this.#end;
    const isLimited = Number.isFinite(untilMs);
    if (isLimited) storeRelease32(words, UNTIL, Math.floor(untilMs));
    const open = untilMs === 0 ? CLOSED : isLimited ? LIMITED : UNLIMITED;
    storeRelease32(words, OPEN, open);
    if (open !== CLOSED && takeBits(words, PAUSED) !== 0) this.resume();
  }

  /** See `DeviceModel.takeNotifier`. */
  takeNotifier(side: number, kick: Fd, call: Fd | undefined): QueueNotifier {
    this.#ask("notifier", side, kick.number, call?.number);
    return {
      // For what was used before it had the call.
      call: () => this.#end.raise(TO_PAIR, CALL << side),
      [Symbol.dispose]: () => {
        this.#ask("notifier", side);
        for (const fd of [kick, call]) fd?.[Symbol.dispose]();
      },
    };
  }

  /** The driver made buffers available. */
  available(side: number): void {
    this.#end.raise(TO_PAIR, AVAILABLE << side);
  }

  /** Looks at both queues. */
  resume(): void {
    this.#end.raise(TO_PAIR, AVAILABLE << RECEIVE | AVAILABLE << TRANSMIT);
  }

  /** None of the queues runs. */
  [Symbol.dispose](): void {
    this.#end.unlisten(TO_PLANE, this.reactor);
  }
}

function plain({ at, size, memory, offset }: MemoryRegion): PlainRegion {
  return { at, size, offset, address: Number(memory.address) };
}

/** The pair's end: it takes the letters, and its two queues are served by it. The reactor is for it alone. */
export class PairThread implements DeviceHost, Letters {
  readonly memory: AddressSpace = new AddressSpace();
  readonly regions: readonly MemoryRegion[] = [];
  readonly #end: End;
  readonly #mappings: Mapping[] = [];
  readonly #notifiers: (Notifier | undefined)[] = [];
  readonly #card = { filter: new ReceiveFilter(), counters: new PairCounters("", "") };
  #queue!: TapQueue;
  #pair!: QueuePair;
  #device!: QueueDevice;
  #granted: Uint32Array | undefined;
  #grant = 0;
  #reason = "";

  /** Waits for letters from here on. */
  constructor(line: PairLine, readonly reactor: Reactor) {
    const end = this.#end = new End(line);
    end.listen(TO_PAIR, reactor, () => this.#takeFlags());
  }

  #takeFlags(): void {
    const flags = takeBits(this.#end.words, TO_PAIR);
    for (const side of [RECEIVE, TRANSMIT]) {
      if ((flags & AVAILABLE << side) !== 0) this.#device.available(side);
      if ((flags & CALL << side) !== 0) this.#notifiers[side]?.call();
    }
    // Raised behind the others, whose notifier it may drop.
    if ((flags & LETTER) !== 0) this.#answer();
    if ((flags & END) !== 0) this.reactor.stop();
  }

  #answer(): void {
    const end = this.#end;
    let answer: LetterAnswer;
    try {
      const [kind, ...rest] = end.read<[keyof Letters, ...never[]]>();
      answer = { value: (this[kind] as (...rest: never[]) => unknown).apply(this, rest) };
    } catch (error) {
      const code = error instanceof VmsgError ? error.code : "INTERNAL";
      answer = { thrown: [code, error instanceof Error ? error.message : String(error)] };
    }
    end.write(answer);
    wakeWaiting(end.words, ANSWERED, end.words[ASKED]!);
  }

  begin(fd: number, name: string, frameCounters: number, counters: number): void {
    const { reactor } = this;
    const card = this.#card;
    const batches = card.counters = countAt(counters, () => new PairCounters("", ""));
    const queue = countAt(frameCounters, () => new TapQueue(new BorrowedFd(fd), reactor, name));
    const pair = new QueuePair(card, queue);
    this.#queue = queue;
    this.#pair = pair;
    this.#device = new QueueDevice(reactor, {
      deviceId: DEVICE_NET,
      queues: [
        (queue, budget) => pair.receive(queue, budget),
        (queue, budget) => pair.transmit(queue, budget),
      ],
      givesRoom: (index) => index === TRANSMIT,
      counters: batches,
    });
    this.#device.connect(this);
  }

  start(...[side, setup, features, grant, regions]: Parameters<Letters["start"]>): string | null {
    const words = new Uint32Array(features);
    if (regions !== null) {
      this.show(regions);
      this.#grant = grant?.[1] ?? 0;
      this.#granted = grant === null
        ? undefined
        : new Uint32Array(borrowMapping(BigInt(grant[0]), 4).buffer);
    }
    this.#device.acceptFeatures(words);
    this.#pair.useMergeable(hasFeature(words, NetFeature.MRG_RXBUF));
    const problem = this.#device.startQueue(side, setup) ?? null;
    if (regions === null) return problem;
    if (problem !== null) this.#letGo();
    else {
      this.#queue.open({
        readable: () => this.#device.wake(RECEIVE),
        writable: () => this.#device.wake(TRANSMIT),
      });
    }
    return problem;
  }

  stop(side: number, isLast: boolean): number {
    if (side === RECEIVE) this.#pair.forgetBuffers();
    const base = this.#device.stopQueue(side) as number;
    if (isLast) {
      this.#queue.lend();
      this.#letGo();
    }
    return base;
  }

  #letGo(): void {
    this.memory.clear();
    for (const mapping of this.#mappings.splice(0)) mapping[Symbol.dispose]();
    this.#granted = undefined;
  }

  state(filter: ReceiveFilter, room: number): void {
    Object.assign(this.#card.filter, filter);
    this.#queue.room = room;
  }

  show(regions: readonly PlainRegion[]): void {
    for (const { at, size, address, offset } of regions) {
      const mapping = borrowMapping(BigInt(address), offset + size);
      this.#mappings.push(mapping);
      const refusal = this.memory.add(at, size, mapping, offset);
      // The plane has such a space, with the same regions in it.
      if (refusal !== undefined) throw new Error(`a region at ${at} cannot be seen: ${refusal}`);
    }
  }

  notifier(side: number, kick?: number, call?: number | null): void {
    this.#notifiers[side]?.[Symbol.dispose]();
    this.#notifiers[side] = undefined;
    if (kick === undefined) return;
    const called = typeof call === "number" ? new BorrowedFd(call) : undefined;
    const kicked = () => this.#device.available(side);
    this.#notifiers[side] = new Notifier(this.reactor, new BorrowedFd(kick), called, kicked);
  }

  reason(): string {
    return this.#reason;
  }

  mayTouchMemory(): boolean {
    if (this.#isOpen) return true;
    // Once more, since the plane looks for the mark only when it opens.
    storeRelease32(this.#end.words, PAUSED, 1);
    return this.#isOpen;
  }

  get #isOpen(): boolean {
    const { words } = this.#end;
    const open = loadAcquire32(words, OPEN);
    if (open === CLOSED) return false;
    if (open === LIMITED && (words[UNTIL]! - Math.floor(this.reactor.now()) | 0) <= 0) return false;
    return this.#granted === undefined || loadAcquire32(this.#granted, 0) === this.#grant;
  }

  used(side: number): void {
    const notifier = this.#notifiers[side];
    if (notifier !== undefined) notifier.call();
    else this.#end.raise(TO_PLANE, USED << side);
  }

  /** Nothing that a pair does changes it. */
  configChanged(): void {}

  needsReset(reason: string): void {
    this.#reason = reason;
    this.#end.raise(TO_PLANE, BROKEN);
  }
}
