import { assert, assertEquals } from "@std/assert";
import { isProcess } from "../../src/observe/counter_file.ts";
import { type ReadCounters, readCounters } from "../../src/observe/read_counters.ts";
import {
  type Processes,
  processTest,
  until,
  VMSG_COMMAND,
  type VmsgProcess,
} from "../support/processes.ts";

const BUS = ["--bus", "linux-user,socket=lu.sock"];

/** Starts vmsg with its counters in the test's own directory. */
function start(vmsg: Processes, ...args: string[]): Promise<VmsgProcess> {
  return vmsg.startProgram("env", `XDG_RUNTIME_DIR=${vmsg.directory}`, ...VMSG_COMMAND, ...args);
}

function files(vmsg: Processes): string[] {
  return [...Deno.readDirSync(`${vmsg.directory}/vmsg`)].map(({ name }) => name).sort();
}

/** One counter of the only group of this kind whose name begins so. */
function valueOf({ groups }: ReadCounters, kind: string, begin: string, counter: string): number {
  const found = groups.filter((group) => group.kind === kind && group.name.startsWith(begin));
  assertEquals(found.length, 1, `${kind} ${begin}: ${JSON.stringify(groups)}`);
  return found[0]!.counters.find(({ name }) => name === counter)!.value;
}

processTest(
  "counters of vmsg device and driver, while they run, killed, and ended",
  async (vmsg) => {
    const device = await start(vmsg, "device", ...BUS, "--net", "responder", "--device", "rng");
    await device.waitFor(/waiting for the driver side/);
    const driver = await start(vmsg, "driver", ...BUS, "--interval", "0.01");
    await driver.waitFor(/icmp_seq=20 /);
    assertEquals(files(vmsg), [`device.${device.pid}`, `driver.${driver.pid}`]);
    const paths = files(vmsg).map((name) => `${vmsg.directory}/vmsg/${name}`);

    // What was counted behind an answer that is here may come a moment later than that.
    const reaches = (path: string, least: number, ...which: [string, string, string]) =>
      until(() => valueOf(readCounters(path), ...which) >= least);
    await reaches(paths[0]!, 20, "device", "0 net, responder", "transmitted");
    await reaches(paths[0]!, 20, "port", "responder", "echoReplies");
    await reaches(paths[0]!, 11, "bus", "", "received");
    await reaches(paths[1]!, 20, "driver", "device 0", "sent");
    const seen = readCounters(paths[0]!);
    assertEquals([seen.subcommand, seen.pid], ["device", device.pid]);
    assertEquals(valueOf(seen, "device", "1 rng", "bytes"), 0);
    const transmitted = valueOf(seen, "device", "0 net, responder", "transmitted");
    await until(() =>
      valueOf(readCounters(paths[0]!), "device", "0 net", "transmitted") > transmitted
    );

    await device.end("SIGKILL");
    const last = readCounters(paths[0]!);
    assert(valueOf(last, "device", "0 net", "transmitted") > transmitted);
    await driver.end("SIGTERM");
    assertEquals(files(vmsg), [`device.${device.pid}`]);
    assertEquals(readCounters(paths[0]!), last);
  },
);

Deno.test("counters: a process that only waits for its parent to see its end does not run", async () => {
  // A shell that becomes another program does not wait for its child.
  const script = "sleep 0 & echo $!; exec sleep 3600";
  const parent = new Deno.Command("sh", { args: ["-c", script], stdout: "piped" }).spawn();
  const reader = parent.stdout.getReader();
  const { value } = await reader.read();
  await reader.cancel();
  const child = new TextDecoder().decode(value).trim();
  try {
    await until(() => !isProcess(child));
    assert(Deno.readTextFileSync(`/proc/${child}/stat`).includes(") Z "));
    assert(isProcess(parent.pid));
  } finally {
    parent.kill("SIGKILL");
    await parent.status;
  }
  assert(!isProcess(parent.pid));
});
