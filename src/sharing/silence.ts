/**
 * When the other side has stopped writing without having said so.
 *
 * It touches our memory for as long as its lease lasts after it heard from us (transport). Who gives memory
 * back that it may still know of waits for longer than that first; what is pinned
 * for it is held as long after a SIGKILL (linux/pin_holder.ts).
 */

import { pause } from "../linux/clock.ts";
import { LEASE_MS } from "../transport/peer.ts";

/** How long after the last message the other side writes no more, and as much again. */
export const SILENCE_MS: number = 2 * LEASE_MS;

/** Blocks until the other side writes no more, because it has not heard from us. */
export function waitForSilence(): void {
  pause(SILENCE_MS);
}
