/**
 * One device number at the other end, with one method per request (docs/wire.md 2.4, 3.6, 7.3).
 *
 * Every method that asks may throw what {@link Requests.request} does. What a device answers is hostile:
 * an answer that is not what was asked for is an error ("BAD_ANSWER"), whatever it says is limited.
 *
 *     there --EVENT_DEVICE REMOVED--> gone --EVENT_DEVICE ADDED, or another device side--> there
 *     there --a request is late--> recovering --status 0, and 0 is read--> there
 *
 * Its users are told `lost` and `ready` ({@link RemoteDevice.listen}), as when the device side goes and comes. A
 * device that does not answer is reset, again and again, but seldom ({@link RECOVERY_MS}); what may still lie in its
 * queues is for another attachment to say. Of a vmsg device side all is set up anew: to it a new epoch is the reset.
 */

import { VmsgError } from "../linux/errors.ts";
import type { Fd } from "../linux/fd.ts";
import type { Conduct } from "../message/codec.ts";
import { Kind, type Message, QUEUE_ENABLED } from "../message/message.ts";
import { kindName } from "../message/table.ts";
import type { QueueSetup } from "../virtio/device.ts";
import { RingFeature, Status, statusNames } from "../virtio/features.ts";
import { isAligned } from "../virtio/split/layout.ts";
import { FULL_RETRY_MS } from "./link.ts";
import { QueueNotification } from "./notifications.ts";
import { type Asker, PeerLost, REQUEST_TIMEOUT_MS, RequestRefused } from "./requests.ts";
import type { PeerListener, Requests } from "./requests.ts";

/** How long a device may take to be reset, or to start. */
const STATE_TIMEOUT_MS = 10_000;
const POLL_MS = 10;
/** How long a device that does not even answer a reset is left alone. */
const RECOVERY_MS = 5000;
/**
 * Features that no driver of ours may accept: what is behind NOTIFICATION_DATA stands in no event of ours
 * (rule R11), and NOTIF_CONFIG_DATA is not for a message transport (rule R26).
 */
const NEVER = [RingFeature.NOTIFICATION_DATA, RingFeature.NOTIF_CONFIG_DATA];
/** 2048 feature bits; VIRTIO 1.2 defines less than 128. */
const MAX_FEATURE_BLOCKS = 64;
/** How often a configuration that changes between two parts of it is read again. */
const MAX_CONFIG_READS = 5;

/** What GET_DEVICE_INFO says. */
export interface DeviceInfo {
  /** 0: there is no such device. */
  readonly deviceId: number;
  /** Who made the device. */
  readonly vendorId: number;
  /** Feature bits in blocks of 32. */
  readonly featureBlocks: number;
  /** Bytes of the configuration space. */
  readonly configSize: number;
  /** How many queues there are. */
  readonly maxQueues: number;
}

/** What GET_VQUEUE says; {@link QueueSetup} but for the base. */
export interface QueueInfo extends Omit<QueueSetup, "base"> {
  /** 0: there is no such queue. */
  readonly maxSize: number;
  /** Does the device work on it? */
  readonly enabled: boolean;
}

/** See the head of this file. */
export class RemoteDevice implements Asker {
  /** Buffers of a queue were used. */
  onUsed: ((queue: number) => void) | undefined;
  /** The device changed its configuration or status by itself. */
  onConfig: ((status: number, generation: number) => void) | undefined;
  /** The last generation of the configuration that the device has named. */
  generation = 0;
  /** EVENT_AVAIL by queue, as far as queues were used. */
  readonly #available: QueueNotification[] = [];
  /** What GET_DEVICE_INFO said; `proto` does not say. */
  #configSize = Infinity;
  #state: "there" | "gone" | "recovering" = "there";
  /** Was it said to be ready, and not lost since? */
  #isKnown: boolean;
  /** How often it was lost while the device side was not. */
  #losses = 0;
  readonly #listeners: PeerListener[] = [];

  /** A driver side makes one for each number it is asked for. */
  constructor(readonly side: Requests, readonly number: number) {
    this.#isKnown = side.isReady;
  }

