/**
 * What Linux's virtio-msg transport asks, in its order, and every check it makes of an answer or an event
 * (docs/wire.md, section 3.5). It shares no encoding with src/: a failed check throws, as Linux
 * gives the device up.
 */

import type { Bus } from "../../src/bus/bus.ts";
import type { Reactor } from "../../src/linux/reactor.ts";

const SLOT = 64;
const TIMEOUT_MS = 2000;
const RESPONSE = 1;
const CHUNK = SLOT - 20;

/** Message ids (docs/wire.md, section 1.3). */
const Id = {
  INFO: 0x02,
  GET_FEATURES: 0x03,
  SET_FEATURES: 0x04,
  GET_CONFIG: 0x05,
  SET_CONFIG: 0x06,
  GET_STATUS: 0x07,
  SET_STATUS: 0x08,
  GET_QUEUE: 0x09,
  SET_QUEUE: 0x0a,
  RESET_QUEUE: 0x0b,
  EVENT_CONFIG: 0x40,
  EVENT_AVAIL: 0x41,
  EVENT_USED: 0x42,
} as const;

const VERSION_1 = 32;
const ACCESS_PLATFORM = 33;
/** Bits of the ring itself, 28 to 41: those Linux knows are kept, without RING_RESET. */
const RING_BITS = [28, 29, 32, 33, 34, 36];

/** What an answer to GET_VQUEUE says. */
interface QueueAnswer {
  readonly max: number;
  readonly size: number;
  readonly flags: number;
  readonly addresses: readonly bigint[];
}

/** One device, as Linux sees it. */
export class LinuxTransport {
  featureBlocks = 0;
  configSize = 0;
  maxQueues = 0;
  /** The cached status and generation. */
  status = 0;
  generation = 0;
  offered: number[] = [];
  /** Events that were accepted: EVENT_USED's queue, or "config". */
  readonly events: (number | "config")[] = [];
  /** Why events were dropped. */
  readonly dropped: string[] = [];
  readonly #queues = new Map<number, { size: number; addresses: bigint[] }>();
  readonly #responses: Uint8Array[] = [];
  #token = 1;

  /** @param change what becomes of a message of the device before it is looked at */
  constructor(
    readonly reactor: Reactor,
    readonly bus: Bus,
    readonly number: number,
    readonly ringReset = false,
    readonly change: (bytes: Uint8Array) => void = () => {},
  ) {}

  open(): void {
    this.bus.open({
      attached: () => {},
      detached: () => {},
      received: (slot) => this.#received(slot),
    });
  }

