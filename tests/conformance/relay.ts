/** A relay between two buses, which may change, drop, delay or add what passes. */

import type { Bus } from "../../src/bus/bus.ts";
import { SLOT_SIZE } from "../../src/bus/spsc_queue.ts";
import type { Reactor } from "../../src/linux/reactor.ts";
import type { Codec } from "../../src/message/codec.ts";

/** Who sent a message. */
export type From = "driver" | "device";

/** What becomes of a slot on its way: nothing, itself, or several. */
export type Change = (from: From, bytes: Uint8Array) => readonly Uint8Array[];

/** Where a change happens. */
export interface Way {
  readonly reactor: Reactor;
  readonly codec: Codec;
  /** Says something on behalf of a side, whatever passes at that moment. */
  readonly say: (from: From, bytes: Uint8Array) => void;
}

/** HELLO and its kin: two vmsg processes that are not to know each other. */
const isPrivate = (bytes: Uint8Array) => (bytes[0]! & 2) !== 0 && (bytes[1]! & 0x90) === 0x90;

function put(target: Bus, bytes: Uint8Array): void {
  const offset = target.claim();
  // Lost: that is a fault as well, which rule G23 finds.
  if (offset < 0) return;
  bytes.forEach((byte, i) => target.view.setUint8(offset + i, byte));
  target.send();
}

/** Passes on what comes from one bus to another; private messages end here. */
export function relay(from: From, source: Bus, target: Bus, change: Change): void {
  source.open({
    attached: () => {},
    detached: () => {},
    received: (slot) => {
      const bytes = Uint8Array.from({ length: SLOT_SIZE }, (_, i) => slot.getUint8(i));
      if (isPrivate(bytes)) return;
      for (const changed of change(from, bytes)) put(target, changed);
    },
  });
}

/** Both ways between the bus to a driver side and that to a device side. */
export function relayBoth(
  { driver, device, reactor, codec }: Record<From, Bus> & Pick<Way, "reactor" | "codec">,
  make: (way: Way) => Change,
): void {
  const say = (from: From, bytes: Uint8Array) => put(from === "driver" ? device : driver, bytes);
  const change = make({ reactor, codec, say });
  relay("driver", driver, device, change);
  relay("device", device, driver, change);
}
