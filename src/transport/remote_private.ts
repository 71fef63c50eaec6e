/**
 * One device number at the other end, as far as only a vmsg device side is asked: where a queue stops, which memory there
 * is, and by what its queues are notified (src/message/private.ts). What answers is private_requests.ts.
 */

import { VmsgError } from "../linux/errors.ts";
import type { Fd } from "../linux/fd.ts";
import {
  type Fields,
  Kind,
  NOTIFIER_CALL,
  NOTIFIER_KICK,
  NOTIFIER_VECTOR,
} from "../message/message.ts";
import { FULL_RETRY_MS } from "./link.ts";
import { RemotePresence } from "./remote_presence.ts";
import { PeerLost, REQUEST_TIMEOUT_MS, RequestRefused } from "./requests.ts";

/** What a driver kicks by, and is called by; the same object as long as neither is another one. */
export interface RingEvents {
  /** An eventfd. */
  readonly kick: Fd;
  /** An eventfd or a socket (linux/peer_event.ts); undefined for a driver that wants no calls. */
  readonly call: Fd | undefined;
}

/** See the head of this file. */
export abstract class RemotePrivate extends RemotePresence {
  /** The base that was answered, which but one of them has. */
  protected async askPrivately(kind: Kind, fields: Fields): Promise<number> {
    const said = { epoch: this.side.epoch, memoryDevice: this.number, ...fields };
    const { result, base } = await this.request(kind, said, ({ result, base }) => ({
      result,
      base,
    }));
    if (result !== 0) throw new RequestRefused(kind, this.number, result);
    return base;
  }

  /** STOP_VQUEUE: when it resolves, the device touches nothing of the queue; the next index. */
  stopQueue(index: number): Promise<number> {
    return this.askPrivately(Kind.STOP_VQUEUE, { index });
  }

  /**
   * ADD_MEMORY: when it resolves, the device side has mapped the memory.
   *
   * @param fd the file that holds it; the caller keeps owning it
   * @param address of its first byte on the bus
   * @param length in bytes
   * @param offset of the first byte in the file
   * @param flags MEMORY_SEGMENT if it is confined mode's segment
   */
  async addMemory(
    fd: Fd,
    address: number,
    length: number,
    offset: number,
    flags = 0,
  ): Promise<void> {
    const { link: { bus }, reactor } = this.side;
    if (!bus.carriesFds) {
      throw new VmsgError(
        "NO_MEMORY",
        `${bus.description} carries no files, so it cannot give the device side a guest's memory: ` +
          "use confined mode (vmsg proxy --confined)",
      );
    }
    const { session } = this;
    const endMs = reactor.now() + REQUEST_TIMEOUT_MS;
    let ordinal = -1;
    while (ordinal < 0) {
      // The peer does not read its socket, or the kernel takes no more descriptors.
      if (reactor.now() > endMs) {
        throw new VmsgError("TIMEOUT", "the device side takes no memory");
      }
      if (!this.isReady || session !== this.session) throw new PeerLost("the device side is gone");
      ordinal = bus.sendFd(fd);
      if (ordinal < 0) await reactor.sleep(FULL_RETRY_MS);
    }
    await this.askPrivately(Kind.ADD_MEMORY, { flags, ordinal, address, length, offset });
  }

  /**
   * ADD_MEMORY without a descriptor, for systems that share memory instead of files.
   *
   * @param from MEMORY_SEGMENT: the memory beside the bus's queues; MEMORY_WINDOW: what the device side
   * was given by `--memory`
   * @param address of its first byte on the bus
   * @param length in bytes
   * @param offset of the first byte in the segment, or its address as `--memory` counts
   */
  async addSharedMemory(
    from: number,
    address: number,
    length: number,
    offset: number,
  ): Promise<void> {
    await this.askPrivately(Kind.ADD_MEMORY, { flags: from, address, length, offset });
  }

  /** REMOVE_MEMORY: when it resolves, the device side has unmapped it. */
  async removeMemory(address: number, length: number): Promise<void> {
    await this.askPrivately(Kind.REMOVE_MEMORY, { address, length });
  }

  /**
   * SET_NOTIFIER: when it resolves with true, the device side calls the driver of a running queue by that vector; in band for
   * undefined.
   */
  setVector(index: number, vector: number | undefined): Promise<boolean> {
    const flags = vector === undefined ? 0 : NOTIFIER_VECTOR;
    return this.#setNotifier({ index, flags, ordinal: vector ?? 0 });
  }

  async #setNotifier(fields: Fields): Promise<boolean> {
    try {
      await this.askPrivately(Kind.SET_NOTIFIER, fields);
      return true;
    } catch (error) {
      if (error instanceof RequestRefused) return false;
      throw error;
    }
  }

  /** Does the device side take a queue's kick and call, or ring for the call? */
  get takesNotifiers(): boolean {
    return this.side.takesNotifiers;
  }

  /**
   * SET_NOTIFIER: when it resolves, the device side hears the kicks of a running queue by itself and calls by itself, or,
   * if that is false, neither. What was set before is no more, in either case.
   */
  async setNotifier(index: number, { kick, call }: RingEvents): Promise<boolean> {
    const { bus } = this.side.link;
    const sent = call === undefined ? bus.sendFd(kick) : bus.sendFd(kick, call);
    // A socket that is full is not waited for: in band is always right.
    const isSent = sent >= 0;
    const flags = isSent ? NOTIFIER_KICK | (call === undefined ? 0 : NOTIFIER_CALL) : 0;
    return await this.#setNotifier({ index, flags, ordinal: isSent ? sent : 0 }) && isSent;
  }
}
