/**
 * The ivshmem bus: two machines, or a machine and a process, that are peers of one ivshmem server.
 *
 * Queues are those of page_bus.ts, at the start of the shared memory; the doorbell is a ring of vector 0
 * of the peer (docs/wire.md 4.3). An end that cannot be rung polls.
 *
 * Whom to ring. `peer=` says it; otherwise the peer has named itself in its queue, or is the only other
 * one that the server knows, or is taken for the other one of the ids 0 and 1. A wrong id is not
 * noticed by anybody but the user, who sees that nothing answers; so a peer that named itself otherwise
 * than `peer=` says is worth a line.
 *
 * States. At a PCI function: attached from the start to the end. At a server's socket: attached while
 * the peer is in the server's list. A machine that is rebooted stays in the list, so `noticesPeers` is
 * false in both.
 */

import type { EndListener, IvshmemEnd } from "../ivshmem/end.ts";
import type { Fd } from "../linux/fd.ts";
import type { Reactor } from "../linux/reactor.ts";
import { counterShape } from "../observe/counters.ts";
import type { Bus, BusListener, BusOptions, Side } from "./bus.ts";
import { PageBus, type PageLayout } from "./page_bus.ts";
import { Poller } from "./poller.ts";

/** How often the peer was rung, and how often this end heard that it was rung itself, not counting when it looked. */
const DoorbellCounters = counterShape("rings", "interrupts");

/** Options of `--bus ivshmem,...`. */
export interface IvshmemBusOptions extends BusOptions {
  /** The peer's id, if it was given. */
  readonly peer: number | undefined;
  /** Look at the queue without being rung. */
  readonly poll: boolean;
  /** Empty the queues first. */
  readonly reset: boolean;
  /** Both sides name themselves in the queues: they are vmsg and speak `v1`. */
  readonly named: boolean;
  /** See {@link PageLayout}. */
  readonly layout?: PageLayout | undefined;
  /** Says what the bus waits for, and what is odd. */
  readonly log: (line: string) => void;
}

/** See the head of this file. */
export class IvshmemBus extends PageBus implements EndListener {
  readonly #end: IvshmemEnd;
  readonly #options: IvshmemBusOptions;
  readonly #counters: InstanceType<typeof DoorbellCounters>;
  /** Who was rung last. */
  #rang = -1;
  #poller: Poller | undefined;
  #toldOther = false;
  #isAway = false;
  /** A driver side's rings lie behind the queues. */
  readonly keptFrom: number | undefined;
  readonly lendVector: Bus["lendVector"];
  readonly ringVector: Bus["ringVector"];

  /**
   * Takes an end, and disposes of it with the bus.
   *
   * @throws VmsgError BUS_MEMORY if the shared memory is too small; the end is the caller's then
   */
  constructor(side: Side, reactor: Reactor, end: IvshmemEnd, options: IvshmemBusOptions) {
    const { memory, isDeviceMemory } = end;
    const id = () => end.id;
    const where = end.description;
    super(side, reactor, { ...options, memory, isDeviceMemory, id, where, offset: 0 });
    this.#end = end;
    this.#options = options;
    this.#counters = new DoorbellCounters("doorbell", this.description);
    this.keptFrom = side === "driver" ? this.segment.start : undefined;
    if (side === "driver") this.lendVector = end.lendVector?.bind(end);
    const ring = end.ringVector?.bind(end);
    if (side === "device" && ring !== undefined) {
      this.ringVector = (vector) => ring(this.#peer, vector);
    }
  }

  /** For log lines. */
  get description(): string {
    return `bus ${this.#end.description}`;
  }

  /** Who rings whom, see {@link Bus.silenceHint}. */
  override get silenceHint(): string {
    const { id } = this.#end;
    const hint = `this side is peer ${id} and rings peer ${this.#peer}`;
    return this.#options.peer === undefined ? hint : `${hint} (peer=), is that right?`;
  }

  /** The id that is rung. */
  get #peer(): number {
    const { peer } = this.#options;
    const named = this.namedPeer;
    if (peer !== undefined) {
      if (named >= 0 && named !== peer && !this.#toldOther) this.#tellOther(peer, named);
      return peer;
    }
    const { peers, id } = this.#end;
    // In memory that outlives everybody, the name may be that of an earlier peer.
    if (named >= 0 && named !== id && this.mayBeThere(named)) return named;
    if (peers !== undefined && peers.size > 0) return [...peers][0];
    return id === 0 ? 1 : 0;
  }

  #tellOther(peer: number, named: number): void {
    this.#toldOther = true;
    this.#options.log(
      `${this.description}: peer=${peer} was given, but the other side is peer ${named}: ` +
        `give peer=${named}, or leave it out`,
    );
  }

  /** Attaches, where that needs no peer or one is there, and begins to look or listen. */
  override open(listener: BusListener): void {
    super.open(listener);
    this.#end.open(this.reactor, this);
    this.attachIfThere();
    if (!this.#isThere) this.#tellWaiting();
    if (this.#options.poll || !this.#end.interrupts) {
      this.#poller = new Poller(this.reactor, () => super.rung());
    }
  }

  #tellWaiting(): void {
    const { id, peers = [] } = this.#end;
    const { peer, log } = this.#options;
    const others = [...peers].map((other) => ` and peer ${other}`).join("");
    const who = peer === undefined
      ? "a peer"
      : `peer ${peer}, there are only this side, peer ${id}${others}`;
    log(`${this.description}: waiting for ${who}`);
  }

  protected override mayBeThere(peer: number): boolean {
    return this.#end.peers?.has(peer) !== false;
  }

  protected override attachIfThere(): void {
    if (!this.isAttached && !this.#isAway && this.#isThere) this.attach();
  }

  /** Is the peer, or anybody who may be it, in the server's list? At a function it may be. */
  get #isThere(): boolean {
    const { peers } = this.#end;
    const { peer } = this.#options;
    if (peers === undefined) return true;
    return peer === undefined ? peers.size > 0 : peers.has(peer);
  }

  away(reason: string): void {
    this.#isAway = true;
    this.detach(reason);
  }

  back(): void {
    this.#isAway = false;
    this.attachIfThere();
  }

  joined(_peer: number): void {
    this.attachIfThere();
  }

  left(peer: number): void {
    const isOther = this.#isThere;
    // Nobody is left to read it, and whoever comes aborts on an answer to somebody else.
    if (this.isAttached && !isOther) this.outgoing.retract();
    // It may leave before it was rung for the first time.
    const wasRung = peer === this.#rang;
    if (wasRung || !isOther) this.detach(`peer ${peer} has left`);
    this.attachIfThere();
    // What was said to the other one may have been rung to the one that is gone.
    if (wasRung && this.isAttached) this.ring();
  }

  /** The end was rung. */
  override rung(): boolean {
    this.#counters.interrupts++;
    return super.rung();
  }

  /** Rings the peer, and looks for its answer where nobody rings us. */
  protected override ring(): void {
    this.#counters.rings++;
    this.#rang = this.#peer;
    this.#end.ring(this.#rang);
    this.#poller?.expect();
  }

  /** See {@link IvshmemEnd.pin}. */
  override pin(address: bigint, size: number): Disposable | undefined {
    return this.#end.pin(address, size);
  }

  /** See {@link IvshmemEnd.pinHandles}. */
  override get pinHandles(): readonly Fd[] {
    return this.#end.pinHandles;
  }

  /** Closes the end. */
  override [Symbol.dispose](): void {
    super[Symbol.dispose]();
    this.#poller?.[Symbol.dispose]();
    this.#end[Symbol.dispose]();
  }
}
