/** Kicks, which are available buffer notifications, of our own drivers: those that went out, and those that a device saved. */

import type { DriverRing } from "../virtio/queue/mod.ts";

/** Counters of a driver that shows its buffers by {@link showBuffers}. */
export const KICK_COUNTERS = ["kicked", "suppressed"] as const;

/** Shows what was added to the device; true if it wants to be kicked. */
export function showBuffers(
  ring: DriverRing,
  counters: Record<typeof KICK_COUNTERS[number], number>,
): boolean {
  if (ring.publish()) {
    counters.kicked++;
    return true;
  }
  if (ring.suppressed > 0) {
    counters.suppressed += ring.suppressed;
    ring.suppressed = 0;
  }
  return false;
}
