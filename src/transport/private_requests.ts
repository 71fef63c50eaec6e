/**
 * What only a vmsg driver side asks of a device: memory, and queues that stop and go on
 * (src/message/private.ts, docs/wire.md 6).
 *
 * Each request is answered when it is done: memory is mapped, or unmapped, or the queue is not touched any
 * more. `result` is 0 or an errno.
 */

import type { Bus } from "../bus/bus.ts";
import { linuxErrno } from "../linux/errors.ts";
import type { Fd } from "../linux/fd.ts";
import { Kind, MEMORY_SEGMENT, MEMORY_WINDOW, type Message } from "../message/message.ts";
import type { DeviceSlot } from "./device_slot.ts";
import type { Link } from "./link.ts";

const EBADF = linuxErrno("EBADF");
const EBUSY = linuxErrno("EBUSY");
const EEXIST = linuxErrno("EEXIST");
const EIO = linuxErrno("EIO");
const EINVAL = linuxErrno("EINVAL");
const ENOENT = linuxErrno("ENOENT");
const EPERM = linuxErrno("EPERM");
const EPROTO = linuxErrno("EPROTO");
const ETIMEDOUT = linuxErrno("ETIMEDOUT");

/** Does a descriptor come with this request? */
function carriesFd({ kind, flags }: Message, bus: Bus): boolean {
  if (kind !== Kind.ADD_MEMORY) return false;
  const from = flags & (MEMORY_SEGMENT | MEMORY_WINDOW);
  // A segment is the bus's own memory; a bus that has none but carries descriptors brings it.
  return from === 0 || (from === MEMORY_SEGMENT && bus.segment === undefined);
}

/** The descriptor that came with a request; it belongs to its message, also to one that is refused. */
export function takeDescriptor({ in: message, bus }: Link): Fd | undefined {
  return carriesFd(message, bus) ? bus.takeFd(message.ordinal) : undefined;
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
        return this.link.drop();
    }
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
    const fd = takeDescriptor(link);
    let result: number;
    if (confined && from !== MEMORY_SEGMENT) {
      complain("the driver side offers its memory, but --confined takes a segment only");
      result = EPERM;
    } else if (conversation.isHung) result = ETIMEDOUT;
    // Regions are known by their address; one that is empty there (all of --memory) overlaps nothing.
    else if (tables.table(address) !== undefined) result = EEXIST;
    else if (carriesFd(link.in, link.bus)) {
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
    if (slot.hasRunningQueue) return this.#answer(EBUSY);
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
    const { slot, link: { in: { index, base } } } = this;
    const queue = slot.queues[index];
    if (queue === undefined) return ENOENT;
    if (queue.isEnabled) return EBUSY;
    if (!slot.featuresAreFixed) return EPROTO;
    queue.base = base;
    return 0;
  }
}
