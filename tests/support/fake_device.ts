/** A virtio device that does nothing but remember what the transport asked of it. */

import type { DeviceHost, DeviceModel, QueueSetup, Terms } from "../../src/virtio/device.ts";

/** How a fake device differs from the usual one. */
export interface FakeDeviceOptions {
  readonly features?: readonly number[];
  readonly configSize?: number;
  readonly queueCount?: number;
}

/** Block 0 has some bits, block 1 has VERSION_1. */
export const FAKE_FEATURES: readonly number[] = [0x3000_0021, 0x0000_0001];
export const FAKE_DEVICE_ID = 1;
export const FAKE_VENDOR_ID = 0x1af4;
export const FAKE_MAX_QUEUE_SIZE = 256;

/** See the head of this file. Configuration byte n is n + 1. */
export class FakeDevice implements DeviceModel {
  readonly deviceId: number = FAKE_DEVICE_ID;
  readonly vendorId: number = FAKE_VENDOR_ID;
  readonly features: Uint32Array;
  readonly config: Uint8Array;
  readonly queueCount: number;
  readonly maxQueueSize: number = FAKE_MAX_QUEUE_SIZE;
  /** What was called, in order: "start 0", "stop 0", "available 1", "resume", "accept", "dispose". */
  readonly calls: string[] = [];
  readonly setups: QueueSetup[] = [];
  accepted: number[] = [];
  host!: DeviceHost;
  /** What the next calls answer. */
  acceptsFeatures = true;
  acceptsConfig = true;
  startProblem: string | undefined;
  base = 0;
  /** Queues that have something used to report when they are stopped. */
  readonly usedAtStop = new Set<number>();

  constructor(options: FakeDeviceOptions = {}) {
    this.features = Uint32Array.from(options.features ?? FAKE_FEATURES);
    this.config = Uint8Array.from({ length: options.configSize ?? 12 }, (_, i) => i + 1);
    this.queueCount = options.queueCount ?? 3;
  }

  /** What another thread would go by: what the host said when it last said that it has changed. */
  told: Terms | undefined;

  termsChanged(): void {
    this.told = this.host.terms;
  }

  connect(host: DeviceHost): void {
    this.host = host;
  }

  get configSize(): number {
    return this.config.length;
  }

  readConfig(offset: number, length: number): Uint8Array {
    return this.config.subarray(offset, offset + length);
  }

  acceptFeatures(words: Uint32Array): boolean {
    this.calls.push("accept");
    this.accepted = [...words];
    return this.acceptsFeatures;
  }

  writeConfig(offset: number, bytes: Uint8Array): boolean {
    this.calls.push(`config ${offset}+${bytes.length}`);
    if (this.acceptsConfig) this.config.set(bytes, offset);
    return this.acceptsConfig;
  }

  startQueue(index: number, setup: QueueSetup): string | undefined {
    this.calls.push(`start ${index}`);
    this.setups.push(setup);
    return this.startProblem;
  }

  stopQueue(index: number): number {
    this.calls.push(`stop ${index}`);
    if (this.usedAtStop.has(index)) this.host.used(index);
    return this.base;
  }

  available(index: number): void {
    this.calls.push(`available ${index}`);
  }

  resume(): void {
    this.calls.push("resume");
  }

  /** The calls since the last time. */
  takeCalls(): string[] {
    return this.calls.splice(0);
  }

  [Symbol.dispose](): void {
    this.calls.push("dispose");
  }
}
