/**
 * The door between the transport and a virtio device.
 *
 * The transport keeps what every device has: status, driver features, queue addresses, memory, the
 * lease. A {@link DeviceModel} is what makes it a network card: it works on the queues it is given and
 * reports through its {@link DeviceHost}.
 *
 * Answers. Whatever a device is asked it may answer at once, with a plain value, or later, with a promise
 * (a device that lives in another process has to ask there first). A promise must settle by way of the
 * reactor: a `defer` of it, or an async function that waits for one; what settles in any other way is
 * noticed only when something else wakes the loop. While an answer is outstanding
 *
 * - the device is asked nothing else; further requests for it wait, those for other devices do not;
 * - `available` and `resume` are called all the same;
 * - nothing that the question is about goes away: memory stays mapped until the device has answered, also
 *   when the driver side is gone, whose request is then forgotten.
 *
 * A device that has not answered within a few seconds counts as broken until it does, and so does one
 * whose promise is rejected: DEVICE_NEEDS_RESET, a line in the log, and failure for whoever waits. When it
 * answers at last it is asked to stop and to let go of what the driver side has taken back meanwhile.
 *
 * The order of a device's life: `connect`; then for each driver `memoryAdded`, `acceptFeatures`, `startQueue`,
 * `resume`; and back, after a reset or when the driver side is gone: `stopQueue` for each queue that it was
 * given, `reset`, `memoryRemoved`.
 */

import type { AddressSpace, MemoryRegion } from "../memory/mod.ts";

export type { MemoryRegion } from "../memory/mod.ts";

/** The vendor of devices behind which there is a program that is not ours (devices/vhost_user); spells "VMSG". */
export const VENDOR_ELSEWHERE = 0x4753_4d56;

/** An answer that is there, or that comes later; see the head of this file. */
export type Answer<T> = T | Promise<T>;

/** Where a queue lies and where it goes on. */
export interface QueueSetup {
  /** Entries: a power of two, at most 32768. */
  readonly size: number;
  /** Bus address of the descriptor area (the descriptor table). */
  readonly descriptorAddress: number;
  /** Bus address of the driver area (the available ring). */
  readonly driverAddress: number;
  /** Bus address of the device area (the used ring). */
  readonly deviceAddress: number;
  /**
   * Where to begin: 0, or what the queue's predecessor ended with. Of a split queue the available index, of a packed one
   * the slot and in bit 15 whether it is in an odd lap (packed/layout.ts).
   */
  readonly base: number;
  /** Has the driver used it before, though it begins at 0? A copy of the driver's queue is made anew for each device. */
  readonly goesOn?: boolean;
}

/** Whether its driver has used a queue before: with this device, or with one that was here before it. */
export function goesOn({ base, goesOn }: QueueSetup): boolean {
  return base !== 0 || goesOn === true;
}

/** What {@link DeviceHost.mayTouchMemory} says, in a form that other threads can go by. */
export interface Terms {
  /** Until when, by CLOCK_MONOTONIC in milliseconds; 0 is not now, Infinity until something changes. */
  readonly untilMs: number;
  /** A word at this address has to hold this number at each look, besides; an address lasts as long as any queue runs. */
  readonly grant?: { readonly address: bigint; readonly number: number } | undefined;
}

/** A queue's notifications out of band (linux/notifier.ts). */
export interface QueueNotifier extends Disposable {
  /** Tells the driver that buffers were used. */
  call(): void;
}

/** What the transport does for a device. */
export interface DeviceHost {
  /** The driver side's memory, by bus address. */
  readonly memory: AddressSpace;
  /** The same as a list, each region with its file, for a device that has to pass it on. */
  readonly regions: readonly MemoryRegion[];
  /**
   * May the driver side's memory be touched now? False before DRIVER_OK, when the device needs a reset,
   * and when the peer's lease has run out. To be asked once per batch; when it said no,
   * {@link DeviceModel.resume} is called as soon as it would say yes.
   */
  mayTouchMemory(): boolean;
  /**
   * The same for a device with threads of its own; {@link DeviceModel.termsChanged} tells of what changes. Undefined if only
   * this thread can find its way in the memory, which changes while no queue runs.
   */
  readonly terms?: Terms | undefined;
  /** Buffers of a queue were used and the driver wants to know. */
  used(queue: number): void;
  /** The configuration space changed; the next {@link DeviceModel.readConfig} shows it. */
  configChanged(): void;
  /** Something is broken beyond repair until the driver resets the device. */
  needsReset(reason: string): void;
}

