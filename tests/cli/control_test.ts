/** `vmsg device --control` and `vmsg ctl`: devices come and go in a process that runs, on each dialect. */

import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import type { DeviceReport } from "../../src/cli/control/device_set.ts";
import { CONTROL_TEXT, parseLine, requestOf } from "../../src/cli/control/request.ts";
import { parseOptions } from "../../src/cli/command.ts";
import { UsageError } from "../../src/linux/errors.ts";
import { Status } from "../../src/virtio/features.ts";
import { type Processes, processTest } from "../support/processes.ts";

// --- words -----------------------------------------------------------------------------------------

const words = (...args: string[]) => {
  const options = parseOptions(CONTROL_TEXT, args);
  return requestOf(options, options.operands);
};

Deno.test("ctl: the words of each request, and the same on a line", () => {
  for (
    const [args, request] of [
      [["add", "--net", "hub=a"], { verb: "add", device: "--net hub=a", number: undefined }],
      [["add", "--number", "7", "--device=rng"], { verb: "add", device: "rng", number: 7 }],
      [["remove", "65535"], { verb: "remove", number: 65535 }],
      [["link", "3", "down"], { verb: "link", number: 3, up: false }],
      [["resize", "0"], { verb: "resize", number: 0 }],
      [["list"], { verb: "list" }],
    ] as const
  ) {
    assertEquals(words(...args) as unknown, request);
    assertEquals(parseLine(JSON.stringify(args)) as unknown, request);
  }
});

Deno.test("ctl: what is wrong is said, by who asks as by who is asked", () => {
  for (
    const [args, line] of [
      [[], "what to do: one of add, remove"],
      [["toString"], "toString: one of"],
      [["add"], "one --device or --net"],
      [["add", "--net", "responder", "--device", "rng"], "one --device or --net"],
      [["add", "--device", "blk"], "file= is missing"],
      [["add", "--net", "tap", "--number", "65536"], "--number takes"],
      [["add", "3", "--device", "rng"], "add takes 0 arguments"],
      [["remove"], "remove takes 1 arguments"],
      [["remove", "0x3"], "a device number is"],
      [["remove", "1e3"], "a device number is"],
      [["remove", "65536"], "a device number is"],
      [["link", "3", "maybe"], "up or down"],
      [["list", "--number", "3"], "go with add"],
      [["list", "--trace"], "unknown option --trace"],
    ] as const
  ) {
    assertThrows(() => words(...args), UsageError, line);
    assertThrows(() => parseLine(JSON.stringify(args)), UsageError, line);
  }
  for (const line of ["", "list", "{}", '["list", 3]', "null", "[[]]", '["list"'.repeat(1000)]) {
    assertThrows(() => parseLine(line), UsageError, "a request is a line");
  }
});

// --- processes -------------------------------------------------------------------------------------

const BUS = "linux-user,socket=lu.sock";

async function ctl(vmsg: Processes, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await vmsg.run("ctl", "ctl.sock", ...args);
  assertEquals(code, 0, stderr.join("\n"));
  return stdout.join("\n");
}

async function list(vmsg: Processes): Promise<DeviceReport[]> {
  return JSON.parse(await ctl(vmsg, "list", "--json"));
}

async function startDevice(vmsg: Processes, bus: string, ...args: string[]) {
  const device = await vmsg.start("device", "--bus", bus, "--control", "ctl.sock", ...args);
  await device.waitFor(/waiting for the driver side/);
  return device;
}

