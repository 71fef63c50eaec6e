/** What the parts of a device side have in common. */

import type { Reactor } from "../linux/reactor.ts";
import type { MemoryQuota } from "../memory/mod.ts";
import type { Log } from "../observe/log.ts";
import type { Terms } from "../virtio/device.ts";
import type { Link } from "./link.ts";
import type { Notifications } from "./notifications.ts";

/** See the head of this file. */
export interface DeviceContext {
  /** The loop. */
  readonly reactor: Reactor;
  /** Where requests come from and answers go. */
  readonly link: Link;
  /** What tells the driver side. */
  readonly notifications: Notifications;
  /** Where lines for people go. */
  readonly log: Log;
  /** The same for what a driver side can make us say as often as it likes. */
  readonly complain: (line: string) => void;
  /** How much of the driver side's memory may be mapped. */
  readonly quota: MemoryQuota;
  /** No memory is taken but the segment. */
  readonly confined: boolean;
  /** May memory of the peer be touched at this moment? */
  leaseHolds(): boolean;
  /** The same, for other threads. */
  terms(): Terms;
  /** The epoch of this side, which every private answer names. */
  ownEpoch(): number;
}
