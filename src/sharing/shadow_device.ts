/**
 * The shadow queues of one device number, and when they move.
 *
 * The state machine of the front end (drivers/session.ts) decides which rings run; this is what
 * running means where the device side does not work on the guest's rings. A ring that starts gets a shadow:
 * in confined mode one whose buffers are copied to a segment (shadow_queue.ts), otherwise one that names
 * the guest's buffers by physical address (translated/translated_queue.ts). A kick of the guest or a used
 * notification of the device has it moved, in batches, by a task of the reactor. A ring that stops, also because
 * the device side was lost, gives back what was used and forgets the rest: the guest's ring goes on from
 * where it is.
 *
 * Between {@link ShadowDevice.start} and {@link ShadowDevice.stop} the guest's memory must stay mapped, so
 * a ring is started when the device has taken its shadow, and not before.
 *
 * A ring that breaks, by the guest or by the device, stands still until it is stopped; the guest is told
 * as it is told of a device that needs a reset.
 */

import { VmsgError } from "../linux/errors.ts";
import type { Reactor, Task } from "../linux/reactor.ts";
import { hasFeature, RingFeature } from "../virtio/features.ts";
import type { AddressSpace } from "../memory/mod.ts";
import { limitedLog, type Log } from "../observe/log.ts";
import type { QueueSetup } from "../virtio/device.ts";
import type { RemoteDevice } from "../transport/remote_device.ts";
import { openDeviceQueue } from "../virtio/split/mod.ts";
import { RingPages } from "./ring_pages.ts";
import { TranslatedQueue } from "./translated_queue.ts";
import type { MappedRegion } from "./memory_table.ts";
import type { Segment } from "./segment.ts";
import { ShadowQueue } from "./copied_queue.ts";

/** A shadow of either kind. */
export type Shadow = ShadowQueue | TranslatedQueue;

/** A ring that runs. */
interface Running {
  readonly queue: Shadow;
  readonly task: Task;
}

/** What a {@link ShadowDevice} is made of. */
export interface ShadowDeviceOptions {
  /** The loop it runs in. */
  readonly reactor: Reactor;
  /** The device at the other end of the bus. */
  readonly device: RemoteDevice;
  /** Confined mode: where shadows and their buffers lie. Otherwise: where their rings lie. */
  readonly place: Segment | RingPages;
  /** Of this device among those that share the place. */
  readonly position: number;
  /** Where lines for people go. */
  readonly log: Log;
}

/** See the head of this file. */
export class ShadowDevice {
  /** Calls the guest for a queue; set by who serves the guest. */
  call: (queue: number) => void = () => {};
  /** Tells the guest that a queue is broken; set by who serves the guest. */
  fail: (queue: number) => void = () => {};
  readonly #running = new Map<number, Running>();
  readonly #complain: (line: string) => void;
  /** The device side has been told of the place, in this session of its. */
  #announcedTo = -1;

  /** Serves no ring yet. */
  constructor(readonly options: ShadowDeviceOptions) {
    this.#complain = limitedLog(options.log.warn);
  }

  /** Tells the device side of memory, once. */
  async announce(): Promise<void> {
    const { device, place } = this.options;
    const { session } = device.side;
    if (this.#announcedTo === session) return;
    await place.announce(device);
    this.#announcedTo = session;
  }

  /**
   * Makes a shadow for a guest's ring, for the device to be told of. Nothing moves before {@link start}.
   *
   * @param guest where the ring lies in the guest's memory, and where it goes on
   * @param maxSize the most entries that the device takes
   * @throws VmsgError if the ring is none, or there is no room for it
   */
  shadow(
    index: number,
    guest: QueueSetup,
    memory: AddressSpace,
    features: Uint32Array,
    queueCount: number,
    maxSize: number,
  ): Shadow {
    const { place, position, device } = this.options;
    const eventIndex = hasFeature(features, RingFeature.EVENT_IDX);
    const indirect = hasFeature(features, RingFeature.INDIRECT_DESC);
    const queue = openDeviceQueue(memory, { ...guest, eventIndex, indirect });
    if (typeof queue === "string") throw new VmsgError("BAD_RING", `ring ${index}: ${queue}`);
    if (place instanceof RingPages) {
      const part = place.part(position, queueCount, index);
      return new TranslatedQueue(queue, place.physical, part, maxSize, { eventIndex, indirect });
    }
    const part = place.part(position, queueCount, index, guest.size);
    place.describe(device.number, index, part);
    return new ShadowQueue(queue, part, eventIndex);
  }

  /** The device has taken a shadow: from here on it is moved. */
  start(index: number, queue: Shadow): void {
    this.#running.set(index, { queue, task: { run: () => this.#move(index, queue) } });
  }

  /** Rings may use a region from here on. */
  addMemory(region: MappedRegion): void {
    const { place } = this.options;
    if (place instanceof RingPages) place.addMemory(region);
  }

  /** The device side is gone without a word: it may touch for a while what it was told of. */
  forsaken(): void {
    const { place } = this.options;
    if (place instanceof RingPages) place.physical.doubt();
  }

  /** No ring uses it any more, and the device side does not either. */
  removeMemory(region: MappedRegion): void {
    const { place } = this.options;
    if (place instanceof RingPages) place.physical.remove(region);
  }

  /** The guest has kicked, or the device has used something. */
  moved(index: number): void {
    const running = this.#running.get(index);
    if (running !== undefined) this.options.reactor.schedule(running.task);
  }

  #move(index: number, queue: Shadow): boolean {
    if (this.#running.get(index)?.queue !== queue || queue.broken !== undefined) return false;
    if (queue.giveBack()) this.call(index);
    if (queue.forward()) this.options.device.available(index);
    if (queue.broken === undefined) return queue.more;
    const where = `device ${this.options.device.number}, ring ${index}`;
    this.#complain(`${where} is broken: ${queue.broken}: restart the guest's driver`);
    this.fail(index);
    return false;
  }

  /** Ends a ring's shadow, which the device touches no more; where the guest's ring goes on. */
  stop(index: number): number | undefined {
    const running = this.#running.get(index);
    this.#running.delete(index);
    return running?.queue.stop();
  }
}
