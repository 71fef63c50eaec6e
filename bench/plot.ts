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
import { type Figure, machineName, Report } from "./report.ts";

/** Pings a second. */
const RATES = isQuick ? [100, 1000] : [1, 3, 10, 30, 100, 300, 1000, 3000, 10_000];
/** How long each rate is kept up, but at least and at most so many pings. */
const SECONDS = isQuick ? 0.2 : 3;
const LEAST = isQuick ? 10 : 20, MOST = 4000;
const WARM_UP = isQuick ? 20 : 1000;
const BUS = ["--bus", "linux-user,socket=lu.sock"];
const TWIN = "C pair, eventfds", OURS = "vmsg driver, device";
const OUT = new URL("../docs/latency.svg", import.meta.url);

// ---- measuring

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
      const ns = await twin?.measure(`eventfd ${1e6 / rate} -1 -1`, 1, count) ?? [];
      report.add(row, { unit: "us" }, TWIN, [...ns].map((time) => time / 1000));
      const { roundTripsUs } = await ping(rate, count);
      report.add(row, { unit: "us" }, OURS, roundTripsUs);
    }
  }
}

// ---- drawing

const WIDTH = 760, HEIGHT = 460;
const LEFT = 80, RIGHT = 20, TOP = 50, BOTTOM = 80;
const COLORS: Readonly<Record<string, string>> = { [OURS]: "#c0392b", [TWIN]: "#2c6fbb" };

/** A logarithmic axis over whole decades: where a value lies between two ends of the paper. */
function axis(values: readonly number[], from: number, to: number) {
  const low = Math.floor(Math.log10(Math.min(...values)) + 1e-9);
  const high = Math.max(low + 1, Math.ceil(Math.log10(Math.max(...values)) - 1e-9));
  const place = (value: number) => from + (to - from) * (Math.log10(value) - low) / (high - low);
  return { place, decades: Array.from({ length: high - low + 1 }, (_, i) => 10 ** (low + i)) };
}

function text(x: number, y: number, words: string, more = ""): string {
  const escaped = words.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  return `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" ${more}>${escaped}</text>`;
}

const timeName = (us: number) => us >= 1000 ? `${us / 1000} ms` : `${us} us`;

/** The plot of figures whose rows begin with a rate. */
export function draw(figures: readonly Figure[], note: string): string {
  const points = figures.map(({ row, subject, median, p99 }) => ({
    ...{ rate: parseFloat(row), subject, median, p99 },
  }));
  const x = axis(points.map(({ rate }) => rate), LEFT, WIDTH - RIGHT);
  const y = axis(points.flatMap(({ median, p99 }) => [median, p99]), HEIGHT - BOTTOM, TOP);
  const lines = [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" font-family="sans-serif" font-size="13">`,
    `<rect width="${WIDTH}" height="${HEIGHT}" fill="white"/>`,
    text(LEFT, 22, "Round trip of a ping by rate: medians, and p99 (thin)", 'font-size="16"'),
  ];
  for (const rate of x.decades) {
    const at = x.place(rate);
    lines.push(`<path d="M${at.toFixed(1)} ${TOP}V${HEIGHT - BOTTOM}" stroke="#ddd"/>`);
    lines.push(text(at, HEIGHT - BOTTOM + 18, `${rate}`, 'text-anchor="middle"'));
  }
  for (const time of y.decades) {
    const at = y.place(time);
    lines.push(`<path d="M${LEFT} ${at.toFixed(1)}H${WIDTH - RIGHT}" stroke="#ddd"/>`);
    lines.push(text(LEFT - 8, at + 4, timeName(time), 'text-anchor="end"'));
  }
  const middle = (LEFT + WIDTH - RIGHT) / 2;
  lines.push(text(middle, HEIGHT - BOTTOM + 38, "pings a second", 'text-anchor="middle"'));
  [...new Set(points.map(({ subject }) => subject))].forEach((subject, i) => {
    const own = points.filter((point) => point.subject === subject)
      .sort((one, other) => one.rate - other.rate);
    const color = COLORS[subject] ?? "black";
    for (const [which, width] of [["median", 2.5], ["p99", 1]] as const) {
      const path = own.map((point) =>
        `${x.place(point.rate).toFixed(1)} ${y.place(point[which]).toFixed(1)}`
      ).join("L");
      lines.push(`<path d="M${path}" fill="none" stroke="${color}" stroke-width="${width}"/>`);
    }
    for (const { rate, median } of own) {
      const at = `cx="${x.place(rate).toFixed(1)}" cy="${y.place(median).toFixed(1)}"`;
      lines.push(`<circle ${at} r="3.5" fill="${color}"/>`);
    }
    lines.push(text(LEFT + 220 * i, 42, subject, `fill="${color}"`));
  });
  lines.push(text(LEFT, HEIGHT - 14, note, 'font-size="11" fill="#555"'), "</svg>");
  return lines.join("\n") + "\n";
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
