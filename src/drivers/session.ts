/**
 * Brings the device at the other end of the bus to the state that the front end wants.
 *
 * Theory of operation. A front end describes a state in many small steps and in any order; the device
 * side can be there or not, and can be replaced at any moment. So nothing is forwarded step by step.
 * {@link Wanted} is what the front end has said so far, {@link DeviceState} remembers what the device
 * has been told, and {@link DeviceState.apply} closes the difference, always in this order:
 *
 *     stop rings that must not run, or all when memory changes (STOP_VQUEUE)
 *     REMOVE_MEMORY, ADD_MEMORY
 *     status 0, ACKNOWLEDGE, DRIVER, features, FEATURES_OK          if a ring may start
 *     SET_VQUEUE_STATE and SET_VQUEUE for each ring that may run
 *     DRIVER_OK, then one kick and one call per started ring
 *
 * A device side that was replaced has been told nothing: {@link DeviceState.lost} empties the memory of
 * it, and the next `apply` replays everything. Because the net device uses buffers in order, a ring's
 * used index is where a device that died had come to (design section 6).
 *
 * Towards a device side that is not vmsg there are no private messages: memory comes from its own
 * command line, a stop is RESET_VQUEUE or else a reset of the device, and a ring cannot go on from a base other than 0.
 *
 * In confined mode (confined/) and with translated addresses (translated/) the device side is told of memory
 * once, and of a ring's shadow instead of the ring. Which rings run and when is the same.
 */

import { VmsgError } from "../linux/errors.ts";
import { signalEventFd } from "../linux/eventfd.ts";
import { hasFeature, RingFeature, Status, statusNames } from "../virtio/features.ts";
import type { Log } from "../observe/log.ts";
import type { QueueSetup } from "../virtio/device.ts";
import type { DeviceInfo, RemoteDevice } from "../transport/remote_device.ts";
import type { Shadow, ShadowDevice } from "../sharing/shadow_device.ts";
import type { MappedRegion, MemoryTable } from "../sharing/memory_table.ts";
import type { Vring } from "./vhost_user/vring.ts";

const BLOCK_OF_33 = RingFeature.ACCESS_PLATFORM >> 5;
const MASK_OF_33 = 1 << (RingFeature.ACCESS_PLATFORM & 31);

/** Kinds of rings and notifications that shadows are not made for; no front end is offered them. */
const NOT_IN_SHADOWS = [
  RingFeature.RING_PACKED,
  RingFeature.IN_ORDER,
  RingFeature.NOTIFICATION_DATA,
  RingFeature.NOTIF_CONFIG_DATA,
];

/** What the front end wants. */
export interface Wanted {
  /** Acknowledged virtio features, without the protocol's own bits; undefined before SET_FEATURES. */
  readonly features: Uint32Array | undefined;
  readonly memory: MemoryTable | undefined;
  readonly vrings: readonly Vring[];
  /** May rings run now: DRIVER_OK, or what stands for it in front ends without status. */
  readonly mayRun: boolean;
}

function noSharedMemory(what: string): VmsgError {
  return new VmsgError(
    "NO_SHARED_MEMORY",
    `${what}: the guest's memory must be shared (QEMU: -object memory-backend-memfd,...,share=on)`,
  );
}

/** What the device has been told, see the head of this file. */
export class DeviceState {
  /** Known since the peer came; undefined while there is none. */
  info: DeviceInfo | undefined;
  offered: Uint32Array = new Uint32Array(2);
  readonly #regions: MappedRegion[] = [];
  /** FEATURES_OK was reached with these features. */
  #negotiated: Uint32Array | undefined;
  #driverOk = false;
  /** Of the rings that run and have one, for their counters. */
  readonly #shadows = new Map<number, Shadow>();

  /** @param shadows serves the rings where the device side does not work on the guest's own */
  constructor(
    readonly device: RemoteDevice,
    readonly log: Log,
    readonly shadows?: ShadowDevice | undefined,
  ) {}

  /** Asks the device what it is. */
  async discover(): Promise<void> {
    const info = await this.device.info();
    if (info.deviceId === 0) {
      throw new VmsgError("NO_DEVICE", `the device side has no device ${this.device.number}`);
    }
    this.offered = await this.device.features(Math.max(2, info.featureBlocks));
    if (this.shadows !== undefined) {
      for (const bit of NOT_IN_SHADOWS) this.offered[bit >> 5] &= ~(1 << (bit & 31));
    }
    this.info = info;
  }

