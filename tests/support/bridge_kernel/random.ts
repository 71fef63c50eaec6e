/** Choices from a seed, so that a failed run can be repeated: `SEED=... deno test ...`. */

export class Choices {
  #state: number;

  constructor(
    readonly seed: number = Number(Deno.env.get("SEED") ?? Math.random() * 2 ** 32) >>> 0,
  ) {
    this.#state = seed;
  }

  /** From 0 to limit - 1; an xorshift that never stands still. */
  below(limit: number): number {
    let state = (this.#state += 0x9e37_79b9) >>> 0;
    state = Math.imul(state ^ (state >>> 16), 0x21f0_aaad);
    state = Math.imul(state ^ (state >>> 15), 0x735a_2d97);
    return ((state ^ (state >>> 15)) >>> 0) % limit;
  }

  bytes(length: number): Uint8Array<ArrayBuffer> {
    return Uint8Array.from({ length }, () => this.below(256));
  }

  pick<T>(from: readonly T[]): T {
    return from[this.below(from.length)]!;
  }
}
