/**
 * Requests about one device, answered (docs/wire.md 2 and 3).
 *
 * Each request is answered inside its handler where the device answers at once. Where it does not, the
 * handler ends with the question, and what follows is a function of the class (`#configRead`, `#queueStarted`)
 * that finds the request in hand again; nothing is kept in closures, so a device that answers at once costs
 * no allocation.
 *
 * {@link DeviceRequests.fail} answers in place of a device that does not.
 */

import { Kind, type Message, QUEUE_ENABLED, QueueFlag } from "../message/message.ts";
import type { QueueSetup } from "../virtio/device.ts";
import { RingFeature } from "../virtio/features.ts";
import { whyNoQueue } from "../virtio/queue/open.ts";
import type { DeviceSlot } from "./device_slot.ts";
import type { Link } from "./link.ts";
import { described, operate } from "./queue_operation.ts";

/** The revision of the device that `proto` names. */
const DEVICE_REVISION = 1;
/** What a read across the end gives in `proto`: 32 bits of ones. */
const ONES_BYTES = 4;
const NO_BYTES = new Uint8Array(0);

/** See the head of this file. */
export class DeviceRequests {
  /** The generation when the configuration was asked for: the bytes are at least as new. */
  #generationAsked = 0;
  /** The queue that the device is being asked to start. */
  #starting: QueueSetup | undefined;

  constructor(readonly slot: DeviceSlot, readonly link: Link) {}

  /** Buffers are available: never waits, whatever the device is asked. */
  available(): void {
    const { index } = this.link.in;
    // An event for a queue that is not set up is dropped silently (rules V22, V25).
    if (this.slot.queues[index]?.isEnabled !== true) return this.link.drop("no such queue");
    this.slot.seen.kicked(index);
    this.slot.model.available(index);
  }

  /** Answers the request in hand. */
  handle(): void {
    const { slot, link } = this;
    const message = link.in;
    switch (message.kind) {
      case Kind.GET_DEVICE_INFO:
        return this.#getDeviceInfo();
      case Kind.GET_DEVICE_FEATURES:
        return this.#getFeatures();
      case Kind.SET_DRIVER_FEATURES:
        return this.#setFeatures();
      case Kind.GET_CONFIG:
        return this.#getConfig();
      case Kind.SET_CONFIG:
        return this.#setConfig();
      case Kind.GET_CONFIG_GENERATION:
        link.answer().generation = slot.generation;
        link.send();
        return;
      case Kind.GET_DEVICE_STATUS:
        return this.#answerStatus();
      case Kind.SET_DEVICE_STATUS:
        return this.#setStatus();
      case Kind.GET_VQUEUE:
        return this.#getQueue();
      case Kind.SET_VQUEUE:
        return this.#setQueue();
      case Kind.RESET_VQUEUE:
        return this.#resetQueue();
      case Kind.IOMMU_ENABLE:
        return this.#enableTranslation();
      case Kind.GET_SHM:
        return this.#getShm();
      default:
        return link.drop("unknown request");
    }
  }

  /** The device does not answer the request in hand: says so as the request allows. */
  fail(): void {
    const { link } = this;
    switch (link.in.kind) {
      case Kind.GET_CONFIG:
        return this.#answerNoConfig();
      case Kind.SET_CONFIG:
        return this.#answerConfigWrite(false);
      case Kind.SET_DEVICE_STATUS:
        if (link.in.status === 0) return this.slot.reset(this.#answerStatus);
        return this.#featuresJudged(false);
      default:
        return this.#answerEmpty();
    }
  }

  /** An answer that says nothing new, if this dialect answers the request. */
  readonly #answerEmpty = (): void => {
    const { link } = this;
    if (!link.codec.answered(link.in.kind)) return;
    const out = link.answer();
    if (link.codec.conduct.queueIsEchoed) out.numbers.set(link.in.numbers);
    link.send();
  };

