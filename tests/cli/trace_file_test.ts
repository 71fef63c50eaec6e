/** `--trace` and `--capture` into a file whose disk is slow, full or gone: nobody waits for it, and what was lost is told. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { readAll } from "../support/capture.ts";
import { testUnless } from "../support/needs.ts";
import {
  type Processes,
  processTest,
  until,
  VMSG_COMMAND,
  type VmsgProcess,
  withProcesses,
} from "../support/processes.ts";
import { openKeeper } from "../../src/cli/keeper.ts";
import { countsHere, pingFor } from "../support/traffic.ts";
import { STALLING_LACKS, stallingFile } from "../support/stalling_file.ts";

const BUS = "linux-user,socket=lu.sock";
const TRACE = "--log-level error --trace 'HELLO,*' --trace-format json";

/** Starts a device side whose standard error is that file, and which is traced. */
async function startTraced(vmsg: Processes, path: string): Promise<VmsgProcess> {
  const command = `${VMSG_COMMAND.join(" ")} device --bus ${BUS} ${TRACE}`;
  // It says that it is there before the file may be slow.
  const device = await vmsg.startProgram(
    ...["sh", "-c", `${countsHere(vmsg)} exec ${command} 2>${path}`] as const,
  );
  await until(() => vmsg.files().includes("lu.sock"));
  return device;
}

/** Pings, none of which may be lost. */
async function ping(vmsg: Processes, count: number): Promise<void> {
  const pings = ["--count", `${count}`, "--interval", "0.0005"];
  const { stdout } = await vmsg.run("driver", "--bus", BUS, ...pings);
  assertMatch(
    stdout.join("\n"),
    new RegExp(`^${count} packets transmitted, ${count} received`, "m"),
  );
}

/** Each message of a trace has a number, and what lacks is what was told; how many were lost, and the last number. */
function account(text: string): { lost: number; last: number } {
  assert(text.endsWith("\n"), "whole lines");
  let [last, gap, lost] = [0, 0, 0];
  for (const line of text.trimEnd().split("\n")) {
    const { number, dropped } = JSON.parse(line);
    if (dropped !== undefined) lost += gap = dropped;
    if (number === undefined) continue;
    assertEquals(number, last + gap + 1);
    last = number;
    gap = 0;
  }
  return { lost, last };
}

processTest(
  "trace file: all of it is there at the end, and none of what came before it",
  async (vmsg) => {
    const path = `${vmsg.directory}/trace`;
    const device = await startTraced(vmsg, path);
    await pingFor(vmsg, device, BUS, 2000);
    assertEquals((await device.end("SIGTERM")).code, 0);
    const { lost, last } = account(Deno.readTextFileSync(path));
    assertEquals(lost, 0);
    assert(last > 2000, `${last} messages`);
  },
);

processTest("trace file: after a SIGKILL there is what was traced long before", async (vmsg) => {
  const path = `${vmsg.directory}/trace`;
  const device = await startTraced(vmsg, path);
  await ping(vmsg, 100);
  await until(() => /"message":"EVENT_AVAIL"/.test(Deno.readTextFileSync(path)));
  await device.end("SIGKILL");
  // A kernel may end it in the middle of a write.
  const text = Deno.readTextFileSync(path);
  assertEquals(account(text.slice(0, text.lastIndexOf("\n") + 1)).lost, 0);
});

processTest("trace file: at its end nobody else's lines are overwritten", async (vmsg) => {
  const path = `${vmsg.directory}/trace`;
  const vmsgs = VMSG_COMMAND.join(" ");
  // All of them have the same open file, at one position.
  const commands = [
    "echo before",
    `${vmsgs} driver --bus ${BUS} --count 3 --interval 0.01 ${TRACE} & driver=$!`,
    `${vmsgs} device --bus ${BUS} ${TRACE} & device=$!`,
    "wait $driver; kill $device; wait $device",
    "echo after",
  ];
  const shell = await vmsg.startProgram("sh", "-c", `( ${commands.join("\n")}\n) >trace 2>&1`);
  assertEquals((await shell.ended()).code, 0);
  const lines = Deno.readTextFileSync(path).trimEnd().split("\n");
  assertEquals([lines[0], lines.at(-1)], ["before", "after"]);
  const json = lines.filter((line) => line.startsWith("{")).map((line) => JSON.parse(line));
  for (const arrow of ["->", "<-"]) {
    const kicks = json.filter(({ direction, message }) =>
      direction === arrow && message === "SET_DEVICE_STATUS"
    );
    assert(kicks.length > 0, `of both: ${arrow}`);
  }
  assert(lines.some((line) => /^3 packets transmitted, 3 received/.test(line)), lines.join("\n"));
});

processTest(
  "trace file: one that can grow no more holds nobody up, and what it lost is told later",
  async (vmsg) => {
    const path = `${vmsg.directory}/trace`;
    const device = await startTraced(vmsg, path);
    const limit = async (bytes: number | "unlimited") => {
      const { success, stderr } = await new Deno.Command("prlimit", {
        args: ["--pid", `${device.pid}`, `--fsize=${bytes}:`],
      }).output();
      assert(success, new TextDecoder().decode(stderr));
    };
    await ping(vmsg, 10);
    await limit(Deno.statSync(path).size + 5000);
    // Twice what its buffers hold.
    await pingFor(vmsg, device, BUS, 8000);
    await limit("unlimited");
    await until(() => Deno.readTextFileSync(path).includes("dropped"));
    await ping(vmsg, 10);
    assertEquals((await device.end("SIGTERM")).code, 0);
    const { lost, last } = account(Deno.readTextFileSync(path));
    assert(lost > 100, `${lost} of ${last}`);
  },
);

testUnless("trace file: a disk that stalls holds nobody up", STALLING_LACKS, async () => {
  await using keeper = await openKeeper();
  await withProcesses(keeper, async (vmsg) => {
    await using file = await stallingFile(vmsg);
    const device = await startTraced(vmsg, file.path);
    await ping(vmsg, 10);
    await until(() => /"message":"EVENT_AVAIL"/.test(file.text()));
    file.hold();
    await pingFor(vmsg, device, BUS, 1000, 200);
    file.release();
    assertEquals((await device.end("SIGTERM")).code, 0);
    const { lost, last } = account(file.text());
    assertEquals(lost, 0);
    assert(last > 1000, `${last} messages`);
  });
});

testUnless("capture file: a disk that stalls holds nobody up", STALLING_LACKS, async () => {
  await using keeper = await openKeeper();
  await withProcesses(keeper, async (vmsg) => {
    await using file = await stallingFile(vmsg);
    const device = await vmsg.start("device", "--bus", BUS, "--capture", file.path);
    await device.waitFor(/waiting for the driver side/);
    await ping(vmsg, 10);
    await until(() => file.text().length > 1000);
    file.hold();
    await ping(vmsg, 1000);
    file.release();
    assertEquals((await device.end("SIGTERM")).code, 0);
    const frames = readAll(file.copy).filter((item) =>
      item.kind === "packet" && item.interface.name === "net0"
    );
    assert(frames.length >= 2 * 1010, `${frames.length} frames`);
  });
});
