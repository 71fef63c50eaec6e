/**
 * Links of two processes of this host through an ivshmem server, as a new user sets them up wrong: each
 * mistake is one line, and what can go on goes on. Between machines: tests/guest/ivshmem_errors_test.ts.
 */

import { assertEquals, assertMatch } from "@std/assert";
import { type Processes, processTest, until } from "../support/processes.ts";

const BUS = "ivshmem,server=iv.sock";

async function startServer(vmsg: Processes, ...more: string[]) {
  const server = await vmsg.start("ivshmem-server", "--socket", "iv.sock", ...more);
  await server.waitFor(/waiting for peers/);
  return server;
}

/** One line on standard error, and exit code 1. */
async function assertFails(vmsg: Processes, args: string[], pattern: RegExp): Promise<void> {
  const { code, stdout, stderr } = await vmsg.run(...args);
  assertEquals([code, stdout, stderr.length], [1, [], 1], stderr.join("\n"));
  assertMatch(stderr[0]!, pattern);
}

processTest("cli: an ivshmem memory that holds no queues", async (vmsg) => {
  await startServer(vmsg, "--size", "4K");
  const small = /iv.sock: 4096 bytes of shared memory are too few, the bus needs 8192: share more$/;
  await assertFails(vmsg, ["device", "--bus", BUS], small);
  await assertFails(vmsg, ["driver", "--bus", BUS], small);
});

processTest("cli: an ivshmem memory that holds no buffers", async (vmsg) => {
  const server = await startServer(vmsg, "--size", "64K");
  const device = await vmsg.start("device", "--bus", BUS);
  await assertFails(
    vmsg,
    ["driver", "--bus", BUS],
    /the driver needs at least 418816 bytes of shared memory, not 57344: 1M is enough$/,
  );
  await assertFails(
    vmsg,
    ["driver", "--bus", BUS, "--memory", "segment,size=1M"],
    /--memory segment: .* has 65536 bytes of shared memory, not 1048576 from 8192 on$/,
  );
  assertEquals((await device.end("SIGTERM")).code, 0);
  assertEquals((await server.end("SIGTERM")).code, 0);
});

processTest("cli: peer= with a wrong id is told, and nothing else happens", async (vmsg) => {
  await startServer(vmsg, "--size", "1M");
  const device = await vmsg.start("device", "--bus", BUS);
  await device.waitFor(/waiting for a peer/);
  const third = await vmsg.start("device", "--bus", `${BUS},peer=9`);
  await third.waitFor(/waiting for a peer/);
  // Without peer= it would find the device side by its name.
  const driver = await vmsg.start("driver", "--bus", `${BUS},peer=1`, "--count", "1");
  await driver.waitFor(/peer=1 was given, but the other side is peer 0: give peer=0, or leave it/);
  await driver.waitFor(/waiting for a device side that speaks v1 \(this side is peer 2 and rings/);
  const { code, stderr } = await driver.end("SIGTERM");
  assertEquals([code, stderr.filter((line) => line.includes("was given")).length], [1, 1]);
  const right = await vmsg.run("driver", "--bus", BUS, "--count", "1");
  assertEquals(right.code, 0, right.stderr.join("\n"));
});

processTest("cli: a link goes on without its server, which is told in one line", async (vmsg) => {
  const server = await startServer(vmsg, "--size", "1M");
  const device = await vmsg.start("device", "--bus", BUS);
  await device.waitFor(/waiting for a peer/);
  const driver = await vmsg.start("driver", "--bus", BUS, "--interval", "0.02");
  await driver.waitFor(/icmp_seq=3 /);
  assertEquals((await server.end("SIGKILL")).code, 137);
  const gone = /ivshmem server iv.sock is gone: joins and leaves are no longer noticed$/;
  await Promise.all([device.waitFor(gone), driver.waitFor(gone)]);
  // The pings go on.
  const answers = () => driver.stdout.filter((line) => line.includes("icmp_seq=")).length;
  const before = answers();
  await until(() => answers() >= before + 5);
  const ended = await driver.end("SIGTERM");
  assertEquals(ended.code, 0);
  assertMatch(ended.stdout.at(-2)!, / 0% packet loss$/);
  const said = (await device.end("SIGTERM")).stderr.filter((line) => gone.test(line));
  assertEquals(said.length, 1);
});
