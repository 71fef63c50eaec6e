/**
 * `vmsg device` and `vmsg driver`, two processes: whoever comes first, whoever dies, whoever stands still.
 *
 * What may be lost: a ping that is under way when the device side dies, and those sent while there is
 * none, as on a cable that is pulled. Nothing else. The figures are printed.
 */

import { assert, assertEquals, assertMatch, assertNotEquals } from "@std/assert";
import { readCounters } from "../../src/observe/read_counters.ts";
import { assertInTurn } from "../support/pings.ts";
import {
  delay,
  PATIENCE_MS,
  type Processes,
  processTest,
  until,
  VMSG_COMMAND,
  type VmsgProcess,
} from "../support/processes.ts";

const BUS = ["--bus", "linux-user,socket=lu.sock"];
/** The longest time a restart may take on a busy machine. */
const MAX_GAP_MS = PATIENCE_MS;

const startDevice = (vmsg: Processes, ...more: string[]) => vmsg.start("device", ...BUS, ...more);
const startDriver = (vmsg: Processes, ...more: string[]) => vmsg.start("driver", ...BUS, ...more);

/** "200 packets transmitted, 200 received, 0% packet loss", as numbers. */
function summary(stdout: readonly string[]): { sent: number; received: number } {
  const line = stdout.find((line) => line.includes("packets transmitted")) ?? "";
  const [, sent, received] = /^(\d+) packets transmitted, (\d+) received/.exec(line) ?? [];
  return { sent: Number(sent), received: Number(received) };
}

/** When each answer came, by sequence number. */
function answers({ lines }: VmsgProcess): { sequence: number; atMs: number }[] {
  return lines.flatMap(({ text, atMs }) => {
    const match = /icmp_seq=(\d+) /.exec(text);
    return match === null ? [] : [{ sequence: Number(match[1]), atMs }];
  });
}

/** The longest time without an answer, in ms. */
function longestGapMs(driver: VmsgProcess): number {
  const times = answers(driver).map(({ atMs }) => atMs);
  return Math.max(...times.slice(1).map((atMs, i) => atMs - times[i]!));
}

/** Waits for `count` answers more than there are. */
async function moreAnswers(driver: VmsgProcess, count: number): Promise<void> {
  for (let { length } = driver.lines; count > 0; count--) {
    const line = await driver.waitFor(/icmp_seq=/, PATIENCE_MS, length);
    length = driver.lines.indexOf(line, length) + 1;
  }
}

/** Ends everything; only the queue files stay. */
async function assertTidy(vmsg: Processes, ...processes: VmsgProcess[]): Promise<void> {
  for (const process of processes) assertEquals((await process.end("SIGTERM")).code, 0);
  assertEquals(vmsg.files(), ["queue-linux-user-device", "queue-linux-user-driver"]);
}

for (const first of ["device", "driver"] as const) {
  processTest(`driver: 200 pings at 1 ms with the ${first} first, none lost`, async (vmsg) => {
    const start = {
      device: () => startDevice(vmsg),
      driver: () => startDriver(vmsg, "--count", "200", "--interval", "0.001"),
    };
    const earlier = await start[first]();
    await earlier.waitFor(/waiting for the (driver|device) side/);
    const later = await start[first === "device" ? "driver" : "device"]();
    const [device, driver] = first === "device" ? [earlier, later] : [later, earlier];
    const { code, stdout, stderr } = await driver.ended();
    assertEquals(code, 0);
    assertEquals(summary(stdout), { sent: 200, received: 200 });
    assertMatch(stdout[0]!, /^PING 10\.0\.2\.2 from 10\.0\.2\.15; features .*VERSION_1/);
    assert(stderr.some((line) => /a vmsg device side is there$/.test(line)), stderr.join("\n"));
    await device.waitFor(/the other side closed the connection/);
    await assertTidy(vmsg, device);
  });
}

processTest("driver: goes on when the device is killed and started again", async (vmsg) => {
  const INTERVAL_MS = 5;
  const driver = await startDriver(vmsg, "--interval", `${INTERVAL_MS / 1000}`);
  const first = await startDevice(vmsg);
  await driver.waitFor(/icmp_seq=50 /);
  await first.end("SIGKILL");
  const startedMs = performance.now();
  const second = await startDevice(vmsg);
  await moreAnswers(driver, 200);
  const { stdout } = await driver.end("SIGTERM");
  const { sent, received } = summary(stdout);
  const gapMs = longestGapMs(driver);
  const [firstAgain] = answers(driver).filter(({ atMs }) => atMs > startedMs);
  console.log(
    `device killed and started again: ${sent - received} of ${sent} pings lost, gap ` +
      `${gapMs.toFixed(0)} ms, first answer ${
        (firstAgain!.atMs - startedMs).toFixed(0)
      } ms after the start`,
  );
  assert(gapMs < MAX_GAP_MS, `a gap of ${gapMs} ms`);
  // All that was sent outside the gap was answered; the timers of two processes may be a little off.
  const during = Math.ceil(gapMs / INTERVAL_MS) + 2;
  assert(sent - received <= during, `${sent - received} pings lost in a gap of ${gapMs} ms`);
  const sequences = answers(driver).map(({ sequence }) => sequence);
  const afterwards = sequences.slice(sequences.indexOf(firstAgain!.sequence));
  const lostAfterwards = afterwards.at(-1)! - afterwards[0]! + 1 - afterwards.length;
  assertEquals(lostAfterwards, 0, "pings were lost after the device was back");
  assertMatch(driver.stderr.join("\n"), /closed the connection\n.*waiting for the device side/);
  await assertTidy(vmsg, second);
});

