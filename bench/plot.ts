/**
 * A plot: round trips of pings by how often they come, beside a pair of C processes that wake each other.
 *
 *     deno task bench:plot [--quick] [--rounds=N] [--out=docs/latency.svg] [--exe=compiled]
 *
 * The pings are those of `vmsg driver`, which the responder of `vmsg device` answers: two wake-ups. The twin does two
 * wake-ups by eventfd and nothing else. Both are unpinned: what an idle processor does between pings, and
 * where the scheduler then puts whom, is what the plot is about. A point is the median of all rounds, a thin line p99.
 */

import type { PingResult } from "../src/drivers/net/pinger.ts";
import { startTwin } from "./harness.ts";
import { isQuick, outputFile, rounds } from "./options.ts";
import { Bench } from "./processes.ts";
import { draw } from "./plot_svg.ts";
import { machineName, Report } from "./report.ts";

/** Pings a second. */
const RATES = isQuick ? [100, 1000] : [1, 3, 10, 30, 100, 300, 1000, 3000, 10_000];
/** How long each rate is kept up, but at least and at most so many pings. */
const SECONDS = isQuick ? 0.2 : 3;
const LEAST = isQuick ? 10 : 20, MOST = 4000;
const WARM_UP = isQuick ? 20 : 1000;
const BUS = ["--bus", "linux-user,socket=lu.sock"];
const TWIN = "C pair, eventfds", OURS = "vmsg driver, device";
const OUT = new URL("../docs/latency.svg", import.meta.url);

async function measure(report: Report): Promise<void> {
  await using twin = await startTwin("pair");
  await using bench = await Bench.open();
  const device = await bench.vmsg(["device", ...BUS, "--net", "responder"]);
  await device.waitFor(/waiting for the driver side/);
  const ping = async (rate: number, count: number): Promise<PingResult> => {
    const words = ["--count", String(count), "--interval", String(1 / rate), "--json"];
    const driver = await bench.vmsg(["driver", ...BUS, "--log-level", "error", ...words]);
    const text = await driver.success();
    return JSON.parse(text.slice(text.indexOf("{")));
  };
  await ping(1000, WARM_UP);
  for (let round = 0; round < rounds; round++) {
    for (const rate of RATES) {
      const count = Math.round(Math.min(MOST, Math.max(LEAST, rate * SECONDS)));
      const row = `${rate} a second`;
      const ns = await twin?.measure(`eventfd ${Math.round(1e6 / rate)} -1 -1`, 1, count) ?? [];
      report.add(row, { unit: "us" }, TWIN, [...ns].map((time) => time / 1000));
      const { roundTripsUs } = await ping(rate, count);
      report.add(row, { unit: "us" }, OURS, roundTripsUs);
    }
  }
}

if (import.meta.main) {
  const report = new Report("plot");
  await measure(report);
  report.finish();
  const day = new Date().toISOString().slice(0, 10);
  const load = `load ${Deno.loadavg()[0]!.toFixed(1)}`;
  const note = `${machineName()}, ${load}, ${rounds} rounds, ${day}${isQuick ? ", quick" : ""}`;
  await Deno.writeTextFile(outputFile ?? OUT, draw(report.figures(), note));
}
