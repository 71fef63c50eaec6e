/**
 * All rules asked of one peer that is another process, one after the other, each from a clean state. A device is
 * reset before each (its body begins so); a driver is cut off, comes back, and begins anew. A peer that goes is
 * waited for; one that does not come back leaves the other rules untested.
 */

import { Kind } from "../message/message.ts";
import { askDevice, askDriver } from "./check.ts";
import type { Dialogue } from "./dialogue.ts";
import type { Outcome } from "./outcome.ts";
import { type Rule, RULES, type RuleSide } from "./rules.ts";

/** How long a peer may take to come (back): it may be started again by hand. */
const COME_MS = 30_000;
const LOOK_MS = 10;
/** A first request can be lost where the peer drops what came before it was there. */
const KNOCKS = 20;
const KNOCK_MS = 100;
/** A driver that gave up in the rule before may come once more, only to end. */
const ATTEMPTS = 3;

/** What a rule's asking brought. */
export interface Result {
  readonly rule: Rule;
  readonly outcome: Outcome;
  readonly tookMs: number;
}

async function comes({ bus, reactor }: Dialogue): Promise<boolean> {
  const endMs = reactor.now() + COME_MS;
  while (!bus.isAttached) {
    if (reactor.now() > endMs) return false;
    await reactor.sleep(LOOK_MS);
  }
  return true;
}

/** Asks until a device side answers; which kind of device it has there, 0 for none, undefined without an answer. */
async function knock(talk: Dialogue): Promise<number | undefined> {
  for (let n = 0; n < KNOCKS && talk.bus.isAttached; n++) {
    talk.startOver();
    if (talk.bus.claim() >= 0) talk.send(Kind.GET_DEVICE_INFO);
    await talk.reactor.sleep(KNOCK_MS);
    const answer = talk.heard.find(({ message, malformed }) =>
      malformed === undefined && message.response && message.kind === Kind.GET_DEVICE_INFO
    );
    if (answer !== undefined) return answer.message.deviceId;
  }
  return undefined;
}

const untested = (reason: string): Outcome => ({ verdict: "not applicable", reason });

async function askOfDevice(rule: Rule, talk: Dialogue, seen: number): Promise<[Outcome, number]> {
  if (!await comes(talk)) return [untested("no device side came"), seen];
  if (seen !== talk.departures) {
    const deviceId = await knock(talk);
    if (deviceId === undefined) return [untested("the device side does not answer"), seen];
    if (deviceId === 0) return [untested(`there is no device ${talk.device}`), seen];
  }
  const now = talk.departures;
  return [await askDevice(rule, talk), now];
}

async function askOfDriver(rule: Rule, talk: Dialogue): Promise<Outcome> {
  const { bus } = talk;
  for (let attempt = 1;; attempt++) {
    // What it says first is for the rule.
    bus.isPaused = true;
    bus.drop("the next rule begins");
    if (!await comes(talk)) return untested("no driver side came");
    const { departures } = talk;
    const outcome = await askDriver(rule, talk);
    const isCutShort = outcome.verdict === "failed" && departures !== talk.departures;
    if (!isCutShort || attempt === ATTEMPTS) return outcome;
  }
}

/** The rules that a peer of that side can be asked for in the dialogue's dialect. */
export function rulesFor(side: RuleSide, { codec }: Pick<Dialogue, "codec">): Rule[] {
  return RULES.filter(({ sides, dialects }) =>
    sides.includes(side) && dialects.includes(codec.dialect)
  );
}

/**
 * Asks for rules one after the other.
 *
 * @param side the peer's
 * @param tell is given each result when it is there
 */
export async function askAll(
  side: RuleSide,
  rules: readonly Rule[],
  talk: Dialogue,
  tell: (result: Result) => void,
): Promise<void> {
  let seen = -1;
  let missing: Outcome | undefined;
  for (const rule of rules) {
    const startMs = talk.reactor.now();
    const unasked = rule.unasked[side];
    let outcome: Outcome;
    if (unasked !== undefined) outcome = untested(unasked);
    else if (missing !== undefined) outcome = missing;
    else if (side === "device") [outcome, seen] = await askOfDevice(rule, talk, seen);
    else outcome = await askOfDriver(rule, talk);
    // Nobody is waited for twice.
    if (!talk.bus.isAttached || (side === "device" && seen < 0)) {
      if (outcome.verdict === "not applicable") missing = outcome;
    }
    tell({ rule, outcome, tookMs: talk.reactor.now() - startMs });
  }
  // It is left as it was found.
  if (side === "device" && talk.bus.claim() >= 0) {
    talk.startOver();
    talk.send(Kind.SET_DEVICE_STATUS, { status: 0 });
    await talk.reactor.sleep(LOOK_MS);
  }
}
