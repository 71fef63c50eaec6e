/**
 * A virtqueue's notifications out of band, at the device side: SET_NOTIFIER (src/message/private.ts) brought what the
 * driver kicks and is called by, and whoever is between the two sleeps.
 *
 * Both are foreign, whoever made them (peer_event.ts). The kick is watched edge-triggered and never read: each
 * signal is an edge, also where the count is full, and a count that is not 0 is one at once. So whoever watches it again,
 * when this is gone, finds it ready. A kick may come in vain, for a queue that the device may not touch, and as often as
 * the driver likes: it costs a turn of the loop.
 *
 * It belongs to a queue that is set up, and is gone before the answer that says that the queue is not (transport/device_slot.ts).
 */

import type { Fd } from "./fd.ts";
import { PeerEvent } from "./peer_event.ts";
import { EPOLLET, EPOLLIN, type Reactor } from "./reactor.ts";

/** See the head of this file. */
export class Notifier implements Disposable {
  readonly #kick: PeerEvent;
  readonly #call: PeerEvent | undefined;

  /**
   * Watches the kick from here on; owns both, unless it throws.
   *
   * @param call undefined for a driver that wants no calls
   * @throws VmsgError EVENT_KIND if one is nothing that can be watched, or signalled
   */
  constructor(readonly reactor: Reactor, kick: Fd, call: Fd | undefined, kicked: () => void) {
    this.#kick = new PeerEvent(kick, "wait", "the kick of a queue");
    this.#call = call && new PeerEvent(call, "signal", "the call of a queue");
    reactor.watch(kick, EPOLLIN | EPOLLET, kicked);
  }

  /** Tells the driver that buffers were used. */
  call(): void {
    this.#call?.signal();
  }

  [Symbol.dispose](): void {
    this.reactor.unwatch(this.#kick.fd);
    this.#kick[Symbol.dispose]();
    this.#call?.[Symbol.dispose]();
  }
}