processTest("driver: killed and started again, the device goes on", async (vmsg) => {
  const device = await startDevice(vmsg);
  for (let round = 0; round < 3; round++) {
    const driver = await startDriver(vmsg, "--interval", "0.001");
    await driver.waitFor(/icmp_seq=50 /);
    await driver.end("SIGKILL");
  }
  const { code, stdout } = await vmsg.run("driver", ...BUS, "--count", "200", "--interval=0.001");
  assertEquals([code, summary(stdout)], [0, { sent: 200, received: 200 }]);
  const arrivals = () => device.stderr.filter((line) => line.includes("driver side is there"));
  await until(() => arrivals().length >= 4);
  await assertTidy(vmsg, device);
});

for (const rings of ["split", "packed"]) {
  processTest(
    `driver: a device that is restarted 5 times, in all states of its start, ${rings} rings`,
    async (vmsg) => {
      const driver = await startDriver(vmsg, "--interval", "0.002", "--rings", rings, "--trace");
      let device = await startDevice(vmsg);
      await driver.waitFor(/icmp_seq=20 /);
      const accepted = driver.stderr.find((line) => line.includes("SET_DRIVER_FEATURES?"));
      assertEquals(accepted!.includes("RING_PACKED IN_ORDER"), rings === "packed");
      // From before it opens anything to after the first pings.
      const states = [
        () => {},
        () => device.waitFor(/waiting for the driver side/),
        () => device.waitFor(/driver side is there/),
        () => moreAnswers(driver, 1),
        () => moreAnswers(driver, 10),
      ];
      for (const reached of states) {
        await device.end("SIGKILL");
        device = await startDevice(vmsg);
        await reached();
      }
      await moreAnswers(driver, 100);
      const ended = await driver.end("SIGTERM");
      assertEquals(ended.code, 0);
      const { sent, received } = summary(ended.stdout);
      console.log(
        `device restarted 5 times: ${sent - received} of ${sent} pings lost, longest gap ` +
          `${longestGapMs(driver).toFixed(0)} ms`,
      );
      await assertTidy(vmsg, device);
    },
  );
}

processTest("driver: --json prints one object and nothing else", async (vmsg) => {
  // It counts in a place of the test's.
  const run = Deno.makeTempDirSync({ prefix: "vmsg-test-" });
  using _run = { [Symbol.dispose]: () => Deno.removeSync(run, { recursive: true }) };
  const device = await vmsg.startProgram(
    ...["env", `XDG_RUNTIME_DIR=${run}`, ...VMSG_COMMAND, "device", ...BUS] as const,
  );
  const args = ["--json", "--count", "20", "--interval", "0.001"];
  const { code, stdout } = await vmsg.run("driver", ...BUS, ...args);
  assertEquals([code, stdout.length], [0, 1]);
  const { sent, received, roundTripsUs, ...rest } = JSON.parse(stdout[0]!);
  assertEquals([sent, received, rest], [20, 20, {}]);
  assertEquals(roundTripsUs.length, 20);
  assertEquals(roundTripsUs, roundTripsUs.toSorted((a: number, b: number) => a - b));
  assert(roundTripsUs[0] > 0);

  // Stopped before its end it says what there is.
  const driver = await startDriver(vmsg, "--json");
  const answered = () =>
    readCounters(`${run}/vmsg/device.${device.pid}`).groups
      .flatMap(({ counters }) => counters).find(({ name }) => name === "echoReplies")!.value;
  await until(() => answered() > sent);
  const stopped = await driver.end("SIGINT");
  assertEquals(stopped.stdout.length, 1);
  assert(JSON.parse(stopped.stdout[0]!).sent >= 1);
  await assertTidy(vmsg, device);
});

processTest("driver: device numbers count over --device and --net", async (vmsg) => {
  const device = await startDevice(vmsg, "--device", "rng", "--net", "responder");
  const pings = ["--count", "3", "--interval", "0.01"];
  const card = await vmsg.run("driver", ...BUS, "--device", "1", ...pings);
  assertEquals([card.code, summary(card.stdout)], [0, { sent: 3, received: 3 }]);
  const rng = await vmsg.run("driver", ...BUS, "--device", "0", ...pings);
  assertEquals(rng.code, 1);
  assertMatch(rng.stderr.at(-1)!, /^vmsg: /);
  await assertTidy(vmsg, device);
});

