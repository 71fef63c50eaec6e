/** Asks a peer for one rule: all that tests and commands call. */

import type { Conversation } from "./conversation.ts";
import { DeviceRole } from "./device_role.ts";
import { DEVICE_BODIES, type DeviceBody } from "./device_rules.ts";
import { DriverRole } from "./driver_role.ts";
import { DRIVER_BODIES, type DriverBody } from "./driver_rules.ts";
import { expect, type Outcome, outcomeOf, require } from "./outcome.ts";
import type { Rule, RuleSide } from "./rules.ts";

/** Does any body ask that side for the rule? */
export function isAsked(rule: Rule, side: RuleSide): boolean {
  return (side === "device" ? DEVICE_BODIES : DRIVER_BODIES)[rule.number] !== undefined;
}

/** What must be so before a body is run. */
function requireApplicable(rule: Rule, side: RuleSide, { codec, busKind }: Conversation): void {
  const { number, about, dialects, buses } = rule;
  require(about === side || about === "both", `rule ${number} is not about a ${side} side`);
  require(dialects.includes(codec.dialect), `dialect ${codec.dialect} has no rule ${number}`);
  const isHere = busKind === undefined || buses === undefined || buses.includes(busKind);
  require(isHere, `rule ${number} is about other buses`);
}

/** Whatever a rule is about, nobody sends what means nothing. */
function expectSense({ heard }: Conversation): void {
  for (const { malformed, bytes } of heard) {
    expect(malformed === undefined, `a message that is none, ${malformed}: ${bytes.toHex()}`);
  }
}

/** Asks a device side, which must be a peer that knows us or has just attached; by a body of one's own. */
export function askDevice(
  rule: Rule,
  talk: Conversation,
  body: DeviceBody | undefined = DEVICE_BODIES[rule.number],
): Promise<Outcome> {
  return outcomeOf(async () => {
    requireApplicable(rule, "device", talk);
    require(body !== undefined, rule.unasked.device ?? "nobody has written down how to ask");
    talk.startOver();
    const role = new DriverRole(rule.number, talk);
    await role.begin();
    await body(role);
    expectSense(talk);
  });
}

/** Asks a driver side, which must be about to begin with our device; by a body of one's own. */
export function askDriver(
  rule: Rule,
  talk: Conversation,
  body: DriverBody | undefined = DRIVER_BODIES[rule.number],
): Promise<Outcome> {
  return outcomeOf(async () => {
    requireApplicable(rule, "driver", talk);
    require(body !== undefined, rule.unasked.driver ?? "nobody has written down how to ask");
    talk.startOver();
    await body(new DeviceRole(rule.number, talk));
    expectSense(talk);
  });
}
