/** A relay between two buses, which may change, drop or add what passes. */

import type { Bus } from "../../src/bus/bus.ts";
import { SLOT_SIZE } from "../../src/bus/spsc_queue.ts";

/** Who sent a message. */
export type From = "driver" | "device";

/** What becomes of a slot on its way: nothing, itself, or several. */
export type Change = (from: From, bytes: Uint8Array) => readonly Uint8Array[];

/** HELLO and its kin: two vmsg processes that are not to know each other. */
const isPrivate = (bytes: Uint8Array) => (bytes[0]! & 2) !== 0 && (bytes[1]! & 0x90) === 0x90;

/** Passes on what comes from one bus to another; private messages end here. */
export function relay(from: From, source: Bus, target: Bus, change: Change): void {
  source.open({
    attached: () => {},
    detached: () => {},
    received: (slot) => {
      const bytes = Uint8Array.from({ length: SLOT_SIZE }, (_, i) => slot.getUint8(i));
      if (isPrivate(bytes)) return;
      for (const changed of change(from, bytes)) {
        const offset = target.claim();
        // Lost: that is a fault as well, which rule G23 finds.
        if (offset < 0) continue;
        changed.forEach((byte, i) => target.view.setUint8(offset + i, byte));
        target.send();
      }
    },
  });
}
