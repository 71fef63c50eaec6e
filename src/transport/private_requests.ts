/**
 * What only a vmsg driver side asks of a device: memory, queues that stop and go on, and by what they are notified
 * (src/message/private.ts, docs/wire.md 6).
 *
 * Each request is answered when it is done: memory is mapped, or unmapped, or the queue is not touched any
 * more. `result` is 0 or an errno.
 */

import type { Bus } from "../bus/bus.ts";
import { linuxErrno, VmsgError } from "../linux/errors.ts";
import type { Fd } from "../linux/fd.ts";
import { Notifier } from "../linux/notifier.ts";
import {
  Kind,
  MEMORY_SEGMENT,
  MEMORY_WINDOW,
  type Message,
  NOTIFIER_CALL,
  NOTIFIER_KICK,
  NOTIFIER_VECTOR,
  QUEUE_GOES_ON,
} from "../message/message.ts";
import type { DeviceSlot } from "./device_slot.ts";
import type { Link } from "./link.ts";

/** What fits into a doorbell's register. */
const MAX_VECTOR = 0xffff;

const EBADF = linuxErrno("EBADF");
const EBUSY = linuxErrno("EBUSY");
const EEXIST = linuxErrno("EEXIST");
const EIO = linuxErrno("EIO");
const EINVAL = linuxErrno("EINVAL");
const ENOENT = linuxErrno("ENOENT");
const EPERM = linuxErrno("EPERM");
const EPROTO = linuxErrno("EPROTO");
const ETIMEDOUT = linuxErrno("ETIMEDOUT");

/** How many descriptors come with this request? */
function carriedFds({ kind, flags }: Message, bus: Bus): number {
  if (kind === Kind.SET_NOTIFIER) {
    return (flags & NOTIFIER_KICK ? 1 : 0) + (flags & NOTIFIER_CALL ? 1 : 0);
  }
  if (kind !== Kind.ADD_MEMORY) return 0;
  const from = flags & (MEMORY_SEGMENT | MEMORY_WINDOW);
  // A segment is the bus's own memory; a bus that has none but carries descriptors brings it.
  return from === 0 || (from === MEMORY_SEGMENT && bus.segment === undefined) ? 1 : 0;
}

/** The descriptors that came with a request; they belong to their message, also to one that is refused. */
function takeDescriptors({ in: message, bus }: Link): (Fd | undefined)[] {
  return Array.from(
    { length: carriedFds(message, bus) },
    (_, n) => bus.takeFd(message.ordinal + n),
  );
}

/** Closes the descriptors of a request that is not handled. */
export function dropDescriptors(link: Link): void {
  for (const fd of takeDescriptors(link)) fd?.[Symbol.dispose]();
}

/** Answers the private request in hand. */
export function answerPrivately(link: Link, epoch: number, result: number, base = 0): void {
  const { index } = link.in;
  const out = link.answer();
  out.epoch = epoch;
  out.result = result;
  out.index = index;
  out.base = base;
  link.send();
}

/** See the head of this file; those about one device. */
export class PrivateRequests {
  constructor(readonly slot: DeviceSlot, readonly link: Link) {}

  /** Answers the request in hand. */
  handle(): void {
    switch (this.link.in.kind) {
      case Kind.ADD_MEMORY:
        return this.#addMemory();
      case Kind.REMOVE_MEMORY:
        return this.#removeMemory();
      case Kind.STOP_VQUEUE:
        return this.#stopQueue();
      case Kind.SET_VQUEUE_STATE:
        return this.#answer(this.#setQueueState());
      default:
        return this.link.drop("unknown request");
    }
  }

  /** Answers SET_NOTIFIER: at once, for it asks the device nothing, and its descriptors wait for nobody. */
  setNotifier(): void {
    const { slot, link } = this;
    const { index, flags } = link.in;
    const [kick, call] = takeDescriptors(link);
    using stack = new DisposableStack();
    for (const fd of [kick, call]) if (fd !== undefined) stack.use(fd);
    if (slot.queues[index]?.isEnabled !== true) return this.#answer(ENOENT);
    // What was set before is no more, whatever becomes of this.
    slot.dropNotifier(index);
    if (flags === 0) return this.#answer(0);
    if (flags === NOTIFIER_VECTOR) return this.#answer(this.#setVector());
    if ((flags & ~NOTIFIER_CALL) !== NOTIFIER_KICK) return this.#answer(EINVAL);
    if (kick === undefined || (flags !== NOTIFIER_KICK && call === undefined)) {
      return this.#answer(EBADF);
    }
    try {
      const { model, owner: { reactor } } = slot;
      const taken = model.takeNotifier?.(index, kick, call);
      if (taken !== undefined) slot.seen.unseen(index);
      const kicked = () => {
        slot.seen.kicked(index);
        model.available(index);
      };
      const notifier = taken ?? new Notifier(reactor, kick, call, kicked);
      slot.setNotifier(index, notifier, "out of band");
    } catch (error) {
      if (!(error instanceof VmsgError)) throw error;
      slot.owner.complain(`device ${slot.number}, queue ${index}: ${error.message}`);
      return this.#answer(EINVAL);
    }
    stack.move();
    this.#answer(0);
  }

