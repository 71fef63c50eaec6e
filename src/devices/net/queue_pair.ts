/**
 * A queue pair of a network card: frames from the port's queue into the receive queue's buffers, and from the
 * transmit queue's buffers to the port's queue.
 *
 *     transmit: pop buffers -> port.send -> complete; sleeps until the driver kicks, or, when the port is full,
 *               until it is writable
 *     receive:  port has a frame -> pop buffers -> port.receive -> complete; sleeps until the port is readable,
 *               or, when buffers lack, until the driver kicks
 *
 * Buffers are popped many at once. Those for receiving are kept until frames come. Which receive function runs, for one
 * buffer a frame or for several (MRG_RXBUF), is chosen with the features.
 */

import { NET_HEADER_SIZE, NUM_BUFFERS_OFFSET } from "../../virtio/net_header.ts";
import type { IovecList, MemoryRegion } from "../../memory/mod.ts";
import type { PortQueue } from "../../network/port.ts";
import { ChainBatch, ChainSequence, type DeviceQueue } from "../../virtio/queue/mod.ts";
import { BATCH, type Batch, popOrAsk } from "../queue_device.ts";
import type { ReceiveFilter } from "./receive_filter.ts";

/** Buffers for frames are popped so many at once, and those that are not needed now are kept. */
const AHEAD = 16;
/** As many as one system call takes. */
const MAX_SEGMENTS = 1024;
/** Where destination and VLAN tag lie in a frame that follows its header. */
const DESTINATION = NET_HEADER_SIZE;
const ETHERTYPE = NET_HEADER_SIZE + 12;
const ETHERTYPE_VLAN = 0x8100;

/** What the pairs of a card share; those in other threads have theirs. */
export interface Card {
  readonly filter: ReceiveFilter;
  readonly counters: {
    received: number;
    transmitted: number;
    bytesReceived: number;
    bytesTransmitted: number;
    tooLong: number;
    filtered: number;
  };
}

/** See the head of this file. */
export class QueuePair {
  /** Fills buffers of the receive queue. */
  receive: Batch = this.#receiveSingle;
  readonly #sent = new ChainBatch(BATCH, MAX_SEGMENTS);
  /** Buffers for frames, of which those from `#nextBuffer` on are unused. */
  readonly #buffers = new ChainBatch(AHEAD, MAX_SEGMENTS);
  #nextBuffer = 0;
  readonly #sequence = new ChainSequence();
  readonly #port: PortQueue;

  /** Between a queue of the port's and the two queues that its functions are called with. */
  constructor(readonly owner: Card, port: PortQueue) {
    this.#port = port;
  }

  /** A driver starts. */
  useMergeable(mergeable: boolean): void {
    this.receive = mergeable ? this.#receiveMergeable : this.#receiveSingle;
  }

  /** Gives back the buffers that are kept for the next frame. */
  forgetBuffers(): void {
    this.#sequence.clear();
    this.#buffers.clear();
    this.#nextBuffer = 0;
  }

  /** Is any of those buffers in this region? */
  holdsIn(region: MemoryRegion): boolean {
    return this.#sequence.isIn(region) || this.#buffers.isIn(region, this.#nextBuffer);
  }