processTest("driver: --throughput measures both directions", async (vmsg) => {
  const device = await startDevice(vmsg);
  // Far below what it does, far above what a stalled queue or one frame per timer would give; but on a machine that is slow.
  const FEW = 5000;
  let frames: number[] = [];
  const isFast = () => frames.length > 0 && frames.every((count) => count > FEW);
  for (let round = 0; round < 5 && !isFast(); round++) {
    const args = ["--count", "1", "--throughput", "0.5"];
    const { code, stdout } = await vmsg.run("driver", ...BUS, ...args);
    assertEquals(code, 0);
    frames = ["to", "from"].map((direction) => {
      const pattern = new RegExp(
        `^${direction} the device: (\\d+) frames/s of 1514 bytes, (\\d+) Mb`,
      );
      const line = stdout.find((line) => pattern.test(line)) ?? "";
      const [, count, megabits] = pattern.exec(line) ?? [];
      console.log(line);
      assertEquals(Number(megabits), Math.round(Number(count) * 1514 * 8 / 1e6));
      return Number(count);
    });
  }
  assert(isFast(), `${frames}`);
  await assertTidy(vmsg, device);
});

processTest(
  "driver: tells that the device stands still, and goes on when it does",
  async (vmsg) => {
    const device = await startDevice(vmsg);
    const driver = await startDriver(vmsg, "--interval", "0.02");
    await driver.waitFor(/icmp_seq=20 /);
    const { length } = driver.lines;
    device.kill("SIGSTOP");
    const stoppedMs = performance.now();
    const silent = /the device side is silent; waiting for it/;
    try {
      const told = await driver.waitFor(silent, PATIENCE_MS, length);
      console.log(`silence was told after ${(told.atMs - stoppedMs).toFixed(0)} ms`);
      await delay(500);
      const since = driver.lines.slice(length);
      assertEquals(since.filter(({ text }) => silent.test(text)).length, 1);
    } finally {
      device.kill("SIGCONT");
    }
    const stoodMs = performance.now() - stoppedMs;
    await moreAnswers(driver, 100);
    const { code, stdout } = await driver.end("SIGTERM");
    assertEquals(code, 0);
    const { sent, received } = summary(stdout);
    console.log(
      `device stopped for ${stoodMs.toFixed(0)} ms: ${sent - received} of ${sent} pings lost`,
    );
    assertInTurn(stdout, sent, received);
    await assertTidy(vmsg, device);
  },
);

processTest("driver: a short standstill of the device loses nothing", async (vmsg) => {
  const device = await startDevice(vmsg);
  const driver = await startDriver(vmsg, "--interval", "0.01", "--count", "150");
  await driver.waitFor(/icmp_seq=20 /);
  device.kill("SIGSTOP");
  // The time is what is tested: beyond the lease.
  await delay(400);
  device.kill("SIGCONT");
  const { stdout } = await driver.ended();
  assertEquals(summary(stdout), { sent: 150, received: 150 });
  await assertTidy(vmsg, device);
});

/** The memory that a driver shares, read through its own descriptor. */
async function readSharedMemory({ pid }: VmsgProcess): Promise<Uint8Array> {
  for await (const { name } of Deno.readDir(`/proc/${pid}/fd`)) {
    const path = `/proc/${pid}/fd/${name}`;
    const target = await Deno.readLink(path).catch(() => "");
    if (target.startsWith("/memfd:vmsg-driver")) return await Deno.readFile(path);
  }
  throw new Error("the driver shares no memory");
}

/** How many bytes differ. */
function differences(a: Uint8Array, b: Uint8Array): number {
  assertEquals(a.length, b.length);
  let count = 0;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) count++;
  return count;
}

processTest(
  "driver: nothing is written into the memory of a driver that stands still",
  async (vmsg) => {
    // Slow enough that the 256 receive buffers last for the whole standstill: not for want of buffers
    // shall the device keep still.
    const device = await startDevice(vmsg, "--net", "responder,flood=150");
    const driver = await startDriver(vmsg, "--interval", "0.05");
    await driver.waitFor(/icmp_seq=10 /);
    const running = await readSharedMemory(driver);
    await until(async () => differences(running, await readSharedMemory(driver)) > 100);
    const { length } = device.lines;
    driver.kill("SIGSTOP");
    try {
      // The lease runs for 150 to 250 ms from here, and for as much longer as the device side is not scheduled.
      const untouched = /the driver side is silent, its memory is not touched meanwhile/;
      await device.waitFor(untouched, PATIENCE_MS, length);
      const expired = await readSharedMemory(driver);
      await delay(500);
      const later = await readSharedMemory(driver);
      assertEquals(differences(expired, later), 0, "bytes written after the lease");
    } finally {
      driver.kill("SIGCONT");
    }
    const before = await readSharedMemory(driver);
    await moreAnswers(driver, 20);
    assertNotEquals(differences(before, await readSharedMemory(driver)), 0);
    assertEquals((await driver.end("SIGTERM")).code, 0);
    await assertTidy(vmsg, device);
  },
);
