/** `vmsg check --fault`: our own sides live with a peer on a bad day, in every dialect. */

import { assertEquals } from "@std/assert";
import { FAULT_MODES } from "../../src/check/faults.ts";
import { RINGS_SIZE } from "../../src/check/roles.ts";
import { processTest, VMSG_COMMAND } from "../support/processes.ts";
import { busOf, check, DEVICE_AREA, makeFile, MEMORY, RAM_SIZE } from "./check_support.ts";

/** The others are asked in tests/conformance, where a silence takes no time. */
const DIALECTS = ["v1", "v1-2025", "proto"] as const;

for (const dialect of DIALECTS) {
  processTest(`check --fault: vmsg device lives with a bad driver of ${dialect}`, async (vmsg) => {
    await makeFile(vmsg, "ram", RAM_SIZE);
    const device = await vmsg.start("device", ...busOf(dialect), ...MEMORY, "--net", "responder");
    await device.waitFor(/waiting for the driver side/);
    const wanted = FAULT_MODES.flatMap((mode) => ["--fault", mode]);
    const [code, lines] = await check(vmsg, ...busOf(dialect), ...MEMORY, ...wanted);
    const brief = lines.map(({ rule, verdict, seen }) => [rule, verdict, seen]);
    assertEquals(brief, FAULT_MODES.map((mode) => [mode, "PASS", undefined]));
    assertEquals(code, 0);
    const ram = await Deno.readFile(`${vmsg.directory}/ram`);
    // What a device says in the first queue's area for it is its own.
    const isWritten = ram.findIndex((byte, at) =>
      byte !== 0 && (at < DEVICE_AREA || at >= RINGS_SIZE)
    );
    assertEquals(isWritten, -1, "the peer's memory was written to");
  });
}

for (const dialect of DIALECTS) {
  processTest(
    `check --driver --fault: vmsg driver lives with a bad device of ${dialect}`,
    async (vmsg) => {
      await makeFile(vmsg, "ram", RAM_SIZE);
      const command = [...VMSG_COMMAND, "driver", ...busOf(dialect), ...MEMORY];
      const again = 'while :; do "$@"; done';
      await vmsg.startProgram("/bin/sh", "-c", again, "sh", ...command);
      const wanted = FAULT_MODES.flatMap((mode) => ["--fault", mode]);
      const [code, lines] = await check(vmsg, "--driver", ...busOf(dialect), ...wanted);
      const brief = lines.map(({ rule, verdict, seen }) => [rule, verdict, seen]);
      assertEquals(brief, FAULT_MODES.map((mode) => [mode, "PASS", undefined]));
      assertEquals(code, 0);
    },
  );
}
