/**
 * One device number at the other end, with one method per request (docs/wire.md 2.4, 3.6, 7.3).
 *
 * Every method that asks may throw what {@link Requests.request} does. What a device answers is hostile:
 * an answer that is not what was asked for is an error ("BAD_ANSWER"), whatever it says is limited.
 * Whether the device is there at all is remote_presence.ts; what only vmsg is asked, remote_private.ts.
 */

import { VmsgError } from "../linux/errors.ts";
import type { Conduct } from "../message/codec.ts";
import { Kind, QUEUE_ENABLED, QUEUE_GOES_ON } from "../message/message.ts";
import { kindName } from "../message/table.ts";
import { goesOn, type QueueSetup } from "../virtio/device.ts";
import { RingFeature, Status, statusNames } from "../virtio/features.ts";
import { isAligned } from "../virtio/queue/config.ts";
import { QueueNotification } from "./notifications.ts";
import { RemotePrivate } from "./remote_private.ts";

/** How long a device may take to be reset, or to start. */
const STATE_TIMEOUT_MS = 10_000;
const POLL_MS = 10;
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
  /** Never 0. */
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

/** What GET_VQUEUE says; {@link QueueSetup} but for where it goes on. */
export interface QueueInfo extends Omit<QueueSetup, "base" | "goesOn"> {
  /** 0: there is no such queue. */
  readonly maxSize: number;
  /** Does the device work on it? */
  readonly enabled: boolean;
}

/** See the head of this file. */
export class RemoteDevice extends RemotePrivate {
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

  /** The peer is gone: what it said does not hold for the next one. */
  protected override forget(): void {
    this.generation = 0;
    this.#configSize = Infinity;
  }

  /** Tells the device that a queue has new buffers; sent once however often it is called. */
  available(queue: number): void {
    if (!this.isReady) return;
    for (let index = this.#available.length; index <= queue; index++) {
      this.#available.push(new QueueNotification(Kind.EVENT_AVAIL, this.number, index));
    }
    this.side.notifications.raise(this.#available[queue]);
  }

  get #conduct(): Conduct {
    return this.side.link.codec.conduct;
  }

