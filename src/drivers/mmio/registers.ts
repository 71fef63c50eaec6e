/**
 * The registers of a virtio-mmio device, version 2 (VIRTIO 1.2, section 4.2.2): what a driver reads and writes
 * there, and what that asks of the device side.
 *
 * Theory of operation. A hypervisor traps the driver's accesses and has them answered here, each before the
 * processor that made it goes on. So an answer may take its time: what only the device side can say is waited
 * for ({@link MmioDevice}), and what the driver may rely on afterwards (a status of 0, a queue that is not ready)
 * has happened when its write is answered. Nothing is guessed. Accesses of several processors are answered one
 * after another.
 *
 * A driver is hostile. Control registers are read and written with 32 bits; any other access reads as 0 and
 * writes nothing, and so does a register that the specification has not, or not in this direction. What it wrote of
 * a queue is looked at when the queue is used (drivers/session.ts).
 *
 * {@link RegisterState} is all that another process needs to go on with (xen/state_file.ts).
 */

import type { Answer } from "../../virtio/device.ts";
import { hasFeature, RingFeature, Status } from "../../virtio/features.ts";

/** Offsets of the registers (table 4.1). */
export const Register = {
  MAGIC_VALUE: 0x000,
  VERSION: 0x004,
  DEVICE_ID: 0x008,
  VENDOR_ID: 0x00c,
  DEVICE_FEATURES: 0x010,
  DEVICE_FEATURES_SEL: 0x014,
  DRIVER_FEATURES: 0x020,
  DRIVER_FEATURES_SEL: 0x024,
  QUEUE_SEL: 0x030,
  QUEUE_NUM_MAX: 0x034,
  QUEUE_NUM: 0x038,
  QUEUE_READY: 0x044,
  QUEUE_NOTIFY: 0x050,
  INTERRUPT_STATUS: 0x060,
  INTERRUPT_ACK: 0x064,
  STATUS: 0x070,
  QUEUE_DESC_LOW: 0x080,
  QUEUE_DESC_HIGH: 0x084,
  QUEUE_DRIVER_LOW: 0x090,
  QUEUE_DRIVER_HIGH: 0x094,
  QUEUE_DEVICE_LOW: 0x0a0,
  QUEUE_DEVICE_HIGH: 0x0a4,
  SHM_SEL: 0x0ac,
  SHM_LEN_LOW: 0x0b0,
  SHM_LEN_HIGH: 0x0b4,
  SHM_BASE_LOW: 0x0b8,
  SHM_BASE_HIGH: 0x0bc,
  QUEUE_RESET: 0x0c0,
  CONFIG_GENERATION: 0x0fc,
  CONFIG: 0x100,
} as const;

/** Bytes of a device's registers and configuration space; as much as other hypervisors give one. */
export const REGISTERS_SIZE = 0x200;

/** "virt" */
const MAGIC = 0x7472_6976;
const VERSION = 2;
const TWO_TO_32 = 0x1_0000_0000;
/** Bits of InterruptStatus. */
const INTERRUPT_USED = 1;
const INTERRUPT_CONFIG = 2;
/** Queues that a driver may describe, more than any device has. */
const MAX_QUEUES = 1024;
/** Feature words that a driver may write; bits beyond are no device's. */
const MAX_FEATURE_WORDS = 64;

/** What a driver has said of a queue. */
export interface QueueState {
  /** Entries; 0 before QueueNum. */
  size: number;
  ready: boolean;
  /** Guest-physical. */
  descriptor: number;
  driver: number;
  device: number;
}

/** What a driver has said, as plain data. */
export interface RegisterState {
  status: number;
  deviceFeaturesSel: number;
  driverFeaturesSel: number;
  queueSel: number;
  /** DriverFeatures by word. */
  features: number[];
  /** By index, as far as the driver has named them. */
  queues: QueueState[];
  generation: number;
}

/** Nothing is said yet. */
export function freshState(): RegisterState {
  return {
    status: 0,
    deviceFeaturesSel: 0,
    driverFeaturesSel: 0,
    queueSel: 0,
    features: [],
    queues: [],
    generation: 0,
  };
}

