/**
 * What a kind of network port is: what the frames of a network card reach. Each has a file of its own
 * here, and a line in port_option.ts.
 */

import { MAX_PAIRS } from "../../devices/net/net_device.ts";
import type { Reactor } from "../../linux/reactor.ts";
import type { NetworkPort } from "../../network/port.ts";
import type { Log } from "../../observe/log.ts";
import type { Group } from "../groups.ts";
import type { GroupKind } from "../kinds.ts";

/** The largest payload of a frame on a network that has none of its own. */
export const DEFAULT_MTU = 1500;

export interface OpenPort {
  readonly port: NetworkPort;
  readonly mtu: number;
}

/** The links of one process that several cards share. */
export interface HubLinks {
  /** Joins a card to the link of that name; it is made when it is first named. */
  connect(name: string, card: Uint8Array): OpenPort;
}

export interface PortContext {
  readonly reactor: Reactor;
  readonly log: Log;
  /** The MAC address of the card that it is opened for, if it is for one. */
  readonly card?: Uint8Array | undefined;
  readonly hubs?: HubLinks | undefined;
  /** How many queue pairs that card has; 1 unless given. A port that cannot have several queues has one. */
  readonly queues?: number;
}

export function parseMtu(group: Group): number | undefined {
  return group.text("mtu") === undefined ? undefined : group.number("mtu", 68, 65535, DEFAULT_MTU);
}

export function parseQueues(group: Group): number {
  return group.number("queues", 1, MAX_PAIRS, 1);
}

/** A record of the table; see `Kind` for which thread uses what. */
export interface PortKind<Settings = unknown> extends GroupKind {
  parse(group: Group): Settings;
  /** Opens it for the card to own. */
  open(settings: Settings, context: PortContext): OpenPort;
}
