/** A vring: what the front end has said of one queue, and whether the device works on it. */

import type { Fd } from "../../linux/fd.ts";

/** A ring as SET_VRING_NUM, ADDR, BASE, KICK, CALL, ERR and ENABLE describe it. */
export class Vring implements Disposable {
  size = 0;
  /** The front end's user addresses, as it gave them; undefined before SET_VRING_ADDR. */
  addresses: { descriptor: number; used: number; available: number } | undefined;
  /** Where the ring goes on the next time it starts. */
  base = 0;
  kick: Fd | undefined;
  call: Fd | undefined;
  error: Fd | undefined;
  enabled = false;
  /** The front end has kicked since the ring was last stopped. */
  kicked = false;
  /** The device works on the ring. */
  running = false;
  /** Guest address of the used ring while the ring runs. */
  usedAddress = 0;

  constructor(readonly index: number) {}

  /** True when everything is there to start the ring: it has been set up and kick is given. */
  get isComplete(): boolean {
    return this.size > 0 && this.addresses !== undefined && this.kick !== undefined;
  }

  [Symbol.dispose](): void {
    for (const fd of [this.kick, this.call, this.error]) fd?.[Symbol.dispose]();
    this.kick = this.call = this.error = undefined;
  }
}
