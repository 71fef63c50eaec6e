/**
 * Who asks a peer for a rule. A device side is asked by one that speaks as a driver does ({@link DriverRole}), a
 * driver side by one that plays its device ({@link DeviceRole}): it answers every request as a good device does,
 * keeps what was said, and a rule changes what it is or what it answers.
 */

import { Kind, type Message, QUEUE_ENABLED } from "../message/message.ts";
import { kindName } from "../message/table.ts";
import { RingFeature, Status } from "../virtio/features.ts";
import type { Dialogue, Fields, Heard, Spoil } from "./dialogue.ts";
import { expect, expectSame, require } from "./outcome.ts";
import { PLAYED, type Played } from "./played.ts";

/** Who asks for one rule, in either role, by a body that may cover several. */
export abstract class Asker {
  /** What was before, to be added to the reasons of claims. */
  before = "";

  /** @param rule the number of the one that is asked for */
  constructor(readonly rule: string, readonly talk: Dialogue) {}

  /** Makes sure that the peer is in the state that a body finds. */
  async begin(): Promise<void> {}

  /** Leads the peer to say what such a peer says. */
  abstract converse(): Promise<void>;
  /** Sends messages that the peer must not answer, and that must not change anything. */
  abstract unheeded(what: string, messages: readonly (readonly number[])[]): Promise<void>;
  /** A PING must be answered. */
  abstract ping(data: number): Promise<void>;

  /** The two bytes of the device number. */
  get number(): readonly number[] {
    return [this.talk.device & 0xff, this.talk.device >> 8];
  }

  /** Two values that must be the same by these rules, if the one that is asked for is among them. */
  claim(rules: string, actual: unknown, expected: unknown, what: string): void {
    if (rules.split(" ").includes(this.rule)) expectSame(actual, expected, what + this.before);
  }
}

/** ACKNOWLEDGE and DRIVER. */
export const KNOWN: number = Status.ACKNOWLEDGE | Status.DRIVER;
/** And FEATURES_OK. */
export const NEARLY: number = KNOWN | Status.FEATURES_OK;
/** And DRIVER_OK. */
export const RUNNING: number = NEARLY | Status.DRIVER_OK;
const CALM_MS = 20;
/** Where the three areas of a queue lie, and how far the next queue is. */
const AREA = 0x4000;
const QUEUE_SPAN = 4 * AREA;
const QUEUE_SIZE = 64;
/** Of the memory in which queues lie: of two, as no rule asks for more. */
export const RINGS_SIZE: number = 2 * QUEUE_SPAN;
/** A number that nobody gives a device. */
export const NOBODY = 0xfffe;
export const RING_RESET: number = 1 << (RingFeature.RING_RESET & 31);
/** What a driver that only looks accepts of block 1. */
const ACCEPTED = 1 << (RingFeature.VERSION_1 & 31) | 1 << (RingFeature.ACCESS_PLATFORM & 31) |
  RING_RESET;
/** What GET_VQUEUE shows of a queue that is not set up. */
export const UNSET: Fields = {
  queueSize: 0,
  flags: 0,
  descriptorAddress: 0,
  driverAddress: 0,
  deviceAddress: 0,
};

export class DriverRole extends Asker {
  /** The peer gets the first message that it expects, and its device is unconfigured then. */
  override async begin(): Promise<void> {
    const { deviceId } = await this.ask(Kind.GET_DEVICE_INFO);
    require(deviceId !== 0, `there is no device ${this.talk.device}`);
    if (await this.status() !== 0) await this.setStatus(0);
  }

  /** Asks; the answer. What a dialect does not answer is followed by a request for the status, and that is. */
  async ask(kind: Kind, fields?: Fields): Promise<Message> {
    if (this.talk.codec.answered(kind)) return (await this.talk.ask(kind, fields)).message;
    this.talk.send(kind, fields);
    return await this.ask(Kind.GET_DEVICE_STATUS);
  }

