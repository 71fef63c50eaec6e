/** Every rule can fail: peers that are wrong in one way each are found by the rules that must find them. */

import { assertEquals } from "@std/assert";
import { isAsked } from "../../src/check/check.ts";
import { RULES } from "../../src/check/rules.ts";
import { cleanTest } from "../support/leaks.ts";
import { DEVICE_FAULTS, DRIVER_FAULTS } from "./faults.ts";
import { LED_DEVICE } from "./led_device.ts";
import { LED_DRIVER } from "./led_driver.ts";
import { askOurDevice, askOurDriver, NOT_OF_OURS } from "./peers.ts";
import { ruleOf } from "./wording.ts";

for (const side of ["device", "driver"] as const) {
  const faults = side === "device" ? DEVICE_FAULTS : DRIVER_FAULTS;
  const ask = side === "device" ? askOurDevice : askOurDriver;

  for (const { what, breaks, dialect, change, unled } of faults) {
    cleanTest(`a ${side} side that is wrong (${dialect}): ${what}`, async () => {
      for (const number of breaks.split(" ")) {
        const outcome = await ask(ruleOf(number), dialect, change(), !unled);
        assertEquals(outcome?.verdict, "failed", `${number} does not find it`);
      }
    });
  }

  cleanTest(`a ${side} side with a relay that changes nothing is not wrong`, async () => {
    for (const { number, dialects } of RULES) {
      // What finds a queue full is lost there: G23 finds that.
      const isAskedFor = isAsked(ruleOf(number), side) && number !== "G23";
      for (const dialect of isAskedFor ? dialects : []) {
        const outcome = await ask(ruleOf(number), dialect, (_, bytes) => [bytes]);
        const expected = side === "driver" && NOT_OF_OURS.includes(number)
          ? "not applicable"
          : "passed";
        assertEquals(outcome?.verdict, expected, `${number} in ${dialect}`);
      }
    }
  });

  Deno.test(`every rule asked of a ${side} side has a fault that it must find`, () => {
    const found = new Set(faults.flatMap(({ breaks }) => breaks.split(" ")));
    const led = side === "device" ? LED_DEVICE : LED_DRIVER;
    const asked = RULES.map(({ number }) => number)
      .filter((number) => isAsked(ruleOf(number), side) || number in led);
    assertEquals(asked.filter((number) => !found.has(number)), []);
  });
}
