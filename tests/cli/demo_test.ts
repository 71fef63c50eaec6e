/** `vmsg demo` leaves nothing behind, however it ends, and says in one line why it cannot run. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { type Processes, processTest, until, VMSG_COMMAND } from "../support/processes.ts";

/** Starts the demo with a TMPDIR of its own, in a home of its own. */
function startDemo(vmsg: Processes, temporary: string) {
  const command = [...VMSG_COMMAND, "demo", "--throughput", "30"].join(" ");
  return vmsg.startProgram("sh", "-c", `TMPDIR=${temporary} exec ${command}`);
}

/** The processes that have `text` in their arguments. */
function* processesWith(text: string): Generator<number> {
  for (const { name } of Deno.readDirSync("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    try {
      if (Deno.readTextFileSync(`/proc/${name}/cmdline`).includes(text)) yield Number(name);
    } catch {
      // It has ended.
    }
  }
}

for (const signal of ["SIGKILL", "SIGTERM", "SIGINT"] as const) {
  processTest(`cli: demo that ends by ${signal} leaves no process and no file`, async (vmsg) => {
    const temporary = `${vmsg.directory}/tmp`;
    await Deno.mkdir(temporary);
    const demo = await startDemo(vmsg, temporary);
    await demo.waitFor(/icmp_seq=2/);
    const [name = ""] = [...Deno.readDirSync(temporary)].map(({ name }) => name);
    const left = () => [...processesWith(`${temporary}/${name}`)];
    assert(left().length >= 2, "a device and a driver");
    demo.kill(signal);
    await until(() => [...Deno.readDirSync(temporary)].length === 0);
    assertEquals(left(), []);
  });
}

processTest("cli: demo without a temporary directory is one line", async (vmsg) => {
  for (const temporary of ["/proc", "/nowhere"]) {
    const demo = await startDemo(vmsg, temporary);
    const { code, stdout, stderr } = await demo.ended();
    assertEquals([code, stdout, stderr.length], [1, [], 1], stderr.join("\n"));
    assertMatch(stderr[0]!, /^vmsg: cannot make a temporary directory: set TMPDIR to a directory/);
  }
});