  /** Asks, and the answer must say this, by these rules (by any, if none is given); the answer. */
  async must(kind: Kind, fields: Fields, says: Fields, rules = this.rule): Promise<Message> {
    const answer = await this.ask(kind, fields);
    for (const [name, wanted] of Object.entries(says)) {
      const is = answer[name as keyof Fields];
      const what = `${name} in the answer to ${kindName(kind)} ${JSON.stringify(fields)}`;
      // Of words and bytes as many as are wanted.
      const { length } = wanted as ArrayLike<number>;
      const plain = (value: unknown) =>
        length === undefined ? value : Array.from(value as Uint8Array).slice(0, length);
      this.claim(rules, plain(is), plain(wanted), what);
    }
    return answer;
  }

  shows(index: number, fields: Fields = UNSET, rules?: string): Promise<Message> {
    return this.must(Kind.GET_VQUEUE, { index }, { ...fields, index }, rules);
  }

  async status(): Promise<number> {
    return (await this.ask(Kind.GET_DEVICE_STATUS)).status;
  }

  async setStatus(status: number): Promise<number> {
    return (await this.ask(Kind.SET_DEVICE_STATUS, { status })).status;
  }

  /** Blocks 0 and 1 of what is offered. */
  async features(): Promise<readonly number[]> {
    const { words } = await this.ask(Kind.GET_DEVICE_FEATURES, { count: 2 });
    return [...words.subarray(0, 2)];
  }

  async setFeatures(words: readonly number[], index = 0): Promise<void> {
    await this.ask(Kind.SET_DRIVER_FEATURES, { index, count: words.length, words });
  }

  /** Up to FEATURES_OK, with the least of features, or less; they are returned. */
  async negotiate(without = 0): Promise<readonly number[]> {
    await this.setStatus(KNOWN);
    const [, offered] = await this.features();
    const words = [0, (offered! & ACCEPTED & ~without) >>> 0];
    await this.setFeatures(words);
    const isTaken = (await this.setStatus(NEARLY) & Status.FEATURES_OK) !== 0;
    expect(isTaken, "FEATURES_OK is refused with nothing but the least");
    return words;
  }

  async start(): Promise<void> {
    await this.negotiate();
    await this.setStatus(RUNNING);
  }

  /** What SET_VQUEUE says of a queue. */
  ring(index: number): Fields {
    const { memory } = this.talk;
    require(memory !== undefined, "queues need memory that both sides know");
    const descriptorAddress = memory.at + index * QUEUE_SPAN;
    const [driverAddress, deviceAddress] = [descriptorAddress + AREA, descriptorAddress + 2 * AREA];
    const at = { descriptorAddress, driverAddress, deviceAddress };
    return { index, flags: QUEUE_ENABLED, queueSize: QUEUE_SIZE, ...at };
  }

  async setQueue(index: number, other: Fields = {}): Promise<void> {
    await this.ask(Kind.SET_VQUEUE, { ...this.ring(index), ...other });
  }

  config(offset: number, length: number): Promise<Message> {
    return this.ask(Kind.GET_CONFIG, { offset, length });
  }

  /**
   * What has been sent is worked on, and nobody answered it: a status is asked, and everything else that
   * came until some time after its answer must be an event. These are returned.
   */
  async calm(after: string): Promise<readonly Heard[]> {
    await this.status();
    const events: Heard[] = [];
    for (let heard; (heard = await this.talk.next(CALM_MS)) !== undefined;) {
      expect(!heard.message.response, `${after} brought ${kindName(heard.message.kind)}'s answer`);
      events.push(heard);
    }
    return events;
  }

  async unheeded(what: string, messages: readonly (readonly number[])[]): Promise<void> {
    const { heard } = this.talk;
    const [status, from] = [await this.status(), heard.length + 1];
    for (const bytes of messages) this.talk.put(this.talk.framed(bytes));
    const events = await this.calm(what);
    expectSame(heard.length - from - events.length, 0, `answers to ${what}`);
    expectSame(await this.status(), status, `the status after ${what}`);
  }

