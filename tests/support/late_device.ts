/** A virtio device that answers when the test says so. */

import { assert } from "@std/assert";
import type { Deferred, Reactor } from "../../src/linux/reactor.ts";
import type {
  Answer,
  DeviceHost,
  DeviceModel,
  MemoryRegion,
  QueueSetup,
} from "../../src/virtio/device.ts";
import { FAKE_FEATURES, FakeDevice } from "./fake_device.ts";

/** See the head of this file. What it would answer is a {@link FakeDevice}'s, one that offers RING_RESET. */
export class LateDevice implements DeviceModel {
  readonly fake: FakeDevice = new FakeDevice({ features: [FAKE_FEATURES[0]!, 0x101] });
  readonly deviceId: number = this.fake.deviceId;
  readonly vendorId: number = this.fake.vendorId;
  readonly features: Uint32Array = this.fake.features;
  readonly configSize: number = this.fake.configSize;
  readonly queueCount: number = this.fake.queueCount;
  readonly maxQueueSize: number = this.fake.maxQueueSize;
  /** Answers later; otherwise at once. */
  isLate = false;
  /** What it was asked while late, in order, each with what it is about: "start 0", "read 4+2". */
  readonly asked: string[] = [];
  /** Why the next memory cannot be used. */
  memoryProblem: string | undefined;
  #open: { deferred: Deferred<unknown>; value: () => unknown } | undefined;

  constructor(readonly reactor: Reactor) {}

  get host(): DeviceHost {
    return this.fake.host;
  }

  /** Is there a question that was not answered? */
  get isAsked(): boolean {
    return this.#open !== undefined;
  }

  /** Lets it answer what it was asked last. */
  answer(): void {
    const { deferred, value } = this.#take();
    deferred.resolve(value());
  }

  /** Lets it fail. */
  fail(reason: string): void {
    this.#take().deferred.reject(new Error(reason));
  }

  #take() {
    const open = this.#open;
    if (open === undefined) throw new Error("it was asked nothing");
    this.#open = undefined;
    return open;
  }

  #later<T>(question: string, value: () => T): Answer<T> {
    if (!this.isLate) return value();
    assert(
      this.#open === undefined,
      `asked "${question}" before it answered "${this.asked.at(-1)}"`,
    );
    this.asked.push(question);
    const deferred = this.reactor.defer<T>();
    this.#open = { deferred: deferred as Deferred<unknown>, value };
    return deferred.promise;
  }

  connect(host: DeviceHost): void {
    this.fake.connect(host);
  }

  acceptFeatures(words: Uint32Array): Answer<boolean> {
    return this.#later("accept", () => this.fake.acceptFeatures(words));
  }

  readConfig(offset: number, length: number): Answer<Uint8Array> {
    return this.#later(`read ${offset}+${length}`, () => this.fake.readConfig(offset, length));
  }

  writeConfig(offset: number, bytes: Uint8Array): Answer<boolean> {
    const copy = bytes.slice();
    return this.#later(
      `write ${offset}+${bytes.length}`,
      () => this.fake.writeConfig(offset, copy),
    );
  }

  startQueue(index: number, setup: QueueSetup): Answer<string | undefined> {
    return this.#later(`start ${index}`, () => this.fake.startQueue(index, setup));
  }

  stopQueue(index: number): Answer<number> {
    return this.#later(`stop ${index}`, () => this.fake.stopQueue(index));
  }

  reset(): Answer<void> {
    return this.#later("reset", () => {});
  }

  memoryAdded(regions: readonly MemoryRegion[]): Answer<string | undefined> {
    return this.#later(`added ${regions.map(({ at }) => at)}`, () => this.memoryProblem);
  }

  memoryRemoved(regions: readonly MemoryRegion[]): Answer<void> {
    return this.#later(`removed ${regions.map(({ at }) => at)}`, () => {});
  }

  available(index: number): void {
    this.fake.available(index);
  }

  resume(): void {
    this.fake.resume();
  }

  [Symbol.dispose](): void {
    this.fake[Symbol.dispose]();
  }
}
