/** `vmsg check --driver --as`: drivers of ours for other devices than network cards keep the rules, in every dialect that has them. */

import { assertEquals } from "@std/assert";
import { isAsked } from "../../src/check/check.ts";
import { PLAYED_KINDS } from "../../src/check/played.ts";
import { RULES } from "../../src/check/rules.ts";
import { processTest, VMSG_COMMAND } from "../support/processes.ts";
import { busOf, check, makeFile, MEMORY, RAM_SIZE } from "./check_support.ts";

/** Without those about a driver that gives up, or that is given half a device: they take seconds each. */
const QUICK =
  "G1 G4 G5 G6 G7 G8 G10 G11 G14 G15 G17 G18 G19 G21 G22 R1 R2 R4 R6 R11 R12 R18 R19 R23 R26 R33 R34 B12 B16 B23 B34 P3 P4 P5 P6 P7 P8 P10 P14"
    .split(" ");
const isFull = Deno.env.get("VMSG_GUEST_FULL") !== undefined;
/** What it does when its device needs a reset is that it ends, which may be seen as one, or not. */
const BY_RESET = ["R14", "R15", "R16", "R27", "R28", "R32"];

Deno.test("check --driver: every kind of driver of ours is asked", async () => {
  const directory = new URL("../../src/cli/driver_kinds/", import.meta.url);
  const names = await Array.fromAsync(Deno.readDir(directory), ({ name }) => name.slice(0, -3));
  const kinds = names.filter((name) => name !== "driver_kind");
  assertEquals(["net", ...kinds].sort(), PLAYED_KINDS.toSorted());
});

for (const kind of PLAYED_KINDS.filter((kind) => kind !== "net")) {
  for (const dialect of ["v1", "v1-2025", "proto"] as const) {
    processTest(
      `check --driver: vmsg driver --device ${kind} keeps the rules of ${dialect}`,
      async (vmsg) => {
        await makeFile(vmsg, "ram", RAM_SIZE);
        const command = [...VMSG_COMMAND, "driver", ...busOf(dialect), ...MEMORY];
        const again = 'while :; do "$@"; done';
        await vmsg.startProgram("/bin/sh", "-c", again, "sh", ...command, "--device", kind);
        const rules = RULES.filter((rule) =>
          rule.dialects.includes(dialect) && isAsked(rule, "driver") &&
          (isFull || QUICK.includes(rule.number))
        ).map(({ number }) => number);
        const wanted = ["--as", kind, ...rules.flatMap((rule) => ["--rule", rule])];
        const [code, lines] = await check(vmsg, "--driver", ...busOf(dialect), ...wanted);
        assertEquals(lines.filter(({ verdict }) => verdict === "FAIL"), []);
        assertEquals(code, 0);
        // It asks for nothing in its configuration that it has to write, or to read in parts; rng has none.
        const unseen = lines.filter(({ rule, verdict }) =>
          verdict !== "PASS" && !BY_RESET.includes(rule)
        ).map(({ rule }) => rule);
        const not = "R8 R9 R20 R21 R29 B19 B36 P9".split(" ");
        const none = kind === "rng" ? [...not, "R12", "R18"] : not;
        assertEquals(unseen, rules.filter((rule) => none.includes(rule)));
      },
    );
  }
}
