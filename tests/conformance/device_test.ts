/** Every rule of a device side, asked of ours in every dialect that has it, alone and one after the other. */

import { assertEquals } from "@std/assert";
import { isAsked } from "../../src/check/check.ts";
import { FAULT_MODES, ruleOfFault } from "../../src/check/faults.ts";
import { RULES } from "../../src/check/rules.ts";
import { cleanTest } from "../support/leaks.ts";
import { LED_DEVICE } from "./led_device.ts";
import { askOurDevice, ledDevice, networkCard, withOurDevice } from "./peers.ts";
import { WORDING } from "./wording.ts";

const ASKED = [...RULES, ...FAULT_MODES.map((mode) => ruleOfFault(mode, "device"))].filter((rule) =>
  isAsked(rule, "device") || rule.number in LED_DEVICE
);

const READ_ONLY = "this device takes no write of its configuration";
/** Why the network card cannot be asked, besides that nobody leads it. */
const NOT_OF_THE_CARD: Readonly<Record<string, string>> = {
  V13: READ_ONLY,
  V14: READ_ONLY,
  V35: READ_ONLY,
  V59: READ_ONLY,
};

for (const rule of ASKED) {
  for (const dialect of rule.dialects) {
    cleanTest(
      `${rule.number} ${dialect}, device: ${WORDING.get(rule.number) ?? "a bad day"}`,
      async () => {
        assertEquals(await askOurDevice(rule, dialect), { verdict: "passed" });
      },
    );
  }
}

for (const dialect of ["v1", "v1-2025", "rfc", "rfc-q", "proto"] as const) {
  const rules = ASKED.filter(({ dialects }) => dialects.includes(dialect));

  cleanTest(
    `all rules of ${dialect}, device: one after the other, twice`,
    () =>
      withOurDevice(dialect, ledDevice, async (ask) => {
        for (const rule of [...rules, ...rules]) {
          assertEquals(await ask(rule), { verdict: "passed" }, rule.number);
        }
      }),
  );

  cleanTest(
    `all rules of ${dialect}, device: the network card`,
    () =>
      withOurDevice(dialect, networkCard, async (ask) => {
        for (const rule of rules) {
          const { number, unasked } = rule;
          const reason = number in LED_DEVICE ? unasked.device : NOT_OF_THE_CARD[number];
          const expected = reason && { verdict: "not applicable", reason };
          assertEquals<unknown>(await ask(rule), expected ?? { verdict: "passed" }, number);
        }
      }),
  );
}