  // --- the device comes and goes -------------------------------------------------------------------

  /** Can it be used? */
  get isReady(): boolean {
    return this.side.isReady && this.#state === "there";
  }

  get mayAsk(): boolean {
    return this.side.isReady && this.#state !== "gone";
  }

  get session(): number {
    return this.side.session + this.#losses;
  }

  /** Adds a listener; it is called for what happens from now on. */
  listen(listener: PeerListener): void {
    this.#listeners.push(listener);
  }

  /** It is there, as the side says, which may say so twice. */
  arrived(): void {
    // One that is being recovered comes when that is done.
    if (this.#state === "recovering" || (this.#isKnown && this.#state === "there")) return;
    this.#state = "there";
    this.#isKnown = true;
    for (const listener of this.#listeners) listener.ready();
  }

  /** It is gone, alone or with its side; that may be said twice as well. */
  left(reason: string): void {
    const wasKnown = this.#isKnown;
    this.#isKnown = false;
    this.#state = "gone";
    this.#losses++;
    this.generation = 0;
    this.#configSize = Infinity;
    this.side.loseDevice(this, reason);
    if (wasKnown) { for (const listener of this.#listeners) listener.lost(reason); }
  }

  /** A request was not answered in time: it has failed, and the device is reset (rules R24, R37). */
  late({ message }: PeerLost): void {
    if (this.#state !== "there") return;
    if (this.side.peer === "vmsg") return this.side.replaced(message);
    this.side.complain(`device ${this.number}: ${message}: it is reset`);
    this.left(message);
    this.#state = "recovering";
    this.side.reactor.spawn(() => this.#recover());
  }

  async #recover(): Promise<void> {
    const { session, side: { reactor } } = this;
    while (session === this.session) {
      try {
        await this.reset();
        this.#state = "gone";
        return this.arrived();
      } catch (error) {
        if (!(error instanceof VmsgError)) throw error;
      }
      await reactor.sleep(RECOVERY_MS);
    }
  }

  // --- what it is asked ----------------------------------------------------------------------------

  /** Tells the device that a queue has new buffers; sent once however often it is called. */
  available(queue: number): void {
    if (!this.isReady) return;
    for (let index = this.#available.length; index <= queue; index++) {
      this.#available.push(new QueueNotification(Kind.EVENT_AVAIL, this.number, index));
    }
    this.side.notify(this.#available[queue]);
  }

  get #conduct(): Conduct {
    return this.side.link.codec.conduct;
  }

  #request<T>(
    kind: Kind,
    fill: (request: Message) => void,
    read: (answer: Message) => T,
  ): Promise<T> {
    return this.side.request(this, kind, fill, read);
  }

  /** GET_DEVICE_INFO. */
  async info(): Promise<DeviceInfo> {
    const info = await this.#request(Kind.GET_DEVICE_INFO, () => {}, (answer) => ({
      deviceId: answer.deviceId,
      vendorId: answer.vendorId,
      featureBlocks: answer.featureBlocks,
      configSize: answer.configSize,
      maxQueues: answer.maxQueues,
    }));
    if (this.#conduct.configSizeIsNamed) this.#configSize = info.configSize;
    return info;
  }

  /** The offered feature bits, `blocks` words of 32 but at most {@link MAX_FEATURE_BLOCKS}. */
  async features(blocks: number): Promise<Uint32Array> {
    // Read from a message: a device may say anything. Bits that are not read are not accepted.
    blocks = Math.min(blocks, MAX_FEATURE_BLOCKS);
    const features = new Uint32Array(blocks);
    const most = this.side.link.codec.limits.featureBlocks;
    for (let first = 0; first < blocks; first += most) {
      const count = Math.min(most, blocks - first);
      await this.#request(Kind.GET_DEVICE_FEATURES, (request) => {
        request.index = first;
        request.count = count;
      }, (answer) => {
        if (answer.count === count) features.set(answer.words.subarray(0, count), first);
        return answer.count === count;
      }).then((whole) => this.#checkWhole(whole, Kind.GET_DEVICE_FEATURES));
    }
    for (const bit of NEVER) features[bit >> 5]! &= ~(1 << (bit & 31));
    return features;
  }

  /** An answer with less than was asked for would be read as zeros. */
  #checkWhole(whole: boolean, kind: Kind): void {
    if (whole) return;
    throw new VmsgError(
      "BAD_ANSWER",
      `device ${this.number} answered ${kindName(kind)} with other than what was asked for`,
    );
  }