/** Whoever answers for the device; a promise that is rejected leaves the access unanswered. */
export interface MmioDevice {
  /** What the device is. */
  info(): Answer<{ deviceId: number; vendorId: number; configSize: number; maxQueues: number }>;
  /** Feature bits that the driver may be offered, in blocks of 32. */
  offered(): Answer<Uint32Array>;
  /** The most entries of a queue that the device has. */
  maxQueueSize(queue: number): Answer<number>;
  /** Bytes of the configuration space, which lie inside of it. */
  readConfig(offset: number, length: number): Answer<Uint8Array>;
  /** As {@link readConfig}. */
  writeConfig(offset: number, bytes: Uint8Array): Answer<void>;
  /** Does the device accept the driver's features? */
  agree(features: Uint32Array): Answer<boolean>;
  /** Queues or the status have changed: answered when the device is where they say. */
  changed(): Answer<void>;
  /** Status 0: answered when the device touches nothing any more. */
  reset(): Answer<void>;
  /** The driver has made buffers available. */
  notify(queue: number): void;
  /** The interrupt line is asserted, or not. */
  interrupt(asserted: boolean): void;
  /** The state is about to be relied on: it is kept for whoever goes on with it. */
  keep(): void;
  /** For people: what the driver did wrong. */
  complain(line: string): void;
}

/** See the head of this file. */
export class Registers {
  #interruptStatus = 0;
  /** The access that is not answered yet, and those behind it. */
  #last: Promise<unknown> | undefined;

  /** @param state as another process has left it, or a fresh one */
  constructor(readonly device: MmioDevice, readonly state: RegisterState = freshState()) {}

  // --- what the device side has to say by itself -------------------------------------------------

  /** Has the driver said that it is ready, with features that both agreed on, and nothing is broken? */
  get mayRun(): boolean {
    const { DRIVER_OK, FEATURES_OK, DEVICE_NEEDS_RESET, FAILED } = Status;
    const mask = DRIVER_OK | FEATURES_OK | DEVICE_NEEDS_RESET | FAILED;
    return (this.state.status & mask) === (DRIVER_OK | FEATURES_OK);
  }

  /** What the driver accepted; undefined before FEATURES_OK. */
  get features(): Uint32Array | undefined {
    return (this.state.status & Status.FEATURES_OK) === 0 ? undefined : this.#written();
  }

  /** Buffers were used. */
  used(): void {
    this.#raise(INTERRUPT_USED);
  }

  /** The configuration may have changed. */
  configChanged(): void {
    this.state.generation = (this.state.generation + 1) >>> 0;
    this.device.keep();
    if ((this.state.status & Status.DRIVER_OK) !== 0) this.#raise(INTERRUPT_CONFIG);
  }

  /** The device cannot go on until the driver resets it. */
  needsReset(): void {
    if (this.state.status === 0) return;
    this.state.status |= Status.DEVICE_NEEDS_RESET;
    this.configChanged();
  }

