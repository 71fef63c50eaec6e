/**
 * An ext4 file system on a disk of Debian's qemu-storage-daemon, unpatched, behind `vmsg device --device vhost-user`: while the
 * guest writes, first `vmsg device` is killed and comes back, then the daemon. What was written reads back, and fsck finds nothing.
 *
 * User-Mode Linux is in CI; with VMSG_GUEST_FULL=1 QEMU's vhost-user-blk as well.
 */

import { assertMatch } from "@std/assert";
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
import { frontEnd, startDevice, startProxy, startStorageDaemon } from "./vhost_user_support.ts";

const FULL = Deno.env.get("VMSG_GUEST_FULL") === "1";
const DISK = "disk.img";
const DISK_BYTES = 96 << 20;
/** How many files are written before the device is killed, and before the daemon is. */
const BEFORE_DEVICE = 4, BEFORE_DAEMON = 12;

for (const kind of FULL ? ["uml", "microvm", "q35", "arm64"] as const : ["uml"] as const) {
  guestTest(
    `${kind}: qemu-storage-daemon, an ext4 file system is whole when the device and the daemon were killed`,
    {
      guest: kind,
      programs: { ...DISK_PROGRAMS, "qemu-storage-daemon": "qemu-system-common" },
    },
    async (test) => {
      const { vmsg, directory } = test;
      await makeDisk(directory, DISK, DISK_BYTES);
      const daemon = await startStorageDaemon(vmsg, DISK);
      const device = await startDevice(vmsg, "blk");
      await startProxy(vmsg);
      const guest = await test.boot({
        script: DISK_SCRIPT,
        modules: ["virtio_blk"],
        ...frontEnd(vmsg, kind, "blk"),
      });
      const timeoutMs = GUEST_TIMEOUT_MS[kind];
      assertMatch(
        await guest.waitFor(/^DISK /, timeoutMs),
        new RegExp(`^DISK size=${DISK_BYTES / 512} .*ro=0 `),
      );
      await untilWritten(guest, BEFORE_DEVICE);
      await device.end("SIGKILL");
      await delay(MISSING_MS);
      await startDevice(vmsg, "blk");
      await untilWritten(guest, BEFORE_DAEMON);
      await daemon.end("SIGKILL");
      await delay(MISSING_MS);
      const again = await startStorageDaemon(vmsg, DISK);
      await assertWhole(guest, timeoutMs);
      await guest.waitFor(/^GUEST-DONE/, timeoutMs);
      await again.end("SIGTERM");
      await assertClean(directory, DISK);
    },
  );
}
