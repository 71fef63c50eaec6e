/**
 * `vmsg bridge` under an unmodified guest: its disk is at a device side that speaks `proto` and sees nothing but the bus's
 * own memory, its front end at a proxy that speaks `v1`. The file system is written while each of the two, the bridge and the device side, is
 * killed and started anew: what was written reads back, and fsck finds nothing.
 */

import { assertEquals } from "@std/assert";
import { delay } from "../support/processes.ts";
import {
  assertClean,
  assertWhole,
  DISK_PROGRAMS,
  DISK_SCRIPT,
  makeDisk,
  MISSING_MS,
  untilWritten,
} from "./disk_support.ts";
import { GUEST_TIMEOUT_MS, guestTest } from "./support.ts";

const A = "shm,file=bus.shm,size=4M,dialect=proto";
const B = "linux-user,socket=lu.sock";
const DISK = "disk.img";
const DISK_BYTES = 96 << 20;
const DEVICE_BLOCK = 2;
/** How many files are written before each is killed. */
const FILES_BEFORE = { device: 3, bridge: 8 } as const;

guestTest(
  "uml: an ext4 file system on the other side of a bridge is whole when the bridge and the device were killed",
  { guest: "uml", programs: DISK_PROGRAMS },
  async ({ vmsg, directory, boot }) => {
    await makeDisk(directory, DISK, DISK_BYTES);
    await Deno.writeFile(`${directory}/bus.shm`, new Uint8Array(4 << 20));
    const start = {
      device: () =>
        vmsg.start(
          ...["device", "--bus", `${A},reset`, "--memory", "file=bus.shm,at=0"],
          ...["--device", `blk,file=${DISK}`],
        ),
      bridge: () => vmsg.start("bridge", "--bus", A, "--bus", B),
    };
    const running = { device: await start.device(), bridge: await start.bridge() };
    const proxy = await vmsg.start("proxy", "--bus", B, "--vhost-user", "socket=vu.sock");
    await proxy.waitFor(/waiting for a front end/);
    const guest = await boot({
      script: DISK_SCRIPT,
      modules: ["virtio_blk"],
      kernelArgs: [`virtio_uml.device=${directory}/vu.sock:${DEVICE_BLOCK}`],
    });
    for (const name of ["device", "bridge"] as const) {
      await untilWritten(guest, FILES_BEFORE[name]);
      await running[name].end("SIGKILL");
      await delay(MISSING_MS);
      running[name] = await start[name]();
    }
    await assertWhole(guest, GUEST_TIMEOUT_MS.uml);
    await guest.waitFor(/^GUEST-DONE/, GUEST_TIMEOUT_MS.uml);
    for (const name of ["bridge", "device"] as const) {
      assertEquals((await running[name].end("SIGTERM")).code, 0);
    }
    await assertClean(directory, DISK);
  },
);
