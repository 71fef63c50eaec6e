/** Every kind of device that vmsg has keeps the rules, in every dialect that has rules. */

import { assertEquals } from "@std/assert";
import { processTest } from "../support/processes.ts";
import { assertKept, busOf, check, KINDS, makeFile, MEMORY, RAM_SIZE } from "./check_support.ts";

/** Of back ends that others have written: tests/guest/check_back_ends_test.ts. */
const ELSEWHERE = ["vhost_user"];

Deno.test("check: every kind of device is asked", async () => {
  const directory = new URL("../../src/cli/device_kinds/", import.meta.url);
  const names = await Array.fromAsync(Deno.readDir(directory), ({ name }) => name.slice(0, -3));
  const kinds = names.filter((name) => ![...ELSEWHERE, "device_kind"].includes(name));
  assertEquals(kinds.sort(), Object.keys(KINDS).sort());
});

for (const dialect of ["v1", "v1-2025"] as const) {
  processTest(
    `check: devices of every kind on one bus keep the rules of ${dialect}`,
    async (vmsg) => {
      await makeFile(vmsg, "ram", RAM_SIZE);
      await makeFile(vmsg, "disk", 1 << 20);
      const kinds = Object.values(KINDS).flatMap(([args]) => args);
      const device = await vmsg.start("device", ...busOf(dialect), ...MEMORY, ...kinds);
      await device.waitFor(/waiting for the driver side/);
      for (const [number, [, unlike]] of Object.values(KINDS).entries()) {
        const wanted = ["--device", `${number}`];
        assertKept(dialect, await check(vmsg, ...busOf(dialect), ...MEMORY, ...wanted), unlike);
      }
    },
  );
}

// One device a bus.
for (const [kind, [args]] of Object.entries(KINDS)) {
  processTest(`check: vmsg device with ${kind} keeps the rules of proto`, async (vmsg) => {
    await makeFile(vmsg, "ram", RAM_SIZE);
    await makeFile(vmsg, "disk", 1 << 20);
    const device = await vmsg.start("device", ...busOf("proto"), ...MEMORY, ...args);
    await device.waitFor(/waiting for the driver side/);
    assertKept("proto", await check(vmsg, ...busOf("proto"), ...MEMORY), []);
  });
}
