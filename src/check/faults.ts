/**
 * Modes in which a peer is not asked for a rule, but lives through a bad day of ours: what is done to a driver side
 * is in driver_faults.ts, to a device side in device_faults.ts.
 */

import { DIALECTS } from "../message/message.ts";
import type { Body } from "./common_rules.ts";
import type { Rule, RuleSide } from "./rules.ts";

/** By mode: what its report says, and how it is played. */
export type Faults<Role> = Readonly<Record<FaultMode, readonly [text: string, body: Body<Role>]>>;

export const FAULT_MODES = ["late", "reordered", "silent", "torn", "full"] as const;
export type FaultMode = typeof FAULT_MODES[number];

/** A mode in the place of a rule, for whoever asks, lists and reports these. */
export function ruleOfFault(mode: FaultMode, side: RuleSide): Rule {
  const section = side === "device" ? "7.2" : "7.3";
  return { number: mode, section, must: true, sides: [side], dialects: DIALECTS, unasked: {} };
}

export function faultBodies<Role>(faults: Faults<Role>): Readonly<Record<string, Body<Role>>> {
  return Object.fromEntries(FAULT_MODES.map((mode) => [mode, faults[mode][1]]));
}