  /** Sends what is in buffers of the transmit queue. */
  transmit(queue: DeviceQueue, budget: number): boolean {
    const frames = this.#sent;
    let sent = 0, bytes = 0, done = 0, count = 0;
    while (sent < budget && done === count) {
      count = popOrAsk(queue, frames, budget - sent);
      if (count === 0) break;
      // A single frame gains nothing, and waits for nobody else's.
      if (count > 1) frames.array.touch(0, frames.segments.count);
      for (done = 0; done < count; done++) {
        frames.selectReadable(done);
        if (!this.#port.send(frames.readable)) break;
        // One that is shorter than its header is the driver's fault; sums only grow.
        bytes += Math.max(0, frames.readable.length - NET_HEADER_SIZE);
      }
      queue.completeOldest(done);
      queue.rewind(count - done);
      sent += done;
    }
    // Once for all of them, which is a nanosecond or two a frame.
    this.owner.counters.transmitted += sent;
    this.owner.counters.bytesTransmitted += bytes;
    return sent === budget;
  }

  #receiveSingle(queue: DeviceQueue, budget: number): boolean {
    const buffers = this.#buffers;
    const { writable } = buffers;
    let received = 0, bytes = 0;
    let i = 0;
    for (; i < budget; i++) {
      const wanted = this.#port.nextLength();
      if (wanted === 0) break;
      if (this.#nextBuffer === buffers.count) {
        this.#nextBuffer = 0;
        if (popOrAsk(queue, buffers, AHEAD) === 0) break;
      }
      // A buffer that a frame does not fill serves the next one.
      buffers.selectWritable(this.#nextBuffer);
      if (writable.length < wanted) {
        this.owner.counters.tooLong++;
        this.#port.discard();
        continue;
      }
      const length = this.#port.receive(writable, 0);
      if (length < NET_HEADER_SIZE) break;
      if (this.#isFiltered(writable, 0)) continue;
      received++;
      bytes += length - NET_HEADER_SIZE;
      this.#nextBuffer++;
      queue.complete(buffers.head, length);
    }
    this.owner.counters.received += received;
    this.owner.counters.bytesReceived += bytes;
    return i === budget;
  }

  #receiveMergeable(queue: DeviceQueue, budget: number): boolean {
    const buffers = this.#sequence;
    let received = 0, bytes = 0;
    let i = 0;
    for (; i < budget; i++) {
      const wanted = this.#port.nextLength();
      if (wanted === 0) break;
      if (!buffers.fill(queue, wanted, AHEAD) && !this.#fillAfterAsking(queue, wanted)) break;
      if (buffers.bytes < wanted) continue;
      const first = buffers.firstSegment;
      const length = this.#port.receive(buffers.writable, first);
      if (length < NET_HEADER_SIZE) break;
      if (this.#isFiltered(buffers.writable, first)) continue;
      received++;
      bytes += length - NET_HEADER_SIZE;
      const count = buffers.complete(queue, length);
      // The port has said one. The driver sees neither before they are published.
      if (count > 1) buffers.writable.setUint16(NUM_BUFFERS_OFFSET, count, first);
    }
    this.owner.counters.received += received;
    this.owner.counters.bytesReceived += bytes;
    return i === budget;
  }

  /** A frame the driver does not want; its buffers serve the next one. */
  #isFiltered(frame: IovecList, first: number): boolean {
    return !this.owner.filter.acceptsAll && this.#isRefused(frame, first);
  }

  #isRefused(frame: IovecList, first: number): boolean {
    const u16 = (at: number) => (frame.getUint8(at, first) << 8) | frame.getUint8(at + 1, first);
    const high = u16(DESTINATION);
    const low = u16(DESTINATION + 2) * 0x1_0000 + u16(DESTINATION + 4);
    const vlan = u16(ETHERTYPE) === ETHERTYPE_VLAN ? u16(ETHERTYPE + 2) & 0xfff : -1;
    if (this.owner.filter.accepts(high, low, vlan)) return false;
    this.owner.counters.filtered++;
    return true;
  }

  /** The ring was empty: asks for kicks and looks again; true if that brought buffers. */
  #fillAfterAsking(queue: DeviceQueue, wanted: number): boolean {
    const buffers = this.#sequence;
    if (queue.broken !== undefined || !queue.wantKicks()) return false;
    const held = buffers.buffers;
    if (buffers.fill(queue, wanted) || buffers.buffers > held) return true;
    if (queue.isSpent) return false;
    // There are buffers and none can be taken: the sequence is full of too small ones.
    queue.refuse("receive buffers are too small for a frame");
    return false;
  }
}
