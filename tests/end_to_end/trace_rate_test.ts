/** Traces as JSON while messages come as fast as two processes can say them: none is lost, or it is said how many. */

import { assert, assertEquals } from "@std/assert";
import { findProgram } from "../../src/linux/programs.ts";
import { type Processes, processTest, until, VMSG_COMMAND } from "../support/processes.ts";
import { countsHere, messagesOf } from "../support/traffic.ts";

const BUS = ["--bus", "linux-user,socket=lu.sock"];
/** Every message, HELLO as well. */
const TRACE = ["--trace", "HELLO,*", "--trace-format", "json"];
const FILE = "trace.jsonl";
/** Reads nothing before it may. */
const GO = "go";
const SLOW_READER = `>(until [ -e ${GO} ]; do sleep 0.05; done; exec cat >${FILE})`;
/** So many that neither a pipe nor what waits for it holds them. */
const MESSAGES = 3000;
/** Lines of the log that may be among those that were dropped. */
const MAX_LOG_LINES = 20;

interface Traced {
  /** Messages in the trace, and those that lack between them. */
  readonly lines: number;
  readonly missing: number;
  /** What the lines that stand for others say. */
  readonly told: number;
  /** Messages that the process counted. */
  readonly counted: number;
}

/** What a device side traces while a driver floods it; standard error goes where `target` says. */
async function flooded(vmsg: Processes, target: string): Promise<Traced> {
  const args = ["device", ...BUS, "--net", "responder", ...TRACE, "--log-level", "debug"];
  const script = `${countsHere(vmsg)} exec "$@" 2> ${target}`;
  const device = await vmsg.startProgram("bash", "-c", script, "bash", ...VMSG_COMMAND, ...args);
  // Pings for how many messages there are at least, frames for how fast.
  const flood = ["--count", "1500", "--interval", "0.001", "--throughput", "0.5"];
  // A device that is slow says less, and more at a time.
  do assertEquals((await vmsg.run("driver", ...BUS, ...flood)).code, 0); while (
    messagesOf(vmsg, device) < MESSAGES
  );
  await Deno.writeTextFile(`${vmsg.directory}/${GO}`, "");
  // Whoever reads slowly has taken what there is before the last lines come.
  const isDrained = async () =>
    (await Deno.readTextFile(`${vmsg.directory}/${FILE}`).catch(() => "")).includes('"dropped"');
  if (target === SLOW_READER) await until(isDrained);
  // Ends when the reader of its standard error has.
  assertEquals((await device.end("SIGTERM")).code, 0);
  const found = { lines: 0, missing: 0, told: 0, counted: 0 };
  let last = 0, gap = 0;
  for (const line of (await Deno.readTextFile(`${vmsg.directory}/${FILE}`)).split("\n")) {
    const [, counters] = /^vmsg device: transport: (.*)$/.exec(line) ?? [];
    if (counters !== undefined) {
      const { received, sent } = JSON.parse(counters);
      found.counted = received + sent;
      // Lines may lack up to here; what is said afterwards is counted nowhere.
      found.missing += received + sent - last;
      found.told += gap;
      break;
    }
    if (!line.startsWith("{")) continue;
    const { number, dropped } = JSON.parse(line);
    if (dropped !== undefined) gap += dropped;
    if (number === undefined) continue;
    assert(number > last && number - last - 1 <= gap, `${gap} are said to lack before ${line}`);
    found.missing += number - last - 1;
    found.told += gap;
    found.lines++;
    [last, gap] = [number, 0];
  }
  return found;
}

const NEEDS = findProgram("bash") === undefined ? "bash" : undefined;

if (NEEDS !== undefined) console.log(`NOT RUN: traces at full rate: no ${NEEDS}`);
else {
  processTest("trace: at the full rate a file has every message that was counted", async (vmsg) => {
    const { lines, missing, told, counted } = await flooded(vmsg, FILE);
    assert(lines > 1000, `${lines} messages`);
    assertEquals([missing, told, lines], [0, 0, counted]);
  });

  processTest(
    "trace: at the full rate who reads late is told how many were lost",
    async (vmsg) => {
      const { lines, missing, told, counted } = await flooded(
        vmsg,
        SLOW_READER,
      );
      assert(missing > 100, `${missing} of ${counted} lack`);
      assertEquals(lines + missing, counted);
      assert(
        told >= missing && told <= missing + MAX_LOG_LINES,
        `${told} told, ${missing} missing`,
      );
    },
  );
}
