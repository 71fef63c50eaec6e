/**
 * `vmsg driver --device blk|rng` and devices that are not ours, behind `vmsg device --device vhost-user`: the disk of Debian's
 * qemu-storage-daemon, and where it was built (scripts/fetch_back_ends.ts) rust-vmm's entropy device. No guest is needed.
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { guestlessTest } from "./support.ts";
import { crateProgram } from "../../scripts/lab/back_ends.ts";
import { until } from "../support/processes.ts";
import { startDevice, startStorageDaemon } from "./vhost_user_support.ts";

const DISK_BYTES = 16 << 20;

guestlessTest(
  "qemu-storage-daemon: our driver writes its disk, reads it back, and finds what differs",
  { programs: { "qemu-storage-daemon": "qemu-system-common" } },
  async ({ vmsg, directory }) => {
    const bytes = new Uint8Array(DISK_BYTES);
    const words = new Uint32Array(bytes.buffer);
    for (let i = 0; i < words.length; i++) words[i] = Math.imul(i + 1, 0x9e37_79b1);
    await Deno.writeFile(`${directory}/disk.img`, new Uint8Array(DISK_BYTES), { mode: 0o600 });
    await Deno.writeFile(`${directory}/source`, bytes, { mode: 0o600 });
    await startStorageDaemon(vmsg, "disk.img");
    await startDevice(vmsg, "blk");
    const run = async (way: string, wanted = 0) => {
      const bus = ["--bus", "linux-user,socket=lu.sock"];
      const { code, stdout, stderr } = await vmsg.run("driver", ...bus, "--device", `blk${way}`);
      assertEquals(code, wanted, stderr.join("\n"));
      return wanted === 0 ? stdout : stderr;
    };
    assertMatch(
      (await run(""))[0]!,
      new RegExp(`^device 0: a disk of ${DISK_BYTES} bytes in blocks`),
    );
    await run(",write=source");
    assertEquals(await Deno.readFile(`${directory}/disk.img`), bytes);
    await run(",verify=source");
    await run(",offset=1M,length=1M,read=part");
    assertEquals(await Deno.readFile(`${directory}/part`), bytes.slice(1 << 20, 2 << 20));
    const differs = await run(",offset=512,length=512,verify=source", 1);
    assertMatch(differs.at(-1)!, /^vmsg: device 0: byte 512 of the disk is not byte 0 of source$/);
  },
);

const RNG = crateProgram("vhost-device-rng");
const isBuilt = await Deno.stat(RNG).then(() => true, () => false);

guestlessTest(
  "vhost-device-rng: our driver reads its bytes, and is refused what it does not offer",
  { lacks: isBuilt ? [] : [{ what: "vhost-device-rng is not built: scripts/fetch_back_ends.ts" }] },
  async ({ vmsg, directory }) => {
    const source = ["-f", "/dev/urandom", "-p", "1000", "-m", "1000000"];
    await vmsg.startProgram(RNG, "-c", "1", "-s", "rng.sock", ...source);
    // It numbers its sockets.
    await until(() => Deno.stat(`${directory}/rng.sock0`).then(() => true, () => false));
    const bus = ["--bus", "linux-user,socket=lu.sock"];
    await vmsg.start("device", ...bus, "--device", "vhost-user,socket=rng.sock0,id=4");
    const driver = (...args: string[]) => vmsg.run("driver", ...bus, "--device", ...args);
    const { code, stderr } = await driver("rng,bytes=20000,file=random");
    assertEquals(code, 0, stderr.join("\n"));
    const random = await Deno.readFile(`${directory}/random`);
    assertEquals(random.length, 20_000);
    assert(random.filter((byte) => byte === 0).length < 400);
    const refused = await driver("rng", "--rings", "packed");
    assertEquals(refused.code, 1);
    assertMatch(refused.stderr.at(-1)!, /^vmsg: device 0 offers no packed rings/);
  },
);
