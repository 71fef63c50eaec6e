/**
 * A token bucket: `perSecond` tokens flow in, at most `burst` are kept, each frame takes one.
 *
 * It limits what others can make the responder send (RFC 1122 3.2.2, RFC 1812 4.3.2.8), and paces what it
 * sends by itself.
 */

/** Tokens shy of one that still count as one: a sum of floating-point parts may miss it by this much. */
const TOLERANCE = 1e-6;

export class TokenBucket {
  #tokens: number;
  #lastMs: number;

  /**
   * @param burst tokens that are kept at most, at least 1
   * @param tokens tokens at the start
   * @param now milliseconds
   */
  constructor(
    readonly perSecond: number,
    readonly burst: number,
    tokens: number,
    readonly now: () => number,
  ) {
    this.#tokens = tokens;
    this.#lastMs = now();
  }

  /** Whether a token is there now. Stays true until it is taken. */
  available(): boolean {
    // One that never fills need not look at the clock, which costs more than a frame.
    if (this.perSecond === 0) return this.#tokens >= 1;
    const nowMs = this.now();
    const elapsedMs = Math.max(0, nowMs - this.#lastMs);
    this.#lastMs = nowMs;
    this.#tokens = Math.min(this.burst, this.#tokens + elapsedMs * this.perSecond / 1000);
    return this.#tokens >= 1 - TOLERANCE;
  }

  take(): boolean {
    if (!this.available()) return false;
    this.#tokens = Math.max(0, this.#tokens - 1);
    return true;
  }

  delayMs(): number {
    return this.available() ? 0 : (1 - this.#tokens) * 1000 / this.perSecond;
  }
}
