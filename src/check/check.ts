/** Asks a peer for one rule: all that tests and commands call. */

import { type Asker, type Bodies, COMMON_BODIES, lookOn } from "./common_rules.ts";
import { DeviceRole } from "./device_role.ts";
import { DEVICE_BODIES, type DeviceBody } from "./device_rules.ts";
import type { Dialogue } from "./dialogue.ts";
import { DriverRole } from "./driver_role.ts";
import { DRIVER_BODIES, type DriverBody } from "./driver_rules.ts";
import { type Outcome, outcomeOf, require } from "./outcome.ts";
import { isAbout, type Rule, type RuleSide } from "./rules.ts";

const BODIES = {
  device: { ...COMMON_BODIES, ...DEVICE_BODIES } as Bodies<DriverRole>,
  driver: { ...COMMON_BODIES, ...DRIVER_BODIES } as Bodies<DeviceRole>,
};

/** Does any body ask that side for the rule? */
export function isAsked(rule: Rule, side: RuleSide): boolean {
  return isAbout(rule, side) && BODIES[side][rule.number] !== undefined;
}

/** Runs a body, if the rule can be asked of such a side, and looks at all that was heard. */
function ask<Role extends Asker>(
  rule: Rule,
  side: RuleSide,
  role: Role,
  body: ((role: Role) => Promise<void>) | undefined,
): Promise<Outcome> {
  const { number, dialects, buses, unasked } = rule;
  const { talk, talk: { codec, busKind } } = role;
  return outcomeOf(async () => {
    require(isAbout(rule, side), `rule ${number} is not about a ${side} side`);
    require(dialects.includes(codec.dialect), `dialect ${codec.dialect} has no rule ${number}`);
    const isHere = busKind === undefined || buses === undefined || buses.includes(busKind);
    require(isHere, `rule ${number} is about other buses`);
    require(body !== undefined, unasked[side] ?? "nobody has written down how to ask");
    talk.startOver();
    await role.begin();
    await body(role);
    lookOn(talk, number);
  });
}

/** Asks a device side, which must be a peer that knows us or has just attached; by a body of one's own. */
export function askDevice(rule: Rule, talk: Dialogue, body?: DeviceBody): Promise<Outcome> {
  const role = new DriverRole(rule.number, talk);
  return ask(rule, "device", role, body ?? BODIES.device[rule.number]);
}

/** Asks a driver side, which must be about to begin with our device; by a body of one's own. */
export function askDriver(rule: Rule, talk: Dialogue, body?: DriverBody): Promise<Outcome> {
  const role = new DeviceRole(rule.number, talk);
  return ask(rule, "driver", role, body ?? BODIES.driver[rule.number]);
}
