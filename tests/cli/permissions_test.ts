/** What each data plane may do when it is ready, however much it was given: tried from inside. */

import { assertEquals, assertMatch } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { COMMANDS } from "../../src/cli/commands.ts";
import { KEPT } from "../../src/cli/permissions.ts";
import { findProgram } from "../../src/linux/programs.ts";
import { openKeeper } from "../../src/cli/keeper.ts";
import { testUnless } from "../support/needs.ts";
import { childrenOf, readProc } from "../support/proc_files.ts";
import { type Processes, processTest, withProcesses } from "../support/processes.ts";

const root = (path: string) => fromFileUrl(new URL(`../../${path}`, import.meta.url));
const CHILD = [
  "run",
  "--quiet",
  "--allow-all",
  "--config",
  root("deno.json"),
  root("tests/cli/permissions_child.ts"),
];
const BUS = ["--bus", "linux-user,socket=s"];
const ALL = "at first: run read write net env sys ffi";

/** Starts vmsg with all permissions, and waits for what it says of those that it has kept. */
async function allowedFor(vmsg: Processes, ...args: string[]) {
  const child = await vmsg.startProgram(Deno.execPath(), ...CHILD, ...args);
  const { text } = await child.waitFor(/^allowed/);
  assertEquals(child.stdout[0], ALL);
  return { text, child };
}

Deno.test("permissions: every subcommand has its row", () => {
  assertEquals(Object.keys(KEPT).sort(), Object.keys(COMMANDS).sort());
});

processTest("permissions: a data plane that is ready has FFI, and nothing else", async (vmsg) => {
  const server = await allowedFor(vmsg, "ivshmem-server", "--socket", "iv.sock");
  for (
    const args of [
      ["device", ...BUS, "--net", "responder", "--net", "hub=a", "--device", "rng"],
      ["proxy", ...BUS, "--vhost-user", "socket=vu.sock"],
      ["driver", ...BUS],
      ["bridge", ...BUS, "--bus", "linux-user,socket=b.sock,name=b"],
      ["device", "--bus", "ivshmem,server=iv.sock"],
    ]
  ) {
    const { text, child } = await allowedFor(vmsg, ...args);
    assertEquals(text, "allowed: ffi", args.join(" "));
    await child.end("SIGTERM");
  }
  assertEquals(server.text, "allowed: ffi");
  assertEquals(vmsg.files().includes("forbidden"), true, "written at first, when that was allowed");
});

processTest(
  "permissions: programs are run where a device that needs one may be added",
  async (vmsg) => {
    const { text } = await allowedFor(vmsg, "device", ...BUS, "--control", "ctl.sock");
    assertEquals(text, "allowed: run ffi");
  },
);

testUnless(
  "permissions: programs are run where there is one to run again, with no more rights",
  findProgram("passt") === undefined ? [{ what: "no passt (Debian: apt-get install passt)" }] : [],
  async () => {
    await using keeper = await openKeeper();
    await withProcesses(keeper, async (vmsg) => {
      for (const option of [["--net", "passt"], ["--net", "hub=a", "--hub", "passt,name=a"]]) {
        const { text, child } = await allowedFor(vmsg, "device", ...BUS, ...option);
        assertEquals(text, "allowed: run ffi");
        const status = await Deno.readTextFile(`/proc/${passtOf(child.pid)}/status`);
        assertMatch(status, /^NoNewPrivs:\t1$/m);
        await child.end("SIGTERM");
      }
    });
  },
);

/** The passt that a process has started, on any of its threads. */
function passtOf(pid: number): string {
  const passt = childrenOf(pid).find((child) => readProc(`${child}/comm`).startsWith("passt"));
  if (passt === undefined) throw new Error("it has started no passt");
  return passt;
}
