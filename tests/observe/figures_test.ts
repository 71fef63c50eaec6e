import { assert, assertEquals } from "@std/assert";
import { CounterMemory, counterShape, countIn } from "../../src/observe/counters.ts";
import {
  figuresAsJson,
  figuresAsPrometheus,
  figuresOf,
  readAll,
  type Reading,
  sortFigures,
  tableOf,
} from "../../src/observe/figures.ts";
import { Latency, readLatency } from "../../src/observe/latency.ts";
import { withDirectory } from "../support/leaks.ts";

const Traffic = counterShape("received", "bytesSent");
/** A process of this number is there as long as the test; no process has the other one. */
const [LIVE, DEAD] = [Deno.pid, 2 ** 30];

/** What is read of the file of a process that counted so. */
async function reading(atMs: number, pid: number, count: () => void): Promise<Reading> {
  const memory = new CounterMemory(new ArrayBuffer(8192), "device", pid, 1.7e12);
  countIn(memory);
  try {
    count();
  } finally {
    countIn(undefined);
  }
  let read: Reading | undefined;
  await withDirectory((directory) => {
    Deno.writeFileSync(`${directory}/device.${pid}`, new Uint8Array(memory.buffer));
    read = readAll(atMs, pid, [directory]);
  });
  // The directory is another one each time.
  const instances = read!.instances.map((instance) => ({ ...instance, path: "device" }));
  return { ...read!, instances };
}

function traffic(name: string, received: number, bytesSent: number): void {
  Object.assign(new Traffic("port", name), { received, bytesSent });
}

Deno.test("figures: rates are those of the same counter of the same process", async () => {
  const before = await reading(1000, LIVE, () => {
    traffic("a", 10, 100);
    traffic("a", 20, 0);
  });
  const now = await reading(3000, LIVE, () => {
    traffic("a", 30, 50);
    traffic("a", 20, 0);
    traffic("b", 7, 0);
  });
  const rates = (figures: ReturnType<typeof figuresOf>) => figures.map(({ rate }) => rate);
  const figures = figuresOf(now, before);
  // What went back, and what was not there, has no rate.
  assertEquals(rates(figures), [10, undefined, 0, 0, undefined, undefined]);
  assert(rates(figuresOf(now)).every((rate) => rate === undefined), "with nothing before");
  const rows = (...args: Parameters<typeof sortFigures>) =>
    tableOf(sortFigures(...args), false).map((line) => line.trim().split(/ {2,}/).join("|"));
  const process = `device ${LIVE}`;
  assertEquals(rows(figures, "rate"), [
    "PER SECOND|TOTAL|COUNTER|PROCESS|OF",
    `10|30|received|${process}|port a`,
    `0|20|received|${process}|port a`,
    `-|50|bytesSent|${process}|port a`,
    `-|7|received|${process}|port b`,
  ]);
  assertEquals(
    rows(figures, "total").map((row) => row.split("|")[1]),
    "TOTAL 50 30 20 7".split(" "),
  );
  assertEquals(
    rows(figures, "name").map((row) => row.split("|")[1]),
    "TOTAL 30 50 20 7".split(" "),
  );
  assertEquals(tableOf(figures, true).length, 7);

  // Another process of the same number, or one that is gone.
  const other = { ...before, instances: before.instances.map((one) => ({ ...one, startMs: 1 })) };
  assert(rates(figuresOf(now, other)).every((rate) => rate === undefined));
  const dead = await reading(3000, DEAD, () => traffic("a", 1, 1));
  assert(rates(figuresOf(dead, dead)).every((rate) => rate === undefined));
  assertEquals(figuresOf(dead)[0]!.process, `device ${DEAD} (ended)`);
});

Deno.test("figures: what is at the moment is not counted", async () => {
  const read = await reading(1000, LIVE, () => {
    new Traffic("state", "device 0").received = 15;
    traffic("p", 1, 2);
  });
  assertEquals(figuresOf(read).map(({ group }) => group), ["port p", "port p"]);
  assertEquals(figuresAsPrometheus(read).includes("state"), false);
  assertEquals(figuresAsJson(read).includes("state"), false);
});

