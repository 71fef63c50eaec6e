/** Programs are the system's, whatever the caller's environment says. */

import { assertEquals, assertMatch } from "@std/assert";
import { findProgram } from "../../src/linux/programs.ts";
import { processTest, VMSG_COMMAND } from "../support/processes.ts";

Deno.test("programs: of the system's directories only, and files only", () => {
  assertMatch(findProgram("sh") ?? "", /^(\/usr)?\/bin\/sh$/);
  assertEquals(findProgram("nosuch"), undefined);
  assertEquals(findProgram("."), undefined);
});

processTest(
  "programs: what stands first on PATH is not run, nor what else the caller sets",
  async (vmsg) => {
    const fake = `${vmsg.directory}/bin`;
    await Deno.mkdir(fake);
    for (
      const name of [
        "sh",
        "mktemp",
        "sleep",
        "rm",
        "df",
        "passt",
        "qemu-system-x86_64",
        "linux.uml",
      ]
    ) {
      await Deno.writeTextFile(
        `${fake}/${name}`,
        `#!/bin/sh\necho ${name} >> ${vmsg.directory}/ran\n`,
        { mode: 0o755 },
      );
    }
    const path = `PATH=${fake}:$PATH`;
    const run = async (...words: string[]) => {
      const command = [...VMSG_COMMAND, ...words].join(" ");
      return await vmsg.startProgram("/bin/sh", "-c", `${path}; export PATH; exec ${command}`);
    };
    assertEquals((await (await run("demo", "--throughput", "0")).ended()).code, 0);
    assertEquals((await (await run("doctor")).ended()).code, 0);
    const device = await run("device", "--bus", "linux-user,socket=s", "--net", "passt");
    await device.waitFor(/waiting for the driver side|not installed/);
    await device.end("SIGTERM");
    assertEquals(vmsg.files().includes("ran"), false);
  },
);