/** A virtio device behind the transport. Its methods never block and never throw for a bad peer. */
export interface DeviceModel extends Disposable {
  /** The virtio device id; 1 is a network card. */
  readonly deviceId: number;
  /** Who made the device. */
  readonly vendorId: number;
  /** Offered feature bits in blocks of 32. */
  readonly features: Uint32Array;
  /** Bytes of the configuration space. */
  readonly configSize: number;
  /** How many queues there are. */
  readonly queueCount: number;
  /** The most entries a queue may have. */
  readonly maxQueueSize: number;
  /** The same by index, where queues differ. */
  readonly maxQueueSizes?: readonly number[];
  /** Does it complete buffers in any order? Then no successor can go on where it died: split/open_buffers.ts. */
  readonly outOfOrder?: boolean;
  /** Called once, before anything else. */
  connect(host: DeviceHost): void;
  /** The driver sets FEATURES_OK with this subset of the offered bits; false refuses it. */
  acceptFeatures(words: Uint32Array): Answer<boolean>;
  /**
   * Configuration bytes; only what lies inside {@link configSize} is asked for.
   *
   * @returns `length` bytes, which may be a view of the device's own: they are copied at once
   */
  readConfig(offset: number, length: number): Answer<Uint8Array>;
  /**
   * The driver writes configuration bytes inside the space; false if they are read-only. `bytes` hold
   * during the call only: who answers later copies them.
   */
  writeConfig(offset: number, bytes: Uint8Array): Answer<boolean>;
  /** Opens a queue's rings; answers why it cannot. Work starts with {@link resume}. */
  startQueue(index: number, setup: QueueSetup): Answer<string | undefined>;
  /**
   * Publishes what was used, takes back the rest, forgets the rings; answers the next index. It may be
   * called for a queue whose start was not answered, or answered with a failure.
   */
  stopQueue(index: number): Answer<number>;
  /** The driver reset the device, or is gone; every queue was stopped before. */
  reset?(): Answer<void>;
  /** Regions were added to {@link DeviceHost.regions}; answers why the device cannot use them. */
  memoryAdded?(regions: readonly MemoryRegion[]): Answer<string | undefined>;
  /**
   * These regions are not in {@link DeviceHost.regions} any more, and no queue runs. They are unmapped and
   * their files closed as soon as this is answered.
   */
  memoryRemoved?(regions: readonly MemoryRegion[]): Answer<void>;
  /**
   * A queue with buffers in this region that it has popped and not completed, or -1; none of a device that keeps no buffers.
   * The region goes while queues run, so the queue is stopped before.
   */
  holdsIn?(region: MemoryRegion): number;
  /** The driver made buffers available. */
  available(index: number): void;
  /** {@link DeviceHost.terms} are others, or last longer. */
  termsChanged?(): void;
  /**
   * For a queue that another thread works on: has it watch the kick and signal the call. It owns both, unless it throws, and
   * has let go of them when it is disposed.
   *
   * @returns undefined for a queue of this thread, which is the transport's to notify
   * @throws VmsgError EVENT_KIND
   */
  takeNotifier?(
    index: number,
    kick: NonNullable<MemoryRegion["fd"]>,
    call: MemoryRegion["fd"],
  ): QueueNotifier | undefined;
  /** Looks at every queue that was started. */
  resume(): void;
  /** Ends the device at once, whatever is outstanding: afterwards it touches no memory any more. */
  [Symbol.dispose](): void;
}