processTest("ctl: devices of each kind are added, listed and removed; exit codes", async (vmsg) => {
  const device = await startDevice(vmsg, BUS, "--device", "rng");
  using file = await Deno.open(`${vmsg.directory}/disk.img`, { write: true, createNew: true });
  await file.truncate(1 << 20);
  assertEquals(await ctl(vmsg, "add", "--net", "responder"), "device 1: responder");
  assertEquals(await ctl(vmsg, "add", "--device", "blk,file=disk.img"), "device 2: blk disk.img");
  const console = "console,socket=console.sock,port=a,port-socket=a.sock";
  assertMatch(await ctl(vmsg, "add", "--device", console, "--number", "40"), /^device 40: console/);
  const listed = (await list(vmsg)).map(({ number, kind, status }) => [number, kind, status]);
  assertEquals(listed, [[0, "rng", 0], [1, "net", 0], [2, "blk", 0], [40, "console", 0]]);
  assertMatch(await ctl(vmsg, "list"), /^2\tblk\tblk disk\.img\tno driver$/m);
  assert(vmsg.files().includes("console.sock"));
  for (const number of ["40", "2"]) assertEquals(await ctl(vmsg, "remove", number), "");
  assert(!vmsg.files().includes("console.sock"));
  // Its lock is gone with it, and its number is not the next one.
  assertEquals(await ctl(vmsg, "add", "--device", "blk,file=disk.img"), "device 41: blk disk.img");
  for (
    const [args, code, line] of [
      [["remove", "2"], 1, "vmsg: there is no device 2"],
      [["link", "41", "up"], 1, "vmsg: device 41 is no network card"],
      [["add", "--device", "rng", "--number", "0"], 1, "vmsg: device number 0 is taken"],
      [["add", "--device", "blk,file=nix"], 1, "vmsg: disk nix: cannot be opened (ENOENT)"],
      [["add", "--device", "blk,file=disk.img"], 1, "vmsg: disk disk.img is in use"],
      [["add", "--device", "blx"], 2, "vmsg: --device blx: unknown"],
      [["explode"], 2, "vmsg: explode: one of add"],
    ] as const
  ) {
    const ended = await vmsg.run("ctl", "ctl.sock", ...args);
    assertEquals([ended.code, ended.stderr.length, ended.stdout.length], [code, 1, 0], line);
    assert(ended.stderr[0]!.startsWith(line), ended.stderr[0]);
  }
  const nobody = await vmsg.run("ctl", "nix.sock", "list");
  assertEquals([nobody.code, nobody.stderr.length], [1, 1]);
  assertEquals((await device.end("SIGTERM")).code, 0);
  assert(!vmsg.files().some((name) => name.endsWith(".sock")), vmsg.files().join(" "));
});

/** Where memory cannot be announced, both sides are given it; in `proto` nobody tells that a device comes or goes. */
const GIVEN = ["--memory", "file=ram,at=0x40000000"];
const WAYS = [
  ["v1", []],
  ["v1", ["--confined"]],
  ["v1-2025", GIVEN],
  ["proto", GIVEN],
] as const;
for (const [dialect, memory] of WAYS) {
  processTest(
    `ctl, ${
      [dialect, ...memory].join(" ")
    }: a driver that waits for its device goes on, stops and goes on`,
    async (vmsg) => {
      const bus = `${BUS},dialect=${dialect}`;
      using ram = await Deno.open(`${vmsg.directory}/ram`, { write: true, createNew: true });
      await ram.truncate(16 << 20);
      await startDevice(vmsg, bus, "--device", "rng", ...memory);
      const driver = await vmsg.start(
        ...["driver", "--bus", bus, "--device", "3", "--interval", "0.05", ...memory],
      );
      await driver.waitFor(/the device side has no device 3: waiting for it/);
      await ctl(vmsg, "add", "--net", "responder", "--number", "3");
      await driver.waitFor(/bytes from/);
      const [, card] = await list(vmsg);
      assertEquals([card!.number, card!.status & Status.DRIVER_OK], [3, Status.DRIVER_OK]);
      await ctl(vmsg, "remove", "3");
      assertEquals((await list(vmsg)).length, 1);
      const { length } = driver.lines;
      await ctl(vmsg, "add", "--net", "responder", "--number", "3");
      await driver.waitFor(/bytes from/, undefined, length);
      assertEquals((await driver.end("SIGINT")).code, 0);
    },
  );
}

/** How often each client of a flood is answered at least, however long that takes. */
const LEAST_ANSWERS = 10;

/** Asks on and on, also nonsense, and some add and remove devices; until told to stop. How often it was answered. */
async function flood(path: string, line: () => string, isOver: () => boolean): Promise<number> {
  using connection = await Deno.connect({ transport: "unix", path });
  const bytes = new Uint8Array(65536);
  let answers = 0;
  while (!isOver() || answers < LEAST_ANSWERS) {
    await connection.write(new TextEncoder().encode(line() + "\n"));
    if (await connection.read(bytes) === null) break;
    answers++;
  }
  return answers;
}

processTest(
  "ctl: clients that ask without end, and devices that come and go, cost no ping",
  async (vmsg) => {
    await startDevice(vmsg, BUS, "--net", "responder");
    const pings = ["--count", "100", "--interval", "0.02", "--json"];
    const driver = await vmsg.start("driver", "--bus", BUS, ...pings);
    let isOver = false;
    const path = `${vmsg.directory}/ctl.sock`;
    let number = 1;
    const lines = [
      () => '["list"]',
      () => "x".repeat(8000),
      () => JSON.stringify(["add", "--device", "rng", "--number", String(number)]),
      () => JSON.stringify(["remove", String(number++)]),
    ];
    const floods = lines.map((line) => flood(path, line, () => isOver));
    const { code, stdout } = await driver.ended();
    isOver = true;
    const answers = await Promise.all(floods);
    const { sent, received } = JSON.parse(stdout.join(""));
    assertEquals([code, sent, received], [0, 100, 100], stdout.join(""));
    assert(answers.every((count) => count >= LEAST_ANSWERS), answers.join(" "));
  },
);
