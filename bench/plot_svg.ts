/** Draws figures over rates as a scalable picture, in text of our own: both axes are logarithmic, decade by decade. */

import type { Figure } from "./report.ts";

const WIDTH = 760, HEIGHT = 460;
const LEFT = 80, RIGHT = 20, TOP = 50, BOTTOM = 80;
/** Of the subjects, in the order in which they come. */
const COLORS = ["#2c6fbb", "#c0392b", "#27854d"];

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
    const color = COLORS[i % COLORS.length]!;
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