  /** The device side is gone; rings that ran go on from their used index. */
  lost(wanted: Wanted): void {
    this.info = undefined;
    // What it was told of was not taken back.
    if (this.#regions.length > 0) this.shadows?.forsaken();
    for (const vring of wanted.vrings) {
      if (vring.running) this.#stopped(vring, wanted.memory);
    }
    this.forgetSession();
    this.#regions.length = 0;
  }

  /** The regions that the device side maps; they must stay open. */
  get regions(): readonly MappedRegion[] {
    return this.#regions;
  }

  /** The next start begins with a reset: the driver starts over. */
  forgetSession(): void {
    this.#negotiated = undefined;
    this.#driverOk = false;
  }

  get #isVmsg(): boolean {
    return this.device.side.peer === "vmsg";
  }

  /** Closes the difference, see the head of this file. May throw PeerLost, TIMEOUT, REFUSED. */
  async apply(wanted: Wanted): Promise<void> {
    if (this.info === undefined) return;
    const runnable = wanted.vrings.filter((vring) => this.#mayRun(vring, wanted));
    // QEMU 7.2 sends no memory request at all for memory that is not shared, and starts its rings.
    if (runnable.length > 0 && wanted.memory === undefined) {
      throw noSharedMemory("the front end shares no memory");
    }
    // As they are now: while this runs a front end that hangs up takes its memory away.
    const { memory, features } = wanted;
    const regions = memory?.regions ?? [];
    const gone = this.#regions.filter((region) => !regions.includes(region));
    const fresh = regions.filter((region) => !this.#regions.includes(region));
    const followsMemory = this.#isVmsg || this.shadows !== undefined;
    const memoryChanges = followsMemory && gone.length + fresh.length > 0;
    // Other features need a reset of the device, and that stops every ring.
    const stopsAll = memoryChanges ||
      (runnable.length > 0 && this.#negotiated !== undefined && !this.#isNegotiated(features!));
    for (const vring of wanted.vrings) {
      if (vring.running && (stopsAll || !runnable.includes(vring))) {
        await this.#stop(vring, wanted);
      }
    }
    if (memoryChanges) await this.#changeMemory(gone, fresh);
    if (runnable.length === 0) return;
    await this.shadows?.announce();
    await this.#negotiate(features!);
    const started: Vring[] = [];
    for (const vring of runnable) {
      if (vring.running) continue;
      await this.#start(vring, memory!);
      started.push(vring);
    }
    if (!this.#driverOk) await this.#setDriverOk();
    for (const vring of started) {
      // Whoever was told about buffers before is gone: both ends look once (design 6.2).
      if (this.shadows === undefined) this.device.available(vring.index);
      else this.shadows.moved(vring.index);
      if (vring.call !== undefined) signalEventFd(vring.call);
    }
  }

  /** The front end is gone or has reset the device: status 0, no memory. */
  async reset(wanted: Wanted): Promise<void> {
    if (this.info === undefined) return;
    await this.apply({ ...wanted, mayRun: false });
    if (this.#negotiated !== undefined) await this.device.reset();
    this.forgetSession();
  }

  #mayRun(vring: Vring, wanted: Wanted): boolean {
    return wanted.mayRun && vring.isComplete && vring.enabled && wanted.features !== undefined &&
      vring.index < this.info!.maxQueues;
  }

  async #stop(vring: Vring, wanted: Wanted): Promise<void> {
    if (this.#isVmsg) {
      const base = await this.device.stopQueue(vring.index);
      vring.base = this.#stopShadow(vring.index) ?? base;
      vring.running = false;
    } else if (this.#hasRingReset) {
      await this.device.resetQueue(vring.index);
      this.#stopped(vring, wanted.memory);
    } else {
      // The only stop that every foreign device has: a reset, and it stops all of them.
      await this.device.reset();
      this.forgetSession();
      for (const other of wanted.vrings) {
        if (other.running) this.#stopped(other, wanted.memory);
      }
    }
    if (vring.call !== undefined) signalEventFd(vring.call);
  }

  get #hasRingReset(): boolean {
    return this.device.side.link.codec.conduct.queueStateIsNamed &&
      this.#negotiated !== undefined &&
      hasFeature(this.#negotiated, RingFeature.RING_RESET);
  }

  /** A ring whose device cannot say where it is: its used index does. */
  #stopped(vring: Vring, memory: MemoryTable | undefined): void {
    vring.running = false;
    vring.base = this.#stopShadow(vring.index) ??
      memory?.readUint16(vring.usedAddress + 2) ?? vring.base;
  }

  /** Ends a ring's shadow, if it has one; where the guest's ring goes on. */
  #stopShadow(index: number): number | undefined {
    const base = this.shadows?.stop(index);
    const counters = this.#shadows.get(index)?.counters;
    if (counters !== undefined) {
      const where = `device ${this.device.number}, ring ${index}`;
      this.log.debug(`${where} had a shadow: ${JSON.stringify(counters)}`);
    }
    this.#shadows.delete(index);
    return base;
  }

  async #changeMemory(gone: MappedRegion[], fresh: MappedRegion[]): Promise<void> {
    if (this.shadows !== undefined) {
      // Only this process looks at them, or it says itself where they are.
      for (const region of fresh) this.shadows.addMemory(region);
      this.#regions.splice(0, this.#regions.length, ...this.#kept(gone), ...fresh);
      return;
    }
    for (const region of gone) {
      await this.device.removeMemory(region.region.guestAddress, region.region.size);
      this.#regions.splice(this.#regions.indexOf(region), 1);
    }
    for (const region of fresh) {
      const { guestAddress, size, fileOffset } = region.region;
      await this.device.addMemory(region.fd, guestAddress, size, fileOffset);
      this.#regions.push(region);
    }
  }

