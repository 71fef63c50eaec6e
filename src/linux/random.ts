/** Random bytes of the kernel's generator (getrandom(2)). */

import { allocate } from "./arena.ts";
import { check, libc, uninterrupted } from "./libc.ts";

/** Waits until the kernel's generator is seeded, after which it never makes anybody wait again. */
export function waitForRandom(): void {
  const { address } = allocate(1);
  check(uninterrupted(() => libc.getrandom(address, 1, 0)), "getrandom");
}

/**
 * Fills memory with random bytes.
 *
 * @param address of stable memory (the arena, a mapping)
 * @param length in bytes, less than 2^32
 * @returns how many were written; fewer than `length` only if the rest of the memory cannot be written
 */
export function fillRandom(address: bigint, length: number): number {
  let done = 0;
  while (done < length) {
    // More than 256 bytes at a time may end early, at a signal.
    const count = uninterrupted(() => libc.getrandom(address + BigInt(done), length - done, 0));
    if (count <= 0) break;
    done += count;
  }
  return done;
}