  async ping(data: number): Promise<void> {
    await this.must(Kind.PING, { data }, { data });
  }

  /** One request of every kind, and one answer to each. */
  async converse(): Promise<void> {
    for (const kind of this.requests) await this.talk.ask(kind);
    await this.calm("one request of every kind");
  }

  get requests(): readonly Kind[] {
    const { codec } = this.talk;
    return Object.values(Kind).filter((kind) => kind <= Kind.GET_SHM && codec.answered(kind));
  }
}

/** Bytes of a configuration that is played, of which most are 0. */
const CONFIG_SIZE = 256;
const VENDOR = 0x1af4;
const PATIENCE_MS = 10_000;
const SPELL_MS = 100;
const STEP_MS = 10;

export class DeviceRole extends Asker {
  /** Every message that came, but answers, in order. */
  readonly said: Message[] = [];
  /** What the device is; a rule may change it before the bring-up. */
  features: readonly number[];
  maxSizes: readonly number[];
  config: Uint8Array;
  status = 0;
  generation = 7;
  /** Deals with a message and returns true, or leaves it to the script. */
  override: ((message: Message, heard: Heard) => boolean) | undefined;
  /** SET_VQUEUE of queues that are set up. */
  readonly queues = new Map<number, Message>();
  /** What is to be done while serving, and when. */
  readonly #due: { readonly atMs: number; readonly act: () => void }[] = [];

  constructor(rule: string, talk: Dialogue, readonly played: Played = PLAYED.net) {
    super(rule, talk);
    const { features, maxSizes, config } = played;
    this.features = features;
    this.maxSizes = maxSizes;
    const length = config.length > 0 ? CONFIG_SIZE : 0;
    this.config = Uint8Array.from({ length }, (_, i) => config[i] ?? 0);
  }

  /** Does something some time later, within {@link serve}: a peer that is gone then fails its rule only. */
  later(afterMs: number, act: () => void): void {
    this.#due.push({ atMs: this.talk.reactor.now() + afterMs, act });
  }

  /** What was said of these kinds, from some message on. */
  of(kinds: Kind | readonly Kind[], from = 0): Message[] {
    const wanted = [kinds].flat();
    return this.said.slice(from).filter(({ kind }) => wanted.includes(kind));
  }

  /** Where the first message of that kind is in the order; -1 without one. */
  at(kind: Kind, which: (m: Message) => boolean = () => true): number {
    return this.said.findIndex((message) => message.kind === kind && which(message));
  }

