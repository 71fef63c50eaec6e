/**
 * `vmsg driver --device blk` and a disk that is not ours: Debian's qemu-storage-daemon, unpatched, behind `vmsg device --device
 * vhost-user`. No guest is needed.
 */

import { assertEquals, assertMatch } from "@std/assert";
import { guestlessTest } from "./support.ts";
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
