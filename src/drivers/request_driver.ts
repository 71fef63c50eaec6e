/**
 * A small driver of our own for a device that answers requests on its first queue: each buffer is one.
 *
 * Theory of operation. The memory holds the ring, and behind it slots of equal size, one for each request that can be under
 * way; whoever asks fills a slot and is given what the device wrote. A session (session.ts) brings each device side that
 * comes to where it has to be, and the ring is made anew for each.
 *
 *     free --ask--> with the device --used--> free
 *        ^             | the device side is gone: asked again of the next one
 *        '--- wait ----'
 *
 * So a request must do no harm when it is done twice. Whatever else goes wrong ends the loop with a line: a device that
 * is another one than was meant, breaks its ring, needs a reset, or is there and does not answer.
 */

import { VmsgError } from "../linux/errors.ts";
import { PAGE_SIZE } from "../linux/mapping.ts";
import type { Deferred, Reactor, Timer } from "../linux/reactor.ts";
import { counterShape } from "../observe/counters.ts";
import { Latency } from "../observe/latency.ts";
import type { Log } from "../observe/log.ts";
import { Descriptors } from "../sharing/descriptors.ts";
import type { DriverMemory } from "../sharing/driver_memory.ts";
import type { DriverSide, PeerListener } from "../transport/driver_side.ts";
import type { RemoteDevice } from "../transport/remote_device.ts";
import { PeerLost } from "../transport/requests.ts";
import { Status } from "../virtio/features.ts";
import type { QueueSetup } from "../virtio/device.ts";
import type { Place } from "../virtio/place.ts";
import { type DriverRing, driverRingSize, openDriverRing } from "../virtio/queue/mod.ts";
import { KICK_COUNTERS, showBuffers } from "./kicks.ts";
import { chooseFeatures, type RingFormat, ringTerms } from "./own_features.ts";
import { Session } from "./session.ts";
import type { WantedRing } from "./wanted.ts";

/** Entries of the ring, if the device has as many. */
const ENTRIES = 64;
const RING_SIZE = Math.ceil(driverRingSize(ENTRIES) / PAGE_SIZE) * PAGE_SIZE;
const QUEUE = 0;
/** How long a device that is there may take; longer than any disk, and than the device side's own patience. */
const ANSWER_LIMIT_MS = 60_000;

const RequestCounters = counterShape("requests", ...KICK_COUNTERS);

/** What is driven. */
export interface RequestDriverOptions {
  readonly memory: DriverMemory;
  /** Of the device on its bus. */
  readonly number: number;
  readonly rings: RingFormat;
  /** The device type, and what it is called in lines for people: "a disk". */
  readonly deviceId: number;
  readonly what: string;
  /** Features of the type that are taken if offered. */
  readonly features: readonly number[];
  /** Bytes of a slot. */
  readonly slotSize: number;
  /** How many requests are under way at most. */
  readonly depth: number;
  /** A device is there, or its configuration has changed: reads what of that is needed. */
  known?(device: RemoteDevice, accepted: Uint32Array): Promise<void>;
}

/** Where a request is. */
export interface Slot {
  readonly index: number;
  /** All of its bytes, by bus address, and where they are in this process. */
  readonly at: number;
  readonly address: bigint;
  readonly bytes: Uint8Array;
  readonly view: DataView;
}

/** The elements of a request: bus addresses and lengths, those for reading first. */
export interface Elements {
  readonly addresses: Float64Array;
  readonly lengths: Uint32Array;
  readonly readable: number;
  readonly writable: number;
}

