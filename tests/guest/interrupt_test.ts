/** Ctrl-C while a demo prepares itself: exit code 130, and nothing is said of what it interrupted. */

import { assertEquals } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { processTest } from "../support/processes.ts";

const DEMO = fromFileUrl(new URL("../../scripts/lab/demo_ivshmem.ts", import.meta.url));

processTest(
  "demo ivshmem: a program that Ctrl-C ended is not told, and the exit code is 130",
  async (vmsg) => {
    // The first program that it asks, in place of QEMU: it says that it runs, and waits.
    const script = `#!/bin/sh\necho asked >&2; touch ${vmsg.directory}/asked; exec sleep 60\n`;
    for (const name of ["qemu-system-x86_64", "linux.uml", "qemu-system-aarch64", "ldd"]) {
      await Deno.writeTextFile(`${vmsg.directory}/${name}`, script, { mode: 0o755 });
    }
    const path = `PATH=${vmsg.directory}:$PATH`;
    const command = `${path} exec ${Deno.execPath()} run --quiet -A ${DEMO}`;
    const demo = await vmsg.startProgram("sh", "-c", command);
    while (!vmsg.files().includes("asked")) await new Promise((resolve) => setTimeout(resolve, 20));
    // As the terminal does it, to all at once.
    Deno.kill(-demo.pid, "SIGINT");
    const { code, stdout, stderr } = await demo.ended();
    assertEquals([code, stdout, stderr.filter((line) => line !== "asked")], [130, [], []]);
  },
);
