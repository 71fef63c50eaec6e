/**
 * Every rule and every fault mode can fail: peers that are wrong in one way each are found by the rules that must find
 * them, in every dialect that has them.
 */

import { assert, assertEquals } from "@std/assert";
import { isAsked } from "../../src/check/check.ts";
import { FAULT_MODES } from "../../src/check/faults.ts";
import { RULES } from "../../src/check/rules.ts";
import { cleanTest } from "../support/leaks.ts";
import { DEVICE_FAULTS } from "./device_faults.ts";
import { DRIVER_FAULTS } from "./driver_faults.ts";
import { ALL, brokenIn, isAnswer } from "./fault.ts";
import { LED_DEVICE } from "./led_device.ts";
import { LED_DRIVER } from "./led_driver.ts";
import { askOurDevice, askOurDriver, NOT_OF_OURS } from "./peers.ts";
import type { Change, Way } from "./relay.ts";
import { ruleOf } from "./wording.ts";

type Make = (way: Way) => Change;

/** Sides on a machine that has other work to do: by rule, what is late, and by how much. */
const SLOW: readonly (readonly [number: string, side: "device" | "driver", what: string, Make])[] =
  [
    ["P2", "device", "one answer of many takes a tenth of a second", ({ reactor, say }) => {
      let count = 0;
      return (from, bytes) => {
        if (from === "driver" || ++count !== 7) return [bytes];
        reactor.sleep(100).then(() => say("device", bytes));
        return [];
      };
    }],
    ["P1", "device", "answers come a while apart", ({ reactor, say }) => {
      let count = 0;
      return (from, bytes) => {
        if (from === "driver" || !isAnswer(bytes)) return [bytes];
        reactor.sleep(150 * ++count).then(() => say("device", bytes));
        return [];
      };
    }],
    ["R12", "driver", "an event is seen after a while", ({ reactor, say }) => (from, bytes) => {
      if (from === "driver" || isAnswer(bytes)) return [bytes];
      reactor.sleep(300).then(() => say("device", bytes));
      return [];
    }],
  ];

for (const [number, side, what, change] of SLOW) {
  const rule = ruleOf(number, side);
  for (const dialect of rule.dialects) {
    cleanTest(
      `a ${side} side that is slow is not wrong, ${number} ${dialect}: ${what}`,
      async () => {
        const ask = side === "device" ? askOurDevice : askOurDriver;
        assertEquals((await ask(rule, dialect, change, false))?.verdict, "passed");
      },
    );
  }
}

for (const side of ["device", "driver"] as const) {
  const faults = side === "device" ? DEVICE_FAULTS : DRIVER_FAULTS;
  const ask = side === "device" ? askOurDevice : askOurDriver;
  const led = side === "device" ? LED_DEVICE : LED_DRIVER;
  const asked = [...RULES.map(({ number }) => number), ...FAULT_MODES].filter((number) =>
    isAsked(ruleOf(number, side), side) || number in led
  );

  for (const dialect of ALL) {
    for (const fault of faults) {
      const numbers = brokenIn(fault, side, dialect);
      if (numbers.length === 0) continue;
      cleanTest(`a ${side} side that is wrong (${dialect}): ${fault.what}`, async () => {
        for (const number of numbers) {
          const outcome = await ask(ruleOf(number, side), dialect, fault.change, !fault.unled);
          assertEquals(outcome?.verdict, "failed", `${number} does not find it`);
        }
      });
    }

    cleanTest(
      `a ${side} side with a relay that changes nothing is not wrong, ${dialect}`,
      async () => {
        for (const number of asked) {
          const rule = ruleOf(number, side);
          // What finds a queue full is lost there: G23 and `full` find that.
          const isLost = side === "device" && ["G23", "full"].includes(number);
          if (!isAsked(rule, side) || !rule.dialects.includes(dialect) || isLost) continue;
          const outcome = await ask(rule, dialect, () => (_, bytes) => [bytes]);
          const expected = side === "driver" && NOT_OF_OURS.includes(number)
            ? "not applicable"
            : "passed";
          assertEquals(outcome?.verdict, expected, number);
        }
      },
    );

    Deno.test(`every rule asked of a ${side} side has a fault that it must find, ${dialect}`, () => {
      const found = new Set(faults.flatMap((fault) => brokenIn(fault, side, dialect)));
      const inDialect = asked.filter((number) => ruleOf(number, side).dialects.includes(dialect));
      assertEquals(inDialect.filter((number) => !found.has(number)), []);
    });
  }

  Deno.test(`every way of being wrong is tried, and found by a ${side} side's rules`, () => {
    for (const fault of faults) {
      const tried = ALL.flatMap((dialect) => brokenIn(fault, side, dialect));
      assertEquals(fault.breaks.filter((number) => !tried.includes(number)), [], fault.what);
    }
    assert(faults.length >= 60, `${faults.length} are fewer than 60`);
  });
}
