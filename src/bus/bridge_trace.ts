/**
 * What a tracer sees of the kernel's bridge itself: its frames, which no side of the transport sees (bridge.ts), and, as notes, when a
 * session begins and ends, what is held back, and cursors that were set back. Made only where there is a tracer.
 */

import { codecFor } from "../message/codecs.ts";
import { Message } from "../message/message.ts";
import type { Tracer } from "../observe/trace.ts";
import { bridgeIdOf } from "./bridge_frames.ts";
import { BRIDGE_SLOT } from "./bridge_ring.ts";

/** See the head of this file. */
export class BridgeTrace {
  readonly #codec = codecFor("v1", BRIDGE_SLOT);
  readonly #message = new Message();
  readonly #slot = new DataView(new ArrayBuffer(BRIDGE_SLOT));

  constructor(readonly tracer: Tracer) {}

  /** A frame about the bridge that came, in a private slot. */
  received(slot: DataView): void {
    const isForm = bridgeIdOf(slot) >= 0;
    const reason = this.#codec.decode(slot, 0, this.#message) ??
      (isForm ? undefined : "not a message");
    if (reason !== undefined) return this.tracer.malformed(slot, 0, BRIDGE_SLOT, reason);
    this.tracer.message("<-", this.#message, slot, 0, this.#message.size);
  }

  /** One that is about to be sent, in memory that the kernel sees. */
  sent(view: DataView, offset: number): void {
    const bytes = new Uint8Array(view.buffer, view.byteOffset + offset, BRIDGE_SLOT);
    new Uint8Array(this.#slot.buffer).set(bytes);
    if (this.#codec.decode(this.#slot, 0, this.#message) !== undefined) return;
    this.tracer.message("->", this.#message, this.#slot, 0, this.#message.size);
  }

  /** What no frame says. */
  note(what: string): void {
    this.tracer.note(`bridge: ${what}`);
  }
}