  #received(slot: DataView): void {
    const bytes = Uint8Array.from({ length: SLOT }, (_, i) => slot.getUint8(i));
    this.change(bytes);
    if ((bytes[0]! & 3) === RESPONSE) this.#responses.push(bytes);
    else this.#event(bytes);
  }

  // Events: dropped, never answered.
  #event(bytes: Uint8Array): void {
    const view = new DataView(bytes.buffer);
    const size = view.getUint16(6, true);
    const drop = (why: string) => void this.dropped.push(why);
    if ((bytes[0]! & 3) !== 0) return drop("wrong type");
    if (view.getUint16(2, true) !== this.number) return drop("wrong device number");
    if (bytes[1] === Id.EVENT_CONFIG) {
      const [offset, length] = [view.getUint32(16, true), view.getUint32(20, true)];
      if (size !== 24 + length) return drop(`EVENT_CONFIG of ${size} bytes with length ${length}`);
      if (offset + length > this.configSize) return drop("EVENT_CONFIG outside the space");
      this.status = bytes[8]!;
      this.generation = view.getUint32(12, true);
      this.events.push("config");
    } else if (bytes[1] === Id.EVENT_USED) {
      const index = view.getUint32(8, true);
      if (size !== 12) return drop(`EVENT_USED of ${size} bytes`);
      if (!this.#queues.has(index)) return drop(`EVENT_USED of queue ${index}`);
      this.events.push(index);
    } else drop(`event 0x${bytes[1]!.toString(16)}`);
  }

  #send(
    id: number,
    payload: readonly (readonly [at: number, value: number | bigint])[],
    size: number,
  ) {
    const offset = this.bus.claim();
    if (offset < 0) throw new Error("the queue is full");
    const { view } = this.bus;
    for (let i = 0; i < SLOT; i++) view.setUint8(offset + i, 0);
    view.setUint8(offset + 1, id);
    view.setUint16(offset + 2, this.number, true);
    const token = (id & 0x40) !== 0
      ? 0
      : (this.#token = this.#token === 65535 ? 2 : this.#token + 1);
    view.setUint16(offset + 4, token, true);
    view.setUint16(offset + 6, size, true);
    for (const [at, value] of payload) {
      if (typeof value === "bigint") view.setBigUint64(offset + at, value, true);
      else view.setUint32(offset + at, value, true);
    }
    this.bus.send();
    return token;
  }

  /** One request, one answer; the header checks are rule G18's. */
  async #ask(
    id: number,
    payload: readonly (readonly [number, number | bigint])[],
    size: number,
    least: number,
  ): Promise<DataView> {
    const token = this.#send(id, payload, size);
    const endMs = this.reactor.now() + TIMEOUT_MS;
    while (this.#responses.length === 0) {
      if (this.reactor.now() > endMs) throw new Error(`no answer to 0x${id.toString(16)}: F1`);
      await this.reactor.sleep(1);
    }
    const bytes = this.#responses.shift()!;
    const view = new DataView(bytes.buffer);
    const answered = view.getUint16(6, true);
    if ((bytes[0]! & 3) !== RESPONSE) throw new Error("wrong type: F1");
    if (bytes[1] !== id) throw new Error("wrong id: F1");
    if (view.getUint16(2, true) !== this.number) throw new Error("wrong device number: F1");
    if (view.getUint16(4, true) !== token) throw new Error("the bus finds no request: F1");
    if (answered < least || answered > SLOT) throw new Error(`an answer of ${answered} bytes: F1`);
    return view;
  }

  /** Steps 1 and 2 of that section. */
  async probe(): Promise<void> {
    if (SLOT < 52 || SLOT > 65535) throw new Error("bus maximum: F0");
    const info = await this.#ask(Id.INFO, [], 8, 52);
    const word = (at: number) => info.getUint32(at, true);
    this.featureBlocks = word(32);
    this.configSize = word(36);
    this.maxQueues = word(40);
    if (this.featureBlocks > 4) throw new Error("too many feature blocks: E2BIG");
    if (word(44) + word(48) > this.maxQueues) throw new Error("admin queues outside");
    if (word(8) === 0) throw new Error("no device: ENODEV");
  }

  /** Step 3. */
  async reset(): Promise<void> {
    let status = await this.#setStatus(0);
    for (let tries = 0; status !== 0; tries++) {
      if (tries === 1000) throw new Error("the reset does not end: F1");
      await this.reactor.sleep(10);
      status = await this.getStatus();
    }
    this.#queues.clear();
  }

  async getStatus(): Promise<number> {
    const answer = await this.#ask(Id.GET_STATUS, [], 8, 12);
    return this.status = answer.getUint8(8);
  }

  async #setStatus(status: number): Promise<number> {
    const answer = await this.#ask(Id.SET_STATUS, [[8, status]], 12, 12);
    return this.status = answer.getUint8(8);
  }

  /** Step 4: read-modify-write. */
  async addStatus(bits: number): Promise<void> {
    await this.#setStatus(await this.getStatus() | bits);
  }

  /** Step 5, its first half. */
  async getFeatures(): Promise<void> {
    const n = this.featureBlocks;
    if (n === 0) return;
    const answer = await this.#ask(Id.GET_FEATURES, [[8, 0], [12, n]], 16, 16 + 4 * n);
    if (answer.getUint32(8, true) !== 0) throw new Error("features of another block: F1");
    if (answer.getUint32(12, true) !== n) throw new Error("another number of blocks: F1");
    this.offered = Array.from({ length: n }, (_, i) => answer.getUint32(16 + 4 * i, true));
  }

  /** Step 5, its second half; `wanted` are the bits of the device's own driver. */
  async setFeatures(wanted: readonly number[]): Promise<void> {
    const accepted = this.offered.map(() => 0);
    for (const bit of [...RING_BITS, ...wanted, ...(this.ringReset ? [40] : [])]) {
      const word = bit >> 5;
      if (word < accepted.length) accepted[word]! |= this.offered[word]! & (1 << (bit & 31));
    }
    for (const bit of [VERSION_1, ACCESS_PLATFORM]) {
      if ((accepted[bit >> 5] ?? 0) >>> (bit & 31) & 1) continue;
      throw new Error(`the bus demands bit ${bit}: ENODEV`);
    }
    const n = accepted.length;
    const words = accepted.map((word, i) => [16 + 4 * i, word >>> 0] as const);
    await this.#ask(Id.SET_FEATURES, [[8, 0], [12, n], ...words], 16 + 4 * n, 8);
  }

  /** Step 6. */
  async featuresOk(): Promise<void> {
    await this.addStatus(8);
    if ((await this.getStatus() & 8) === 0) throw new Error("FEATURES_OK is not kept");
  }

  /** In parts, again when the generation moves; `onChunk` is called after each part. */
  async readConfig(offset: number, length: number, onChunk = () => {}): Promise<Uint8Array> {
    if (offset + length > this.configSize) throw new Error("out of range: F1 without traffic");
    for (let restarts = 0; restarts <= 5; restarts++) {
      const bytes = new Uint8Array(length);
      let first: number | undefined;
      let torn = false;
      for (let at = 0; at < length && !torn; at += CHUNK) {
        const part = Math.min(CHUNK, length - at);
        const request = [[8, offset + at], [12, part]] as const;
        const answer = await this.#ask(Id.GET_CONFIG, request, 16, 20 + part);
        if (answer.getUint32(12, true) !== offset + at) throw new Error("another offset: F1");
        if (answer.getUint32(16, true) !== part) throw new Error("another length: F1");
        this.generation = answer.getUint32(8, true);
        first ??= this.generation;
        torn = first !== this.generation;
        for (let i = 0; i < part; i++) bytes[at + i] = answer.getUint8(20 + i);
        onChunk();
      }
      if (!torn) return bytes;
    }
    throw new Error("the configuration changes all the time: EAGAIN, F1");
  }

  /** In parts, with generation 0; a refusal is fatal. */
  async writeConfig(offset: number, bytes: Uint8Array): Promise<void> {
    if (offset + bytes.length > this.configSize) throw new Error("out of range");
    for (let at = 0; at < bytes.length; at += CHUNK) {
      const part = bytes.subarray(at, at + CHUNK);
      const words: [number, number][] = [[8, 0], [12, offset + at], [16, part.length]];
      const padded = new Uint8Array(48);
      padded.set(part);
      const view = new DataView(padded.buffer);
      for (let i = 0; i < part.length; i += 4) words.push([20 + i, view.getUint32(i, true)]);
      const answer = await this.#ask(Id.SET_CONFIG, words, 20 + part.length, 20);
      if (answer.getUint32(12, true) !== offset + at) throw new Error("another offset: F1");
      const applied = answer.getUint32(16, true);
      if (applied === 0) throw new Error("not applied: EIO, F1");
      if (applied !== part.length) throw new Error("partly applied: EPROTO, F1");
      this.generation = answer.getUint32(8, true);
    }
  }

  async #getQueue(index: number): Promise<QueueAnswer> {
    const answer = await this.#ask(Id.GET_QUEUE, [[8, index]], 12, 48);
    if (answer.getUint32(8, true) !== index) throw new Error("another queue: F1");
    const [max, size, flags] = [12, 16, 20].map((at) => answer.getUint32(at, true));
    const addresses = [24, 32, 40].map((at) => answer.getBigUint64(at, true));
    if ((flags! & ~1) !== 0) throw new Error("unknown flags: EPROTO");
    if (max === 0 && (size !== 0 || flags !== 0 || addresses.some((a) => a !== 0n))) {
      throw new Error("no queue, and yet something of it: EPROTO");
    }
    if (size! > max!) throw new Error("larger than its maximum: EPROTO");
    if (size === 0 && (flags !== 0 || addresses.some((a) => a !== 0n))) {
      throw new Error("no size, and yet flags or addresses: EPROTO");
    }
    if (size! > 0 && addresses.some((a) => a === 0n)) throw new Error("a size, no address: EPROTO");
    return { max: max!, size: size!, flags: flags!, addresses };
  }

  /** Step 8. */
  async setUpQueue(index: number, addresses: bigint[]): Promise<void> {
    if (index >= this.maxQueues) throw new Error("more queues than there are");
    const before = await this.#getQueue(index);
    if (before.max === 0) throw new Error(`no queue ${index}: ENOENT`);
    if (before.size !== 0 || before.flags !== 0) throw new Error("configured already: EBUSY");
    if ((before.max & (before.max - 1)) !== 0) throw new Error("no power of two");
    const size = before.max;
    const areas = addresses.map((address, i) => [24 + 8 * i, address] as const);
    await this.#ask(Id.SET_QUEUE, [[8, index], [12, 1], [16, size], ...areas], 48, 8);
    const after = await this.#getQueue(index);
    if (after.max !== before.max) throw new Error("another maximum: F1");
    if (after.size !== size) throw new Error("another size: F1");
    if (after.flags !== 1) throw new Error("not enabled: F1");
    if (after.addresses.some((a, i) => a !== addresses[i])) throw new Error("other addresses: F1");
    this.#queues.set(index, { size, addresses });
  }

  /** Tear-down of one queue with RING_RESET. */
  async resetQueue(index: number): Promise<void> {
    await this.#ask(Id.RESET_QUEUE, [[8, index]], 12, 8);
    const { size, flags } = await this.#getQueue(index);
    if (size !== 0 || flags !== 0) throw new Error("not reset: F1");
    this.#queues.delete(index);
  }

  /** EVENT_AVAIL: its next is 0 without NOTIFICATION_DATA. */
  kick(index: number): void {
    this.#send(Id.EVENT_AVAIL, [[8, index], [12, 0]], 16);
  }

  /** Steps 1 to 9, for a driver of a network card; queues 0 and 1, and 2 if `queues` says so. */
  async bringUp(queues = 3): Promise<void> {
    await this.probe();
    await this.reset();
    await this.addStatus(1);
    await this.addStatus(2);
    await this.getFeatures();
    await this.setFeatures([5, 15, 16]);
    await this.featuresOk();
    await this.readConfig(0, Math.min(6, this.configSize));
    for (let index = 0; index < queues; index++) {
      const base = 0x4000_0000n + 0x1_0000n * BigInt(index);
      await this.setUpQueue(index, [base, base + 0x4000n, base + 0x8000n]);
    }
    await this.addStatus(4);
  }

  /** The tear-down: a driver is unbound. */
  async tearDown(): Promise<void> {
    await this.reset();
    if (this.ringReset) {
      for (const index of [0, 1, 2]) await this.resetQueue(index);
      return;
    }
    await this.reset();
  }
}
