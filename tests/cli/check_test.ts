/** `vmsg check` as users have it, with sides that are other processes: ours, and some that are wrong in one way. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { isAsked } from "../../src/check/check.ts";
import { RULES } from "../../src/check/rules.ts";
import { DEVICE_FAULTS } from "../conformance/device_faults.ts";
import { DRIVER_FAULTS } from "../conformance/driver_faults.ts";
import { ALL, brokenIn } from "../conformance/fault.ts";
import { LED_DRIVER } from "../conformance/led_driver.ts";
import { isSeen } from "../conformance/peers.ts";
import type { Dialect } from "../../src/message/codec.ts";
import { processTest, VMSG_COMMAND } from "../support/processes.ts";
import { busOf, check, makeFile, MEMORY, RAM_SIZE } from "./check_support.ts";

const WRONG_DEVICE = fromFileUrl(new URL("../conformance/wrong_device.ts", import.meta.url));
const WRONG_DRIVER = fromFileUrl(new URL("../conformance/wrong_driver.ts", import.meta.url));

const isRule = (number: string) => RULES.some((rule) => rule.number === number);

processTest("check: without memory that both sides know no queue is set up", async (vmsg) => {
  const device = await vmsg.start("device", ...busOf("v1"), "--net", "responder");
  await device.waitFor(/waiting for the driver side/);
  const [code, lines] = await check(vmsg, ...busOf("v1"), "--rule", "V21", "--rule", "V8");
  const seen = "queues need memory that both sides know";
  const brief = lines.map(({ rule, verdict, seen }) => ({ rule, verdict, seen }));
  assertEquals(brief, [
    { rule: "V8", verdict: "PASS", seen: undefined },
    { rule: "V21", verdict: "NOT TESTED", seen },
  ]);
  assertEquals(code, 0);
});

/** Quick ones; all, which take a minute, with VMSG_GUEST_FULL. A driver that gives up ends, and is started again. */
const QUICK =
  "G4 G6 G8 G10 G11 G14 G15 G17 G18 G19 G21 G22 R1 R2 R4 R6 R12 R14 R16 R18 R19 R23 R26 R27 R32 R33 B12 B34 P3 P4 P5 P6 P7 P8 P10 P14"
    .split(" ");
const isFull = Deno.env.get("VMSG_GUEST_FULL") !== undefined;

for (const dialect of ALL) {
  processTest(`check --driver: vmsg driver keeps the rules of ${dialect}`, async (vmsg) => {
    await makeFile(vmsg, "ram", RAM_SIZE);
    const command = [...VMSG_COMMAND, "driver", ...busOf(dialect), ...MEMORY];
    const again = 'while :; do "$@"; done';
    await vmsg.startProgram("/bin/sh", "-c", again, "sh", ...command);
    const rules = RULES.filter((rule) =>
      rule.dialects.includes(dialect) && isAsked(rule, "driver") &&
      (isFull || QUICK.includes(rule.number))
    ).map(({ number }) => number);
    const wanted = rules.flatMap((rule) => ["--rule", rule]);
    const [code, lines] = await check(vmsg, "--driver", ...busOf(dialect), ...wanted);
    assertEquals(lines.filter(({ verdict }) => verdict === "FAIL"), []);
    const passed = lines.filter(({ verdict }) => verdict === "PASS").map(({ rule }) => rule);
    assertEquals([passed, code], [rules.filter(isSeen), 0]);
  });
}

/** The same driver, not wrong, but with the relay that makes others so. */
const RELAYED = {
  v1: "G8 R1 R2 R6 R14 R33",
  "v1-2025": "R1 R4 R16",
  rfc: "R2 R33",
  proto: "P4 P5 P6 P8",
};

for (const [dialect, numbers] of Object.entries(RELAYED)) {
  processTest(
    `check --driver: nothing is found in a relayed driver side, ${dialect}`,
    async (vmsg) => {
      await vmsg.startProgram(Deno.execPath(), "run", "-A", WRONG_DRIVER, "none", dialect);
      const wanted = numbers.split(" ").flatMap((rule) => ["--rule", rule]);
      const args = ["--driver", ...busOf(dialect), "--device", "3", ...wanted];
      const [code, lines] = await check(vmsg, ...args);
      const brief = lines.map(({ rule, verdict, seen }) => [rule, verdict, seen]);
      assertEquals(brief, numbers.split(" ").map((rule) => [rule, "PASS", undefined]));
      assertEquals(code, 0);
    },
  );
}

/** Wrong drivers that are found at once; with VMSG_GUEST_FULL all that can be without a hand on them. */
const QUICK_FAULTS = [
  "requests with token 0",
  "NOTIFICATION_DATA is accepted",
  "a queue larger than it can be",
  "EVENT_AVAIL before DRIVER_OK was answered",
  "SET_CONFIG with a generation, behind DRIVER_OK",
  "SET_CONFIG with generation 0, behind DRIVER_OK",
  "SET_DEVICE_STATUS is followed by something else",
];

/** And those that are tried in dialects without tokens. */
const QUICK_RFC_FAULTS = ["EVENT_AVAIL before DRIVER_OK was answered"];

