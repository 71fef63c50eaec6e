/**
 * A guest's virtqueue whose buffers go to the device by way of another queue, which the device side is told
 * of instead: what confined mode (copied_queue.ts) and direct mode (translated_queue.ts) have in common.
 *
 * Theory of operation. The proxy is the device of the guest's queue and the driver of the shadow:
 *
 *     guest's queue --pop, add--> shadow queue == device ==> used --return, complete--> guest's queue
 *
 * Buffers stay whole and in order, so merged frames and whatever else a device type means by its buffers need
 * not be understood here.
 *
 * Back-pressure: what has no room in the shadow stays in the guest's queue until the device has used
 * something. Nothing is dropped, and nothing waits for what comes behind it.
 *
 * Notifications are suppressed on both sides as each side's event index allows: one kick and one call a
 * batch. Room that comes free is a reason to forward, so no {@link ForwardingQueue.forward} is without a
 * {@link ForwardingQueue.giveBack} before it, which leaves the device asked to call for the next buffer it
 * uses. What has come back is shown to the guest as a whole, because a merged frame must be; that is never
 * more than the shadow holds.
 *
 * Both sides are hostile. The guest's queue is checked by DeviceQueue, the shadow by DriverQueue: a device
 * cannot name a buffer that it does not have, nor more bytes than it was given room for.
 *
 * A device may use buffers out of order; they are held until those before them have come back. A stop
 * forgets what is held so, and the next device gets these buffers once more.
 */

import { counterShape } from "../observe/counters.ts";
import type { QueueSetup } from "../virtio/device.ts";
import { ChainBatch, type DeviceQueue, type DriverQueue, Pop } from "../virtio/queue/mod.ts";

/** The guest's buffers given to the device per {@link ForwardingQueue.forward}. */
const BATCH = 64;
/** Segments of a buffer: what Linux's network driver needs at most, and more. */
export const CHAIN_CAPACITY = 256;
/** Of an entry: the device has not used it yet. */
const WITH_DEVICE = -1;

// One batch serves all queues: it holds buffers only while they are added.
const batch = new ChainBatch(BATCH, 1024);

const QueueCounters = counterShape("forwarded", "returned", "full");

/** See the head of this file. A subclass makes something for the shadow of a buffer. */
export abstract class ForwardingQueue {
  /** What went through, and how often there was no room. */
  readonly counters: InstanceType<typeof QueueCounters>;
  /** After {@link forward}: it ended because a batch was full, and there may be more. */
  more = false;
  /** Buffers out, by a free-running number modulo the guest's queue size; the oldest is `#first`. */
  readonly #heads: Uint16Array;
  /** Bytes the device wrote, or {@link WITH_DEVICE}. */
  readonly #used: Float64Array;
  readonly #mask: number;
  #first = 0;
  #next = 0;

  /**
   * Takes both queues.
   *
   * @param guest the guest's queue, of which this is now the only user
   * @param shadow the queue that the device side is told of, empty
   * @param name whose ring it is, for its counters
   */
  constructor(readonly guest: DeviceQueue, readonly shadow: DriverQueue, name: string) {
    this.counters = new QueueCounters("queue", name);
    const { size } = guest;
    this.#mask = size - 1;
    this.#heads = new Uint16Array(size);
    this.#used = new Float64Array(size);
  }

  /** Why one of the queues is broken; undefined while neither is. */
  get broken(): string | undefined {
    return this.guest.broken ?? this.shadow.broken;
  }

  /** What the device is told of the shadow. */
  get setup(): QueueSetup {
    const { size, descriptorAddress, driverAddress, deviceAddress } = this.shadow;
    return { size, descriptorAddress, driverAddress, deviceAddress, base: 0 };
  }

  /**
   * Adds a buffer to the shadow, with `slot` as its token.
   *
   * @returns false if there is no room for it now, or it was refused ({@link DeviceQueue.refuse})
   */
  protected abstract add(buffer: ChainBatch, slot: number): boolean;

  /** Will anything of a buffer that is out be written to these addresses of this process? */
  holdsIn(_from: number, _to: number): boolean {
    return false;
  }

  /** These buffers of the guest's are about to be added. */
  protected popped(_buffers: ChainBatch): void {}

  /** The oldest buffer comes back. @param next the slot of the one behind it */
  protected abstract returned(slot: number, written: number, next: number): void;

  /**
   * Gives a batch of the guest's buffers to the device, after {@link giveBack}.
   *
   * @returns whether the device wants to be kicked
   */
  forward(): boolean {
    const { guest, shadow } = this;
    this.more = false;
    if (this.broken !== undefined) return false;
    guest.noKicks();
    for (let left = BATCH; left > 0 && !guest.isSpent;) {
      batch.clear();
      const count = guest.pop(batch, left);
      const asks = count === 0 && guest.outcome === Pop.EMPTY && guest.wantKicks();
      if (count === 0 && !asks) return shadow.publish();
      if (count > 0) this.popped(batch);
      for (let i = 0; i < count; i++) {
        batch.select(i);
        const isAdded = this.#add();
        if (isAdded && !guest.isCharged) continue;
        guest.rewind(count - i - (isAdded ? 1 : 0));
        if (!isAdded) return shadow.publish();
        break;
      }
      left -= count;
    }
    this.more = true;
    return shadow.publish();
  }

  /** Adds the selected buffer. */
  #add(): boolean {
    const { readable, writable } = batch;
    const slot = this.#next & this.#mask;
    const isTooMany = readable.count + writable.count > CHAIN_CAPACITY;
    if (isTooMany) {
      this.guest.refuse(`a buffer of more segments than the ${CHAIN_CAPACITY} that are taken`);
    }
    if (isTooMany || !this.add(batch, slot)) {
      this.counters.full++;
      return false;
    }
    this.#heads[slot] = batch.head;
    this.#used[slot] = WITH_DEVICE;
    this.#next = (this.#next + 1) >>> 0;
    this.counters.forwarded++;
    return true;
  }

  /**
   * Gives everything back to the guest that the device has used.
   *
   * @returns whether the guest wants to be called
   */
  giveBack(): boolean {
    const { guest, shadow } = this;
    do {
      while (shadow.nextUsed()) this.#used[shadow.usedToken] = shadow.usedLength;
      this.#completeOldest();
    } while (shadow.wantCalls());
    return guest.publish();
  }

  #completeOldest(): void {
    while (this.#first !== this.#next) {
      const slot = this.#first & this.#mask;
      const written = this.#used[slot];
      if (written === WITH_DEVICE) return;
      this.#first = (this.#first + 1) >>> 0;
      this.returned(slot, written, this.#first & this.#mask);
      this.guest.complete(this.#heads[slot], written);
      this.counters.returned++;
    }
  }

  /**
   * Ends the queue when the device touches it no more: what it has used is given back, the rest is
   * the guest's again as if it had never been taken.
   *
   * @param mayTouch the guest's memory; if not, what was used is the guest's again, too, and is done once more
   * @returns where the guest's queue goes on
   */
  stop(mayTouch = true): number {
    if (mayTouch) this.giveBack();
    // All that was completed has been published.
    if (mayTouch) this.guest.stop();
    else this.guest.rewind((this.#next - this.#first) >>> 0);
    return this.guest.base;
  }
}
