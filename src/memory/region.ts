/** Memory of the other side's, with the file it came from: what a device in another process must be given. */

import type { Fd } from "../linux/fd.ts";
import type { MappedMemory } from "./window.ts";

/** A range of bus addresses that is backed by one piece of mapped memory. */
export interface MemoryRegion {
  /** Bus address of the first byte. */
  readonly at: number;
  /** In bytes. */
  readonly size: number;
  /** What it lies in, mapped in this process. */
  readonly memory: MappedMemory;
  /** Of the first byte in {@link memory}. */
  readonly offset: number;
  /** The file behind it, open as long as the region is there; none where memory came without one. */
  readonly fd?: Fd;
  /** Of the first byte in {@link fd}. */
  readonly fileOffset?: number;
}
