/** Standard error that nobody reads: the data plane goes on, and what was dropped is counted. */

import { assert, assertEquals } from "@std/assert";
import { type Processes, processTest, VMSG_COMMAND } from "../support/processes.ts";
import { countsHere, pingFor } from "../support/traffic.ts";

const BUS = "linux-user,socket=lu.sock";

/** Starts a device side whose standard error is a pipe that nobody reads yet, and opens that. */
async function startUnread(vmsg: Processes, ...options: string[]) {
  const path = `${vmsg.directory}/trace`;
  await using mkfifo = await vmsg.startProgram("mkfifo", path);
  await mkfifo.ended();
  const command = [...VMSG_COMMAND, "device", "--bus", BUS, ...options].join(" ");
  const start = vmsg.startProgram(
    ...[
      "env",
      countsHere(vmsg),
      "sh",
      "-c",
      `exec ${command} 2>${path}`,
    ] as const,
  );
  const reader = await Deno.open(path);
  return { device: await start, reader };
}

/** So many that neither a pipe nor what waits for it holds them. */
const MANY = 4000;

processTest("cli: a trace in JSON at full rate says how much of it was lost", async (vmsg) => {
  // All messages, also those that only say that the other side is still there.
  const options = ["--log-level", "error", "--trace", "'HELLO,*'", "--trace-format", "json"];
  const { device, reader } = await startUnread(vmsg, ...options);
  await pingFor(vmsg, device, BUS, MANY);
  const text = new Response(reader.readable).text();
  await vmsg.run("driver", "--bus", BUS, "--count", "20", "--interval", "0.01");
  assertEquals((await device.end("SIGTERM")).code, 0);
  const lines = (await text).trimEnd().split("\n").map((line) => JSON.parse(line));
  let last = 0;
  let gap = 0;
  let lost = 0;
  for (const { number, dropped } of lines) {
    if (dropped !== undefined) lost += gap = dropped;
    if (number === undefined) continue;
    assertEquals(
      number,
      last + gap + 1,
      "each message has a number, and what lacks is what was told",
    );
    last = number;
    gap = 0;
  }
  assert(lost > 1000, `${lost} of ${last} were lost`);
});

processTest(
  "cli: a full pipe behind --trace holds nobody up, also not at the end",
  async (vmsg) => {
    const { device, reader } = await startUnread(vmsg, "--trace");
    await pingFor(vmsg, device, BUS, MANY);
    // What waited is read now, and the gap is told.
    const gap = reader.readable.pipeThrough(new TextDecoderStream());
    let text = "";
    for await (const part of gap.values({ preventCancel: true })) {
      text += part;
      if (/^vmsg: \d{3,} lines were dropped here: nobody read what was written$/m.test(text)) break;
    }
    // Unread again, it is full at once. One that does not end in time is left behind with exit code 1 (data_plane.ts).
    await pingFor(vmsg, device, BUS, MANY);
    assertEquals((await device.end("SIGTERM")).code, 0);
    await gap.cancel();
  },
);
