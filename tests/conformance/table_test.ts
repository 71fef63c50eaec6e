/** The table of rules: that none is forgotten, neither here nor in docs/wire.md. */

import { assert, assertEquals } from "@std/assert";
import { askDevice, askDriver, isAsked } from "../../src/check/check.ts";
import type { Dialogue } from "../../src/check/dialogue.ts";
import { RULES } from "../../src/check/rules.ts";
import { WORDING as SAID } from "../../src/check/wording.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { LED_DEVICE } from "./led_device.ts";
import { LED_DRIVER } from "./led_driver.ts";
import { IN_RFC_Q, NOT_IN_RFC, ruleOf, SECTIONS, WORDING } from "./wording.ts";

/** Rules that are seen from inside only: where a test looks, below tests/. */
const SEEN_INSIDE: readonly (readonly [number: string, file: string, test: string])[] = [
  ["V25", "transport/device_side_test.ts", "V25: no memory before DRIVER_OK"],
  ["R13", "transport/driver_side_test.ts", "R12 R13: EVENT_USED and EVENT_CONFIG reach"],
  ["B1", "conformance/inside_test.ts", "B1 B2 B17 B22 B24: the greatest message"],
  ["B2", "conformance/inside_test.ts", "B1 B2 B17 B22 B24: the greatest message"],
  ["B3", "conformance/inside_test.ts", "B3 B26: what one end publishes"],
  ["B6", "transport/driver_side_test.ts", "B6: with a full queue no available notification"],
  ["B17", "conformance/inside_test.ts", "B1 B2 B17 B22 B24: the greatest message"],
  ["B21", "conformance/inside_test.ts", "B21 B29: a notification is its message, once"],
  ["B22", "conformance/inside_test.ts", "B1 B2 B17 B22 B24: the greatest message"],
  ["B24", "conformance/inside_test.ts", "B1 B2 B17 B22 B24: the greatest message"],
  ["B26", "conformance/inside_test.ts", "B3 B26: what one end publishes"],
  ["B29", "conformance/inside_test.ts", "B21 B29: a notification is its message, once"],
  ["G12", "conformance/inside_test.ts", "G12 B3: a bus that rewrites every token"],
  ["P11", "bus/linux_user_test.ts", "0xED for every message (P11)"],
];
/** Rules of what vmsg does not offer; the table has the reasons. */
const NOT_OFFERED = "V36 V44 V61 V62 R17 B13 B28 B30 B33 B35 U1 U2 U3 U4 U5"
  .split(" ");

const SIDES = ["device", "driver"] as const;

Deno.test("every rule has a body or a reason, for each side that it is about", () => {
  for (const rule of RULES) {
    for (const side of SIDES) {
      const isAbout = rule.sides.includes(side);
      const is = [isAsked(rule, side), rule.unasked[side] !== undefined];
      const wanted = isAbout ? [!is[1], !is[0]] : [false, false];
      assertEquals(is, wanted, `${rule.number}, ${side} side`);
    }
  }
});

Deno.test("what no body asks for is tested from inside, or not offered", () => {
  const unasked = RULES.filter(({ unasked }) => SIDES.some((side) => unasked[side] !== undefined));
  const seen = SEEN_INSIDE.map(([number]) => number);
  const led = [...Object.keys(LED_DEVICE), ...Object.keys(LED_DRIVER)];
  const accounted = new Set([...seen, ...led, ...NOT_OFFERED]);
  // Have bodies that look on as well.
  for (const number of Object.keys(LED_DRIVER)) {
    if (isAsked(ruleOf(number), "driver")) accounted.delete(number);
  }
  assertEquals([...accounted].sort(), unasked.map(({ number }) => number).sort());
  for (const [number, file, test] of SEEN_INSIDE) {
    const source = Deno.readTextFileSync(new URL(`../${file}`, import.meta.url));
    assert(source.includes(test), `${file} has no test "${test}", for ${number}`);
    assert(new RegExp(`\\b${number}\\b`).test(test), `${number} is not in "${test}"`);
  }
});

Deno.test("the table has the rules of docs/wire.md, each once, in its order", () => {
  assertEquals(RULES.map(({ number }) => number), [...WORDING.keys()]);
  for (const { number, section } of RULES) assert(SECTIONS.has(section), number);
});

Deno.test("a check's report has the words of docs/wire.md", () => {
  assertEquals(SAID, Object.fromEntries(WORDING));
});

/** What the text of 2026 made rules was good conduct before: our sides keep it in `v1-2025` as well. */
const ALSO_IN_2025 = "G17 G18 G20 G21 V30 V39 V40 V42 V43 R19 R21 R23 R24 R25 B20 B23".split(" ");
/** `v1` too has a SET_CONFIG that is refused. */
const ALSO_IN_V1 = ["R9"];

Deno.test("a rule is asked in the dialects that docs/wire.md gives it, and in more as said", () => {
  for (const { number, dialects } of RULES.filter(({ section }) => section < "7.5")) {
    const [, mark = ""] = WORDING.get(number)!.match(/^(25|v1|all)\b.*?:/) ?? [];
    const isBoth = ["", "all"].includes(mark) || [...ALSO_IN_2025, ...ALSO_IN_V1].includes(number);
    const wanted = isBoth ? ["v1", "v1-2025"] : [mark === "v1" ? "v1" : "v1-2025"];
    if (mark === "all") wanted.push("proto");
    if (wanted.includes("v1-2025") && !NOT_IN_RFC.includes(number)) wanted.push("rfc");
    if (IN_RFC_Q.includes(number)) wanted.push("rfc-q");
    assertEquals<readonly string[]>(dialects, wanted, number);
  }
});

/** Nobody is there: the rule is not to be asked. */
const nobody = (dialect: "v1" | "proto") => ({ codec: codecFor(dialect) }) as unknown as Dialogue;

Deno.test("what cannot be asked is said, with the reason", async () => {
  const cases = [
    [askDriver(ruleOf("V1"), nobody("v1")), "rule V1 is not about a driver side"],
    [askDevice(ruleOf("V1"), nobody("proto")), "dialect proto has no rule V1"],
    [askDevice(ruleOf("V25"), nobody("v1")), ruleOf("V25").unasked.device],
  ] as const;
  for (const [outcome, reason] of cases) {
    assertEquals(await outcome as unknown, { verdict: "not applicable", reason });
  }
});
