/**
 * A device side is asked for its rules by one who speaks as a driver does. {@link DriverRole} is what such
 * a one says; the rules themselves are in device_rules.ts.
 */

import { Kind, type Message, QUEUE_ENABLED } from "../message/message.ts";
import { isBusMessage, kindName } from "../message/table.ts";
import { RingFeature, Status } from "../virtio/features.ts";
import { Asker, type Messages } from "./common_rules.ts";
import type { Fields, Heard } from "./dialogue.ts";
import { expect, expectSame, require } from "./outcome.ts";

/** ACKNOWLEDGE and DRIVER. */
export const KNOWN: number = Status.ACKNOWLEDGE | Status.DRIVER;
/** And FEATURES_OK. */
export const NEARLY: number = KNOWN | Status.FEATURES_OK;
/** And DRIVER_OK. */
export const RUNNING: number = NEARLY | Status.DRIVER_OK;
/** How long a message that should not come is waited for. */
const CALM_MS = 20;
/** Where the three areas of a queue lie, and how far the next queue is. */
const AREA = 0x4000;
const QUEUE_SPAN = 4 * AREA;
/** Entries that fit into an area. */
const QUEUE_SIZE = 64;
/** A number that nobody gives a device. */
export const NOBODY = 0xfffe;
/** RING_RESET in block 1. */
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

/** See the head of this file. */
export class DriverRole extends Asker {
  /** Has the peer the first message that it expects, and an unconfigured device behind it. */
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

  /**
   * Asks, and the answer must say this; the answer.
   *
   * @param rules by which it must; by any, if none is given
   * @param when what was before, for a reason
   */
  async must(
    kind: Kind,
    fields: Fields,
    says: Fields,
    rules = this.rule,
    when = "",
  ): Promise<Message> {
    const answer = await this.ask(kind, fields);
    for (const [name, wanted] of Object.entries(says)) {
      const is = answer[name as keyof Fields];
      const what = `${name} in the answer to ${kindName(kind)} ${JSON.stringify(fields)}${when}`;
      if (typeof wanted === "number") this.claim(rules, is, wanted, what);
      else {this.claim(
          rules,
          Array.from(is as typeof wanted, Number).slice(0, wanted.length),
          Array.from(wanted),
          what,
        );}
    }
    return answer;
  }

  /** GET_VQUEUE must show this of a queue, by these rules. */
  shows(index: number, fields: Fields = UNSET, rules?: string): Promise<Message> {
    return this.must(Kind.GET_VQUEUE, { index }, { ...fields, index }, rules);
  }

  /** The status. */
  async status(): Promise<number> {
    return (await this.ask(Kind.GET_DEVICE_STATUS)).status;
  }

  /** Writes the status; the resulting one. */
  async setStatus(status: number): Promise<number> {
    return (await this.ask(Kind.SET_DEVICE_STATUS, { status })).status;
  }

  /** Blocks 0 and 1 of what is offered. */
  async features(): Promise<readonly number[]> {
    const { words } = await this.ask(Kind.GET_DEVICE_FEATURES, { count: 2 });
    return [...words.subarray(0, 2)];
  }

  /** Blocks of what is accepted. */
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
    await this.ask(Kind.SET_VQUEUE, { ...this.ring(index), ...other });
  }

  /** Configuration bytes, as many as one message holds. */
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

  async unheeded(what: string, messages: Messages, device = this.talk.device): Promise<void> {
    const { heard } = this.talk;
    const [status, from] = [await this.status(), heard.length + 1];
    this.puts(messages, device);
    const events = await this.calm(what);
    expectSame(heard.length - from - events.length, 0, `answers to ${what}`);
    expectSame(await this.status(), status, `the status after ${what}`);
  }

  async ping(data: number): Promise<void> {
    await this.must(Kind.PING, { data }, { data });
  }

  /** One request of every kind. */
  async converse(): Promise<void> {
    for (const kind of this.requests) await this.talk.ask(kind);
  }

  /** What the transport of this dialect answers. */
  get requests(): readonly Kind[] {
    const { codec } = this.talk;
    return Object.values(Kind).filter((kind) =>
      codec.answered(kind) && !isBusMessage(kind) && kind !== Kind.IOMMU_TRANSLATE
    );
  }
}
