/**
 * A queue of a TAP: a descriptor of whole frames, each behind its virtio-net header.
 *
 * It can be lent to another thread of this process, which works on the descriptor with a TapQueue of its own; this one
 * does nothing meanwhile, and what belongs to the whole TAP (offloads, which queues are used) stays with its owner.
 */

import type { Fd } from "../linux/fd.ts";
import type { Reactor } from "../linux/reactor.ts";
import type { IovecList } from "../memory/mod.ts";
import { NUM_BUFFERS_OFFSET } from "../virtio/net_header.ts";
import { FrameDescriptor } from "./frame_descriptor.ts";
import type { PortListener, PortQueue } from "./port.ts";

/** See the head of this file. It owns the descriptor. */
export class TapQueue implements PortQueue, Disposable {
  readonly frames: FrameDescriptor;
  /** The kernel may send frames here. */
  used = true;
  /** Room that a frame may need. */
  room = 0;
  #listener: Pick<PortListener, "readable" | "writable"> | undefined;

  constructor(readonly fd: Fd, reactor: Reactor, readonly name: string) {
    this.frames = new FrameDescriptor(fd, reactor, name);
  }

  open(listener: Pick<PortListener, "readable" | "writable">): void {
    this.#listener = listener;
    this.frames.open(listener);
  }

  /** Leaves the descriptor to another thread. */
  lend(): void {
    this.frames[Symbol.dispose]();
  }

  /** That thread has let go of it. */
  takeBack(): void {
    this.frames.open(this.#listener!);
  }

  send(frame: IovecList): boolean {
    return this.frames.write(frame.address, frame.count);
  }

  nextLength(): number {
    return this.frames.readable ? this.room : 0;
  }

  receive(into: IovecList, first: number): number {
    const length = this.frames.read(into.addressFrom(first), into.count - first);
    // The kernel's header ends before num_buffers; those two bytes are left as they were.
    if (length > 0) into.setUint16(NUM_BUFFERS_OFFSET, 1, first);
    return length;
  }

  discard(): void {
    this.frames.discard();
  }

  [Symbol.dispose](): void {
    this.frames[Symbol.dispose]();
    this.fd[Symbol.dispose]();
  }
}
