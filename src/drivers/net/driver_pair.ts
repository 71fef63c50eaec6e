/**
 * A queue pair of the network driver: frames that come, as lists of their buffers, and buffers for frames that go.
 *
 * A received frame is given on as the list of its buffers, for one writev. They are handed back at once. Transmit buffers
 * are reclaimed when they are needed. Both rings are made anew for each device.
 */

import type { Reactor, Task } from "../../linux/reactor.ts";
import { IovecList } from "../../memory/mod.ts";
import type { QueueSetup } from "../../virtio/device.ts";
import { NET_HEADER_SIZE, NUM_BUFFERS_OFFSET } from "../../virtio/net_header.ts";
import type { Place } from "../../virtio/place.ts";
import { type DriverRing, openDriverRing, type RingTerms } from "../../virtio/queue/mod.ts";
import { showBuffers } from "../kicks.ts";
import type { WantedRing } from "../wanted.ts";
import { MAX_MERGED, NetBuffers, QUEUE_SIZE, RECEIVE_SIZE, TRANSMIT_SIZE } from "./net_buffers.ts";

const RECEIVE = 0;
const TRANSMIT = 1;
const BATCH = 64;

/** What a pair needs of its driver. */
export interface PairOwner {
  readonly reactor: Reactor;
  /** Can frames be sent? */
  readonly isUp: boolean;
  /** What was negotiated of the rings, and whether a frame may take several buffers. */
  readonly terms: RingTerms & { readonly mergeable: boolean };
  readonly counters: {
    received: number;
    sent: number;
    bytesReceived: number;
    bytesSent: number;
    kicked: number;
    suppressed: number;
  };
  /** A frame; false if it cannot be taken now. */
  received(pair: number, frame: IovecList): boolean;
  /** A transmit buffer is free again. */
  writable(pair: number): void;
  /** Buffers of a queue were made available and the device wants to know. */
  available(queue: number): void;
  /** The device broke a queue. */
  broke(queue: number, why: string): void;
}

/** See the head of this file. */
export class DriverPair {
  /** Its two rings, as wanted of a device. */
  readonly rings: readonly WantedRing[];
  readonly #buffers: NetBuffers;
  /** As made for the latest device; used while the driver is up. */
  readonly #queues: DriverRing[] = [];
  readonly #freeTransmit: number[] = [];
  readonly #frame = new IovecList(MAX_MERGED);
  readonly #merged: number[] = [];
  #held = false;
  /** The claimed transmit buffer. */
  readonly #claimed = new IovecList(1);
  #starved = false;
  /** Sent since it was counted: once a batch, since at millions of frames a second counting each is a tenth of the time. */
  #sent = 0;
  #bytesSent = 0;
  readonly #receiveTask: Task = { run: () => this.#receive() };
  readonly #publishTask: Task = { run: () => this.#publish() };

  /** @throws VmsgError MEMORY if the place is too small */
  constructor(readonly owner: PairOwner, readonly index: number, place: Place) {
    this.#buffers = new NetBuffers(place);
    this.rings = [RECEIVE, TRANSMIT].map((which) => this.#ring(which));
  }

  #ring(which: number): WantedRing {
    return {
      index: 2 * this.index + which,
      setup: () => this.#makeQueue(which),
      started: () => this.#fill(which),
      // It is made anew for the next device.
      stopped: () => {},
      call: () => this.#used(which),
      fail: () => {},
    };
  }

