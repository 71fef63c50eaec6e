/** What rules brought, as lines for people, as JSON, and as JUnit's XML for what shows tests. */

import { DEVICE_FAULTS } from "./device_faults.ts";
import { DRIVER_FAULTS } from "./driver_faults.ts";
import { FAULT_MODES } from "./faults.ts";
import type { Dialect } from "../message/codec.ts";
import { quirkOf } from "./quirks.ts";
import type { RuleSide } from "./rules.ts";
import type { Result } from "./session.ts";
import { WORDING } from "./wording.ts";

const VERDICTS = { passed: "PASS", failed: "FAIL", "not applicable": "NOT TESTED" } as const;

/** One result in plain words, for programs. */
export interface Line {
  readonly rule: string;
  readonly section: string;
  /** A MUST, or a SHOULD. */
  readonly must: boolean;
  readonly text: string;
  readonly verdict: typeof VERDICTS[keyof typeof VERDICTS];
  /** What was seen, or why it was not tested. */
  readonly seen?: string;
  /** Who is known to do so. */
  readonly known?: string;
  readonly ms: number;
}

/** What a rule, or a fault mode in the place of one, says. */
function textOf(number: string, side: RuleSide): string {
  const mode = FAULT_MODES.find((mode) => mode === number);
  if (mode === undefined) return WORDING[number] ?? "";
  return (side === "device" ? DEVICE_FAULTS : DRIVER_FAULTS)[mode][0];
}

/** @param side the peer's */
export function lineOf({ rule, outcome, tookMs }: Result, side: RuleSide, dialect: Dialect): Line {
  const { number, section, must } = rule;
  const text = textOf(number, side);
  const quirk = outcome.verdict === "failed" ? quirkOf(side, number, dialect) : undefined;
  return {
    ...{ rule: number, section, must, text, verdict: VERDICTS[outcome.verdict] },
    ...(outcome.verdict === "passed" ? {} : { seen: outcome.reason }),
    ...(quirk === undefined ? {} : { known: quirk }),
    ms: Math.round(tookMs),
  };
}

export function wordsOf({ rule, section, must, text, verdict, seen, known }: Line): string[] {
  const head = `${verdict.padEnd(10)} ${rule.padEnd(4)} ${text} (docs/wire.md ${section}${
    must ? "" : ", a SHOULD"
  })`;
  const more = [
    seen && `${verdict === "FAIL" ? "seen" : "why"}: ${seen}`,
    known && `known: ${known}`,
  ];
  return [
    head,
    ...more.filter((line) => line !== undefined).map((line) => `${" ".repeat(16)}${line}`),
  ];
}

const ENTITIES: Readonly<Record<string, string>> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  '"': "&quot;",
};
const xml = (text: string) => text.replace(/[&<>"]/g, (one) => ENTITIES[one]!);

export function junitOf(name: string, lines: readonly Line[]): string {
  const count = (verdict: Line["verdict"]) => lines.filter((l) => l.verdict === verdict).length;
  const cases = lines.map(({ rule, text, section, verdict, seen, ms }) => {
    const body = verdict === "PASS"
      ? ""
      : `<${verdict === "FAIL" ? "failure" : "skipped"} message="${xml(seen ?? "")}"/>`;
    return `  <testcase classname="${xml(name)}.${section}" name="${
      xml(`${rule} ${text}`)
    }" time="${ms / 1000}">${body}</testcase>`;
  });
  const counts = `tests="${lines.length}" failures="${count("FAIL")}" skipped="${
    count("NOT TESTED")
  }"`;
  return [
    '<?xml version="1.0" encoding="UTF-8"?>',
    `<testsuite name="${xml(name)}" ${counts}>`,
    ...cases,
    "</testsuite>",
    "",
  ].join("\n");
}

export function summaryOf(lines: readonly Line[]): string {
  const count = (verdict: Line["verdict"]) => lines.filter((l) => l.verdict === verdict).length;
  return `${count("PASS")} passed, ${count("FAIL")} failed, ${count("NOT TESTED")} not tested`;
}
