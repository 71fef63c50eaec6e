/**
 * The interrupt by which a ring's driver is called, on a bus that has some to lend: the device side rings it, the kernel of the
 * driver's machine signals the driver's own eventfd, and nobody of ours wakes.
 *
 * A driver may be called by another eventfd later (QEMU does so while an interrupt is masked): then the same interrupt signals
 * that one, and the device side is told nothing. When there is none, or one that is no eventfd (User-Mode Linux's call is a
 * socket), the device side is told that notifications are in band again.
 */

import type { LentVector } from "../bus/bus.ts";
import type { Fd } from "../linux/fd.ts";
import type { RemoteDevice } from "../transport/remote_device.ts";

/** See the head of this file. */
export class CallVector implements Disposable {
  #lent: LentVector | undefined;

  /** None is lent yet. */
  constructor(readonly device: RemoteDevice, readonly queue: number) {}

  /** Has the device side call a running ring's driver by this eventfd; false if calls are in band from here on. */
  async lendTo(call: Fd | undefined): Promise<boolean> {
    const { device, queue } = this;
    if (call !== undefined && this.#lent?.lendTo(call) === true) return true;
    if (this.#lent !== undefined) {
      await device.setVector(queue, undefined);
      this[Symbol.dispose]();
    }
    if (call === undefined) return false;
    const lent = this.#lent = device.side.link.bus.lendVector?.(call);
    if (lent === undefined) return false;
    const { session } = device;
    const isTaken = await device.setVector(queue, lent.number);
    device.checkSession(session);
    if (!isTaken) this[Symbol.dispose]();
    return isTaken;
  }

  /** The device side rings it no more. */
  [Symbol.dispose](): void {
    this.#lent?.[Symbol.dispose]();
    this.#lent = undefined;
  }
}
