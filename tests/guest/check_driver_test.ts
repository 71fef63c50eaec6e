/**
 * `vmsg check --driver` asks `vmsg proxy` with an unmodified guest behind it: what kernels make a driver side say,
 * cut off before each rule and come back, with the guest's driver at work all the while.
 */

import { assertEquals } from "@std/assert";
import type { GuestKind } from "../../scripts/lab/machines.ts";
import { RULES as RULE_TABLE } from "../../src/check/rules.ts";
import type { Dialect } from "../../src/message/codec.ts";
import { guestTest } from "./support.ts";

const SCRIPT = "ip link set eth0 up\nwhile :; do sleep 1; done\n";
/** Asked of a guest whose driver stays: others are about a device that drivers have to refuse, or that comes anew. */
const RULES =
  "G1 G2 G3 G4 G5 G6 G7 G8 G9 G10 G11 G14 G15 G16 G17 G18 G19 G21 G22 R1 R2 R4 R6 R10 R11 R23 R30 R33 R34 B5 B12 P3 P4 P5 P6 P7 P8 P10 P14"
    .split(" ");
const FULL = Deno.env.get("VMSG_GUEST_FULL") === "1";
/** Those that are seen by a reset, which these guests do not do. */
const BY_RESET = ["R16", "R27", "R28", "R32"];
/** Checks that the guest may miss while it boots. */
const BOOTS = 20;

interface Line {
  readonly rule: string;
  readonly verdict: string;
}

/** In the order in which they are asked. */
function rulesOf(dialect: Dialect, numbers: readonly string[]): string[] {
  return RULE_TABLE.filter((rule) =>
    numbers.includes(rule.number) && rule.sides.includes("driver") &&
    rule.dialects.includes(dialect)
  ).map(({ number }) => number);
}

const CASES: readonly (readonly [GuestKind, dialect: Dialect])[] = [
  ["uml", "v1"],
  ["microvm", "v1-2025"],
  ["microvm", "proto"],
];

for (const [kind, dialect] of CASES) {
  if (kind !== "uml" && !FULL) continue;
  guestTest(
    `check --driver: the proxy with ${kind} keeps rules of ${dialect}`,
    kind,
    async (test) => {
      const { vmsg } = test;
      const bus = ["--bus", `linux-user,socket=lu.sock,dialect=${dialect}`];
      const proxy = await vmsg.start("proxy", ...bus, "--vhost-user", "socket=vu.sock");
      await proxy.waitFor(/waiting for a front end/);
      const rules = rulesOf(dialect, [...RULES, ...FULL ? BY_RESET : []]);
      const [first = ""] = rules;
      const wanted = rules.flatMap((rule) => ["--rule", rule]);
      const booting = test.boot({ socket: `${vmsg.directory}/vu.sock`, script: SCRIPT });
      // However long the guest takes to come: its front end waits for a device, and its driver for the front end.
      const isUp = async () =>
        (await vmsg.run("check", "--driver", ...bus, "--rule", first)).code === 0;
      for (let n = 0; n < BOOTS && !await isUp();) n++;
      const { stdout, code } = await vmsg.run("check", "--driver", ...bus, "--json", ...wanted);
      await booting;
      const lines = stdout.map((line) => JSON.parse(line) as Line);
      assertEquals(lines.filter(({ verdict }) => verdict === "FAIL"), []);
      const passed = lines.filter(({ verdict }) => verdict === "PASS").map(({ rule }) => rule);
      const unseen = ["R27", "R28", "R32"];
      assertEquals([passed, code], [rules.filter((rule) => !unseen.includes(rule)), 0]);
    },
  );
}