/** See the head of this file. */
export class RequestDriver implements PeerListener, Disposable {
  readonly slots: readonly Slot[];
  /** What was accepted of the latest device's features. */
  accepted: Uint32Array = new Uint32Array(2);
  /** Descriptors that a request may take. */
  ringSize = 0;
  readonly counters: InstanceType<typeof RequestCounters>;
  readonly #latency: Latency;
  readonly #device: RemoteDevice;
  readonly #session: Session;
  #wanted: Uint32Array | undefined;
  #ring: DriverRing | undefined;
  #isUp = false;
  #isReading = false;
  #isStale = false;
  /** Whoever waits for a device, or for room in the ring. */
  readonly #waiters: Deferred<void>[] = [];
  /** By slot; undefined for an answer is a device side that is gone. */
  readonly #asked = new Map<number, Deferred<number | undefined>>();
  readonly #patience: Timer;

  /** @throws VmsgError MEMORY if there is no room for one slot */
  constructor(
    readonly reactor: Reactor,
    readonly side: DriverSide,
    log: Log,
    readonly options: RequestDriverOptions,
  ) {
    const { memory, number } = options;
    this.slots = slotsOf(memory, options);
    this.counters = new RequestCounters("driver", `device ${number}`);
    this.#latency = new Latency(`requests of device ${number}`);
    this.#device = side.device(number);
    this.#patience = reactor.timer(() =>
      reactor.fail(this.#error("NO_ANSWER", `has not answered for ${ANSWER_LIMIT_MS / 1000} s`))
    );
    const wanted = () => this.#wanted;
    const owner = {
      get features() {
        return wanted();
      },
      regions: memory.regions,
      rings: [this.#wantedRing()],
      mayRun: true,
      beginsAnew: true,
      known: () => this.#known(),
      configChanged: (status: number) => {
        if (!this.#isUp) return;
        if ((status & Status.DEVICE_NEEDS_RESET) === 0) return this.#changed();
        reactor.fail(this.#error("NEEDS_RESET", "gave up and needs a reset"));
      },
    };
    const device = this.#device;
    const sharing = new Descriptors(device, true);
    this.#session = new Session({ reactor, device, sharing, owner, whose: "our", log });
    device.listen(this);
  }

  #error(code: string, what: string): VmsgError {
    return new VmsgError(code, `device ${this.options.number} ${what}`);
  }

  // --- the device comes and goes -----------------------------------------------------------------

  ready(): void {
    this.reactor.spawn(async () => {
      try {
        await this.#session.bringUp();
      } catch (error) {
        // The next device side starts another bring-up.
        if (!(error instanceof PeerLost)) throw error;
      }
      if (!this.#session.told.driverOk) return;
      this.#isUp = true;
      this.#wake();
    });
  }

  lost(): void {
    this.#isUp = false;
    this.#wanted = undefined;
    this.#session.lost();
    const asked = [...this.#asked.values()];
    this.#asked.clear();
    this.#patience.cancel();
    for (const answer of asked) answer.resolve(undefined);
    this.#wake();
  }

  #wake(): void {
    for (const waiter of this.#waiters.splice(0)) waiter.resolve();
  }

  async #wait(): Promise<void> {
    const waiter = this.reactor.defer<void>();
    this.#waiters.push(waiter);
    await waiter.promise;
  }

  /** Until there is a device. */
  async whenUp(): Promise<void> {
    while (!this.#isUp) await this.#wait();
  }

  /** The configuration has changed: it is read again, once for all changes while it is read. */
  #changed(): void {
    const { known } = this.options;
    if (known === undefined) return;
    this.#isStale = true;
    if (this.#isReading) return;
    this.#isReading = true;
    this.reactor.spawn(async () => {
      try {
        while (this.#isStale && this.#isUp) {
          this.#isStale = false;
          await known(this.#device, this.accepted);
        }
      } catch (error) {
        // The next device is asked for its own.
        if (!(error instanceof PeerLost)) throw error;
      } finally {
        this.#isReading = false;
      }
    });
  }

  async #known(): Promise<void> {
    const { options, options: { number, deviceId, what, features, rings } } = this;
    const { info, offered } = this.#session.told;
    if (info!.deviceId !== deviceId) {
      throw this.#error("NO_DEVICE", `is not ${what} but has device id ${info!.deviceId}`);
    }
    const accepted = chooseFeatures(number, offered, features, rings);
    const { maxSize } = await this.#device.queue(QUEUE);
    if (maxSize === 0) throw this.#error("NO_QUEUE", "has no queue");
    this.ringSize = Math.min(ENTRIES, 2 ** Math.floor(Math.log2(maxSize)));
    await options.known?.(this.#device, accepted);
    this.accepted = accepted;
    this.#wanted = accepted;
  }

  // --- the ring ----------------------------------------------------------------------------------

  #wantedRing(): WantedRing {
    return {
      index: QUEUE,
      setup: () => this.#makeRing(),
      stopped: () => {},
      call: () => this.#used(),
      fail: () => {},
    };
  }

  #makeRing(): QueueSetup {
    const { memory, offset, at } = this.options.memory;
    const place = { memory, offset, size: RING_SIZE, at };
    const ring = openDriverRing({ place, size: this.ringSize, ...ringTerms(this.accepted) });
    this.#ring = ring;
    const { size, descriptorAddress, driverAddress, deviceAddress } = ring;
    return { size, descriptorAddress, driverAddress, deviceAddress, base: 0 };
  }

  /**
   * Has a request answered, by the device that is there or by the next one.
   *
   * @returns how many bytes the device wrote
   */
  async ask(slot: Slot, elements: Elements): Promise<number> {
    for (;;) {
      const ring = this.#ring;
      const { addresses, lengths, readable, writable } = elements;
      if (!this.#isUp || !ring!.add(addresses, lengths, readable, writable, slot.index)) {
        await this.#wait();
        continue;
      }
      const answer = this.reactor.defer<number | undefined>();
      this.#asked.set(slot.index, answer);
      if (!this.#patience.armed) this.#patience.arm(ANSWER_LIMIT_MS);
      const { counters } = this;
      counters.requests++;
      const sentMs = this.reactor.now();
      if (showBuffers(ring!, counters)) this.#session.available(QUEUE);
      this.#used();
      const length = await answer.promise;
      if (length === undefined) continue;
      this.#latency.add(this.reactor.now() - sentMs);
      return length;
    }
  }

  /** Takes what has come back, and asks to be called for the rest. */
  #used(): void {
    const ring = this.#ring;
    if (ring === undefined || !this.#isUp) return;
    const before = this.#asked.size;
    do {
      while (ring.nextUsed()) {
        this.#asked.get(ring.usedToken)!.resolve(ring.usedLength);
        this.#asked.delete(ring.usedToken);
      }
    } while (ring.wantCalls());
    if (ring.broken !== undefined) {
      return this.reactor.fail(this.#error("BROKEN_RING", `broke its ring: ${ring.broken}`));
    }
    if (this.#asked.size === before) return;
    if (this.#asked.size === 0) this.#patience.cancel();
    else this.#patience.arm(ANSWER_LIMIT_MS);
    this.#wake();
  }

  [Symbol.dispose](): void {
    this.#isUp = false;
    this.#session[Symbol.dispose]();
    this.reactor.dropTimer(this.#patience);
  }
}

function slotsOf(place: Place, { slotSize, depth }: RequestDriverOptions): Slot[] {
  const { memory, offset, at, size } = place;
  const count = Math.min(depth, Math.floor((size - RING_SIZE) / slotSize));
  if (count < 1) {
    const needs = `the driver needs at least ${RING_SIZE + slotSize} bytes of shared memory`;
    throw new VmsgError("MEMORY", `${needs}, not ${size}: 1M is enough`);
  }
  return Array.from({ length: count }, (_, index) => {
    const start = RING_SIZE + index * slotSize;
    return {
      index,
      at: at + start,
      address: memory.address + BigInt(offset + start),
      bytes: new Uint8Array(memory.buffer, offset + start, slotSize),
      view: new DataView(memory.buffer, offset + start, slotSize),
    };
  });
}
