/** `vmsg demo` leaves nothing behind, however it ends, and says in one line why it cannot run. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { childrenOf, readProc } from "../support/proc_files.ts";
import { type Processes, processTest, until, VMSG_COMMAND } from "../support/processes.ts";

/** Starts the demo with a TMPDIR of its own, in a home of its own. */
function startDemo(vmsg: Processes, temporary: string) {
  const command = [...VMSG_COMMAND, "demo", "--throughput", "600"].join(" ");
  return vmsg.startProgram("sh", "-c", `TMPDIR=${temporary} exec ${command}`);
}

/** A process that is there, as its number and when it started; undefined for one that has ended. */
function alive(pid: string): string | undefined {
  const stat = readProc(`${pid}/stat`);
  if (stat === "") return undefined;
  const [state, ...words] = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return state === "Z" || state === "X" ? undefined : `${pid} ${words[18]}`;
}

/** The processes that one has started, and those that they have. */
function descendants(pid: string): string[] {
  return childrenOf(pid).flatMap((child) => [child, ...descendants(child)]);
}

for (const signal of ["SIGKILL", "SIGTERM", "SIGINT"] as const) {
  processTest(`cli: demo that ends by ${signal} leaves no process and no file`, async (vmsg) => {
    const temporary = `${vmsg.directory}/tmp`;
    await Deno.mkdir(temporary);
    const demo = await startDemo(vmsg, temporary);
    await demo.waitFor(/icmp_seq=2/);
    const started = descendants(`${demo.pid}`).map((pid) => [pid, alive(pid)] as const);
    const left = () =>
      started.filter(([pid, known]) => known !== undefined && alive(pid) === known);
    assert(left().length >= 3, "a keeper, a device and a driver");
    demo.kill(signal);
    await until(() => [...Deno.readDirSync(temporary)].length === 0);
    await until(() => left().length === 0);
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
