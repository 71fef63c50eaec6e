/** A card and its host, as processes: the driver side says in a mailbox where its queues are. Registers and window are files. */

import { assertEquals, assertMatch } from "@std/assert";
import { processTest } from "../support/processes.ts";

const WINDOW = 1 << 20;
const BASE = 0x5_0000;

processTest(
  "shm with a mailbox: a driver finds its device, also one that is started anew",
  async (vmsg) => {
    for (
      const [name, size] of [["window", WINDOW], ["registers", 4096], ["ram", 4 << 20]] as const
    ) {
      await Deno.writeFile(`${vmsg.directory}/${name}`, new Uint8Array(size), { mode: 0o600 });
    }
    const rest =
      "mailbox=64,mailbox-file=registers,doorbell=0,doorbell-file=registers,doorbell-value=2," +
      "doorbell-then=3,dialect=proto";
    const memory = ["--memory", "file=ram,at=0x40000000"];
    const startDevice = async () => {
      const bus = `shm,file=window,size=${WINDOW},${rest}`;
      const device = await vmsg.start("device", "--bus", bus, ...memory, "--device", "rng");
      await device.waitFor(/waiting for the driver side to say in the mailbox/);
      return device;
    };
    const read = async () => {
      const bus = `shm,file=window,offset=${BASE},size=8192,${rest}`;
      const done = await vmsg.run(
        "driver",
        "--bus",
        bus,
        ...memory,
        "--device",
        "rng,bytes=32",
        "--json",
      );
      assertEquals(done.code, 0, done.stderr.join("\n"));
      assertEquals(JSON.parse(done.stdout[0]!).hex.length, 64);
    };
    const first = await startDevice();
    await read();
    await read();
    await first.end("SIGKILL");
    await startDevice();
    await read();
    const registers = new Uint32Array((await Deno.readFile(`${vmsg.directory}/registers`)).buffer);
    assertEquals([registers[0], registers[17], registers[18]], [3, BASE, 0]);

    const errors: readonly (readonly [string, RegExp])[] = [
      ["doorbell-then=1", /doorbell-then goes with doorbell=/],
      ["mailbox-file=registers", /mailbox-file goes with mailbox=/],
      ["mailbox=64,mailbox-base=0", /mailbox-base is for the driver side/],
      ["acknowledge=0", /acknowledge needs notify=uio/],
    ];
    for (const [option, line] of errors) {
      const { code, stderr } = await vmsg.run("device", "--bus", `shm,file=window,${option}`);
      assertEquals([code, stderr.length], [2, 1]);
      assertMatch(stderr[0]!, line);
    }
  },
);
