/**
 * The software IOMMU of `proto`, seen from the device: IOMMU_TRANSLATE (docs/wire.md 4.4, rules P9, P10).
 *
 * Theory of operation. A driver side whose guest's addresses are none of its machine's sends IOMMU_ENABLE 1 before
 * it sets up queues. From then on the device sees a {@link TranslatedSpace}, which remembers what was translated:
 *
 *     page missing --> wanted --request is sent--> asked --answer--> known, or refused
 *
 * Requests go out by a task, at most {@link MAX_ASKED} are open. Who lacks a page waits, nobody else: a queue parks
 * its next buffer, a SET_VQUEUE whose rings are not all known is kept. When nothing is open any more, kept requests are
 * taken up and all queues looked at; who then lacks other pages asks again.
 *
 * An answer belongs to the open request for its address, but a refusal may be all zeros: then to the oldest, since
 * answers come in order. Requests that a reset overtook are remembered for that reason alone. A driver side that
 * answers none for {@link ANSWER_MS} makes the device need a reset.
 *
 * Whether addresses are translated belongs to the driver side, not to the device: it survives a reset. It changes only
 * while no queue is open. A driver that begins anew (GET_DEVICE_INFO) has to say it again before its reset.
 */

import type { Reactor, Task, Timer } from "../linux/reactor.ts";
import { TranslatedSpace } from "../memory/translated_space.ts";
import type { MemoryRegion } from "../memory/mod.ts";
import { Kind, type Message } from "../message/message.ts";
import type { QueueSetup } from "../virtio/device.ts";
import { areasOf, isQueueSize } from "../virtio/queue/config.ts";
import { FULL_RETRY_MS, type Link } from "./link.ts";

/** Requests that are open at once. */
export const MAX_ASKED = 32;
/** Requests that a reset overtook and that are remembered: fewer, so that others can be sent. */
const MAX_OVERTAKEN = 16;
/** Pages that wait to be asked for; who lacks more finds out when these are known. */
const MAX_WANTED = 256;
/** How long a driver side may leave all requests without an answer. */
export const ANSWER_MS = 5000;
/** Slots that requests leave free for answers. */
const RESERVE = 16;
/** We ask for both, as rings need both; an answer that allows anything is taken. */
const READ_WRITE = 3;

/** What follows for the device. */
export interface TranslationOwner {
  /** What is seen of the driver side's machine. */
  readonly regions: readonly MemoryRegion[];
  /** Handles a SET_VQUEUE again that was kept. */
  retake(request: DataView): void;
  /** Looks at all queues. */
  resume(): void;
  /** The driver side does not do its part. */
  needsReset(reason: string): void;
  /** Tells people what a driver side can make us say as often as it likes. */
  complain(line: string): void;
}

interface OpenRequest {
  readonly page: number;
  /** False after a reset: nobody waits for the answer. */
  isWanted: boolean;
}

/** See the head of this file. */
export class Translation implements Disposable {
  /** What the device sees; undefined while addresses are used as they are. */
  space: TranslatedSpace | undefined;
  /** What the driver side said last, perhaps under an open queue. */
  #isOn = false;
  readonly #wanted = new Set<number>();
  /** In the order in which they were sent. */
  #asked: OpenRequest[] = [];
  /** SET_VQUEUE by queue. */
  readonly #kept = new Map<number, DataView>();
  readonly #task: Task = { run: () => this.#ask() };
  readonly #retry: Timer;
  readonly #silence: Timer;

  constructor(
    readonly reactor: Reactor,
    readonly link: Link,
    readonly device: number,
    readonly owner: TranslationOwner,
  ) {
    this.#retry = reactor.timer(() => this.#ask());
    this.#silence = reactor.timer(() => this.#unanswered());
  }

  /**
   * IOMMU_ENABLE.
   *
   * @param hasOpenQueue a queue is open, whose addresses cannot change their meaning
   * @returns false if it takes effect with the next reset only
   */
  enable(on: boolean, hasOpenQueue: boolean): boolean {
    this.#isOn = on;
    if (hasOpenQueue) return on === (this.space !== undefined);
    this.#apply();
    return true;
  }

  /** The driver begins anew, see the head of this file. */
  beginAnew(): void {
    this.#isOn = false;
  }

