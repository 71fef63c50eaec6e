/** The built-in responder as a network port: frames are copied out of and into the guest's memory. */

import { allocate } from "../linux/arena.ts";
import type { Reactor, Timer } from "../linux/reactor.ts";
import type { SegmentList } from "../memory/mod.ts";
import {
  NET_HEADER_SIZE,
  type NetworkPort,
  NUM_BUFFERS_OFFSET,
  type PortListener,
} from "./port.ts";
import { Responder, type ResponderOptions } from "./responder/responder.ts";

/** The largest frame taken from a guest: 64 KiB of payload and some headers. */
const MAX_FRAME = 65536 + 64;

/** See the head of this file. */
export class ResponderPort implements NetworkPort {
  readonly description: string = "responder";
  readonly features: readonly number[] = [];
  readonly responder: Responder;
  readonly #in = allocate(MAX_FRAME);
  readonly #out = allocate(NET_HEADER_SIZE + 2048);
  readonly #outFrame: Uint8Array;
  readonly #floodTimer: Timer;
  #listener: PortListener | undefined;

  constructor(options: ResponderOptions, readonly reactor: Reactor) {
    this.responder = new Responder(options);
    this.#out.view.setUint16(NUM_BUFFERS_OFFSET, 1, true);
    this.#outFrame = this.#out.bytes.subarray(NET_HEADER_SIZE);
    this.#floodTimer = reactor.timer(() => this.#listener?.readable());
  }

  setFeatures(): void {
    // There are no offloads to switch.
  }

  open(listener: PortListener): void {
    this.#listener = listener;
    this.#armFlood();
  }

  #armFlood(): void {
    const delayMs = this.responder.floodDelayMs();
    if (delayMs !== Infinity && !this.#floodTimer.armed) {
      this.#floodTimer.arm(Math.max(1, delayMs));
    }
  }

  send(frame: SegmentList): boolean {
    const length = frame.length - NET_HEADER_SIZE;
    // Offloads are not offered with this port, so the header says nothing.
    if (length > 0 && length <= MAX_FRAME) {
      frame.copyOut(NET_HEADER_SIZE, this.#in.address, length);
      this.responder.handle(this.#in.bytes, length);
      if (this.responder.nextLength() > 0) this.#listener?.readable();
    }
    return true;
  }

  nextLength(): number {
    const length = this.responder.nextLength();
    if (length > 0) return length + NET_HEADER_SIZE;
    this.#armFlood();
    return 0;
  }

  receive(into: SegmentList, first: number): number {
    const length = this.responder.next(this.#outFrame);
    if (length === 0) return 0;
    return into.copyIn(0, this.#out.address, length + NET_HEADER_SIZE, first);
  }

  discard(): void {
    this.responder.next(this.#outFrame);
  }

  [Symbol.dispose](): void {
    this.reactor.dropTimer(this.#floodTimer);
  }
}
