/** What a kind of `--bus` is. Each has a file of its own here, and a line in bus_option.ts. */

import type { Bus, Side } from "../../bus/bus.ts";
import type { PageLayout } from "../../bus/page_bus.ts";
import type { Reactor } from "../../linux/reactor.ts";
import type { Log } from "../../observe/log.ts";
import type { Group } from "../groups.ts";
import type { GroupKind } from "../kinds.ts";

export interface BusContext {
  readonly side: Side;
  readonly reactor: Reactor;
  readonly log: Log;
  /** Whoever is there speaks `v1`, so it is vmsg; with `isAuto` it may be. */
  readonly isV1: boolean;
  /** `dialect=auto`: the driver side's first message tells. */
  readonly isAuto: boolean;
  readonly reset: boolean;
  readonly common: {
    readonly ringPerMessage: boolean;
    readonly named: boolean;
    readonly log: (line: string) => void;
  };
}

/** A record of the table; see `Kind` for which thread uses what. */
export interface BusKind<Settings = unknown> extends GroupKind {
  /** The driver side shows its memory by way of the bus: there is no other, and no other process sees it. */
  readonly lendsMemory?: true;
  parse(group: Group, side: Side): Settings;
  open(settings: Settings, context: BusContext): Bus;
}

/** Keys of the buses in shared memory, and what they are told by them. */
export const LAYOUT_USAGE = "[,layout=spsc|amp1]";
export const LAYOUT_HELP =
  "layout=amp1 is the self-describing one of AMP kernels of 2026, which the device side writes";

export function parseLayout(group: Group): PageLayout {
  return group.choice("layout", ["spsc", "amp1"], "spsc");
}

/** What becomes of messages in the queues of a bus that does not see whether the other side is there. */
export function unseenPeerOptions(
  { isV1, isAuto, reset }: BusContext,
): { readonly discardOnAttach: boolean; readonly reset: boolean } {
  // What is left in a queue is known to be stale only between vmsg processes. Each of them writes its
  // own indices only, so nothing needs to be emptied. Whoever `auto` is for may be somebody else.
  const isVmsg = isV1 && !isAuto;
  return { discardOnAttach: isVmsg, reset: reset && !isVmsg };
}
