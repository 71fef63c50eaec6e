/**
 * The kernel's transport for one device: brings it up request by request in the order of wire document 5N.5, and
 * checks each answer as that table says, or more strictly.
 */

import { bytesOf, type Frame, numberOf, wideOf, wordsOf } from "./frames.ts";
import { Pool } from "./pool.ts";
import type { EventListener, Session, SessionEnded } from "./session.ts";
import { type Elements, SplitQueue } from "./split_queue.ts";
import type { Buffer } from "./pool.ts";
import { PAGE, type Window } from "./windows.ts";

export const EVENT_IDX = 1n << 29n;
export const INDIRECT_DESC = 1n << 28n;
const VERSION_1 = 1n << 32n;
const ACCESS_PLATFORM = 1n << 33n;
/** Numbers with the queue in the notification (38 says more of it), configuration data in it. */
const NOT_OFFERED = 1n << 39n;
/** Bytes of configuration in one answer. */
const MAX_CONFIG = 108;
const MAX_BLOCKS = 4;
/** What a device on the bridge should offer at most: each receive buffer is a page of the pool. */
const MAX_QUEUE = 256;

/** What differs between devices. */
export interface Plan {
  readonly deviceId: number;
  /** Feature bits that the driver knows. */
  readonly features: bigint;
  readonly queues: readonly number[];
  /** Memory for the rings of all queues, if not a window each. */
  readonly ringMemory?: Window;
  readonly pool?: Pool;
}

function assertIs(condition: boolean, what: string, frame: Frame): void {
  if (condition) return;
  const show = (_: string, value: unknown) => typeof value === "bigint" ? `${value}` : value;
  throw new Error(`${what}: ${JSON.stringify(frame, show)}`);
}

export class Driver implements EventListener {
  pool: Pool;
  features = 0n;
  configSize = 0;
  generation = 0;
  /** By index. */
  readonly queues = new Map<number, SplitQueue>();
  /** EVENT_CONFIG that came. */
  readonly configEvents: Frame[] = [];
  usedEvents = 0;
  #ended: SessionEnded | undefined;
  /** Called when something was used. */
  onUsed: ((index: number) => void) | undefined;

  constructor(readonly session: Session, readonly dev: number, readonly plan: Plan) {
    this.pool = plan.pool ?? new Pool(session);
  }

  ask(
    name: string,
    fields: Record<string, number | bigint | Uint8Array | number[]> = {},
  ): Promise<Frame> {
    return this.session.request(this.dev, name, fields);
  }

  async bringUp(): Promise<void> {
    const blocks = await this.#identify();
    if (this.plan.pool === undefined) await this.pool.open();
    this.session.listeners.set(this.dev, this);
    this.#ended = undefined;
    await this.setStatus(0);
    await this.#addStatus(0, 0x01);
    await this.#addStatus(0x01, 0x03);
    await this.#negotiate(blocks);
    await this.#addStatus(0x03, 0x0b);
    await this.#status(0x0b);
    for (const index of this.plan.queues) await this.#openQueue(index);
    await this.#addStatus(0x0b, 0x0f);
  }

