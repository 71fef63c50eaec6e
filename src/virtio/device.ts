/**
 * The door between the transport and a virtio device.
 *
 * The transport keeps what every device has: status, driver features, queue addresses, memory windows,
 * the lease. A {@link DeviceModel} is what makes it a network card: it works on the queues it is given
 * and reports through its {@link DeviceHost}.
 */

import type { AddressSpace } from "../memory/mod.ts";

/** Where a queue lies and where it goes on. */
export interface QueueSetup {
  /** Entries. */
  readonly size: number;
  /** Bus address of the descriptor area. */
  readonly descriptorAddress: number;
  /** Bus address of the driver area. */
  readonly driverAddress: number;
  /** Bus address of the device area. */
  readonly deviceAddress: number;
  /** The next available index; 0 unless the queue ran before. */
  readonly base: number;
}

/** What the transport does for a device. */
export interface DeviceHost {
  /** The driver side's memory, by bus address. */
  readonly memory: AddressSpace;
  /**
   * May the driver side's memory be touched now? False before DRIVER_OK, when the device needs a reset,
   * and when the peer's lease has run out. To be asked once per batch; when it said no,
   * {@link DeviceModel.resume} is called as soon as it would say yes.
   */
  mayTouchMemory(): boolean;
  /** Buffers of a queue were used and the driver wants to know. */
  used(queue: number): void;
  /** The configuration space changed; the caller has written it already. */
  configChanged(): void;
  /** Something is broken beyond repair until the driver resets the device. */
  needsReset(reason: string): void;
}

/** A virtio device behind the transport. Its methods return at once and never throw for a bad peer. */
export interface DeviceModel extends Disposable {
  /** The virtio device id; 1 is a network card. */
  readonly deviceId: number;
  /** Who made the device. */
  readonly vendorId: number;
  /** Offered feature bits in blocks of 32. */
  readonly features: Uint32Array;
  /** The configuration space. */
  readonly config: Uint8Array;
  /** How many queues there are. */
  readonly queueCount: number;
  /** The most entries a queue may have. */
  readonly maxQueueSize: number;
  /** Called once, before anything else. */
  connect(host: DeviceHost): void;
  /** The driver sets FEATURES_OK with this subset of the offered bits; false refuses it. */
  acceptFeatures(words: Uint32Array): boolean;
  /** The driver writes configuration bytes inside the space; false if they are read-only. */
  writeConfig(offset: number, bytes: Uint8Array): boolean;
  /** Opens a queue's rings; returns why it cannot. Work starts with {@link resume}. */
  startQueue(index: number, setup: QueueSetup): string | undefined;
  /** Publishes what was used, takes back the rest, forgets the rings; returns the next index. */
  stopQueue(index: number): number;
  /** The driver made buffers available. */
  available(index: number): void;
  /** Looks at every queue that was started. */
  resume(): void;
}
