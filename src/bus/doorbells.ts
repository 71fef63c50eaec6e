/**
 * Doorbells by eventfd, between two vmsg processes: an eventfd each way instead of the byte on the socket, at a quarter
 * of its cost.
 *
 * Nobody reads it: it is watched edge-triggered, and each signal is an edge, also where the count is full. The driver
 * side makes both and sends them; the device side listens before it answers, and the driver side before it sends, so
 * that no ring is lost while they change over. Both are foreign descriptors to either side, whoever made them
 * (linux/peer_event.ts). The socket stays, for descriptors and to be hung up: a ring may be heard before a byte that was
 * sent earlier, so what is wanted of the socket is looked for there (stream_bus.ts).
 */

import type { Fd } from "../linux/fd.ts";
import { PeerEvent } from "../linux/peer_event.ts";
import { EPOLLET, EPOLLIN, type Reactor } from "../linux/reactor.ts";

/** See the head of this file. */
export class Doorbells implements Disposable {
  /** Does the peer listen? Until it is known to, the socket rings. */
  isHeard = false;
  readonly #listening: PeerEvent;
  readonly #ringing: PeerEvent;

  /**
   * Listens from here on; owns both, unless it throws.
   *
   * @param listening what the peer rings
   * @param ringing what it listens to
   * @throws VmsgError EVENT_KIND if one is no eventfd
   */
  constructor(readonly reactor: Reactor, listening: Fd, ringing: Fd, rung: () => void) {
    this.#listening = new PeerEvent(listening, "wait", "the doorbell of this side");
    this.#ringing = new PeerEvent(ringing, "wait", "the doorbell of the other side");
    reactor.watch(listening, EPOLLIN | EPOLLET, rung);
  }

  /** Wakes the peer. */
  ring(): void {
    this.#ringing.signal();
  }

  [Symbol.dispose](): void {
    this.reactor.unwatch(this.#listening.fd);
    this.#listening[Symbol.dispose]();
    this.#ringing[Symbol.dispose]();
  }
}
