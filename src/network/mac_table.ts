/**
 * Which port a station is behind: what a learning switch knows (IEEE 802.1D, filtering database).
 *
 * A station's 48 bits choose one of 256 sets, each of four entries; a new station takes an entry that is
 * free, too old, or else the oldest of its set. So the table has a limit and lookups a bound, whatever a
 * guest makes up; the worst it can do is push others out, whose frames then go to all ports again.
 *
 * Addresses are Numbers below 2^48. Times are seconds.
 */

const SETS = 256;
const WAYS = 4;
/** A station that was silent for so long is forgotten (802.1D's recommended value). */
export const MAX_AGE_SECONDS = 300;

/** See the head of this file. */
export class MacTable {
  /** 0 is no station. */
  readonly #addresses = new Float64Array(SETS * WAYS);
  readonly #ports = new Int32Array(SETS * WAYS);
  readonly #seen = new Float64Array(SETS * WAYS);

  static readonly capacity: number = SETS * WAYS;

  static #set(address: number): number {
    const high = (address / 0x1_0000_0000) | 0;
    // Cards of one maker differ in their last bytes only; the multiplier mixes all of them.
    return (Math.imul((address | 0) ^ high, 0x9e37_79b1) >>> 24) * WAYS;
  }

  learn(address: number, port: number, nowSeconds: number): void {
    const set = MacTable.#set(address);
    let chosen = set;
    for (let i = set; i < set + WAYS && this.#addresses[chosen] !== address; i++) {
      if (this.#addresses[i] === address || this.#isOlder(i, chosen)) chosen = i;
    }
    this.#addresses[chosen] = address;
    this.#ports[chosen] = port;
    this.#seen[chosen] = nowSeconds;
  }

  #isOlder(a: number, b: number): boolean {
    if (this.#addresses[b] === 0) return false;
    return this.#addresses[a] === 0 || this.#seen[a] < this.#seen[b];
  }

  find(address: number, nowSeconds: number): number {
    const set = MacTable.#set(address);
    for (let i = set; i < set + WAYS; i++) {
      if (this.#addresses[i] !== address) continue;
      return nowSeconds - this.#seen[i] <= MAX_AGE_SECONDS ? this.#ports[i] : -1;
    }
    return -1;
  }

  forgetPort(port: number): void {
    for (let i = 0; i < SETS * WAYS; i++) {
      if (this.#ports[i] === port) this.#addresses[i] = 0;
    }
  }
}