  #setVector(): number {
    const { slot, link: { bus, in: { index, ordinal } } } = this;
    const ring = bus.ringVector;
    if (ring === undefined || ordinal > MAX_VECTOR) return EINVAL;
    const notifier = { call: () => ring(ordinal), [Symbol.dispose]: () => {} };
    slot.setNotifier(index, notifier, `in band, calls by vector ${ordinal}`);
    return 0;
  }

  /** The device does not answer the request in hand. */
  fail(): void {
    const { kind, address } = this.link.in;
    const table = kind === Kind.ADD_MEMORY ? this.slot.tables.table(address) : undefined;
    // It may have it in use; it goes as soon as the device says anything.
    if (table !== undefined) this.slot.tables.unwant(table);
    this.#answer(this.slot.conversation.isHung ? ETIMEDOUT : EIO);
  }

  #answer(result: number, base = 0): void {
    answerPrivately(this.link, this.slot.owner.ownEpoch(), result, base);
  }

  #addMemory(): void {
    const { slot, link: { in: { address } } } = this;
    const result = this.#map();
    if (result !== 0) return this.#answer(result);
    const { regions } = slot.tables.table(address)!;
    slot.conversation.ask(slot.model.memoryAdded?.(regions), this.#memoryAdded);
  }

  #map(): number {
    const { slot: { tables, conversation, owner: { confined, complain } }, link } = this;
    const { address, length, offset, flags } = link.in;
    const from = flags & (MEMORY_SEGMENT | MEMORY_WINDOW);
    const [fd] = takeDescriptors(link);
    let result: number;
    if (confined && from !== MEMORY_SEGMENT) {
      complain("the driver side offers its memory, but --confined takes a segment only");
      result = EPERM;
    } else if (conversation.isHung) result = ETIMEDOUT;
    // Regions are known by their address; one that is empty there (all of --memory) overlaps nothing.
    else if (tables.table(address) !== undefined) result = EEXIST;
    else if (carriedFds(link.in, link.bus) > 0) {
      result = fd === undefined ? EBADF : tables.addFile(fd, address, length, offset);
    } else if (from === MEMORY_SEGMENT) result = tables.addSegment(address, length, offset);
    else if (from === MEMORY_WINDOW) result = tables.addFixed(address, length, offset);
    else result = EBADF;
    if (result !== 0) fd?.[Symbol.dispose]();
    return result;
  }

  readonly #memoryAdded = (problem: string | undefined): void => {
    const { slot, link: { in: { address } } } = this;
    if (problem === undefined) return this.#answer(0);
    slot.owner.complain(`device ${slot.number}: memory refused: ${problem}`);
    slot.tables.drop(slot.tables.table(address)!);
    this.#answer(EINVAL);
  };

  #removeMemory(): void {
    const { slot, link: { in: { address, length } } } = this;
    const table = slot.tables.table(address);
    if (slot.queues.some(({ isEnabled }) => isEnabled)) return this.#answer(EBUSY);
    if (table?.state !== "shown" || table.length !== length) return this.#answer(ENOENT);
    if (slot.conversation.isHung) return this.fail();
    slot.removeMemory(address, this.#succeeded);
  }

  readonly #succeeded = (): void => this.#answer(0);

  #stopQueue(): void {
    const { slot, link: { in: { index } } } = this;
    if (slot.queues[index]?.isEnabled !== true) return this.#answer(ENOENT);
    if (slot.conversation.isHung) return this.fail();
    slot.conversation.ask(slot.stopQueue(index), this.#queueStopped);
  }

  readonly #queueStopped = (base: number): void => {
    const { slot, link } = this;
    // The last used notification goes out before the answer, or after it if there is room for one only.
    slot.owner.notifications.hurry(slot.queues[link.in.index].used, 1);
    this.#answer(0, base);
  };

  #setQueueState(): number {
    const { slot, link: { in: { index, base, flags } } } = this;
    const queue = slot.queues[index];
    if (queue === undefined) return ENOENT;
    if (queue.isEnabled) return EBUSY;
    if (!slot.featuresAreFixed) return EPROTO;
    queue.base = base;
    queue.goesOn = (flags & QUEUE_GOES_ON) !== 0;
    return 0;
  }
}
