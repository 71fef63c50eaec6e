/** Asks a peer for one rule: all that tests and commands call. */

import { type Bodies, type Body, COMMON_BODIES, lookOn } from "./common_rules.ts";
import { DEVICE_BODIES } from "./device_rules.ts";
import type { Dialogue } from "./dialogue.ts";
import { DEVICE_FAULTS } from "./device_faults.ts";
import { DRIVER_FAULTS } from "./driver_faults.ts";
import { DRIVER_BODIES } from "./driver_rules.ts";
import { faultBodies } from "./faults.ts";
import { type Outcome, outcomeOf, require } from "./outcome.ts";
import type { Played } from "./played.ts";
import { type Asker, DeviceRole, DriverRole } from "./roles.ts";
import type { Rule, RuleSide } from "./rules.ts";

const BODIES = {
  device: { ...COMMON_BODIES, ...DEVICE_BODIES, ...faultBodies(DEVICE_FAULTS) } as Bodies<
    DriverRole
  >,
  driver: { ...COMMON_BODIES, ...DRIVER_BODIES, ...faultBodies(DRIVER_FAULTS) } as Bodies<
    DeviceRole
  >,
};

export function isAsked(rule: Rule, side: RuleSide): boolean {
  const { number, sides, unasked } = rule;
  return sides.includes(side) && unasked[side] === undefined && BODIES[side][number] !== undefined;
}

/** Runs a body, if the rule can be asked of such a side, and looks at all that was heard. */
function ask<Role extends Asker>(
  rule: Rule,
  side: RuleSide,
  role: Role,
  body: Body<Role> | undefined,
): Promise<Outcome> {
  const { number, sides, dialects, unasked } = rule;
  const { talk, talk: { codec } } = role;
  return outcomeOf(async () => {
    require(sides.includes(side), `rule ${number} is not about a ${side} side`);
    require(dialects.includes(codec.dialect), `dialect ${codec.dialect} has no rule ${number}`);
    require(body !== undefined, unasked[side] ?? "nobody has written down how to ask");
    talk.startOver();
    await role.begin();
    await body(role);
    lookOn(talk, number);
  });
}

/** Asks a device side, which must be a peer that knows us or has just attached; by a body of one's own. */
export function askDevice(rule: Rule, talk: Dialogue, own?: Body<DriverRole>): Promise<Outcome> {
  const body = own ?? (isAsked(rule, "device") ? BODIES.device[rule.number] : undefined);
  return ask(rule, "device", new DriverRole(rule.number, talk), body);
}

/** Asks a driver side, which must be about to begin with our device; by a body of one's own, as a device of that kind. */
export function askDriver(
  rule: Rule,
  talk: Dialogue,
  own?: Body<DeviceRole>,
  played?: Played,
): Promise<Outcome> {
  const body = own ?? (isAsked(rule, "driver") ? BODIES.driver[rule.number] : undefined);
  return ask(rule, "driver", new DeviceRole(rule.number, talk, played), body);
}