for (const [place, fault] of DRIVER_FAULTS.entries()) {
  const { what, unled } = fault;
  for (const dialect of ALL) {
    const quick = dialect.startsWith("rfc") ? QUICK_RFC_FAULTS : QUICK_FAULTS;
    if (!isFull && !quick.includes(what)) continue;
    const rules = brokenIn(fault, "driver", dialect)
      .filter((number) => isRule(number) && (unled || !(number in LED_DRIVER)));
    if (rules.length === 0) continue;
    processTest(
      `check --driver: a driver side that is wrong is found (${dialect}): ${what}`,
      async (vmsg) => {
        const wrong = ["run", "-A", WRONG_DRIVER, `${place}`, dialect];
        await vmsg.startProgram(Deno.execPath(), ...wrong);
        const wanted = rules.flatMap((rule) => ["--rule", rule]);
        const args = ["--driver", ...busOf(dialect), "--device", "3", ...wanted];
        const [code, lines] = await check(vmsg, ...args);
        const failed = lines.filter(({ verdict }) => verdict === "FAIL").map(({ rule }) => rule);
        assertEquals([code, failed.sort()], [1, rules.toSorted()], JSON.stringify(lines));
      },
    );
  }
}

/** Wrong devices, in a dialect each. */
const WRONG_DEVICES: readonly (readonly [Dialect, what: string])[] = [
  ["v1", "GET_CONFIG answers from the beginning"],
  ["v1", "every answer twice"],
  ["v1", "an answer of the size of 2025"],
  ["v1", "SET_VQUEUE always takes all and enables"],
  ["v1-2025", "one queue too few is told"],
  ["rfc", "an answer of 65 bytes"],
  ["rfc-q", "a queue forgets its descriptor area"],
  ["proto", "no GET_VQUEUE after SET_VQUEUE"],
  ["proto", "a request that comes while another is worked on is lost"],
];

for (const [dialect, what] of WRONG_DEVICES) {
  processTest(
    `check: a device side that is wrong is found (${dialect}): ${what}`,
    async (vmsg) => {
      await makeFile(vmsg, "ram", RAM_SIZE);
      const place = DEVICE_FAULTS.findIndex((fault) => fault.what === what);
      const program = ["run", "-A", WRONG_DEVICE, `${place}`, dialect];
      const wrong = await vmsg.startProgram(Deno.execPath(), ...program);
      await wrong.waitFor(/waiting for the driver side/);
      const rules = brokenIn(DEVICE_FAULTS[place]!, "device", dialect);
      const wanted = rules.flatMap((rule) => [isRule(rule) ? "--rule" : "--fault", rule]);
      const args = [...busOf(dialect), ...MEMORY, "--device", "3", ...wanted];
      const { code, stdout } = await vmsg.run("check", ...args, "--junit", "rules.xml");
      const failed = stdout.flatMap((line) => line.match(/^FAIL +(\S+)/)?.[1] ?? []);
      assertEquals([code, failed.sort()], [1, rules.toSorted()]);
      assert(stdout.some((line) => /^ +seen: ./.test(line)));
      assertMatch(stdout.at(-1)!, new RegExp(`^0 passed, ${rules.length} failed, 0 not tested$`));
      const report = await Deno.readTextFile(`${vmsg.directory}/rules.xml`);
      assertEquals(report.match(/<failure message="[^"]+"\/>/g)?.length, rules.length);
    },
  );
}

processTest(
  "check: a number without a device passes nothing, and nobody there is an error",
  async (vmsg) => {
    const nobody = await vmsg.run("check", "--bus", "linux-user,socket=lu.sock,wait=off");
    assertEquals(nobody.code, 1);
    assertMatch(nobody.stderr.join("\n"), /no device side listens there/);
    const device = await vmsg.start("device", ...busOf("v1"), "--net", "responder");
    await device.waitFor(/waiting for the driver side/);
    const [code, lines] = await check(vmsg, ...busOf("v1"), "--device", "5", "--rule", "V8");
    assertEquals([code, lines.map(({ verdict, seen }) => [verdict, seen])], [
      1,
      [["NOT TESTED", "there is no device 5"]],
    ]);
  },
);

processTest("check: what cannot be asked is said in one line", async (vmsg) => {
  const cases: [string[], number, RegExp][] = [
    [["--rule", "V999"], 2, /docs\/wire.md 7 has no such rule/],
    [["--rule", "R1"], 2, /is not about a device side/],
    [["--rule", "P1"], 1, /dialect v1 has none of the rules/],
    [["--memory", "segment"], 2, /takes file=PATH,at=ADDRESS/],
    [["--fault", "slow"], 2, /the modes are late, reordered/],
    [["--fault", "late", "--rule", "V8"], 2, /give --rule or --fault/],
  ];
  for (const [args, code, line] of cases) {
    const ended = await vmsg.run("check", ...busOf("v1"), ...args);
    assertEquals([ended.code, ended.stderr.length], [code, 1], ended.stderr.join("\n"));
    assertMatch(ended.stderr[0]!, line);
  }
});
