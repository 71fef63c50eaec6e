/**
 * A device side that answers soundly, or changed, late, twice, in another order, as another epoch, or not at all; that
 * says things that nobody asked for, and writes any used elements and any words into the rings that it is given.
 */

import { assertEquals } from "@std/assert";
import type { Bus, BusListener } from "../../src/bus/bus.ts";
import { clearEventFd, signalEventFd } from "../../src/linux/eventfd.ts";
import { type Mapping, mapShared } from "../../src/linux/mapping.ts";
import type { Reactor } from "../../src/linux/reactor.ts";
import type { Codec } from "../../src/message/codec.ts";
import {
  Kind,
  KIND_COUNT,
  Message,
  NOTIFIER_CALL,
  NOTIFIER_KICK,
} from "../../src/message/message.ts";
import { CAPABILITY_NOTIFIERS, PRIVATE_VERSION } from "../../src/transport/epoch.ts";
import type { Random } from "../support/mock_driver.ts";
import { SetQueues } from "../support/raw_peer.ts";
import { mutate, noise, putSlot, SLOT } from "./bytes.ts";

/** What it says it is: a device of random bytes. */
export const DEVICE_RNG = 4;
/** Grants that are kept mapped. */
const MOST_BROUGHT = 8;

/** Finds the memory of a ring by the bus address that the device was told; undefined for memory it was not given. */
export type RingFinder = (address: number, length: number) => DataView | undefined;

/** Finds what lies in one piece of memory, whose first byte has that bus address. */
export function viewIn(buffer: ArrayBuffer, base: number): RingFinder {
  return (address, length) => {
    const at = address - base;
    return at >= 0 && at + length <= buffer.byteLength
      ? new DataView(buffer, at, length)
      : undefined;
  };
}

/** See the head of this file. */
export class HostileDevice implements BusListener, Disposable {
  /** Answers that were sent. */
  answers = 0;
  readonly #queues = new SetQueues();
  readonly #rings = new Map<number, Message>();
  readonly #used: number[] = [];
  /** Memory that descriptors brought. */
  readonly #brought: { find: RingFinder; mapping: Mapping }[] = [];
  #epoch: number;
  #nonce = 0;
  #isOver = false;

  /**
   * @param malice of each message and ring
   * @param rings finds rings in memory that no descriptor brings
   */
  constructor(
    readonly reactor: Reactor,
    readonly bus: Bus,
    readonly codec: Codec,
    readonly random: Random,
    readonly malice: number,
    readonly rings: RingFinder = () => undefined,
  ) {
    this.#epoch = 1 + random.u32();
  }

  attached(): void {}
  detached(): void {}

  received(slot: DataView): void {
    if (this.#isOver) return;
    const request = new Message();
    const malformed = this.codec.decode(slot, 0, request);
    assertEquals(malformed, undefined, "the driver side sent what is no message");
    const { random, malice } = this;
    if (request.kind === Kind.EVENT_AVAIL) {
      if (random.chance(0.8)) this.touch();
      return;
    }
    if (request.kind === Kind.ADD_MEMORY) this.#keep(request);
    if (request.kind === Kind.SET_NOTIFIER) this.#misuse(request);
    if (request.kind === Kind.SET_VQUEUE) {
      this.#rings.set(request.index, request);
      this.#used[request.index] = 0;
    }
    if (!this.codec.answered(request.kind) || random.chance(malice / 2)) return;
    const bytes = this.#answer(request);
    if (random.chance(malice)) mutate(bytes, random);
    const times = random.chance(malice / 2) ? 2 : 1;
    const delayMs = random.chance(malice / 2) ? random.pick([1, 10, 200, 4990, 5010]) : 0;
    if (delayMs === 0) return this.#put(bytes, times);
    this.reactor.spawn(async () => {
      await this.reactor.sleep(delayMs);
      this.#put(bytes, times);
    });
  }

  /** Maps what the driver side grants, where it sends a descriptor of it. */
  #keep({ flags, ordinal, address, length, offset }: Message): void {
    if (flags !== 0) return;
    using fd = this.bus.takeFd(ordinal);
    if (fd === undefined) return;
    const mapping = mapShared(fd.number, length, offset);
    this.#brought.push({ find: viewIn(mapping.buffer, address), mapping });
    if (this.#brought.length > MOST_BROUGHT) this.#brought.shift()!.mapping[Symbol.dispose]();
  }

  /** Signals a kick and a call, which the proxy and the front end have too, or reads them empty; it hears neither. */
  #misuse({ flags, ordinal }: Message): void {
    for (let n = 0; n < (flags & NOTIFIER_CALL ? 2 : flags & NOTIFIER_KICK); n++) {
      using fd = this.bus.takeFd(ordinal + n);
      if (fd !== undefined) this.random.pick([signalEventFd, clearEventFd])(fd);
    }
  }

