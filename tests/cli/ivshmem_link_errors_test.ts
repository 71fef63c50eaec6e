/**
 * Links of two processes of this host through an ivshmem server, as a new user sets them up wrong: each
 * mistake is one line, and what can go on goes on. Between machines: tests/guest/ivshmem_errors_test.ts.
 */

import { assertEquals, assertMatch } from "@std/assert";
import { assertInTurn } from "../support/pings.ts";
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
    /the driver needs at least 418816 bytes of shared memory for each queue pair, not 57344: 1M is enough$/,
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
  await third.waitFor(/waiting for peer 9, there are only this side, peer 1 and peer 0$/);
  // Without peer= it would find the device side by its name.
  const driver = await vmsg.start("driver", "--bus", `${BUS},peer=1`, "--count", "1");
  await driver.waitFor(/peer=1 was given, but the other side is peer 0: give peer=0, or leave it/);
  await driver.waitFor(/waiting for a device side that speaks v1 \(this side is peer 2 and rings/);
  const { code, stderr } = await driver.end("SIGTERM");
  assertEquals([code, stderr.filter((line) => line.includes("was given")).length], [1, 1]);
  const right = await vmsg.run("driver", "--bus", BUS, "--count", "1");
  assertEquals(right.code, 0, right.stderr.join("\n"));
});

processTest("cli: a second driver side is refused, one after a killed one is not", async (vmsg) => {
  await startServer(vmsg, "--size", "1M");
  const device = await vmsg.start("device", "--bus", BUS);
  await device.waitFor(/waiting for a peer/);
  const first = await vmsg.start("driver", "--bus", BUS, "--interval", "0.02");
  await first.waitFor(/icmp_seq=3 /);
  for (const side of ["driver", "device"]) {
    const peer = side === "driver" ? 1 : 0;
    const said = new RegExp(`peer ${peer} is its ${side} side, this is peer [23]: end one of`);
    await assertFails(vmsg, [side, "--bus", BUS], said);
  }
  first.kill("SIGKILL");
  const next = await vmsg.run("driver", "--bus", BUS, "--count", "1");
  assertEquals(next.code, 0, next.stderr.join("\n"));
  const { stdout } = await first.ended();
  assertEquals(stdout.filter((line) => line.includes("timeout")), []);
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
  const [sent, received] = ended.stdout.at(-2)!.match(/\d+/g)!.map(Number);
  assertInTurn(ended.stdout, sent!, received!);
  const said = (await device.end("SIGTERM")).stderr.filter((line) => gone.test(line));
  assertEquals(said.length, 1);
});

processTest("cli: a peer waits for its server, and can be stopped meanwhile", async (vmsg) => {
  const bus = `${BUS},peer=1`;
  const stopped = await vmsg.start("device", "--bus", bus);
  await stopped.waitFor(/: waiting for the ivshmem server iv.sock$/);
  const { code, stderr } = await stopped.end("SIGTERM");
  assertEquals([code, stderr.length], [0, 1], stderr.join("\n"));

  const device = await vmsg.start("device", "--bus", bus);
  await device.waitFor(/waiting for the ivshmem server/);
  await startServer(vmsg, "--size", "1M");
  await device.waitFor(/waiting for peer 1, there are only this side, peer 0$/);
  const driver = await vmsg.run("driver", "--bus", BUS, "--count", "1");
  assertEquals(driver.code, 0, driver.stderr.join("\n"));
});

for (const survivor of ["driver", "device"] as const) {
  processTest(`cli: a ${survivor} without peers goes on at the next server`, async (vmsg) => {
    const start = (side: string) =>
      vmsg.start(side, "--bus", BUS, ...(side === "driver" ? ["--interval", "0.02"] : []));
    const server = await startServer(vmsg, "--size", "1M");
    const device = await start("device");
    await device.waitFor(/waiting for a peer/);
    const driver = await start("driver");
    await driver.waitFor(/icmp_seq=3 /);
    await server.end("SIGKILL");
    await (survivor === "driver" ? device : driver).end("SIGKILL");
    await startServer(vmsg, "--size", "1M");
    const [left, other] = survivor === "driver"
      ? [driver, await start("device")]
      : [device, await start("driver")];
    await left.waitFor(/ivshmem server iv.sock is another one now, there this side is peer \d$/);
    const pinging = survivor === "driver" ? left : other;
    const { length } = pinging.lines;
    await pinging.waitFor(/icmp_seq=\d+ /, undefined, length);
    assertEquals((await device.end("SIGTERM")).code, survivor === "driver" ? 137 : 0);
    assertEquals((await driver.end("SIGTERM")).code, survivor === "driver" ? 0 : 137);
  });
}

processTest(
  "cli: a next server with other memory is told, a living link stays",
  async (vmsg) => {
    const server = await startServer(vmsg, "--size", "1M");
    const device = await vmsg.start("device", "--bus", BUS);
    const driver = await vmsg.start("driver", "--bus", BUS, "--interval", "0.02");
    await driver.waitFor(/icmp_seq=3 /);
    await server.end("SIGKILL");
    const next = await startServer(vmsg, "--size", "64K");
    const third = await vmsg.start("device", "--bus", `${BUS},peer=9`);
    await third.waitFor(/waiting for peer 9/);
    await next.waitFor(/joined/);
    const { length } = driver.lines;
    await driver.waitFor(/icmp_seq=\d+ /, undefined, length + 5);
    assertEquals(next.stderr.filter((line) => /joined/.test(line)).length, 1);
    await driver.end("SIGKILL");
    await device.waitFor(
      /iv.sock has now 65536 bytes of memory, not 1048576 as before: start this side again$/,
    );
    assertEquals((await device.end("SIGTERM")).code, 0);
  },
);