  /** Answers until something is so, or the time is over; whether it is so. */
  async serve(until: () => boolean, withinMs: number): Promise<boolean> {
    const { reactor } = this.talk;
    const endMs = reactor.now() + withinMs;
    while (!until()) {
      const leftMs = endMs - reactor.now();
      if (leftMs <= 0) return false;
      const next = Math.min(...this.#due.map(({ atMs }) => atMs)) - reactor.now();
      const heard = await this.talk.next(Math.max(Math.min(leftMs, STEP_MS, next), 0));
      for (let i = 0; i < this.#due.length;) {
        if (this.#due[i]!.atMs > reactor.now()) i++;
        else this.#due.splice(i, 1)[0]!.act();
      }
      if (heard === undefined || heard.malformed !== undefined || heard.message.response) continue;
      this.said.push(heard.message);
      if (this.override?.(heard.message, heard) !== true) this.answer(heard.message);
    }
    return true;
  }

  async until(condition: () => boolean, otherwise: string): Promise<void> {
    expect(await this.serve(condition, PATIENCE_MS), otherwise);
  }

  /** Answers for a time, in which a driver can do what it should not. */
  async lookOn(forMs = SPELL_MS): Promise<void> {
    await this.serve(() => false, forMs);
  }

  /** Answers until the driver has brought the device up and begun to use it. */
  async bringUp(): Promise<void> {
    const isUp = () => (this.status & Status.DRIVER_OK) !== 0;
    await this.until(isUp, "the driver did not bring the device up");
    await this.lookOn();
  }

  /** Answers until the driver should have given up; it must not have brought the device up. */
  async refuse(): Promise<void> {
    await this.lookOn(PATIENCE_MS);
    expect((this.status & Status.DRIVER_OK) === 0, "the driver brought the device up nevertheless");
  }

  /** The device says this of its status and its configuration, and a driver has time for it. */
  async announce(fields: Fields): Promise<void> {
    const { status, generation } = this;
    this.talk.send(Kind.EVENT_CONFIG, { status, generation, ...fields });
    await this.lookOn();
  }

  converse(): Promise<void> {
    return this.bringUp();
  }

  async ping(data: number): Promise<void> {
    // What is sent to a driver before it has begun may be lost.
    await this.until(() => this.said.length > 0, "the driver does not begin");
    const { heard } = this.talk;
    const from = heard.length;
    const token = this.talk.send(Kind.PING, { data });
    const isIt = ({ message: m }: Heard) =>
      m.kind === Kind.PING && m.response && m.token === token && m.data === data;
    await this.until(() => heard.slice(from).some(isIt), "PING was not echoed");
  }

  async unheeded(what: string, messages: readonly (readonly number[])[]): Promise<void> {
    await this.bringUp();
    const { heard } = this.talk;
    const from = heard.length + 1;
    for (const bytes of messages) this.talk.put(this.talk.framed(bytes));
    await this.ping(1);
    await this.lookOn();
    expectSame(heard.length - from, 0, `messages, besides PING's answer, after ${what}`);
  }

  /** Answers as a good device does, or with other fields, or with bytes that are spoilt. */
  answer(request: Message, other: Fields = {}, spoil?: Spoil): void {
    const { kind, index, count, offset, length, data, bytes } = request;
    if (kind === Kind.SET_DEVICE_STATUS) {
      this.status = request.status;
      if (this.status === 0) this.queues.clear();
    }
    if (kind === Kind.SET_VQUEUE) this.queues.set(index, request);
    if (kind === Kind.RESET_VQUEUE) this.queues.delete(index);
    const { codec } = this.talk;
    if (!codec.answered(kind)) return;
    const { configBytes, featureBlocks } = codec.limits;
    const fits = length <= configBytes && count <= featureBlocks;
    expect(fits, "the driver asks for more than an answer holds");
    const { generation, status } = this;
    const info = {
      deviceId: this.played.deviceId,
      vendorId: VENDOR,
      featureBlocks: this.features.length,
      configSize: this.config.length,
      maxQueues: this.maxSizes.length,
    };
    this.talk.reply(request, {
      ...{ index, count, offset, length, data, generation, status },
      words: this.features.slice(index, index + count),
      bytes: kind === Kind.SET_CONFIG ? bytes : this.config.subarray(offset, offset + length),
      ...(kind === Kind.GET_DEVICE_INFO ? info : {}),
      ...(kind === Kind.GET_VQUEUE ? this.#queue(index) : {}),
      ...(kind === Kind.GET_DEVICES ? this.#devices(request) : {}),
      ...other,
    }, spoil);
  }

  /** A bitmap with this device, if it is in the window. */
  #devices({ offset, count: asked }: Message): Fields {
    const { device, codec: { limits } } = this.talk;
    const count = Math.min(asked, limits.deviceBits);
    const bytes = new Uint8Array(Math.ceil(count / 8));
    const bit = device - offset;
    if (bit >= 0 && bit < count) bytes[bit >> 3] = 1 << (bit & 7);
    return { count, bytes, nextOffset: bit >= count ? offset + count : 0 };
  }

  #queue(index: number): Fields {
    const maxSize = this.maxSizes[index] ?? 0;
    const set = this.queues.get(index);
    if (set === undefined) return { maxSize };
    const { queueSize, descriptorAddress, driverAddress, deviceAddress } = set;
    const at = { descriptorAddress, driverAddress, deviceAddress };
    return { maxSize, queueSize, flags: QUEUE_ENABLED, ...at };
  }
}
