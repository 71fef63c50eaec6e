/** `vmsg top` as users have it: beside processes with traffic, on a terminal, and of files that are not as they should be. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { allocate } from "../../src/linux/arena.ts";
import { check, libc } from "../../src/linux/libc.ts";
import { openPty } from "../../src/linux/terminal.ts";
import {
  type Ended,
  PATIENCE_MS,
  type Processes,
  processTest,
  until,
  VMSG_COMMAND,
  type VmsgProcess,
} from "../support/processes.ts";

const BUS = ["--bus", "linux-user,socket=lu.sock"];
const TIOCSWINSZ = 0x5414n;

/** Starts vmsg with its counters in the test's own directory. */
function start(vmsg: Processes, ...args: string[]): Promise<VmsgProcess> {
  return vmsg.startProgram("env", `XDG_RUNTIME_DIR=${vmsg.directory}`, ...VMSG_COMMAND, ...args);
}

/** Runs it; in its operand "all" are the processes of the test, and not what else this machine has. */
async function top(vmsg: Processes, ...args: string[]): Promise<Ended> {
  args = args.map((arg) => arg === "all" ? `${vmsg.directory}/vmsg` : arg);
  await using process = await start(vmsg, "top", ...args);
  return await process.ended();
}

/** A device that a driver pings without end. */
async function pinging(vmsg: Processes): Promise<[device: VmsgProcess, driver: VmsgProcess]> {
  const device = await start(vmsg, "device", ...BUS, "--net", "responder");
  await device.waitFor(/waiting for the driver side/);
  const driver = await start(vmsg, "driver", ...BUS, "--interval", "0.01");
  await driver.waitFor(/icmp_seq=20 /);
  return [device, driver];
}

/** Columns of a table's row: rate, total, counter, process, group. */
function rowOf(
  lines: readonly string[],
  counter: string,
  process: number,
  isOne: (row: readonly string[]) => boolean = () => true,
): string[] {
  const rows = lines.map((line) => line.trim().split(/ {2,}/));
  const found = rows.find((row) =>
    row[2] === counter && row[3]?.includes(` ${process}`) && isOne(row)
  );
  assert(found !== undefined, `${counter} of ${process} in\n${lines.join("\n")}`);
  return found!;
}

/** What is said of a device that is pinged, and of its driver. */
function assertFigures(once: Ended, device: VmsgProcess, driver: VmsgProcess): void {
  assertEquals([once.code, once.stderr], [0, []]);
  assertMatch(once.stdout[0]!, /PER SECOND +TOTAL +COUNTER +PROCESS +OF$/);
  const row = rowOf(once.stdout, "transmitted", device.pid);
  assert(Number(row[0]) > 0 && Number(row[1]) >= 20, row.join());
  assert(Number(rowOf(once.stdout, "sent", driver.pid)[0]) > 0);
  assertEquals(row.slice(3), [`device ${device.pid}`, "device 0 net, responder"]);
  // The card told of what it used, at most once a batch; the bring-up's requests took their time.
  const total = (counter: string, pid: number) => Number(rowOf(once.stdout, counter, pid)[1]);
  const [notified, batches] = [total("notified", device.pid), total("batches", device.pid)];
  assert(notified >= 20 && notified <= batches, `${notified} of ${batches}`);
  // The pings' frames, 98 bytes each, and little else.
  for (
    const [{ pid }, frames, bytes] of [
      [device, "transmitted", "bytesTransmitted"],
      [device, "received", "bytesReceived"],
      [driver, "sent", "bytesSent"],
      [driver, "received", "bytesReceived"],
    ] as const
  ) {
    const isFrames = (row: readonly string[]) => /^(device|driver) /.test(row[4]!);
    const [count, sum] = [frames, bytes].map((counter) =>
      Number(rowOf(once.stdout, counter, pid, isFrames)[1])
    ) as [number, number];
    assert(sum > 40 * count && sum <= 98 * count, `${sum} bytes of ${count} ${frames}`);
  }
  const kicks = total("kicked", driver.pid) + total("suppressed", driver.pid);
  assert(kicks >= 20, `${kicks} kicks`);
  for (
    const [group, { pid }, least] of [
      ["latency answers to requests", driver, 10],
      ["latency pings of 10.0.2.2", driver, 10],
      ["latency answering SET_DEVICE_STATUS", device, 3],
    ] as const
  ) {
    const value = (counter: string) =>
      Number(rowOf(once.stdout, counter, pid, (row) => row[4] === group)[1]);
    assert(value("count") >= least && value("p99 in us") > 0, group);
    assert(value("p50 in us") <= value("p99 in us"), group);
    assert(value("p99 in us") <= value("longest in us"), group);
  }
  const rates = once.stdout.slice(1).map((line) => parseFloat(line)).filter(Number.isFinite);
  assertEquals(rates, rates.toSorted((a, b) => b - a), "by rate");
}

