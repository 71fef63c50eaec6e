/** How popping buffers ends, and how many of their segments are a batch. */

/**
 * Segments of the buffers of one batch: what a driver makes of its buffers must not let others wait. It is as many as 64
 * frames of 64 KiB in pages have. One buffer may go beyond it.
 */
export const SEGMENT_BUDGET = 1024;

/** What popping a buffer can come to. */
export const Pop: {
  /** No buffer is available (or the queue is stopped). */
  readonly EMPTY: 0;
  /** The chain holds a buffer. */
  readonly CHAIN: 1;
  /** The segment lists have no room for the next buffer beside those they hold; it was not popped. */
  readonly FULL: 2;
  /** The queue is broken; `broken` says why. */
  readonly BROKEN: 3;
  /** Where the buffer lies is being asked (memory/translated_space.ts); try again when it is known. */
  readonly PARKED: 4;
} = { EMPTY: 0, CHAIN: 1, FULL: 2, BROKEN: 3, PARKED: 4 };