  #raise(event: number): void {
    const before = this.#interruptStatus;
    this.#interruptStatus |= event;
    if (before === 0) this.device.interrupt(true);
  }

  // --- accesses ----------------------------------------------------------------------------------

  /** The driver reads `size` bytes at an offset. */
  read(offset: number, size: number): Answer<number> {
    return this.#inOrder(() => this.#read(offset, size));
  }

  /** The driver writes the lowest `size` bytes of a value. */
  write(offset: number, size: number, value: number): Answer<void> {
    return this.#inOrder(() => this.#write(offset, size, value));
  }

  #inOrder<T>(access: () => Answer<T>): Answer<T> {
    const answer = this.#last === undefined ? access() : this.#last.then(access);
    if (!(answer instanceof Promise)) return answer;
    // One that fails ends what is behind it, too: it is never answered.
    const last = answer.then(() => {
      if (this.#last === last) this.#last = undefined;
    });
    last.catch(() => {});
    this.#last = last;
    return answer;
  }

  #read(offset: number, size: number): Answer<number> {
    if (offset >= Register.CONFIG) return this.#readConfig(offset - Register.CONFIG, size);
    if (size !== 4) return 0;
    const { device, state } = this;
    switch (offset) {
      case Register.MAGIC_VALUE:
        return MAGIC;
      case Register.VERSION:
        return VERSION;
      case Register.DEVICE_ID:
        return then(device.info(), ({ deviceId }) => deviceId);
      case Register.VENDOR_ID:
        return then(device.info(), ({ vendorId }) => vendorId);
      case Register.DEVICE_FEATURES:
        return then(device.offered(), (words) => words[state.deviceFeaturesSel] ?? 0);
      case Register.QUEUE_NUM_MAX:
        return this.#maxQueueSize(state.queueSel);
      case Register.QUEUE_READY:
        return state.queues[state.queueSel]?.ready ? 1 : 0;
      case Register.INTERRUPT_STATUS:
        return this.#interruptStatus;
      case Register.STATUS:
        return state.status;
      // No device has shared memory: a region that is not there is -1 bytes long, at -1.
      case Register.SHM_LEN_LOW:
      case Register.SHM_LEN_HIGH:
      case Register.SHM_BASE_LOW:
      case Register.SHM_BASE_HIGH:
        return 0xffff_ffff;
      case Register.CONFIG_GENERATION:
        return state.generation;
      default:
        // QueueReset among them: a reset is over when its write is answered.
        return 0;
    }
  }

  #write(offset: number, size: number, value: number): Answer<void> {
    if (offset >= Register.CONFIG) return this.#writeConfig(offset - Register.CONFIG, size, value);
    if (size !== 4) return;
    const { device, state } = this;
    switch (offset) {
      case Register.DEVICE_FEATURES_SEL:
        state.deviceFeaturesSel = value;
        return;
      case Register.DRIVER_FEATURES:
        // What was agreed on stays until a reset (2.2).
        if ((state.status & Status.FEATURES_OK) !== 0) return;
        if (state.driverFeaturesSel < MAX_FEATURE_WORDS) {
          state.features[state.driverFeaturesSel] = value;
        } else if (value !== 0) {
          device.complain("the driver accepts features that nobody has");
        }
        return;
      case Register.DRIVER_FEATURES_SEL:
        state.driverFeaturesSel = value;
        return;
      case Register.QUEUE_SEL:
        state.queueSel = value;
        return;
      case Register.QUEUE_READY:
        return this.#setReady(value);
      case Register.QUEUE_NOTIFY:
        return device.notify(value);
      case Register.INTERRUPT_ACK:
        return this.#acknowledge(value);
      case Register.STATUS:
        return this.#setStatus(value & 0xff);
      case Register.QUEUE_RESET:
        return this.#resetQueue(value);
      default:
        return this.#describe(offset, value);
    }
  }

  #acknowledge(bits: number): void {
    if (this.#interruptStatus === 0) return;
    this.#interruptStatus &= ~bits;
    this.device.interrupt(false);
    // The line is an edge to some: what is left needs another one.
    if (this.#interruptStatus !== 0) this.device.interrupt(true);
  }

  // --- queues ------------------------------------------------------------------------------------

  /** The selected queue, if there can be one. */
  #queue(): QueueState | undefined {
    const { queueSel, queues } = this.state;
    if (queueSel >= MAX_QUEUES) return undefined;
    for (let i = queues.length; i <= queueSel; i++) {
      queues.push({ size: 0, ready: false, descriptor: 0, driver: 0, device: 0 });
    }
    return queues[queueSel];
  }

  #maxQueueSize(queue: number): Answer<number> {
    return then(
      this.device.info(),
      ({ maxQueues }) => queue < maxQueues ? this.device.maxQueueSize(queue) : 0,
    );
  }

  /** Registers that describe a queue; one that is ready keeps what it has. */
  #describe(offset: number, value: number): void {
    const queue = this.#queue();
    if (queue === undefined || queue.ready) return;
    const low = (old: number) => Math.floor(old / TWO_TO_32) * TWO_TO_32 + value;
    const high = (old: number) => old % TWO_TO_32 + value * TWO_TO_32;
    if (offset === Register.QUEUE_NUM) queue.size = value;
    else if (offset === Register.QUEUE_DESC_LOW) queue.descriptor = low(queue.descriptor);
    else if (offset === Register.QUEUE_DESC_HIGH) queue.descriptor = high(queue.descriptor);
    else if (offset === Register.QUEUE_DRIVER_LOW) queue.driver = low(queue.driver);
    else if (offset === Register.QUEUE_DRIVER_HIGH) queue.driver = high(queue.driver);
    else if (offset === Register.QUEUE_DEVICE_LOW) queue.device = low(queue.device);
    else if (offset === Register.QUEUE_DEVICE_HIGH) queue.device = high(queue.device);
  }

  #setReady(value: number): Answer<void> {
    const queue = this.#queue();
    if (queue === undefined || value > 1 || queue.ready === (value === 1)) return;
    if (value === 0) return this.#take(queue, false);
    const { queueSel } = this.state;
    return then(this.#maxQueueSize(queueSel), (most) => {
      const { size } = queue;
      if (size > 0 && size <= most) return this.#take(queue, true);
      this.device.complain(`queue ${queueSel} has 1 to ${most} entries, the driver wants ${size}`);
    });
  }

  #take(queue: QueueState, ready: boolean): Answer<void> {
    queue.ready = ready;
    this.device.keep();
    // Before DRIVER_OK no queue is worked on. One that is given up is left also where the device is broken.
    if ((this.state.status & Status.DRIVER_OK) !== 0) return this.device.changed();
  }

  #resetQueue(value: number): Answer<void> {
    const queue = this.#queue();
    const features = this.features;
    const mayReset = features !== undefined && hasFeature(features, RingFeature.RING_RESET);
    if (queue === undefined || value !== 1 || !mayReset) return;
    Object.assign(queue, { size: 0, descriptor: 0, driver: 0, device: 0 });
    return this.#take(queue, false);
  }

  // --- status ------------------------------------------------------------------------------------

  #written(): Uint32Array {
    const { features } = this.state;
    const words = new Uint32Array(Math.max(2, features.length));
    for (const [word, value] of features.entries()) words[word] = value ?? 0;
    return words;
  }

  #setStatus(value: number): Answer<void> {
    const { state, device } = this;
    if (value === 0) return this.#reset();
    const { FEATURES_OK, DRIVER_OK, DEVICE_NEEDS_RESET } = Status;
    const old = state.status;
    // A driver sets bits and clears none (2.1.1); this one is the device's.
    const wanted = old | (value & ~DEVICE_NEEDS_RESET);
    const asks = (wanted & ~old & FEATURES_OK) !== 0;
    const agreed = asks ? this.#agree() : true;
    return then(agreed, (isAgreed) => {
      state.status = isAgreed ? wanted : wanted & ~FEATURES_OK;
      device.keep();
      if ((state.status & ~old & DRIVER_OK) !== 0 && this.mayRun) return device.changed();
    });
  }

  #agree(): Answer<boolean> {
    const { device } = this;
    const words = this.#written();
    return then(device.offered(), (offered) => {
      const isSubset = words.every((word, i) => (word & ~(offered[i] ?? 0)) === 0);
      if (isSubset) return device.agree(words);
      device.complain("the driver accepts features that it was not offered");
      return false;
    });
  }

  #reset(): Answer<void> {
    const { state, device } = this;
    const { generation } = state;
    if (this.#interruptStatus !== 0) this.#acknowledge(this.#interruptStatus);
    Object.assign(state, freshState(), { generation });
    device.keep();
    return device.reset();
  }

  // --- configuration space -----------------------------------------------------------------------

  #readConfig(offset: number, size: number): Answer<number> {
    if (size > 4) return 0;
    const { device } = this;
    return then(device.info(), ({ configSize }) => {
      const length = Math.min(size, configSize - offset);
      // What is not there reads as 0.
      if (length <= 0) return 0;
      return then(
        device.readConfig(offset, length),
        (bytes) => bytes.reduceRight((value, byte) => value * 256 + byte, 0),
      );
    });
  }

  #writeConfig(offset: number, size: number, value: number): Answer<void> {
    if (size > 4) return;
    const { device } = this;
    const bytes = Uint8Array.from({ length: size }, (_, i) => value >>> (8 * i));
    return then(device.info(), ({ configSize }) => {
      if (offset + size <= configSize) return device.writeConfig(offset, bytes);
    });
  }
}

/** Goes on at once with an answer that is there. */
function then<T, U>(answer: Answer<T>, next: (value: T) => Answer<U>): Answer<U> {
  return answer instanceof Promise ? answer.then(next) : next(answer);
}
