/** Standard error that nobody reads: the data plane goes on, and what was dropped is counted. */

import { assertEquals, assertMatch } from "@std/assert";
import { processTest, VMSG_COMMAND } from "../support/processes.ts";

const BUS = "linux-user,socket=lu.sock";

processTest(
  "cli: a full pipe behind --trace holds nobody up, also not at the end",
  async (vmsg) => {
    const path = `${vmsg.directory}/trace`;
    await using mkfifo = await vmsg.startProgram("mkfifo", path);
    await mkfifo.ended();
    const start = () => {
      const command = [...VMSG_COMMAND, "device", "--bus", BUS, "--trace"].join(" ");
      return vmsg.startProgram("sh", "-c", `exec ${command} 2>${path}`);
    };
    const ping = (count: number) =>
      vmsg.run("driver", "--bus", BUS, "--count", `${count}`, "--interval", "0.0005");
    const device = await start();
    const reader = await Deno.open(path);
    const { stdout } = await ping(3000);
    assertMatch(stdout.join("\n"), /^3000 packets transmitted, 3000 received, 0% packet loss$/m);
    // What waited is read now, and the gap is told.
    const gap = reader.readable.pipeThrough(new TextDecoderStream());
    let text = "";
    for await (const part of gap.values({ preventCancel: true })) {
      text += part;
      if (/^vmsg: \d{3,} lines were dropped here: nobody read what was written$/m.test(text)) break;
    }
    // Unread again, it is full at once. One that does not end in time is left behind with exit code 1 (data_plane.ts).
    assertEquals((await ping(3000)).code, 0);
    assertEquals((await device.end("SIGTERM")).code, 0);
    await gap.cancel();
  },
);
