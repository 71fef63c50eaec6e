/**
 * RST packets that wait for room on the guest's side: answers to what belongs to no connection, and ends of those that did.
 * When it is full nothing more is heard of the guest until it has taken some (5.10.6.1.2).
 */

/** A power of two. */
const MOST = 256;

/** See the head of this file. */
export class Resets {
  /** Of whom the guest is answered. */
  readonly cids: Uint32Array = new Uint32Array(MOST);
  readonly hostPorts: Uint32Array = new Uint32Array(MOST);
  readonly guestPorts: Uint32Array = new Uint32Array(MOST);
  readonly types: Uint16Array = new Uint16Array(MOST);
  #from = 0;
  count = 0;

  get isFull(): boolean {
    return this.count === MOST;
  }

  /** The place of the oldest. */
  get first(): number {
    return this.#from;
  }

  /** There must be room. */
  push(cid: number, hostPort: number, guestPort: number, type: number): void {
    const at = (this.#from + this.count++) & (MOST - 1);
    this.cids[at] = cid;
    this.hostPorts[at] = hostPort;
    this.guestPorts[at] = guestPort;
    this.types[at] = type;
  }

  shift(): void {
    this.#from = (this.#from + 1) & (MOST - 1);
    this.count--;
  }

  clear(): void {
    this.count = 0;
  }
}