  #getDeviceInfo(): void {
    const { model, translation } = this.slot;
    translation.beginAnew();
    const out = this.link.answer();
    out.deviceId = model.deviceId;
    out.vendorId = model.vendorId;
    out.featureBlocks = model.features.length;
    out.configSize = model.configSize;
    out.maxQueues = model.queueCount;
    out.version = DEVICE_REVISION;
    this.link.send();
  }

  #getFeatures(): void {
    const { link, slot: { model: { features } } } = this;
    const { codec, in: { index, count } } = link;
    const whole = codec.conduct.featuresComeWhole;
    const first = whole ? 0 : index;
    const blocks = whole ? codec.limits.featureBlocks : Math.min(count, codec.limits.featureBlocks);
    const out = link.answer();
    out.index = first;
    out.count = blocks;
    for (let i = 0; i < blocks; i++) out.words[i] = features[first + i] ?? 0;
    link.send();
  }

  #setFeatures(): void {
    const { link, slot: { driverFeatures } } = this;
    const { index, count, words } = link.in;
    const first = link.codec.conduct.featuresComeWhole ? 0 : index;
    // Bits that are stored are judged when FEATURES_OK is set; afterwards they stay.
    for (let i = 0; i < count && !this.slot.featuresAreFixed; i++) {
      if (first + i < driverFeatures.length) driverFeatures[first + i] = words[i];
      // What no device offers is kept as one bit that none offers either, to be refused.
      else if (words[i] !== 0) driverFeatures[driverFeatures.length - 1] |= 1;
    }
    const out = link.answer();
    out.index = first;
    out.count = count;
    out.words.set(driverFeatures);
    link.send();
  }

  // --- configuration -----------------------------------------------------------------------------

  #getConfig(): void {
    const { link, slot } = this;
    const { offset, length } = link.in;
    const { limits, conduct } = link.codec;
    this.#generationAsked = slot.generation;
    if (length > limits.configBytes) return this.#answerNoConfig();
    const left = slot.model.configSize - offset;
    if (conduct.configPastEndReadsOnes && length > left) return this.#answerOnes();
    if (left < 0) return this.#answerNoConfig();
    const wanted = Math.min(length, left);
    if (wanted === 0) return this.#configRead(NO_BYTES);
    if (slot.conversation.isHung) return this.fail();
    slot.conversation.ask(slot.model.readConfig(offset, wanted), this.#configRead);
  }

  /** The bytes that are asked for cannot be given. In the prototype's dialect no answer says so. */
  #answerNoConfig(): void {
    if (this.link.codec.conduct.configPastEndReadsOnes) return this.link.drop("unknown request");
    this.#generationAsked = this.slot.generation;
    this.#startConfigAnswer().length = 0;
    this.link.send();
  }

  #answerOnes(): void {
    this.#startConfigAnswer().bytes.fill(0xff, 0, ONES_BYTES);
    this.link.send();
  }

  readonly #configRead = (bytes: Uint8Array): void => {
    const out = this.#startConfigAnswer();
    copyBytes(bytes, out.bytes, out.length);
    this.link.send();
  };

  #startConfigAnswer(): Message {
    const { offset, length } = this.link.in;
    const out = this.link.answer();
    out.generation = this.#generationAsked;
    out.offset = offset;
    out.length = length;
    return out;
  }

  #setConfig(): void {
    const { link, slot } = this;
    const { offset, length, bytes, generation } = link.in;
    // All or nothing (rule V37); the generation is not a reason to refuse (rule V35), unless the dialect says
    // so: who has not seen the latest one must read first (rule V13).
    const isStale = link.codec.conduct.configWriteNamesGeneration && generation !== slot.generation;
    const fits = length > 0 && offset + length <= slot.model.configSize;
    if (!fits || isStale) return this.#answerConfigWrite(false);
    if (slot.conversation.isHung) return this.fail();
    const answer = slot.model.writeConfig(offset, bytes.subarray(0, length));
    slot.conversation.ask(answer, this.#configWritten);
  }

  readonly #configWritten = (applied: boolean): void => {
    const { link, slot } = this;
    const { offset, length } = link.in;
    if (applied) slot.contentChanged();
    // Revision 1 answers what there is now (rule V14), the prototype what was written.
    if (!applied || link.codec.conduct.configWriteIsEchoed) return this.#answerConfigWrite(applied);
    slot.conversation.ask(slot.model.readConfig(offset, length), this.#configReadBack);
  };

  readonly #configReadBack = (bytes: Uint8Array): void => this.#answerConfigWrite(true, bytes);

  /** @param now what there is after the write; without it, what was written */
  #answerConfigWrite(applied: boolean, now?: Uint8Array): void {
    const { link } = this;
    const { offset, length, bytes } = link.in;
    const out = link.answer();
    out.generation = this.slot.generation;
    out.offset = offset;
    out.length = applied || link.codec.conduct.configWriteIsEchoed ? length : 0;
    copyBytes(now ?? bytes, out.bytes, out.length);
    link.send();
  }

  // --- status ------------------------------------------------------------------------------------

  readonly #answerStatus = (): void => {
    const { link } = this;
    if (!link.codec.answered(link.in.kind)) return;
    link.answer().status = this.slot.status;
    link.send();
  };

  #setStatus(): void {
    const { link: { in: { status } }, slot } = this;
    if (status === 0) return slot.reset(this.#answerStatus);
    if (!slot.setsFeaturesOk(status)) return this.#featuresJudged(false);
    if (!slot.featuresAreOffered) return this.#featuresJudged(false);
    if (slot.conversation.isHung) return this.fail();
    const { driverFeatures, model } = slot;
    const answer = model.acceptFeatures(driverFeatures.subarray(0, model.features.length));
    slot.conversation.ask(answer, this.#featuresJudged);
  }

  readonly #featuresJudged = (accepted: boolean): void => {
    this.slot.setStatus(this.link.in.status, accepted);
    this.#answerStatus();
  };

  // --- queues ------------------------------------------------------------------------------------

  #getQueue(): void {
    const { link, slot } = this;
    const { index } = link.in;
    const queue = slot.queues[index];
    const out = link.answer();
    out.index = index;
    if (queue !== undefined) {
      const { size, descriptorAddress, driverAddress, deviceAddress } = queue.stored;
      out.maxSize = slot.maxQueueSize(index);
      out.queueSize = size;
      out.flags = queue.isEnabled ? QUEUE_ENABLED : 0;
      Object.assign(out, { descriptorAddress, driverAddress, deviceAddress });
    }
    link.send();
  }

  #setQueue(): void {
    const { link, slot } = this;
    const { index, flags } = link.in;
    const queue = slot.queues[index];
    const isStrict = link.codec.conduct.queueOperationIsNamed;
    const setup = queue && (isStrict ? operate(link.in, queue) : described(link.in));
    if (setup === undefined || setup.size > slot.maxQueueSize(index)) {
      slot.seen.refused();
      link.drop("no such queue");
      return this.#answerEmpty();
    }
    if (isStrict && (flags & QueueFlag.STATE) !== QUEUE_ENABLED) {
      if (this.#mayLieThere(setup)) slot.setQueue(index, setup, false);
      else slot.seen.refused();
      return this.#answerEmpty();
    }
    if (slot.conversation.isHung) return this.fail();
    this.#starting = setup;
    if (queue.isHeld) slot.conversation.ask(slot.stopQueue(index), this.#startQueue);
    else this.#startQueue();
  }

  /** Is all of a queue in the driver side's memory, as far as that is known before the device opens it? */
  #mayLieThere(setup: QueueSetup): boolean {
    const { memory, regions } = this.slot;
    if (regions.length === 0 || setup.size === 0) return true;
    const { isPacked: packed } = this.slot;
    const config = { ...setup, packed, eventIndex: false, indirect: false };
    return whyNoQueue(memory, config) === undefined;
  }

  readonly #startQueue = (): void => {
    const { slot, link: { in: { index } } } = this;
    const { conversation, translation } = slot;
    const queue = slot.queues[index];
    const { base, goesOn } = queue;
    const setup = this.#starting = { ...this.#starting!, base, ...(goesOn ? { goesOn } : {}) };
    const request = () => conversation.copyOfRequest();
    const prepared = translation.prepare(index, setup, slot.isPacked, request);
    // Kept until its pages are known. There is no answer that anybody would wait for.
    if (prepared === false) return;
    // For this start only, whatever becomes of it: the next one may begin anew without a word.
    queue.base = 0;
    queue.goesOn = false;
    if (prepared !== true) return this.#queueStarted(prepared);
    queue.isHeld = true;
    conversation.ask(slot.model.startQueue(index, setup), this.#queueStarted);
  };

  readonly #queueStarted = (problem: string | undefined): void => {
    const { link: { codec, in: { index } }, slot } = this;
    const queue = slot.queues[index];
    if (problem === undefined) {
      slot.setQueue(index, this.#starting!, true);
      // A ring is looked at when it starts, not only when kicked: nobody kicks for what is there already.
      slot.model.available(index);
    } else {
      queue.isHeld = false;
      slot.seen.refused();
      // GET_VQUEUE tells, where everything is as it was before (rule V50).
      if (codec.conduct.queueOperationIsNamed) {
        slot.owner.complain(`device ${slot.number} does not take queue ${index}: ${problem}`);
      } else slot.needsReset(`queue ${index}: ${problem}`);
    }
    this.#answerEmpty();
  };

  #resetQueue(): void {
    const { link: { codec, in: { index } }, slot } = this;
    const isRefused = codec.conduct.queueOperationIsNamed &&
      !slot.hasNegotiated(RingFeature.RING_RESET);
    const queue = slot.queues[index];
    if (queue === undefined || isRefused) return this.#answerEmpty();
    if (!queue.isHeld) {
      slot.unsetQueue(index);
      return this.#answerEmpty();
    }
    if (slot.conversation.isHung) return this.fail();
    slot.conversation.ask(slot.stopQueue(index), this.#queueReset);
  }

  readonly #queueReset = (): void => {
    const { link: { in: { index } }, slot } = this;
    slot.owner.notifications.cancel(slot.queues[index].used);
    this.#answerEmpty();
  };

  #enableTranslation(): void {
    const { slot, link } = this;
    if (!slot.translation.enable(link.in.state !== 0, slot.queues.some(({ isHeld }) => isHeld))) {
      slot.needsReset("translation of addresses is switched under a queue");
    }
    // There is no answer.
  }

  #getShm(): void {
    const { index } = this.link.in;
    // No device of ours has shared memory regions: length 0 (rule V38).
    this.link.answer().index = index;
    this.link.send();
  }
}

/** Up to `length` bytes; a device that gives fewer leaves zeros. */
function copyBytes(from: Uint8Array, into: Uint8Array, length: number): void {
  for (let i = 0; i < length && i < from.length; i++) into[i] = from[i];
}
