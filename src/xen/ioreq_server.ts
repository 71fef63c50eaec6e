/**
 * An ioreq server: accesses of a domain's processors to addresses that are ours, each answered before the processor
 * goes on.
 *
 * Xen and we share a page with 32 bytes per processor; each has an event channel. A request's way:
 *
 *     Xen: state 1, rings --> 2, it is looked at --> the answer, 3, we ring --> Xen: 0
 *
 * It may stay at 2 while somebody else is asked; the processor waits, the others do not. A server whose process was
 * killed, or left it, stays, with what it was asked: {@link openIoreqServer} goes on with it, and a request at 2 begins anew.
 *
 * The addresses, sizes and values are the domain's: what is no plain access of 1, 2, 4 or 8 bytes reads as ones and
 * writes nothing, and so does what is outside of all ranges.
 *
 * Source: xen/include/public/hvm/ioreq.h (layouts).
 */

import { VmsgError } from "../linux/errors.ts";
import type { Mapping } from "../linux/mapping.ts";
import { EPOLLIN, type Reactor } from "../linux/reactor.ts";
import { loadAcquire32, storeRelease32 } from "../memory/mod.ts";
import { EventChannels } from "./event_channels.ts";
import { Privcmd } from "./privcmd.ts";

/** Of a request, in words of 32 bits: u64 address, u64 data, count, size, port, and the state. */
const WORDS = 8;
const DATA = 2;
const COUNT = 4;
const SIZE = 5;
const PORT = 6;
const STATE = 7;
/** In the last word: state in 4 bits from here on, then pointer, read, backwards; the type in the top byte. */
const STATE_SHIFT = 16;
const POINTER = 1 << 20;
const IS_READ = 1 << 21;
const TYPE_SHIFT = 24;

const STATE_READY = 1;
const STATE_PROCESSING = 2;
const STATE_ANSWERED = 3;

const TYPE_MEMORY = 1;

const TWO_TO_32 = 0x1_0000_0000;
const ONES = 0xffff_ffff;
/** Requests that fit into the page. */
const MAX_PROCESSORS = 4096 / (4 * WORDS);

/** An answer that is there, or comes later by way of the reactor; one that fails never comes. */
type Answer<T> = T | Promise<T>;

/** Addresses of the domain's that are answered for. */
export interface IoRange {
  readonly start: number;
  readonly size: number;
  /** @returns the value, at most 32 bits of it */
  read(offset: number, size: number): Answer<number>;
  /** @param value its lowest 32 bits */
  write(offset: number, size: number, value: number): Answer<void>;
}

/** What a server is made of. */
export interface IoreqParts {
  readonly privcmd: Pick<
    Privcmd,
    | "mapRange"
    | "enableServer"
    | "disableServer"
    | "destroyServer"
    | "restrict"
    | "injectMsi"
    | "setIrqLevel"
    | "fd"
    | "domain"
  >;
  readonly channels: Pick<EventChannels, "fd" | "bind" | "take" | "notify" | "restrict">;
  /** The page of requests. */
  readonly page: Pick<Mapping, "buffer">;
  readonly processors: number;
  /** The server's number, which is what a next process needs. */
  readonly id: number;
  /** Ends all of these but the server. */
  readonly owner: DisposableStack;
}

/**
 * Makes a server, or goes on with one that a process has left; nothing is answered before {@link IoreqServer.serve}.
 *
 * @param left its number
 * @throws VmsgError NO_XEN, NO_IOREQ, PROCESSORS; LinuxError if the domain is gone
 */
export function openIoreqServer(reactor: Reactor, domain: number, left?: number): IoreqServer {
  using stack = new DisposableStack();
  const privcmd = stack.use(new Privcmd(domain));
  const processors = privcmd.processors();
  if (processors > MAX_PROCESSORS) {
    throw new VmsgError(
      "PROCESSORS",
      `domain ${domain} has ${processors} processors, at most ${MAX_PROCESSORS} can be served`,
    );
  }
  const channels = stack.use(new EventChannels(domain));
  const id = left ?? privcmd.createServer();
  using unused = new DisposableStack();
  unused.defer(() => privcmd.destroyServer(id));
  const page = stack.use(privcmd.mapServer(id));
  unused.move();
  return new IoreqServer(reactor, { privcmd, channels, page, processors, id, owner: stack.move() });
}

/** See the head of this file. */
export class IoreqServer implements Disposable {
  readonly #ranges: IoRange[] = [];
  readonly #words: Uint32Array;
  /** By local port, whose requests it tells of. */
  readonly #processors = new Map<number, number>();
  readonly #ports: number[] = [];
  #isOver = false;