  /** GET_DEVICE_INFO; PeerLost also if there is no such device, which is waited for then. */
  async info(): Promise<DeviceInfo> {
    const info = await this.request(Kind.GET_DEVICE_INFO, {}, (answer) => ({
      deviceId: answer.deviceId,
      vendorId: answer.vendorId,
      featureBlocks: answer.featureBlocks,
      configSize: answer.configSize,
      maxQueues: answer.maxQueues,
    }));
    if (info.deviceId === 0) throw this.absent();
    if (this.#conduct.configSizeIsNamed) this.#configSize = info.configSize;
    return info;
  }

  /** The offered feature bits, `blocks` words of 32 but at most {@link MAX_FEATURE_BLOCKS}. */
  async features(blocks: number): Promise<Uint32Array> {
    // Read from a message: a device may say anything. Bits that are not read are not accepted.
    blocks = Math.min(blocks, MAX_FEATURE_BLOCKS);
    const { limits: { featureBlocks: most }, conduct } = this.side.link.codec;
    // Never less than that comes.
    if (conduct.featuresComeWhole) blocks = most;
    const features = new Uint32Array(blocks);
    for (let first = 0; first < blocks; first += most) {
      const count = Math.min(most, blocks - first);
      const asked = { index: first, count };
      const isWhole = await this.request(Kind.GET_DEVICE_FEATURES, asked, (answer) => {
        if (answer.count === count) features.set(answer.words.subarray(0, count), first);
        return answer.count === count;
      });
      this.#checkWhole(isWhole, Kind.GET_DEVICE_FEATURES);
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
      const said = { index: first, count: part.length, words: part };
      await this.request(Kind.SET_DRIVER_FEATURES, said);
    }
  }

  /** The device status bits. */
  status(): Promise<number> {
    return this.request(Kind.GET_DEVICE_STATUS, {}, (answer) => answer.status);
  }

  /** Sets the device status; the resulting one, which may lack FEATURES_OK. */
  async setStatus(status: number): Promise<number> {
    const { codec } = this.side.link;
    const result = await this.request(Kind.SET_DEVICE_STATUS, { status }, (m) => m.status);
    // `proto` does not answer a status write; asking tells (rule P6).
    return codec.answered(Kind.SET_DEVICE_STATUS) ? result : await this.status();
  }

  /** Status 0, complete only when 0 was read back (rule R23). */
  reset(): Promise<void> {
    return this.#setUntil(0, "does not finish its reset", (shown) => shown === 0);
  }

  /**
   * Sets a status with DRIVER_OK; when it resolves, the device shows it and may be used (rule R33), though it may
   * need a reset by then, as it says in an event.
   *
   * @throws VmsgError NOT_STARTED if it needs a reset instead
   */
  start(status: number): Promise<void> {
    return this.#setUntil(status, "does not start", (shown) => {
      const isStarted = (shown & Status.DRIVER_OK) !== 0;
      if (isStarted || (shown & Status.DEVICE_NEEDS_RESET) === 0) return isStarted;
      const what = statusNames(shown).join(" ");
      throw new VmsgError("NOT_STARTED", `device ${this.number} does not start: it is ${what}`);
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
      this.checkSession(session);
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
      let isSingly = false;
      for (let at = 0, part; at < length; at += part) {
        part = isSingly ? 1 : this.#chunk(length - at);
        const asked = { offset: offset + at, length: part };
        const isWhole = await this.request(Kind.GET_CONFIG, asked, (answer) => {
          bytes.set(answer.bytes.subarray(0, asked.length), at);
          generations.add(answer.generation);
          this.generation = answer.generation;
          return answer.offset === asked.offset && answer.length === asked.length;
        });
        this.#checkWhole(isWhole, Kind.GET_CONFIG);
        // Perhaps across the end: the bytes before it are there when they are read singly.
        if (isSingly || !this.#conduct.configPastEndReadsOnes) continue;
        isSingly = bytes.subarray(at, at + part).every((byte) => byte === 0xff);
        if (isSingly) part = 0;
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
    const said = { generation: named, offset, length: bytes.length, bytes };
    const answered = await this.request(Kind.SET_CONFIG, said, ({ length, generation }) => ({
      length,
      generation,
    }));
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
    return this.request(Kind.GET_VQUEUE, { index }, (answer) => ({
      maxSize: answer.maxSize,
      size: answer.queueSize,
      descriptorAddress: answer.descriptorAddress,
      driverAddress: answer.driverAddress,
      deviceAddress: answer.deviceAddress,
      enabled: (answer.flags & QUEUE_ENABLED) !== 0,
    }));
  }

  /**
   * Sets a queue up and starts it; where it goes on, if it does, first. When it resolves, the device has said that it took it
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
    const { size: queueSize, base, goesOn: _, ...areas } = setup;
    if (goesOn(setup)) {
      await this.askPrivately(Kind.SET_VQUEUE_STATE, { index, base, flags: QUEUE_GOES_ON });
    }
    const said = { index, flags: QUEUE_ENABLED, queueSize, ...areas };
    await this.request(Kind.SET_VQUEUE, said);
    if (!this.#conduct.queueStateIsNamed) return;
    const taken = await this.queue(index);
    const isSo = (name: keyof typeof areas | "size") => taken[name] === setup[name];
    const names = ["size", "descriptorAddress", "driverAddress", "deviceAddress"] as const;
    if (taken.enabled && names.every(isSo)) return;
    throw new VmsgError("QUEUE_REFUSED", `the device did not take queue ${index}`);
  }

  /** RESET_VQUEUE, then GET_VQUEUE until it is cleared (rule R25); only with RING_RESET negotiated. */
  async resetQueue(index: number): Promise<void> {
    await this.request(Kind.RESET_VQUEUE, { index });
    const isClear = async () => (await this.queue(index)).size === 0;
    await this.#until(await isClear(), `does not reset queue ${index}`, isClear);
  }
}