processTest("top: figures of real traffic move, as text, JSON and for Prometheus", async (vmsg) => {
  const [device, driver] = await pinging(vmsg);
  // Figures that move are read one after the other; and of a process that is not scheduled for a while nothing moves.
  const endMs = performance.now() + PATIENCE_MS;
  for (let isFound = false; !isFound;) {
    const once = await top(vmsg, "--once", "--interval", "0.3", "all");
    try {
      assertFigures(once, device, driver);
      isFound = true;
    } catch (error) {
      if (performance.now() > endMs) throw error;
    }
  }

  const alone = await top(vmsg, "--once", "--interval", "0.1", String(driver.pid));
  assert(alone.stdout.slice(1).every((line) => line.includes(`  driver ${driver.pid}  `)));

  const { processes } = JSON.parse((await top(vmsg, "--json", "all")).stdout.join("\n"));
  assertEquals(
    processes.map(({ pid, isRunning }: { pid: number; isRunning: boolean }) => [pid, isRunning]),
    [[device.pid, true], [driver.pid, true]],
  );
  await device.end("SIGKILL");
  await driver.end("SIGTERM");
  const dead = await top(vmsg, "--once", "all");
  assertMatch(rowOf(dead.stdout, "transmitted", device.pid).join(), /^-,\d+,.*\(ended\)/);
  const metrics = (await top(vmsg, "--prometheus", "all")).stdout;
  const labels = `subcommand="device",pid="${device.pid}"`;
  assert(metrics.includes(`vmsg_running{${labels}} 0`));
  const line = metrics.find((line) => line.startsWith("vmsg_device_transmitted_total{"))!;
  assert(
    line.startsWith(`vmsg_device_transmitted_total{${labels},name="0 net, responder"} `),
    line,
  );
});

/** A terminal with `vmsg top` on it. */
class Terminal implements Disposable {
  readonly #pty = openPty();
  readonly #block = allocate(4096);
  #text = "";

  constructor(columns: number, rows: number) {
    this.resize(columns, rows);
  }

  get path(): string {
    return this.#pty.path;
  }