  #find(address: number, length: number): DataView | undefined {
    for (const { find } of this.#brought) {
      const view = find(address, length);
      if (view !== undefined) return view;
    }
    return this.rings(address, length);
  }

  #put(bytes: DataView, times = 1): void {
    for (; times > 0 && !this.#isOver; times--) putSlot(this.bus, bytes);
    this.answers++;
  }

  #encode(message: Message): DataView {
    const view = new DataView(new ArrayBuffer(SLOT));
    this.codec.encode(message, view, 0);
    return view;
  }

  #answer(request: Message): DataView {
    const { random, malice } = this;
    const answer = new Message();
    answer.reset(request.kind, true);
    answer.device = request.device;
    answer.token = request.token;
    const { index, count, offset, length, status, generation } = request;
    answer.say({ index, count, offset, length, generation, bytes: request.bytes });
    answer.say({ deviceId: DEVICE_RNG, featureBlocks: 2, configSize: 24, maxQueues: 2, status });
    if (request.kind === Kind.GET_DEVICE_FEATURES) answer.words[1] = 1;
    if (random.chance(malice)) this.#epoch = 1 + random.u32();
    answer.say({ epoch: this.#epoch, peerEpoch: request.epoch, nonce: ++this.#nonce });
    answer.version = PRIVATE_VERSION;
    answer.capabilities = request.capabilities & CAPABILITY_NOTIFIERS;
    this.#queues.answer(request, answer);
    return this.#encode(answer);
  }

  /** Says something by itself, or touches the rings. */
  act(): void {
    const { random, codec } = this;
    if (this.#isOver) return;
    if (random.chance(0.5)) return this.touch();
    const message = new Message();
    message.reset(random.pick([Kind.EVENT_USED, Kind.EVENT_USED, Kind.EVENT_CONFIG]), false);
    message.index = random.below(3);
    message.generation = random.below(10);
    message.status = 0xf | (random.chance(this.malice) ? 0x40 : 0);
    const bytes = random.chance(this.malice / 2) ? noise(random) : this.#encode(message);
    if (random.chance(this.malice / 2)) mutate(bytes, random);
    if (random.chance(this.malice / 8)) {
      // An answer to nothing.
      const answer = new Message();
      answer.reset(random.below(KIND_COUNT) as Kind, true);
      answer.token = random.below(0x1_0000);
      if (codec.answered(answer.kind)) return this.#put(this.#encode(answer));
    }
    this.#put(bytes);
  }

  /** Uses what was offered, or what was not, and writes any word of the rings. */
  touch(): void {
    const { random, malice } = this;
    for (const [index, told] of this.#rings) {
      const { queueSize: size } = told;
      const available = this.#find(told.driverAddress, 6 + 2 * size);
      const used = this.#find(told.deviceAddress, 6 + 8 * size);
      if (available === undefined || used === undefined) continue;
      let next = this.#used[index] ?? 0;
      for (let n = 0; n < 8 && next !== available.getUint16(2, true); n++) {
        const at = 4 + 8 * (next % size);
        const head = available.getUint16(4 + 2 * (next % size), true);
        used.setUint32(at, random.chance(malice / 4) ? random.below(size + 1) : head, true);
        used.setUint32(at + 4, random.chance(malice / 4) ? random.u32() : random.below(2), true);
        next = (next + 1) & 0xffff;
      }
      if (random.chance(malice / 8)) next = random.u32() & 0xffff;
      this.#used[index] = next;
      used.setUint16(2, next, true);
      if (random.chance(malice / 4)) {
        used.setUint16(2 * random.below(used.byteLength / 2), random.u32() & 0xffff, true);
      }
      const event = new Message();
      event.reset(Kind.EVENT_USED, false);
      event.index = index;
      this.#put(this.#encode(event));
    }
  }

  [Symbol.dispose](): void {
    this.#isOver = true;
    for (const { mapping } of this.#brought.splice(0)) mapping[Symbol.dispose]();
  }
}