  #kept(gone: MappedRegion[]): MappedRegion[] {
    return this.#regions.filter((region) => !gone.includes(region));
  }

  /** What the device is told for what the front end acknowledged. */
  #forDevice(features: Uint32Array): Uint32Array {
    const wanted = new Uint32Array(this.offered.length);
    wanted.set(features.subarray(0, wanted.length));
    // Hidden from front ends, taken when offered: the prototype refuses FEATURES_OK otherwise.
    wanted[BLOCK_OF_33] |= this.offered[BLOCK_OF_33] & MASK_OF_33;
    return wanted;
  }

  #isNegotiated(features: Uint32Array): boolean {
    const wanted = this.#forDevice(features);
    return this.#negotiated?.every((word, i) => word === wanted[i]) ?? false;
  }

  async #negotiate(features: Uint32Array): Promise<void> {
    if (this.#isNegotiated(features)) return;
    const wanted = this.#forDevice(features);
    this.forgetSession();
    await this.device.reset();
    await this.device.setStatus(Status.ACKNOWLEDGE);
    await this.device.setStatus(Status.ACKNOWLEDGE | Status.DRIVER);
    await this.device.setFeatures(wanted);
    const status = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK;
    const result = await this.device.setStatus(status);
    if ((result & Status.FEATURES_OK) === 0) {
      throw new VmsgError(
        "FEATURES_REFUSED",
        `device ${this.device.number} refuses the guest's features`,
      );
    }
    this.#negotiated = wanted;
  }

  async #start(vring: Vring, memory: MemoryTable): Promise<void> {
    const { descriptor, used, available } = vring.addresses!;
    const [descriptorAddress, driverAddress, deviceAddress] = [descriptor, available, used].map(
      (address) => memory.guestAddress(address),
    );
    if (
      descriptorAddress === undefined || driverAddress === undefined || deviceAddress === undefined
    ) {
      throw noSharedMemory(
        `ring ${vring.index} lies outside the memory that the front end shares`,
      );
    }
    if (vring.base !== 0 && !this.#isVmsg && this.shadows === undefined) {
      throw new VmsgError(
        "CANNOT_RESUME",
        `ring ${vring.index} goes on from ${vring.base}, which a foreign device cannot: ` +
          `restart the guest's driver`,
      );
    }
    // A device drops what is too large without a word, and the guest would wait for ever.
    const { maxSize } = await this.device.queue(vring.index);
    if (vring.size > maxSize) {
      throw new VmsgError(
        "QUEUE_SIZE",
        `ring ${vring.index} has ${vring.size} entries, the device takes at most ${maxSize}`,
      );
    }
    const guest: QueueSetup = {
      size: vring.size,
      descriptorAddress,
      driverAddress,
      deviceAddress,
      base: vring.base,
    };
    const { maxQueues } = this.info!;
    const shadow = this.shadows?.shadow(
      vring.index,
      guest,
      memory.space,
      this.#negotiated!,
      maxQueues,
      maxSize,
    );
    await this.device.startQueue(vring.index, shadow?.setup ?? guest);
    if (shadow !== undefined) {
      this.shadows!.start(vring.index, shadow);
      this.#shadows.set(vring.index, shadow);
    }
    vring.usedAddress = deviceAddress;
    vring.running = true;
  }

  async #setDriverOk(): Promise<void> {
    const status = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK;
    const result = await this.device.setStatus(status);
    this.#driverOk = true;
    if ((result & Status.DRIVER_OK) === 0) {
      this.log.warn(`device ${this.device.number} is ${statusNames(result).join(" ")}`);
    }
  }
}
