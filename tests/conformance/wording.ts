/** The rules by number, and what they say, as docs/wire.md has it. */

import { FAULT_MODES, ruleOfFault } from "../../src/check/faults.ts";
import { type Rule, RULES, type RuleSide } from "../../src/check/rules.ts";

const TEXT = Deno.readTextFileSync(new URL("../../docs/wire.md", import.meta.url));

/** By the rule's number, in the order of docs/wire.md. */
export const WORDING: ReadonlyMap<string, string> = new Map(
  [...TEXT.matchAll(/^\| ([GVRBPU]\d+) \| (.*) \|$/gm)].map(([, number, words]) =>
    [number!, words!] as const
  ),
);
/** What it says of the dialects without tokens. */
const numbersIn = (text: RegExp): readonly string[] =>
  text.exec(TEXT)![1]!.split(/\s/).filter((word) => word !== "");
export const NOT_IN_RFC = numbersIn(/those of tokens: ([G\d\s]+)\. In/);
export const IN_RFC_Q = numbersIn(/are echoed, hold ([GVRB\d\s]+)\./);
/** The numbers of the sections. */
export const SECTIONS: ReadonlySet<string> = new Set(
  TEXT.match(/^### (7\.\d)/gm)?.map((line) => line.slice(4)),
);

/** The rule with this number, or the fault mode of that name. */
export function ruleOf(number: string, side: RuleSide = "device"): Rule {
  const mode = FAULT_MODES.find((mode) => mode === number);
  if (mode !== undefined) return ruleOfFault(mode, side);
  const rule = RULES.find((rule) => rule.number === number);
  if (rule === undefined) throw new Error(`there is no rule ${number}`);
  return rule;
}