Deno.test("figures: a histogram gives p50, p99 and the longest", async () => {
  const read = await reading(0, DEAD, () => {
    const latency = new Latency("answers");
    for (let n = 0; n < 97; n++) latency.add(0.1);
    latency.add(0);
    latency.add(3);
    latency.add(20_000);
  });
  const { counters } = read.instances[0]!.groups[0]!;
  const { below, ...rest } = readLatency(counters);
  assertEquals(rest, { count: 100, totalUs: 20_012_700, longestUs: 2e7, p50Us: 128, p99Us: 4096 });
  assertEquals(below.filter(([us]) => [1, 64, 128, 4096, 2 ** 23].includes(us)), [
    [1, 1],
    [64, 1],
    [128, 98],
    [4096, 99],
    // What took longer than the last step.
    [2 ** 23, 100],
  ]);
  assertEquals(figuresOf(read).map(({ counter, value }) => [counter, value]), [
    ["count", 100],
    ["p50 in us", 128],
    ["p99 in us", 4096],
    ["longest in us", 2e7],
  ]);
  assertEquals(JSON.parse(figuresAsJson(read)).processes[0].groups[0].latency.p99Us, 4096);
  const metrics = figuresAsPrometheus(read).split("\n").filter((line) => line.includes("latency"));
  assertEquals(metrics.length, 2 + 24 + 2 + 1);
  const labels = `subcommand="device",pid="${DEAD}",name="answers"`;
  assertEquals(metrics.slice(-5), [
    `vmsg_latency_seconds_bucket{${labels},le="+Inf"} 100`,
    `vmsg_latency_seconds_sum{${labels}} 20.0127`,
    `vmsg_latency_seconds_count{${labels}} 100`,
    "# TYPE vmsg_latency_longest_seconds gauge",
    `vmsg_latency_longest_seconds{${labels}} 20`,
  ]);
  // Of nothing, and of a group of that kind that is none.
  assertEquals([readLatency([]).p99Us, readLatency([{ name: "count", value: 5 }]).p50Us], [0, 0]);
});

Deno.test("figures: processes of one number, as in containers, are told apart in Prometheus", async () => {
  const { instances, ...rest } = await reading(0, LIVE, () => traffic("a", 1, 2));
  const older = instances.map((instance) => ({ ...instance, startMs: 1.6e12 }));
  const metrics = figuresAsPrometheus({ ...rest, instances: [...older, ...instances] });
  assertEquals(metrics.split("\n").filter((line) => line.startsWith("vmsg_start")), [
    `vmsg_start_time_seconds{subcommand="device",pid="${LIVE}"} 1700000000`,
    `vmsg_start_time_seconds{subcommand="device",pid="${LIVE} #2"} 1600000000`,
  ]);
  const samples = metrics.split("\n").map((line) => line.replace(/ \S+$/, ""));
  assertEquals(new Set(samples).size, samples.length);
});

Deno.test("figures: Prometheus gets names and labels it takes, and none twice", async () => {
  const Odd = counterShape("bad size", "bad_size");
  const read = await reading(0, DEAD, () => {
    traffic('say "a\\b"', 1, 2);
    traffic("same", 3, 4);
    traffic("same", 5, 6);
    new Odd("bus-1", "x");
  });
  const start = `subcommand="device",pid="${DEAD}"`;
  assertEquals(figuresAsPrometheus(read).split("\n"), [
    "# TYPE vmsg_running gauge",
    `vmsg_running{${start}} 0`,
    "# TYPE vmsg_start_time_seconds gauge",
    `vmsg_start_time_seconds{${start}} 1700000000`,
    "# TYPE vmsg_port_received_total counter",
    `vmsg_port_received_total{${start},name="say \\"a\\\\b\\""} 1`,
    `vmsg_port_received_total{${start},name="same"} 3`,
    `vmsg_port_received_total{${start},name="same #2"} 5`,
    "# TYPE vmsg_port_bytes_sent_total counter",
    `vmsg_port_bytes_sent_total{${start},name="say \\"a\\\\b\\""} 2`,
    `vmsg_port_bytes_sent_total{${start},name="same"} 4`,
    `vmsg_port_bytes_sent_total{${start},name="same #2"} 6`,
    "# TYPE vmsg_bus_1_bad_size_total counter",
    `vmsg_bus_1_bad_size_total{${start},name="x"} 0`,
  ]);
});
