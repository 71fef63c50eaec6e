/** A piece of shared memory, as both ends of a bus name it. */

import type { MappedMemory } from "../memory/mod.ts";

/** Where bytes lie in this process, and at which address on the bus. */
export interface Place {
  /** What they lie in. */
  readonly memory: MappedMemory;
  /** Of the first usable byte in {@link memory}. */
  readonly offset: number;
  /** Usable bytes. */
  readonly size: number;
  /** Bus address of the first usable byte. */
  readonly at: number;
}
