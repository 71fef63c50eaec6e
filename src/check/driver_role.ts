/**
 * A device side is asked for its rules by one who speaks as a driver does. {@link DriverRole} is what such
 * a one says; the rules themselves are in device_rules.ts.
 */

import { Kind, type Message, QUEUE_ENABLED } from "../message/message.ts";
import { kindName } from "../message/table.ts";
import { RingFeature, Status } from "../virtio/features.ts";
import type { Conversation, Fields, Heard } from "./conversation.ts";
import { Asker, expect, expectSame, require } from "./outcome.ts";

/** ACKNOWLEDGE and DRIVER. */
export const KNOWN: number = Status.ACKNOWLEDGE | Status.DRIVER;
/** And FEATURES_OK and DRIVER_OK. */
export const RUNNING: number = KNOWN | Status.FEATURES_OK | Status.DRIVER_OK;
/** How long a message that should not come is waited for. */
const CALM_MS = 20;
/** Where the three areas of a queue lie, and how far the next queue is. */
const AREA = 0x4000;
const QUEUE_SPAN = 4 * AREA;
/** Entries that fit into an area. */
const QUEUE_SIZE = 64;
/** A number that nobody gives a device. */
export const NOBODY = 0xfffe;
/** What a driver that only looks accepts. */
const ACCEPTED = 1 << (RingFeature.VERSION_1 & 31) | 1 << (RingFeature.ACCESS_PLATFORM & 31) |
  1 << (RingFeature.RING_RESET & 31);

/** See the head of this file. */
export class DriverRole extends Asker {
  /** @param talk with the device's side */
  constructor(rule: string, readonly talk: Conversation) {
    super(rule);
  }

  /** Has the peer the first message that it expects, and an unconfigured device behind it. */
  async begin(): Promise<void> {
    const { deviceId } = await this.info();
    require(deviceId !== 0, `there is no device ${this.talk.device}`);
    if (await this.status() !== 0) await this.setStatus(0);
  }

  /** Asks; the answer. */
  async ask(kind: Kind, fields?: Fields): Promise<Message> {
    return (await this.talk.ask(kind, fields)).message;
  }

  info(): Promise<Message> {
    return this.ask(Kind.GET_DEVICE_INFO);
  }

  async status(): Promise<number> {
    return (await this.ask(Kind.GET_DEVICE_STATUS)).status;
  }

  /** Writes the status; the resulting one. */
  async setStatus(status: number): Promise<number> {
    if (this.talk.codec.answered(Kind.SET_DEVICE_STATUS)) {
      return (await this.ask(Kind.SET_DEVICE_STATUS, { status })).status;
    }
    this.talk.send(Kind.SET_DEVICE_STATUS, { status });
    return this.status();
  }

  /** Feature blocks, as the device answers. */
  blocks(index: number, count: number): Promise<Message> {
    return this.ask(Kind.GET_DEVICE_FEATURES, { index, count });
  }

  /** Blocks 0 and 1 of what is offered. */
  async features(): Promise<readonly number[]> {
    const { words } = await this.blocks(0, 2);
    return [...words.subarray(0, 2)];
  }

  async setFeatures(words: readonly number[]): Promise<void> {
    await this.ask(Kind.SET_DRIVER_FEATURES, { count: words.length, words });
  }

  /** Up to FEATURES_OK. */
  async negotiate(): Promise<void> {
    await this.setStatus(KNOWN);
    const [, offered] = await this.features();
    await this.setFeatures([0, (offered! & ACCEPTED) >>> 0]);
    const status = await this.setStatus(KNOWN | Status.FEATURES_OK);
    expect(
      (status & Status.FEATURES_OK) !== 0,
      "FEATURES_OK is refused with nothing but the least",
    );
  }

  /** Up to DRIVER_OK, without queues. */
  async start(): Promise<void> {
    await this.negotiate();
    await this.setStatus(RUNNING);
  }

  /** What SET_VQUEUE says of a queue. */
  ring(index: number): Fields {
    const descriptorAddress = this.talk.memory.at + index * QUEUE_SPAN;
    const [driverAddress, deviceAddress] = [descriptorAddress + AREA, descriptorAddress + 2 * AREA];
    const at = { descriptorAddress, driverAddress, deviceAddress };
    return { index, flags: QUEUE_ENABLED, queueSize: QUEUE_SIZE, ...at };
  }

  /** SET_VQUEUE, with what a rule wants otherwise. */
  async setQueue(index: number, other: Fields = {}): Promise<void> {
    const fields = { ...this.ring(index), ...other };
    if (this.talk.codec.answered(Kind.SET_VQUEUE)) await this.ask(Kind.SET_VQUEUE, fields);
    else this.talk.send(Kind.SET_VQUEUE, fields);
  }

  /** What GET_VQUEUE says. */
  async queue(index: number) {
    const m = await this.ask(Kind.GET_VQUEUE, { index });
    expectSame(m.index, index, "the queue that GET_VQUEUE answers for");
    const addresses = [m.descriptorAddress, m.driverAddress, m.deviceAddress];
    return { maxSize: m.maxSize, size: m.queueSize, flags: m.flags, addresses };
  }

  /** A queue must read as not set up. */
  async expectUnset(index: number, when: string): Promise<void> {
    const { size, flags, addresses } = await this.queue(index);
    expectSame([size, flags, ...addresses], [0, 0, 0, 0, 0], `queue ${index} ${when}`);
  }

  /** A queue must read as {@link setQueue} left it. */
  async expectSet(index: number, when: string): Promise<void> {
    const { size, flags, addresses } = await this.queue(index);
    const { descriptorAddress, driverAddress, deviceAddress } = this.ring(index);
    const areas = [descriptorAddress, driverAddress, deviceAddress];
    const is = [size, flags, ...addresses];
    expectSame(is, [QUEUE_SIZE, QUEUE_ENABLED, ...areas], `queue ${index} ${when}`);
  }

  /** Configuration bytes, as many as one message holds. */
  config(offset: number, length: number): Promise<Message> {
    return this.ask(Kind.GET_CONFIG, { offset, length });
  }

  /** SET_CONFIG. */
  writeConfig(offset: number, bytes: ArrayLike<number>, generation: number): Promise<Message> {
    return this.ask(Kind.SET_CONFIG, { generation, offset, length: bytes.length, bytes });
  }

  /** The next event of that kind; others are passed over. */
  async event(kind: Kind): Promise<Heard> {
    for (;;) {
      const heard = await this.talk.next();
      expect(heard !== undefined, `no ${kindName(kind)} came`);
      if (heard.message.kind === kind && heard.malformed === undefined) return heard;
    }
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

  /** One request of every kind; their answers. */
  async tour(): Promise<readonly Heard[]> {
    const heard: Heard[] = [];
    for (const kind of REQUESTS) heard.push(await this.talk.ask(kind));
    return heard;
  }
}

/** The requests of the transport. */
export const REQUESTS: readonly Kind[] = [
  Kind.GET_DEVICE_INFO,
  Kind.GET_DEVICE_FEATURES,
  Kind.SET_DRIVER_FEATURES,
  Kind.GET_CONFIG,
  Kind.SET_CONFIG,
  Kind.GET_DEVICE_STATUS,
  Kind.SET_DEVICE_STATUS,
  Kind.GET_VQUEUE,
  Kind.SET_VQUEUE,
  Kind.RESET_VQUEUE,
  Kind.GET_SHM,
];