  async #identify(): Promise<number> {
    const info = await this.ask("GET_DEVICE_INFO");
    const blocks = numberOf(info, "num_feature_blocks");
    assertIs(numberOf(info, "device_id") === this.plan.deviceId, "another device", info);
    assertIs(blocks >= 2 && blocks <= MAX_BLOCKS, "feature blocks", info);
    const queues = numberOf(info, "max_virtqueues");
    const admin = numberOf(info, "admin_vq_start") + numberOf(info, "admin_vq_count");
    assertIs(queues >= 1 && queues <= 65536 && admin <= queues, "queues", info);
    this.configSize = numberOf(info, "config_size");
    return blocks;
  }

  async setStatus(status: number): Promise<void> {
    const answer = await this.ask("SET_DEVICE_STATUS", { status });
    let shown = numberOf(answer, "status");
    while (status === 0 && shown !== 0) {
      await new Promise((resolve) => setTimeout(resolve, 10));
      shown = numberOf(await this.ask("GET_DEVICE_STATUS"), "status");
    }
    assertIs(shown === status, `status ${status} was written`, answer);
  }

  async #status(expected: number): Promise<void> {
    const answer = await this.ask("GET_DEVICE_STATUS");
    assertIs(numberOf(answer, "status") === expected, `status should be ${expected}`, answer);
  }

  async #addStatus(before: number, after: number): Promise<void> {
    await this.#status(before);
    await this.setStatus(after);
  }

  async #negotiate(count: number): Promise<void> {
    const answer = await this.ask("GET_DEVICE_FEATURES", { first: 0, count });
    const offered = wordsOf(answer, "blocks")
      .reduce((all, block, i) => all | BigInt(block) << BigInt(32 * i), 0n);
    const isRight = numberOf(answer, "first") === 0 && numberOf(answer, "count") === count;
    assertIs(isRight, "other blocks than asked for", answer);
    const must = VERSION_1 | ACCESS_PLATFORM;
    assertIs((offered & must) === must, "VERSION_1 and ACCESS_PLATFORM are not offered", answer);
    assertIs((offered & NOT_OFFERED) === 0n, "NOTIF_CONFIG_DATA is offered", answer);
    this.features = offered & (must | this.plan.features);
    const blocks = Array.from(
      { length: count },
      (_, i) => Number(this.features >> BigInt(32 * i) & 0xffff_ffffn),
    );
    await this.ask("SET_DRIVER_FEATURES", { first: 0, count, blocks });
  }

  /** Bytes of the configuration, `chunk` at a time. */
  async readConfig(
    offset: number,
    length: number,
    chunk = MAX_CONFIG,
  ): Promise<Uint8Array<ArrayBuffer>> {
    const bytes = new Uint8Array(length);
    for (let done = 0; done < length;) {
      const count = Math.min(chunk, length - done);
      const answer = await this.ask("GET_CONFIG", { offset: offset + done, length: count });
      const isRight = numberOf(answer, "offset") === offset + done &&
        numberOf(answer, "length") === count;
      assertIs(isRight, `${count} bytes at ${offset + done} were asked for`, answer);
      bytes.set(bytesOf(answer, "data"), done);
      this.generation = numberOf(answer, "generation");
      done += count;
    }
    return bytes;
  }

  async #openQueue(index: number): Promise<void> {
    const none = await this.ask("GET_VQUEUE", { index });
    const size = numberOf(none, "max_size");
    const isClear = numberOf(none, "cur_size") === 0 && numberOf(none, "flags") === 0 &&
      ["desc", "driver", "device"].every((field) => wideOf(none, field) === 0n);
    assertIs(numberOf(none, "index") === index && isClear, "a queue that is not clear", none);
    assertIs(size > 0 && size <= MAX_QUEUE && (size & (size - 1)) === 0, "a queue's size", none);
    const { ringMemory } = this.plan;
    const slice = ringMemory && { ...ringMemory, ...this.#slice(ringMemory, index) };
    const queue = await SplitQueue.make(
      this.session,
      size,
      (this.features & EVENT_IDX) !== 0n,
      slice,
    );
    const desc = BigInt(queue.descriptors);
    const driver = BigInt(queue.available);
    const device = BigInt(queue.used);
    await this.ask("SET_VQUEUE", { index, flags: 1, size, desc, driver, device });
    const set = await this.ask("GET_VQUEUE", { index });
    const isSet = numberOf(set, "max_size") === size && numberOf(set, "cur_size") === size &&
      numberOf(set, "flags") === 1 && wideOf(set, "desc") === desc &&
      wideOf(set, "driver") === driver && wideOf(set, "device") === device;
    assertIs(isSet, `queue ${index} is not as it was set`, set);
    this.queues.set(index, queue);
  }

  /** The part of shared ring memory that is this queue's: four pages, by device and queue. */
  #slice({ busAddr }: Window, index: number): { busAddr: number; length: number } {
    return { busAddr: busAddr + (this.dev * 4 + index) * 4 * PAGE, length: 4 * PAGE };
  }

  queue(index: number): SplitQueue {
    return this.queues.get(index)!;
  }

  /** Shows what was offered, and tells the device if it wants to know. */
  kick(index: number): void {
    if (this.queue(index).publish()) this.notify(index);
  }

  /** Tells the device in any case. */
  notify(index: number): void {
    this.session.send("EVENT_AVAIL", this.dev, 0, { index, word: 0 });
  }

  /** One buffer there and back. */
  async transfer(index: number, elements: Elements, table?: Buffer): Promise<number> {
    if (this.#ended !== undefined) throw this.#ended;
    const done = this.queue(index).add(elements, table);
    this.kick(index);
    return await this.session.owner.settled(done, `device ${this.dev} uses a buffer`);
  }

  event(frame: Frame): string | undefined {
    if (frame.name === "EVENT_CONFIG") {
      const end = numberOf(frame, "offset") + numberOf(frame, "length");
      if (end > this.configSize) return "EVENT_CONFIG beyond the configuration";
      this.generation = numberOf(frame, "generation");
      this.configEvents.push(frame);
      return undefined;
    }
    const index = numberOf(frame, "index");
    const queue = this.queues.get(index);
    if (queue === undefined) return "EVENT_USED of a queue that was not set";
    this.usedEvents++;
    const wrong = queue.takeUsed();
    if (wrong === undefined) this.onUsed?.(index);
    return wrong;
  }

  ended(error: SessionEnded): void {
    this.#ended = error;
    for (const queue of this.queues.values()) queue.ended(error);
  }

  /** What the kernel does when a driver is unbound: the status twice, then the rings' windows. */
  async unbind(): Promise<void> {
    await this.setStatus(0);
    await this.setStatus(0);
    for (const queue of this.queues.values()) {
      queue.ended(new Error("unbound"));
      if (this.session.live.has(queue.rings)) await this.session.del(queue.rings);
    }
    this.queues.clear();
    if (this.plan.pool !== undefined) return;
    for (const chunk of this.pool.windows) {
      if (this.session.live.has(chunk)) await this.session.del(chunk);
    }
    this.pool = new Pool(this.session);
  }
}
