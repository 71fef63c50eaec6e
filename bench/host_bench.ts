/**
 * A ping on one host: from the kernel, through `vmsg driver --tap` and `vmsg device`, to its responder and back.
 *
 *     deno task bench:host [--quick] [--rounds=N] [--json] [--compare] [--exe=compiled]
 *
 * Each round starts both processes anew and pings 40 times at 100 ms at once (the first frames of a fresh process),
 * then floods, which warms them, then pings at 100 ms again. The twin is a pair of C processes that wake each
 * other through eventfds and do nothing else, at the same intervals and on the same processors. The way of a ping
 * has four wake-ups more than the twin's two in it: the TAP's, and ping's own.
 *
 * It needs root, for the network namespace in which all of it is.
 */

import { Namespace } from "../tests/network/support.ts";
import { startTwin, type Twin } from "./harness.ts";
import { isQuick, rounds } from "./options.ts";
import { Bench, HERE, pin, THERE } from "./processes.ts";
import { Report, type RowOptions } from "./report.ts";

const PINGS = isQuick ? 5 : 40;
const FLOOD = isQuick ? 500 : 5000;
const INTERVAL_MS = 100;
const BUS = ["--bus", "linux-user,socket=lu.sock"];
const TARGET = "10.0.2.2";
const TWIN = "C pair, eventfds";
const MS: RowOptions = { unit: "ms" };

/** Round trips in ms of pings that ping(8) prints. */
function timesOf(text: string): number[] {
  return [...text.matchAll(/ time=([\d.]+) ms/g)].map(([, ms]) => Number(ms));
}

async function measureRound(report: Report, twin: Twin | undefined): Promise<void> {
  using _namespace = new Namespace();
  await using bench = await Bench.open();
  const device = await bench.vmsg(["device", ...BUS, "--net", "responder"]);
  await device.waitFor(/waiting for the driver side/);
  const driver = await bench.vmsg(["driver", ...BUS, "--tap", "tap0,address=10.0.2.15/24"]);
  await driver.waitFor(/connected/);
  await (await bench.start(["ip", "link", "set", "tap0", "up"])).success();
  const ping = async (processor: number, ...args: string[]) =>
    await (await bench.start(["ping", "-n", ...args, TARGET], processor)).success();
  const slowly = ["-c", String(PINGS), "-i", String(INTERVAL_MS / 1000)];
  const slowTwin = async (row: string, here: number, there: number) => {
    const order = `eventfd ${INTERVAL_MS * 1000} ${here} ${there}`;
    const ns = await twin?.measure(order, 1, PINGS) ?? [];
    report.add(row, MS, TWIN, [...ns].map((time) => time / 1e6));
  };

  const first = `the first ${PINGS}, every ${INTERVAL_MS} ms`;
  await slowTwin(first, -1, -1);
  const fresh = timesOf(await ping(-1, ...slowly));
  report.add(first, MS, "vmsg", fresh);
  report.add("the very first", MS, "vmsg", fresh.slice(0, 1));

  pin(device.child.pid, THERE);
  pin(driver.child.pid, HERE);
  // The kernel's ping prints a line a ping only where it is no flood.
  const flood = await ping(HERE, "-f", "-c", String(FLOOD));
  const [, average] = /rtt min\/avg\/max\/mdev = [\d.]+\/([\d.]+)\//.exec(flood) ?? [];
  const [, lost] = /, (\d+(?:\.\d+)?)% packet loss/.exec(flood) ?? [];
  const row = `flood of ${FLOOD}, average of each round`;
  const ns = await twin?.measure(`eventfd 0 ${HERE} ${THERE}`, FLOOD, 1) ?? [];
  report.add(row, MS, TWIN, [...ns].map((time) => time / 1e6));
  report.add(row, MS, "vmsg", [Number(average)]);
  if (lost !== "0") report.note(`a flood lost ${lost} %`);

  const warm = `warm, every ${INTERVAL_MS} ms`;
  await slowTwin(warm, HERE, THERE);
  report.add(warm, MS, "vmsg", timesOf(await ping(HERE, ...slowly)));
}

if (import.meta.main) {
  const report = new Report("host");
  await using twin = await startTwin("pair");
  for (let round = 0; round < rounds; round++) await measureRound(report, twin);
  report.note("wanted of vmsg: the first 40 in 0.5 ms, warm 0.3 ms, flood 0.05 ms");
  report.finish();
}
