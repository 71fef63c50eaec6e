/** `vmsg device`, `vmsg bridge` and `vmsg driver`, three processes on two buses: what goes through, in which dialects. */

import { assertEquals } from "@std/assert";
import { type Ended, type Processes, processTest } from "../support/processes.ts";

const DISK_SIZE = 1 << 20;
const SHM = "shm,file=shm,size=2M";

/** A bus, and what the side is told besides that has the memory to show. */
type Setup = readonly [bus: string, more?: readonly string[]];

/** Where the devices are. */
const FROM: Readonly<Record<string, Setup>> = {
  "v1 on linux-user": ["linux-user,socket=a.sock,name=a"],
  "v1 on shm": [SHM],
  "proto on shm": [`${SHM},dialect=proto`, ["--memory", "file=shm,at=0"]],
};

/** Where the drivers are. */
const TO: Readonly<Record<string, Setup>> = {
  "v1 on linux-user": ["linux-user,socket=b.sock,name=b"],
};

/** Writes the files that a test begins with; the disk's bytes differ everywhere. */
async function makeFiles({ directory }: Processes): Promise<Uint8Array> {
  const bytes = new Uint8Array(DISK_SIZE);
  const words = new Uint32Array(bytes.buffer);
  for (let i = 0; i < words.length; i++) words[i] = Math.imul(i + 1, 0x9e37_79b1);
  const write = (name: string, data: Uint8Array) =>
    Deno.writeFile(`${directory}/${name}`, data, { mode: 0o600 });
  await write("disk", bytes);
  await write("source", bytes);
  await write("shm", new Uint8Array(2 << 20));
  return bytes;
}

const DEVICES = ["rng", "blk,file=disk", "net"].flatMap((kind) => ["--device", kind]);
const NUMBERS = ["0", "1", "2"].flatMap((number) => ["--device", number]);

function assertDone({ code, stderr }: Ended): void {
  assertEquals(code, 0, stderr.join("\n"));
}

for (const [fromName, [from, deviceMore = []]] of Object.entries(FROM)) {
  for (const [toName, [to, driverMore = []]] of Object.entries(TO)) {
    processTest(`bridge: devices of ${fromName} for drivers of ${toName}`, async (vmsg) => {
      const bytes = await makeFiles(vmsg);
      await vmsg.start("device", "--bus", from, ...deviceMore, ...DEVICES);
      await vmsg.start("bridge", "--bus", from, "--bus", to, ...NUMBERS);
      const run = async (...more: string[]) => {
        const done = await vmsg.run("driver", "--bus", to, ...driverMore, ...more);
        assertDone(done);
        return done.stdout;
      };
      const { hex } = JSON.parse((await run("--device", "rng,bytes=32", "--json"))[0]!);
      assertEquals(hex.length, 64);
      await run("--device", "blk,number=1,read=copy");
      assertEquals(await Deno.readFile(`${vmsg.directory}/copy`), bytes);
      const part = bytes.slice(0, 300 * 512).reverse();
      await Deno.writeFile(`${vmsg.directory}/part`, part, { mode: 0o600 });
      await run("--device", "blk,number=1,offset=512K,write=part");
      bytes.set(part, 512 << 10);
      assertEquals(await Deno.readFile(`${vmsg.directory}/disk`), bytes);
      const pings = await run("--device", "2", "--count", "20", "--interval", "0.005");
      assertEquals(pings.some((line) => line.includes("20 received")), true, pings.join("\n"));
    });
  }
}