  /** Makes a queue, empty; the session kicks it when the device is ready. */
  #makeQueue(which: number): QueueSetup {
    const place = this.#buffers.ring(which);
    const queue = openDriverRing({ place, size: QUEUE_SIZE, ...this.owner.terms });
    this.#queues[which] = queue;
    const { size, descriptorAddress, driverAddress, deviceAddress } = queue;
    return { size, descriptorAddress, driverAddress, deviceAddress, base: 0 };
  }

  /** All receive buffers go to the device, all transmit buffers are free. */
  #fill(which: number): void {
    if (which === RECEIVE) {
      const queue = this.#queues[RECEIVE]!;
      this.#held = false;
      for (let i = 0; i < this.#buffers.receiveCount; i++) this.#giveReceiveBuffer(queue, i);
      queue.publish();
    } else {
      this.#starved = false;
      this.#freeTransmit.length = 0;
      for (let i = this.#buffers.transmitCount - 1; i >= 0; i--) this.#freeTransmit.push(i);
    }
  }

  #giveReceiveBuffer(queue: DriverRing, buffer: number): void {
    const address = this.#buffers.place.at + this.#buffers.receiveOffset(buffer);
    queue.addOne(address, RECEIVE_SIZE, true, buffer);
  }

  #used(which: number): void {
    if (!this.owner.isUp) return;
    if (which === RECEIVE) return this.resume();
    if (!this.#starved) return;
    this.#starved = false;
    this.owner.writable(this.index);
  }

  /** Frames are looked for: the one that was refused may be taken now, or the driver is up. */
  resume(): void {
    this.owner.reactor.schedule(this.#receiveTask);
  }

  #receive(): boolean {
    const { owner } = this;
    if (!owner.isUp) return false;
    const queue = this.#queues[RECEIVE];
    // A pair that this device does not have.
    if (queue === undefined) return false;
    let more = true;
    let frames = 0, bytes = 0;
    for (let i = 0; i < BATCH; i++) {
      if (!this.#held && !this.#collect(queue)) {
        more = queue.wantCalls();
        if (!more) break;
        continue;
      }
      this.#held = !owner.received(this.index, this.#frame);
      more = !this.#held;
      if (this.#held) break;
      frames++;
      bytes += this.#frame.length - NET_HEADER_SIZE;
      for (const buffer of this.#merged) this.#giveReceiveBuffer(queue, buffer);
    }
    owner.counters.received += frames;
    owner.counters.bytesReceived += bytes;
    if (showBuffers(queue, owner.counters)) owner.available(2 * this.index + RECEIVE);
    return this.#checkBroken(queue, RECEIVE) && more;
  }

  /** Gathers the buffers of the next frame; false if there is none. */
  #collect(queue: DriverRing): boolean {
    this.#frame.clear();
    this.#merged.length = 0;
    for (let wanted = 1; this.#merged.length < wanted;) {
      if (!queue.nextUsed()) {
        // All buffers of a frame are shown at once (5.1.6.4.1), so a part of one is the device's fault.
        if (this.#merged.length > 0) {
          queue.broken ??= "the device merged fewer buffers than it said";
        }
        return false;
      }
      const offset = this.#buffers.receiveOffset(queue.usedToken);
      if (wanted === 1 && this.#merged.length === 0) {
        const { view } = this.#buffers.window;
        wanted = this.owner.terms.mergeable ? view.getUint16(offset + NUM_BUFFERS_OFFSET, true) : 1;
        if (wanted < 1 || wanted > MAX_MERGED || queue.usedLength < NET_HEADER_SIZE) {
          queue.broken ??=
            `the device gave a frame of ${wanted} buffers, ${queue.usedLength} bytes`;
          return false;
        }
      }
      this.#frame.push(this.#buffers.window, offset, queue.usedLength);
      this.#merged.push(queue.usedToken);
    }
    return true;
  }

  /** True while the queue is whole; otherwise the device is given up for now. */
  #checkBroken(queue: DriverRing, which: number): boolean {
    if (queue.broken === undefined) return true;
    if (this.owner.isUp) this.owner.broke(2 * this.index + which, queue.broken);
    return false;
  }

  /**
   * Claims a transmit buffer, to be filled through {@link frame} or {@link buffer} and followed by
   * {@link send}.
   *
   * @returns false when all are with the device: `writable` will be called
   */
  claim(): boolean {
    if (!this.owner.isUp) return false;
    const queue = this.#queues[TRANSMIT]!;
    if (this.#freeTransmit.length === 0) this.#reclaim(queue);
    if (this.#freeTransmit.length === 0) {
      // Publish first: what has not been shown to the device cannot come back.
      this.#publish();
      while (this.#freeTransmit.length === 0 && queue.wantCalls()) this.#reclaim(queue);
      // The look for used buffers may be what finds the queue broken.
      this.#checkBroken(queue, TRANSMIT);
    }
    // Buffers that came back before the queue broke are there, but the queue is not any more.
    const claimed = this.owner.isUp && this.#freeTransmit.length > 0;
    if (!claimed) this.#starved = true;
    return claimed;
  }

  /** The claimed buffer as room for a frame; the virtio-net header before it becomes zeros. */
  get frame(): Uint8Array {
    const buffer = this.#freeTransmit.at(-1)!;
    this.#buffers.transmitHeaders[buffer]!.fill(0);
    return this.#buffers.transmitFrames[buffer]!;
  }

  get buffer(): IovecList {
    this.#claimed.clear();
    const offset = this.#buffers.transmitOffset(this.#freeTransmit.at(-1)!);
    this.#claimed.push(this.#buffers.window, offset, TRANSMIT_SIZE);
    return this.#claimed;
  }

  #reclaim(queue: DriverRing): void {
    while (queue.nextUsed()) this.#freeTransmit.push(queue.usedToken);
    queue.noCalls();
    this.#checkBroken(queue, TRANSMIT);
  }

  /** Sends the claimed buffer's first `length` bytes, header included, at the end of the turn. */
  send(length: number): void {
    const buffer = this.#freeTransmit.pop();
    if (!this.owner.isUp || buffer === undefined) throw new Error("send without claim");
    const address = this.#buffers.place.at + this.#buffers.transmitOffset(buffer);
    this.#queues[TRANSMIT]!.addOne(address, length, false, buffer);
    this.#sent++;
    this.#bytesSent += length - NET_HEADER_SIZE;
    this.owner.reactor.schedule(this.#publishTask);
  }

  #publish(): boolean {
    const { owner } = this;
    owner.counters.sent += this.#sent;
    owner.counters.bytesSent += this.#bytesSent;
    this.#sent = this.#bytesSent = 0;
    if (owner.isUp && showBuffers(this.#queues[TRANSMIT]!, owner.counters)) {
      owner.available(2 * this.index + TRANSMIT);
    }
    return false;
  }
}