  /** Writes the accepted feature bits; whether they are accepted shows in FEATURES_OK. */
  async setFeatures(words: Uint32Array): Promise<void> {
    const most = this.side.link.codec.limits.featureBlocks;
    for (let first = 0; first < words.length; first += most) {
      const part = words.subarray(first, first + most);
      await this.#request(Kind.SET_DRIVER_FEATURES, (request) => {
        request.index = first;
        request.count = part.length;
        request.words.set(part);
      }, () => {});
    }
  }

  /** The device status bits. */
  status(): Promise<number> {
    return this.#request(Kind.GET_DEVICE_STATUS, () => {}, (answer) => answer.status);
  }

  /** Sets the device status; the resulting one, which may lack FEATURES_OK. */
  async setStatus(status: number): Promise<number> {
    const { codec } = this.side.link;
    const result = await this.#request(Kind.SET_DEVICE_STATUS, (request) => {
      request.status = status;
    }, (answer) => answer.status);
    // `proto` does not answer a status write; asking tells (rule P6).
    return codec.answered(Kind.SET_DEVICE_STATUS) ? result : await this.status();
  }

  /** Status 0, complete only when 0 was read back (rule R23). */
  reset(): Promise<void> {
    return this.#setUntil(0, "does not finish its reset", (shown) => shown === 0);
  }

  /**
   * Sets a status with DRIVER_OK; when it resolves, the device shows it and may be used (rule R33).
   *
   * @throws VmsgError NOT_STARTED if it needs a reset instead
   */
  start(status: number): Promise<void> {
    return this.#setUntil(status, "does not start", (shown) => {
      if ((shown & Status.DEVICE_NEEDS_RESET) !== 0) {
        const what = statusNames(shown).join(" ");
        throw new VmsgError("NOT_STARTED", `device ${this.number} does not start: it is ${what}`);
      }
      return (shown & Status.DRIVER_OK) !== 0;
    });
  }

  async #setUntil(status: number, what: string, isIt: (shown: number) => boolean): Promise<void> {
    const now = isIt(await this.setStatus(status));
    await this.#until(now, what, async () => isIt(await this.status()));
  }

  /** Looks again and again whether something is so, but not for ever; PeerLost if another takes the device's place. */
  async #until(isSo: boolean, what: string, look: () => Promise<boolean>): Promise<void> {
    const { session, side: { reactor } } = this;
    const endMs = reactor.now() + STATE_TIMEOUT_MS;
    while (!isSo) {
      if (reactor.now() > endMs) throw new VmsgError("TIMEOUT", `device ${this.number} ${what}`);
      await reactor.sleep(POLL_MS);
      if (session !== this.session) throw new PeerLost("the device side is gone");
      isSo = await look();
    }
  }

  /**
   * Configuration bytes. Read in parts where a message is too short; a change between the parts
   * starts over (rule R21).
   */
  async config(offset: number, length: number): Promise<Uint8Array> {
    this.#checkRange(offset, length);
    const bytes = new Uint8Array(length);
    for (let attempt = 0; attempt < MAX_CONFIG_READS; attempt++) {
      const generations = new Set<number>();
      for (let at = 0, part; at < length; at += part) {
        part = this.#chunk(length - at);
        await this.#request(Kind.GET_CONFIG, (request) => {
          request.offset = offset + at;
          request.length = part;
        }, (answer) => {
          bytes.set(answer.bytes.subarray(0, part), at);
          generations.add(answer.generation);
          this.generation = answer.generation;
          return answer.offset === offset + at && answer.length === part;
        }).then((whole) => this.#checkWhole(whole, Kind.GET_CONFIG));
      }
      if (generations.size <= 1) return bytes;
    }
    throw new VmsgError("CONFIG_UNSTABLE", `device ${this.number} changes its configuration`);
  }

  /** How many of that many configuration bytes go into one message. */
  #chunk(length: number): number {
    const { codec } = this.side.link;
    const chunk = Math.min(codec.limits.configChunk, length);
    // The prototype aborts on 3 (rule P4).
    return chunk === 3 && codec.conduct.configAccessIsPowerOfTwo ? 2 : chunk;
  }

  /** A device is not asked for what it does not have (rule R7). */
  #checkRange(offset: number, length: number): void {
    if (length === 0 || offset + length <= this.#configSize) return;
    throw new VmsgError(
      "CONFIG_RANGE",
      `device ${this.number} has ${this.#configSize} bytes of configuration, ` +
        `not ${offset + length}`,
    );
  }

  /** Writes configuration bytes; false if the device refuses them. */
  async setConfig(offset: number, bytes: Uint8Array): Promise<boolean> {
    this.#checkRange(offset, bytes.length);
    for (let at = 0, chunk; at < bytes.length; at += chunk) {
      chunk = this.#chunk(bytes.length - at);
      if (!await this.#setConfigPart(offset + at, bytes.subarray(at, at + chunk))) return false;
    }
    return true;
  }

  async #setConfigPart(offset: number, bytes: Uint8Array, again = true): Promise<boolean> {
    const { configWriteNamesGeneration } = this.#conduct;
    // The last one seen (rule R8); elsewhere it is 0 and means nothing (rule R20).
    const named = configWriteNamesGeneration ? this.generation : 0;
    const answered = await this.#request(Kind.SET_CONFIG, (request) => {
      request.generation = named;
      request.offset = offset;
      request.length = bytes.length;
      request.bytes.set(bytes);
    }, ({ length, generation }) => ({ length, generation }));
    // All or nothing; there may be no bytes behind it (rules R35, R36).
    const isWhole = answered.length === bytes.length;
    this.#checkWhole(isWhole || answered.length === 0, Kind.SET_CONFIG);
    this.generation = answered.generation;
    if (isWhole || !configWriteNamesGeneration) return isWhole;
    // The refusal names the generation that was not known (rule R9); a second one is the device's will.
    return again && answered.generation !== named &&
      this.#setConfigPart(offset, bytes, false);
  }

  /** What the device says of a queue. */
  queue(index: number): Promise<QueueInfo> {
    return this.#request(Kind.GET_VQUEUE, (request) => {
      request.index = index;
    }, (answer) => ({
      maxSize: answer.maxSize,
      size: answer.queueSize,
      descriptorAddress: answer.descriptorAddress,
      driverAddress: answer.driverAddress,
      deviceAddress: answer.deviceAddress,
      enabled: answer.flags === QUEUE_ENABLED,
    }));
  }

  /**
   * Sets a queue up and starts it; its base, if not 0, first. When it resolves, the device has said that it took it
   * (rule R31); `proto` cannot say so.
   *
   * @throws VmsgError QUEUE_ADDRESS if no device could take it (rule R34), QUEUE_REFUSED if this one did not
   */
  async startQueue(index: number, setup: QueueSetup): Promise<void> {
    if (!isAligned(setup)) {
      throw new VmsgError(
        "QUEUE_ADDRESS",
        `queue ${index} lies at addresses that no queue can have`,
      );
    }
    if (setup.base !== 0) await this.#setQueueState(index, setup.base);
    await this.#request(Kind.SET_VQUEUE, (request) => {
      request.index = index;
      request.flags = QUEUE_ENABLED;
      request.queueSize = setup.size;
      request.descriptorAddress = setup.descriptorAddress;
      request.driverAddress = setup.driverAddress;
      request.deviceAddress = setup.deviceAddress;
    }, () => {});
    if (!this.#conduct.queueStateIsNamed) return;
    const { maxSize: _, enabled, ...taken } = await this.queue(index);
    const isTaken = Object.entries(taken).every(([name, value]) =>
      value === setup[name as keyof typeof taken]
    );
    if (enabled && isTaken) return;
    throw new VmsgError("QUEUE_REFUSED", `the device did not take queue ${index}`);
  }

  /** RESET_VQUEUE, then GET_VQUEUE until it is cleared (rule R25); only with RING_RESET negotiated. */
  async resetQueue(index: number): Promise<void> {
    await this.#request(Kind.RESET_VQUEUE, (request) => {
      request.index = index;
    }, () => {});
    const isClear = async () => (await this.queue(index)).size === 0;
    await this.#until(await isClear(), `does not reset queue ${index}`, isClear);
  }

  // --- private messages, to a vmsg device side only ----------------------------------------------

  async #private<T>(
    kind: Kind,
    fill: (request: Message) => void,
    read: (answer: Message) => T,
  ): Promise<T> {
    let result = 0;
    const value = await this.#request(kind, (request) => {
      request.epoch = this.side.epoch;
      request.memoryDevice = this.number;
      fill(request);
    }, (answer) => {
      result = answer.result;
      return read(answer);
    });
    if (result !== 0) throw new RequestRefused(kind, this.number, result);
    return value;
  }

  /** SET_VQUEUE_STATE: where the next SET_VQUEUE goes on. */
  #setQueueState(index: number, base: number): Promise<void> {
    return this.#private(Kind.SET_VQUEUE_STATE, (request) => {
      request.index = index;
      request.base = base;
    }, () => {});
  }

  /** STOP_VQUEUE: when it resolves, the device touches nothing of the queue; the next index. */
  stopQueue(index: number): Promise<number> {
    return this.#private(Kind.STOP_VQUEUE, (request) => {
      request.index = index;
    }, (answer) => answer.base);
  }

  /**
   * ADD_MEMORY: when it resolves, the device side has mapped the memory.
   *
   * @param fd the file that holds it; the caller keeps owning it
   * @param address of its first byte on the bus
   * @param length in bytes
   * @param offset of the first byte in the file
   * @param flags MEMORY_SEGMENT if it is confined mode's segment
   */
  async addMemory(
    fd: Fd,
    address: number,
    length: number,
    offset: number,
    flags = 0,
  ): Promise<void> {
    const { link: { bus }, reactor } = this.side;
    if (!bus.carriesFds) {
      throw new VmsgError(
        "NO_MEMORY",
        `${bus.description} carries no files, so it cannot give the device side a guest's memory: ` +
          "use confined mode (vmsg proxy --confined)",
      );
    }
    const { session } = this;
    const endMs = reactor.now() + REQUEST_TIMEOUT_MS;
    let ordinal = -1;
    while (ordinal < 0) {
      // The peer does not read its socket, or the kernel takes no more descriptors.
      if (reactor.now() > endMs) {
        throw new VmsgError("TIMEOUT", "the device side takes no memory");
      }
      if (!this.isReady || session !== this.session) throw new PeerLost("the device side is gone");
      ordinal = bus.sendFd(fd);
      if (ordinal < 0) await reactor.sleep(FULL_RETRY_MS);
    }
    await this.#private(Kind.ADD_MEMORY, (request) => {
      request.flags = flags;
      request.ordinal = ordinal;
      request.address = address;
      request.length = length;
      request.offset = offset;
    }, () => {});
  }

  /**
   * ADD_MEMORY without a descriptor, for systems that share memory instead of files.
   *
   * @param from MEMORY_SEGMENT: the memory beside the bus's queues; MEMORY_WINDOW: what the device side
   * was given by `--memory`
   * @param address of its first byte on the bus
   * @param length in bytes
   * @param offset of the first byte in the segment, or its address as `--memory` counts
   */
  addSharedMemory(from: number, address: number, length: number, offset: number): Promise<void> {
    return this.#private(Kind.ADD_MEMORY, (request) => {
      request.flags = from;
      request.address = address;
      request.length = length;
      request.offset = offset;
    }, () => {});
  }

  /** REMOVE_MEMORY: when it resolves, the device side has unmapped it. */
  removeMemory(address: number, length: number): Promise<void> {
    return this.#private(Kind.REMOVE_MEMORY, (request) => {
      request.address = address;
      request.length = length;
    }, () => {});
  }
}