  /** Called by {@link openIoreqServer}. */
  constructor(readonly reactor: Reactor, readonly parts: IoreqParts) {
    this.#words = new Uint32Array(parts.page.buffer);
  }

  /**
   * Answers for a range.
   *
   * @param isOurs a process that has left the server had it already
   * @returns false if another range of ours is there; that another server is there, Xen does not say
   */
  add(range: IoRange, isOurs = false): boolean {
    const isNew = this.parts.privcmd.mapRange(this.parts.id, range.start, range.size);
    if (isNew || isOurs) this.#ranges.push(range);
    return isNew || isOurs;
  }

  /** Switches it on, looks at what was asked already, and gives up what it may of other domains. */
  serve(): void {
    const { reactor, parts: { privcmd, channels, processors, id, owner } } = this;
    // With this the page says which channels there are.
    privcmd.enableServer(id);
    for (let processor = 0; processor < processors; processor++) {
      const port = channels.bind(this.#words[processor * WORDS + PORT]!);
      this.#processors.set(port, processor);
      this.#ports.push(port);
    }
    privcmd.restrict();
    channels.restrict();
    owner.defer(() => reactor.unwatch(channels.fd));
    reactor.watch(channels.fd, EPOLLIN, () => {
      channels.take((port) => {
        const processor = this.#processors.get(port);
        if (processor !== undefined) this.#look(processor);
      });
    });
    for (const processor of this.#processors.values()) {
      const at = processor * WORDS + STATE;
      const state = (this.#words[at]! >>> STATE_SHIFT) & 15;
      if (state === STATE_PROCESSING) this.#setState(processor, STATE_READY);
      this.#look(processor);
    }
  }

  #setState(processor: number, state: number): void {
    const at = processor * WORDS + STATE;
    const others = this.#words[at]! & ~(15 << STATE_SHIFT);
    storeRelease32(this.#words, at, others | (state << STATE_SHIFT));
  }

  #look(processor: number): void {
    const words = this.#words;
    const at = processor * WORDS;
    const last = loadAcquire32(words, at + STATE);
    // A channel rings once without reason when it is bound.
    if (((last >>> STATE_SHIFT) & 15) !== STATE_READY) return;
    this.#setState(processor, STATE_PROCESSING);
    const address = words[at]! + words[at + 1]! * TWO_TO_32;
    const size = words[at + SIZE]!;
    const isPlain = last >>> TYPE_SHIFT === TYPE_MEMORY && (last & POINTER) === 0 &&
      words[at + COUNT] === 1 && (size === 1 || size === 2 || size === 4 || size === 8);
    const range = !isPlain
      ? undefined
      : this.#ranges.find(({ start, size: length }) =>
        address >= start && address + size <= start + length
      );
    const isRead = (last & IS_READ) !== 0;
    if (range === undefined) return this.#finish(processor, ONES, ONES);
    const offset = address - range.start;
    const answer = isRead ? range.read(offset, size) : range.write(offset, size, words[at + DATA]!);
    if (!(answer instanceof Promise)) return this.#finish(processor, answer ?? undefined);
    this.reactor.spawn(async () => {
      let value: number | void;
      try {
        value = await answer;
      } catch (error) {
        // Whoever answers is over, and the next one is asked again.
        if (!(error instanceof VmsgError)) throw error;
        return;
      }
      this.#finish(processor, value ?? undefined);
    });
  }

  /** @param value of a read; of a write it is nothing */
  #finish(processor: number, value: number | undefined, high = 0): void {
    if (this.#isOver) return;
    const at = processor * WORDS;
    if (value !== undefined && (this.#words[at + STATE]! & IS_READ) !== 0) {
      this.#words[at + DATA] = value;
      this.#words[at + DATA + 1] = high;
    }
    this.#setState(processor, STATE_ANSWERED);
    this.parts.channels.notify(this.#ports[processor]!);
  }

  /**
   * Ends the server: accesses are nobody's from then on. A processor that still waited for an answer would do so for
   * ever, so each is given one.
   */
  [Symbol.dispose](): void {
    if (this.#isOver) return;
    this.parts.privcmd.disableServer(this.parts.id);
    for (const processor of this.#processors.values()) {
      const state = (this.#words[processor * WORDS + STATE]! >>> STATE_SHIFT) & 15;
      const isOpen = state === STATE_READY || state === STATE_PROCESSING;
      if (isOpen) this.#finish(processor, ONES, ONES);
    }
    this.parts.privcmd.destroyServer(this.parts.id);
    this.leave();
  }

  /** Lets go of the server, for a next process to go on with: processors that ask something wait for that one. */
  leave(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.parts.owner.dispose();
  }
}
