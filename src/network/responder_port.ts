/**
 * The built-in responder as a network port: frames are copied out of and into the guest's memory.
 *
 * The guest may leave checksums to us, and each of its frames says whether it does: there is no wire between it and
 * us that could corrupt a frame.
 */

import {
  FLAGS_OFFSET,
  NEEDS_CSUM,
  NET_HEADER_SIZE,
  NUM_BUFFERS_OFFSET,
} from "../virtio/net_header.ts";
import { NetFeature } from "../virtio/features.ts";
import { allocate } from "../linux/arena.ts";
import type { Reactor, Timer } from "../linux/reactor.ts";
import type { IovecList } from "../memory/mod.ts";
import type { NetworkPort, PortListener } from "./port.ts";
import { Responder, type ResponderOptions } from "./responder/responder.ts";

/** More than a frame has on either way. */
const MAX_FRAME = 2048;

/** See the head of this file. */
export class ResponderPort implements NetworkPort {
  readonly description: string = "responder";
  readonly features: readonly number[] = [NetFeature.CSUM];
  readonly responder: Responder;
  readonly #in = allocate(NET_HEADER_SIZE + MAX_FRAME);
  readonly #out = allocate(NET_HEADER_SIZE + MAX_FRAME);
  readonly #inFrame: Uint8Array;
  readonly #outFrame: Uint8Array;
  readonly #floodTimer: Timer;
  #listener: PortListener | undefined;

  constructor(options: ResponderOptions, readonly reactor: Reactor) {
    this.responder = new Responder(options, () => reactor.now());
    this.#out.view.setUint16(NUM_BUFFERS_OFFSET, 1, true);
    this.#inFrame = this.#in.bytes.subarray(NET_HEADER_SIZE);
    this.#outFrame = this.#out.bytes.subarray(NET_HEADER_SIZE);
    this.#floodTimer = reactor.timer(() => this.#listener?.readable());
  }

  startOver(): void {
    this.responder.stopDatagrams();
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

  send(frame: IovecList): boolean {
    const length = frame.length - NET_HEADER_SIZE;
    if (length <= 0 || length > MAX_FRAME) return true;
    // One call for header and frame, which mostly lie in one piece.
    frame.copyOut(0, this.#in.address, frame.length);
    const partial = (this.#in.bytes[FLAGS_OFFSET] & NEEDS_CSUM) !== 0;
    this.responder.handle(this.#inFrame, length, partial);
    if (this.responder.nextLength() > 0) this.#listener?.readable();
    return true;
  }

  nextLength(): number {
    const length = this.responder.nextLength();
    if (length > 0) return length + NET_HEADER_SIZE;
    this.#armFlood();
    return 0;
  }

  receive(into: IovecList, first: number): number {
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
