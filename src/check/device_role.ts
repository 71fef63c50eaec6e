/**
 * A driver side is asked for its rules by one who plays a device: it answers every request as a good device
 * does, keeps what was said, and a rule changes what it is or what it answers. The rules themselves are in
 * driver_rules.ts.
 */

import { Kind, type Message, QUEUE_ENABLED } from "../message/message.ts";
import { DEVICE_NET, Status } from "../virtio/features.ts";
import { Asker, type Messages } from "./common_rules.ts";
import type { Dialogue, Fields, Heard } from "./dialogue.ts";
import { expect, expectSame } from "./outcome.ts";

/** VERSION_1, ACCESS_PLATFORM, RING_RESET; of a network card MAC, STATUS, MRG_RXBUF; EVENT_IDX. */
const FEATURES = [0x2001_8020, 0x0000_0103];
const VENDOR = 0x1af4;
/** How long a driver may take for a bring-up, and for what it was led to do. */
const PATIENCE_MS = 10_000;
/** How long to look on for what a driver should not do. */
const CALM_MS = 100;
/** How often a condition is looked at while nothing comes. */
const STEP_MS = 10;
/** A MAC address, link up, one queue pair, an MTU of 1500. */
const CONFIG = [0x52, 0x54, 0, 0x12, 0x34, 0x56, 1, 0, 1, 0, 0xdc, 5];

/** See the head of this file. */
export class DeviceRole extends Asker {
  /** Every message that came, but answers, in order. */
  readonly said: Message[] = [];
  /** What the device is; a rule may change it before the bring-up. */
  features: readonly number[] = FEATURES;
  maxSizes: readonly number[] = [256, 1024, 64];
  config: Uint8Array = new Uint8Array(256);
  status = 0;
  generation = 7;
  /** Deals with a message and returns true, or leaves it to the script. */
  override: ((message: Message, heard: Heard) => boolean) | undefined;
  /** SET_VQUEUE of queues that are set up. */
  readonly queues = new Map<number, Message>();

  /** @param talk with the driver's side */
  constructor(rule: string, talk: Dialogue) {
    super(rule, talk);
    this.config.set(CONFIG);
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
      const heard = await this.talk.next(Math.min(leftMs, STEP_MS));
      if (heard === undefined || heard.malformed !== undefined || heard.message.response) continue;
      this.said.push(heard.message);
      if (this.override?.(heard.message, heard) !== true) this.answer(heard.message);
    }
    return true;
  }

  /** Answers until something is so, which must be. */
  async until(condition: () => boolean, otherwise: string): Promise<void> {
    expect(await this.serve(condition, PATIENCE_MS), otherwise);
  }

  /** Answers for a time, in which a driver can do what it should not. */
  async lookOn(forMs = CALM_MS): Promise<void> {
    await this.serve(() => false, forMs);
  }

  /** Was DRIVER_OK written, and nothing behind it that takes it back? */
  get isUp(): boolean {
    return (this.status & Status.DRIVER_OK) !== 0;
  }

  /** Answers until the driver has brought the device up and begun to use it. */
  async bringUp(): Promise<void> {
    await this.until(() => this.isUp, "the driver did not bring the device up");
    await this.lookOn();
  }

  /** Answers until the driver should have given up; it must not have brought the device up. */
  async refuse(): Promise<void> {
    await this.lookOn(PATIENCE_MS);
    expect(!this.isUp, "the driver brought the device up nevertheless");
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
    const token = this.talk.send(Kind.PING, { data });
    const isIt = ({ message: m }: Heard) =>
      m.kind === Kind.PING && m.response && m.token === token && m.data === data;
    await this.until(() => this.talk.heard.some(isIt), "PING was not echoed");
  }

  async unheeded(what: string, messages: Messages): Promise<void> {
    await this.bringUp();
    const { device, heard } = this.talk;
    const from = heard.length + 1;
    this.puts(messages, device);
    await this.ping(1);
    await this.lookOn();
    expectSame(heard.length - from, 0, `messages, besides PING's answer, after ${what}`);
  }

  /** Answers as a good device does, or with other fields. */
  answer(request: Message, other: Fields = {}): void {
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
      deviceId: DEVICE_NET,
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
      ...other,
    });
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
