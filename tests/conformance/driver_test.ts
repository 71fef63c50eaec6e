/** Every rule of a driver side, asked of ours with the net driver on it, in every dialect that has it. */

import { assertEquals } from "@std/assert";
import { isAsked } from "../../src/check/check.ts";
import { RULES } from "../../src/check/rules.ts";
import { cleanTest } from "../support/leaks.ts";
import { LED_DRIVER } from "./led_driver.ts";
import { askOurDriver } from "./peers.ts";

/** Where vmsg does less than a rule wants, and what is found then. */
const DEVIATIONS: Readonly<Record<string, string>> = {
  // The net driver uses nothing of it but the MAC address; vhost-user's front end reads when it wants to.
  R12: "nothing is read again",
};

const ASKED = RULES.filter((rule) => isAsked(rule, "driver") || rule.number in LED_DRIVER);

for (const rule of ASKED) {
  for (const dialect of rule.dialects) {
    cleanTest(`${rule.number} ${dialect}, driver: ${rule.title}`, async () => {
      const reason = DEVIATIONS[rule.number];
      const expected = reason === undefined ? { verdict: "passed" } : { verdict: "failed", reason };
      assertEquals(await askOurDriver(rule, dialect) as unknown, expected);
    });
  }
}