  #apply(): void {
    if (!this.#isOn) return this.#end();
    this.space ??= new TranslatedSpace(this.owner.regions, (page) => this.#want(page));
  }

  /** A reset: what was translated is forgotten. Queues may still be open; {@link release} follows. */
  reset(): void {
    this.#wanted.clear();
    this.#kept.clear();
    this.#silence.cancel();
    this.#asked = this.#asked.slice(-MAX_OVERTAKEN);
    for (const request of this.#asked) request.isWanted = false;
    this.space?.forget();
  }

  /** After {@link reset}, when no queue is open any more. */
  release(): void {
    this.space?.release();
    this.#apply();
  }

  /** Another driver side comes: it has not said anything, and answers nothing that was asked before. */
  leave(): void {
    this.#isOn = false;
    this.reset();
    this.#asked = [];
  }

  #end(): void {
    this.reset();
    this.space?.[Symbol.dispose]();
    this.space = undefined;
  }

  /**
   * Makes the rings of a queue visible, which is not open.
   *
   * @param request the SET_VQUEUE, to be kept where pages have to be asked for first
   * @returns true if they are, false if the request is kept, or in one line why they cannot be
   */
  prepare(
    index: number,
    setup: QueueSetup,
    isPacked: boolean,
    request: () => DataView,
  ): boolean | string {
    const { space } = this;
    // What is no queue size is said elsewhere.
    if (space === undefined || !isQueueSize(setup.size)) return true;
    if (this.owner.regions.length === 0) {
      return "the driver side's addresses are to be translated to those of its machine, of which " +
        "nothing is seen here: give --memory";
    }
    const { size, descriptorAddress, driverAddress, deviceAddress } = setup;
    const { descriptor, driver, device } = areasOf(isPacked);
    const prepared = space.prepare(index, [
      { at: descriptorAddress, size: descriptor.sizeFor(size) },
      { at: driverAddress, size: driver.sizeFor(size) },
      { at: deviceAddress, size: device.sizeFor(size) },
    ]);
    if (prepared === false) this.#kept.set(index, request());
    else this.#kept.delete(index);
    return prepared;
  }

  /** A queue is not to be set up after all. */
  drop(index: number): void {
    this.#kept.delete(index);
  }

  #want(page: number): void {
    if (this.#wanted.size >= MAX_WANTED) return;
    if (this.#asked.some((request) => request.isWanted && request.page === page)) return;
    this.#wanted.add(page);
    if (!this.#retry.armed) this.reactor.schedule(this.#task);
  }

  #ask(): boolean {
    for (const page of this.#wanted) {
      if (this.#asked.length >= MAX_ASKED) return false;
      const out = this.link.start(Kind.IOMMU_TRANSLATE, this.device);
      out.address = page;
      out.prot = READ_WRITE;
      if (!this.link.send(RESERVE)) {
        this.#retry.arm(FULL_RETRY_MS);
        return false;
      }
      this.#wanted.delete(page);
      this.#asked.push({ page, isWanted: true });
      if (!this.#silence.armed) this.#silence.arm(ANSWER_MS);
    }
    return false;
  }

  /** An answer came. */
  answered({ address, physicalAddress, prot }: Message): void {
    const isRefused = prot === 0;
    let position = this.#asked.findIndex(({ page }) => page === address);
    // All zeros, of a page that cannot be mapped.
    if (position < 0 && isRefused && address === 0 && this.#asked.length > 0) position = 0;
    if (position < 0) {
      const where = `0x${address.toString(16)}`;
      return this.owner.complain(`a translation of ${where} came, which was not asked for`);
    }
    const [request] = this.#asked.splice(position, 1);
    if (request.isWanted) {
      // All ones are no address either; as a Number they are far above all that are.
      const isAddress = !isRefused && Number.isSafeInteger(physicalAddress);
      this.space?.learn(request.page, isAddress ? physicalAddress : undefined);
    }
    if (this.#asked.some(({ isWanted }) => isWanted)) this.#silence.arm(ANSWER_MS);
    else this.#silence.cancel();
    if (this.#wanted.size > 0) this.#ask();
    else if (!this.#silence.armed && request.isWanted) this.#goOn();
  }

  #goOn(): void {
    const kept = [...this.#kept.values()];
    this.#kept.clear();
    for (const request of kept) this.owner.retake(request);
    this.owner.resume();
  }

  #unanswered(): void {
    const { page } = this.#asked.find(({ isWanted }) => isWanted)!;
    this.reset();
    this.#asked = [];
    this.owner.needsReset(
      `the driver side has not translated 0x${page.toString(16)} for ${ANSWER_MS} ms`,
    );
  }

  /** Asks for nothing any more. No queue is open. */
  [Symbol.dispose](): void {
    this.#end();
    this.reactor.dropTimer(this.#retry);
    this.reactor.dropTimer(this.#silence);
  }
}
