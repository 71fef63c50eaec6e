/**
 * Each bench runs, with as few rounds as there are, and says what it measured in JSON: that a figure is there
 * and is a number. What the figures are worth is for a quiet machine (docs/performance.md).
 */

import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { fromFileUrl } from "@std/path";
import type { Run } from "../../bench/report.ts";
import { draw } from "../../bench/plot_svg.ts";
import { guestlessTest, guestTest } from "../guest/support.ts";
import { has } from "../network/support.ts";

const bench = (file: string) => fromFileUrl(new URL(`../../bench/${file}`, import.meta.url));

async function output(
  file: string,
  ...args: string[]
): Promise<{ code: number; stdout: string; stderr: string }> {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "--quiet", "--no-check", "--allow-all", bench(file), ...args],
    stdin: "null",
  }).output();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  return { code, stdout: text(stdout), stderr: text(stderr) };
}

/** Runs a bench, and returns what it says in JSON. */
async function run(file: string, ...args: string[]): Promise<Run> {
  const { code, stdout, stderr } = await output(file, "--quick", "--json", ...args);
  assertEquals(code, 0, stderr);
  const found: Run = JSON.parse(stdout);
  for (const { row, subject, median, p99 } of found.figures) {
    const isFigure = Number.isFinite(median) && Number.isFinite(p99);
    assert(isFigure, `${row}, ${subject}: ${median}, ${p99}`);
  }
  return found;
}

/** Asserts that a run has each subject in one of its rows. */
function assertSubjects({ figures }: Run, ...subjects: string[]): void {
  const found = new Set(figures.map(({ subject }) => subject));
  for (const subject of subjects) assert(found.has(subject), `${subject}: ${[...found]}`);
}

/** Where this machine has a C compiler, the twins are there. */
const twins = (...names: string[]) => has(Deno.env.get("CC") || "cc") ? names : [];

Deno.test("bench: runs are kept, and compared with the runs before", async () => {
  const directory = await Deno.makeTempDir({ prefix: "vmsg-test-" });
  try {
    const file = `${directory}/cache/bench.jsonl`;
    const words = [`--history=${file}`, "indirect"];
    const first = await run("twins_bench.ts", ...words);
    assertSubjects(first, ...twins("C"), "vmsg");
    assertEquals(JSON.parse(await Deno.readTextFile(file)), first);
    // A line that is none, as a machine that lost power leaves it.
    await Deno.writeTextFile(file, '{"bench":\n', { append: true });
    const second = await output("twins_bench.ts", "--quick", "--compare", ...words);
    assertEquals(second.code, 0, second.stderr);
    assertStringIncludes(second.stdout, "before");
    const lines = (await Deno.readTextFile(file)).trim().split("\n");
    assertEquals(lines.length, 3);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
});

Deno.test("bench: a wrong option is one line, and exit code 2", async () => {
  for (const option of ["--rouds=3", "--rounds=0", "--json=1", "--history"]) {
    const { code, stdout, stderr } = await output("twins_bench.ts", option);
    assertEquals([code, stdout, stderr.trim().split("\n").length], [2, "", 1], stderr);
  }
});

Deno.test("bench: requests beside two C pairs", async () => {
  const found = await run("latency_bench.ts", "--history=off", "v1");
  assertSubjects(found, ...twins("C pair, a socket", "C pair, eventfds"), "vmsg, v1");
});

Deno.test("bench: idle processes with 64 cards", async () => {
  const found = await run("idle_bench.ts", "--history=off");
  assertSubjects(found, "bare Deno with a Worker", "device, 64 cards", "proxy, 64 cards");
});

Deno.test("bench: what watching costs", async () => {
  const found = await run("watching_bench.ts", "--history=off", "direct");
  assertSubjects(found, "not watched", "as it is: counters", "trace, JSON to a file");
  assertSubjects(found, "capture of messages", "capture with frames");
  assertEquals(new Set(found.figures.map(({ row }) => row)).size, 3);
});

Deno.test("bench: boots and reboots, with split and packed rings", async () => {
  const found = await run("reboot_bench.ts", "--history=off");
  assertSubjects(found, "later reboots", "the first boot", "the first reboot");
  const rows = new Set(found.figures.map(({ row }) => row));
  for (const ring of ["split", "packed"]) assert(rows.has(`the longest ask, ${ring}`));
});

Deno.test("bench: the plot is an SVG with a line for each subject", async () => {
  const figure = { unit: "us", samples: 1, median: 100, p99: 2000 };
  const subjects = ["vmsg & vmsg", "C"];
  const svg = draw(
    subjects.flatMap((subject) =>
      [1, 10, 1000].map((rate) => ({ ...figure, row: `${rate} a second`, subject }))
    ),
    "this machine < that one",
  );
  assertStringIncludes(svg, "vmsg &amp; vmsg");
  assertStringIncludes(svg, "this machine &lt; that one");
  assertEquals(svg.match(/<circle/g)?.length, 6);
  assertEquals(svg.match(/stroke-width/g)?.length, 4);
  assert(!/NaN|undefined|Infinity/.test(svg), svg);
  const file = await Deno.makeTempFile({ suffix: ".svg" });
  try {
    const found = await run("plot.ts", "--history=off", `--out=${file}`);
    assertSubjects(found, ...twins("C pair, eventfds"), "vmsg driver, device");
    assertStringIncludes(await Deno.readTextFile(file), "</svg>");
  } finally {
    await Deno.remove(file);
  }
});

guestlessTest(
  "bench: pings on one host",
  { programs: { ping: "iputils-ping", ip: "iproute2" }, root: true },
  async () => {
    const found = await run("host_bench.ts", "--history=off");
    assertSubjects(found, ...twins("C pair, eventfds"), "vmsg");
  },
);

guestlessTest(
  "bench: confined mode in turns with direct mode",
  { programs: { unshare: "util-linux", ip: "iproute2" }, root: true },
  async () => {
    const found = await run("confined_bench.ts", "--history=off", "guests");
    assertSubjects(found, "direct", "confined, 1M", "confined, 4M", "confined, 64M");
  },
);

guestlessTest(
  "bench: testpmd beside testpmd",
  { programs: { "dpdk-testpmd": "dpdk-dev", stdbuf: "coreutils" } },
  async () => {
    const found = await run("testpmd_bench.ts", "--history=off");
    assertSubjects(found, "testpmd vhost", "vmsg proxy, device");
  },
);

guestTest(
  "bench: a guest beside stock QEMU",
  { guest: "q35", programs: { iperf3: "iperf3", ip: "iproute2", ldd: "libc-bin" }, root: true },
  async () => {
    const found = await run("guest_bench.ts", "--history=off", "free");
    assertSubjects(found, "stock QEMU, tap", "vmsg proxy, device, tap");
    const rows = new Set(found.figures.map(({ row }) => row));
    for (const row of ["ping every 2 ms", "ping every 100 ms", "iperf3 out", "iperf3 in"]) {
      assert(rows.has(row), [...rows].join("; "));
    }
  },
);
