/**
 * What belongs to a thread for good unless somebody says otherwise, blocks of the arena and places of counters: that of
 * something that ends before its thread goes back with it.
 */

import { giveBack, noteBlocks, type TakenBlock } from "../linux/arena.ts";
import { type Counters, noteCounters, retire } from "../observe/counters.ts";

/** Disposed of when nothing uses it any more. */
export class Lifetime implements Disposable {
  readonly #blocks: TakenBlock[] = [];
  readonly #counters: Counters<string>[] = [];

  /** Runs what makes it: all that is taken meanwhile is its own. */
  during<T>(work: () => T): T {
    return noteBlocks(this.#blocks, () => noteCounters(this.#counters, work));
  }

  [Symbol.dispose](): void {
    giveBack(this.#blocks.splice(0));
    this.#counters.splice(0).forEach(retire);
  }
}

/** Runs what makes something that others have too, perhaps while something of shorter life is made. */
export function outliving<T>(work: () => T): T {
  return noteBlocks(undefined, () => noteCounters(undefined, work));
}
