/**
 * All rules asked of one peer that is another process, one after the other, each from a clean state. A device is
 * reset before each (its body begins so); a driver is cut off, comes back, and begins anew. A peer that goes is
 * waited for; one that does not come back leaves the other rules untested.
 */

import { Kind } from "../message/message.ts";
import { askDevice, askDriver } from "./check.ts";
import type { Dialogue } from "./dialogue.ts";
import type { Outcome } from "./outcome.ts";
import type { Played } from "./played.ts";
import { type Rule, RULES, type RuleSide } from "./rules.ts";

/** How long a peer may take to come (back): it may be started again by hand. */
const COME_MS = 30_000;
const LOOK_MS = 10;
/** A first request can be lost where the peer drops what came before it was there. */
const KNOCKS = 50;
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

/**
 * Asks until a device side answers.
 *
 * @returns which kind of device is there, 0 for none; "odd" if it says something, but no such answer; undefined if nothing
 */
async function knock(talk: Dialogue): Promise<number | "odd" | undefined> {
  let isOdd = false;
  for (let n = 0; n < KNOCKS && talk.bus.isAttached; n++) {
    talk.startOver();
    // One that says nothing to the first may say something to the second.
    const kind = n < KNOCKS / 2 ? Kind.GET_DEVICE_INFO : Kind.GET_DEVICE_STATUS;
    if (talk.bus.claim() >= 0) talk.send(kind);
    await talk.reactor.sleep(KNOCK_MS);
    const answer = talk.heard.find(({ message, malformed }) =>
      malformed === undefined && message.response && message.kind === Kind.GET_DEVICE_INFO
    );
    if (answer !== undefined) return answer.message.deviceId;
    isOdd ||= talk.heard.length > 0;
  }
  return isOdd ? "odd" : undefined;
}

/** What one rule brought, or why nobody is there to be asked. */
type Asked = Outcome | string;

/** Asks a device side, which is known to answer since its last arrival if that is what `known` says. */
async function askOfDevice(rule: Rule, talk: Dialogue, known: number): Promise<Asked> {
  if (!await comes(talk)) return "no device side came";
  if (known !== talk.departures) {
    const deviceId = await knock(talk);
    if (deviceId === undefined) return "the device side does not answer; is its dialect another?";
    if (deviceId === 0) return `there is no device ${talk.device}`;
  }
  return await askDevice(rule, talk);
}

async function askOfDriver(rule: Rule, talk: Dialogue, played?: Played): Promise<Asked> {
  const { bus } = talk;
  for (let attempt = 1;; attempt++) {
    // What it says first is for the rule.
    bus.isPaused = true;
    bus.drop("the next rule begins");
    if (!await comes(talk)) return "no driver side came";
    const { departures } = talk;
    const outcome = await askDriver(rule, talk, undefined, played);
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
 * @param played what is played to a driver side, unless a network card
 */
export async function askAll(
  side: RuleSide,
  rules: readonly Rule[],
  talk: Dialogue,
  tell: (result: Result) => void,
  played?: Played,
): Promise<void> {
  /** Departures of peers when a device answered last. */
  let known = -1;
  // Nobody is waited for twice.
  let missing: string | undefined;
  for (const rule of rules) {
    const startMs = talk.reactor.now();
    let asked: Asked | undefined = rule.unasked[side] ?? missing;
    if (asked === undefined) {
      const { departures } = talk;
      asked = await (side === "device"
        ? askOfDevice(rule, talk, known)
        : askOfDriver(rule, talk, played));
      // Who said nothing at all may stand still: before the next rule it is asked whether it is there.
      if (typeof asked === "string") {
        missing = asked;
      } else known = asked.verdict === "failed" && talk.heard.length === 0 ? -1 : departures;
    }
    const outcome: Outcome = typeof asked === "string"
      ? { verdict: "not applicable", reason: asked }
      : asked;
    tell({ rule, outcome, tookMs: talk.reactor.now() - startMs });
  }
  // It is left as it was found.
  if (side === "device" && talk.bus.claim() >= 0) {
    talk.startOver();
    talk.send(Kind.SET_DEVICE_STATUS, { status: 0 });
    await talk.reactor.sleep(LOOK_MS);
  }
}
