/**
 * What `vmsg bridge` costs: pings and frames from `vmsg driver` to `vmsg device` and its responder, directly and through a bridge, in
 * turns. Bus A is linux-user, where the driver's memory is passed on, or shm, where rings and buffers are copied.
 *
 *     deno task bench:bridge [--quick] [--rounds=N] [--json]
 */

import { isQuick, rounds } from "./options.ts";
import { Bench } from "./processes.ts";
import { Report, type RowOptions } from "./report.ts";

const PINGS = isQuick ? 50 : 1000;
const FLOOD_S = isQuick ? "0.2" : "1";
const SHM_SIZE = 16 << 20;
const US: RowOptions = { unit: "us" };
const RATE: RowOptions = { unit: "1000/s", more: true };
const report = new Report("bridge");

/** A run of the driver; the figures are what it prints. */
async function measure(from: "linux-user" | "shm", isBridged: boolean): Promise<void> {
  await using bench = await Bench.open();
  Deno.writeFileSync(`${bench.directory}/a.shm`, new Uint8Array(SHM_SIZE), { mode: 0o600 });
  const buses = { "linux-user": "linux-user,socket=a.sock,name=a", shm: "shm,file=a.shm,size=16M" };
  const a = buses[from], b = "linux-user,socket=b.sock,name=b";
  await bench.vmsg(["device", "--bus", a, "--net", "responder"]);
  if (isBridged) await bench.vmsg(["bridge", "--bus", a, "--bus", b]);
  const counts = ["--count", `${PINGS}`, "--interval", "0.001", "--throughput", FLOOD_S];
  const driver = await bench.vmsg(["driver", "--bus", isBridged ? b : a, ...counts]);
  const text = await driver.success();
  const times = /min\/median\/p99\/max = [\d.]+\/([\d.]+)\/([\d.]+)\//.exec(text);
  const out = / to the device: (\d+) frames\/s/.exec(text) ?? /to the device: (\d+)/.exec(text);
  const back = /from the device: (\d+) frames\/s/.exec(text);
  const subject = isBridged ? "through vmsg bridge" : "directly";
  report.add(`${from}: ping, median`, US, subject, [Number(times![1])]);
  report.add(`${from}: ping, p99`, US, subject, [Number(times![2])]);
  report.add(`${from}: frames out`, RATE, subject, [Number(out![1]) / 1000]);
  report.add(`${from}: frames in`, RATE, subject, [Number(back![1]) / 1000]);
}

for (let round = 0; round < rounds; round++) {
  for (const from of ["linux-user", "shm"] as const) {
    for (const isBridged of [false, true]) await measure(from, isBridged);
  }
}
report.finish();
