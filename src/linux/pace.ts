/**
 * How quickly the turns of a loop follow one another, and whether the next one is worth looking for.
 *
 * Turns that take a tenth of a millisecond, waits included, come of frames that flow, and then the next event is mostly nearer
 * than the time it takes to go to sleep and be woken. So the loop looks {@link POLLS} times, 20 to 40 us, before it
 * sleeps. One long wait, and that is over until there were some dozens of quick turns: it costs what a busy loop costs only
 * where the loop is busy. With one processor it would keep from running what it waits for.
 */

/** How often a busy loop looks before it sleeps. */
export const POLLS = 64;
const BUSY_MS = 0.1;
/** Of the latest turn in the mean. */
const WEIGHT = 1 / 8;

/** See the head of this file. */
export class Pace {
  #meanMs = 1000;

  constructor(readonly processors: number = navigator.hardwareConcurrency) {}

  /** A turn is over that took so long, with its wait. */
  turned(ms: number): void {
    this.#meanMs += (ms - this.#meanMs) * WEIGHT;
  }

  /** Is the next event likely to come soon, and from another processor? */
  get isBusy(): boolean {
    return this.#meanMs < BUSY_MS && this.processors > 1;
  }
}
