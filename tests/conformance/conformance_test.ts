/** The checklist of the wire document's section 11, rule by rule: see rules.ts. */

import { assert, assertEquals } from "@std/assert";
import "./bus.ts";
import "./device.ts";
import "./driver.ts";
import "./framing.ts";
import "./linux.ts";
import { ALL_RULES, DEVIATIONS, NOT_APPLICABLE, REFERENCES, REPLACED, TESTED } from "./rules.ts";

Deno.test("every rule of section 11 is tested, referenced, or listed with a reason", () => {
  const referenced = new Set(REFERENCES.map(({ rule }) => rule));
  const listed = NOT_APPLICABLE.map(({ rule }) => rule);
  const known = new Set([...TESTED.keys(), ...referenced, ...listed]);
  assertEquals(ALL_RULES.filter((rule) => !known.has(rule)), [], "forgotten");
  assertEquals([...known].filter((rule) => !ALL_RULES.includes(rule)), [], "no such rule");
  assertEquals(listed.length, new Set(listed).size, "listed twice");
  const both = listed.filter((rule) => TESTED.has(rule) || referenced.has(rule));
  assertEquals(both, [], "tested, and yet listed as not applicable");
  for (const { rule } of DEVIATIONS) assert(TESTED.has(rule), `${rule} deviates and has no test`);
  console.log(
    `${TESTED.size} rules tested here, ` +
      `${[...referenced].filter((rule) => !TESTED.has(rule)).length} elsewhere, ` +
      `${listed.length} not applicable, ${DEVIATIONS.length} of the tested not kept`,
  );
});

Deno.test("rules that v1 replaces are tested in v1-2025 only, the others in v1", () => {
  for (const [rule, forms] of TESTED) {
    if (REPLACED.includes(rule)) assertEquals([...forms], ["v1-2025"], rule);
    else if (rule.startsWith("P")) assertEquals([...forms], ["proto"], rule);
    else assert(forms.has("v1"), rule);
  }
});

Deno.test("the tests that are referenced exist, under the number of their rule", () => {
  for (const { rule, file, test } of REFERENCES) {
    const source = Deno.readTextFileSync(new URL(`../${file}`, import.meta.url));
    assert(source.includes(test), `${file} has no test "${test}"`);
    const isVector = rule === "G1";
    assert(isVector || new RegExp(`\\b${rule}\\b`).test(test), `${rule} is not in "${test}"`);
  }
});
