/** Every rule of a driver side, asked of ours with the net driver on it, in every dialect that has it. */

import { assertEquals } from "@std/assert";
import { isAsked } from "../../src/check/check.ts";
import { FAULT_MODES, ruleOfFault } from "../../src/check/faults.ts";
import { RULES } from "../../src/check/rules.ts";
import { cleanTest } from "../support/leaks.ts";
import { LED_DRIVER } from "./led_driver.ts";
import { askOurDriver, isSeen, NOT_OF_OURS } from "./peers.ts";
import { WORDING } from "./wording.ts";

const ASKED = [...RULES, ...FAULT_MODES.map((mode) => ruleOfFault(mode, "driver"))].filter((rule) =>
  isAsked(rule, "driver") || rule.number in LED_DRIVER
);

for (const rule of ASKED) {
  for (const dialect of rule.dialects) {
    cleanTest(
      `${rule.number} ${dialect}, driver: ${WORDING.get(rule.number) ?? "a bad day"}`,
      async () => {
        const { verdict } = await askOurDriver(rule, dialect);
        assertEquals(verdict, NOT_OF_OURS.includes(rule.number) ? "not applicable" : "passed");
        if (!isAsked(rule, "driver")) return;
        const unled = await askOurDriver(rule, dialect, undefined, false);
        assertEquals(unled.verdict, isSeen(rule.number) ? "passed" : "not applicable");
      },
    );
  }
}