  resize(columns: number, rows: number): void {
    this.#block.view.setUint16(0, rows, true);
    this.#block.view.setUint16(2, columns, true);
    check(libc.ioctl(this.#pty.master.number, TIOCSWINSZ, this.#block.address), "resize");
  }

  press(key: string): void {
    this.#block.bytes[0] = key.charCodeAt(0);
    check(libc.write(this.#pty.master.number, this.#block.address, 1), "press a key");
  }

  /** All that was written to it. */
  get text(): string {
    for (;;) {
      const count = libc.read(this.#pty.master.number, this.#block.address, 4096);
      if (count <= 0) return this.#text;
      this.#text += new TextDecoder().decode(this.#block.bytes.subarray(0, count));
    }
  }

  /** The lines of the last whole screen. */
  get screen(): string[] {
    const whole = this.text.split("\x1b[H").slice(1).findLast((text) => text.includes("\x1b[J"));
    // deno-lint-ignore no-control-regex -- what it erases
    return (whole ?? "").split("\x1b[J")[0]!.replaceAll(/\x1b\[K|\r/g, "").split("\n");
  }

  [Symbol.dispose](): void {
    this.#pty.master[Symbol.dispose]();
  }
}

/** Starts vmsg on a terminal, as the leader of its session. */
function startOn(vmsg: Processes, terminal: Terminal, ...args: string[]): Promise<VmsgProcess> {
  const shell = `exec "$@" <${terminal.path} >${terminal.path}`;
  const command = ["env", `XDG_RUNTIME_DIR=${vmsg.directory}`, ...VMSG_COMMAND, ...args];
  return vmsg.startProgram("sh", "-c", shell, "sh", ...command);
}

processTest("top: on a terminal, with its keys and another size", async (vmsg) => {
  const [device] = await pinging(vmsg);
  using terminal = new Terminal(100, 100);
  const process = await startOn(
    vmsg,
    terminal,
    "top",
    "--interval",
    "0.1",
    `${vmsg.directory}/vmsg`,
  );
  await until(() => terminal.screen.some((line) => /^ *[1-9]\d*(\.\d)? .*transmitted/.test(line)));
  assertMatch(terminal.screen[0]!, /^vmsg top {2}2 running {2}by rate {3}keys:/);
  const total = () => Number(rowOf(terminal.screen, "transmitted", device.pid)[1]);
  const before = total();
  await until(() => total() > before);

  terminal.press("s");
  await until(() => terminal.screen[0]!.includes("by total"));
  const totals = terminal.screen.slice(2).map((line) => Number(line.trim().split(/ +/)[1]));
  assertEquals(totals, totals.toSorted((a, b) => b - a));
  assert(!terminal.screen.some((line) => line.includes("malformed")));
  terminal.press("z");
  await until(() => terminal.screen.some((line) => line.includes("malformed")));

  terminal.press("p");
  await until(() => terminal.screen[0]!.includes("PAUSED"));
  const paused = terminal.screen.slice(1);
  terminal.resize(60, 12);
  await until(() => terminal.screen.length === 11);
  assert(terminal.screen.every((line) => line.length < 60), terminal.screen.join("\n"));
  assertMatch(terminal.screen.at(-1)!, /^\.\.\. \d+ more lines$/);
  terminal.resize(100, 100);
  await until(() => terminal.screen.length > 11);
  assertEquals(terminal.screen.slice(1), paused, "time went by and nothing moved");
  terminal.press(" ");
  await until(() => !terminal.screen[0]!.includes("PAUSED") && total() > before);

  terminal.press("q");
  const { code, stderr } = await process.ended();
  assertEquals([code, stderr], [0, []]);
  assert(terminal.text.trimEnd().endsWith("\x1b[?25h\x1b[?1049l"), "the screen is given back");

  const { length } = terminal.text;
  const other = await startOn(vmsg, terminal, "top");
  await until(() => terminal.text.slice(length).includes("\x1b[J"));
  assertEquals((await other.end("SIGTERM")).code, 0);
  assert(terminal.text.trimEnd().endsWith("\x1b[?25h\x1b[?1049l"), "also when it is told to end");
});

processTest("top: files that are no counters are refused in a line, others shown", async (vmsg) => {
  Deno.mkdirSync(`${vmsg.directory}/empty`);
  const empty = await top(vmsg, "--once", `${vmsg.directory}/empty`);
  assertEquals(empty.stderr, [`vmsg: no counters in ${vmsg.directory}/empty`]);
  const device = await start(vmsg, "device", ...BUS, "--net", "responder");
  await device.waitFor(/waiting for the driver side/);
  await device.end("SIGKILL");
  const directory = `${vmsg.directory}/vmsg`;
  const good = `${directory}/device.${device.pid}`;
  Deno.writeTextFileSync(`${directory}/proxy.7`, "hello");
  Deno.symlinkSync(good, `${directory}/proxy.8`);
  Deno.mkdirSync(`${directory}/proxy.9`);
  Deno.writeFileSync(`${directory}/proxy.10`, Deno.readFileSync(good).subarray(0, 70));
  const all = await top(vmsg, "--once", "--zeros", "all");
  assertEquals(all.code, 0);
  assertEquals(all.stderr, [
    `vmsg: ${directory}/proxy.7: not a file of counters`,
    `vmsg: ${directory}/proxy.8: not a file of counters but a link`,
    `vmsg: ${directory}/proxy.9: not a file of counters`,
  ]);
  assertEquals((await top(vmsg, "--prometheus", "all")).stderr, all.stderr);
  rowOf(all.stdout, "transmitted", device.pid);
  assertEquals(JSON.parse((await top(vmsg, "--json", "all")).stdout.join("")).problems.length, 3);

  const copy = `${vmsg.directory}/copy`;
  Deno.copyFileSync(good, copy);
  rowOf((await top(vmsg, "--once", "--zeros", copy)).stdout, "transmitted", device.pid);
  for (
    const [operand, message] of [
      [`${directory}/proxy.7`, `vmsg: ${directory}/proxy.7: not a file of counters`],
      ["none", "vmsg: open none: No such file or directory (ENOENT)"],
      [
        "123456789",
        `vmsg: no counters of process 123456789 in ${directory} or /run/vmsg`,
      ],
    ] as const
  ) {
    const { code, stdout, stderr } = await top(vmsg, "--once", operand);
    assertEquals([code, stdout, stderr], [1, [], [message]]);
  }
});
