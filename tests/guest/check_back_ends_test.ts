/** `vmsg check` asks device sides whose devices are back ends that others have written: Debian's, unpatched. */

import { VIRTIOFSD } from "../../scripts/lab/back_ends.ts";
import {
  assertKept,
  busOf,
  check,
  makeFile,
  MEMORY,
  ONE_QUEUE,
  RAM_SIZE,
  READ_ONLY,
} from "../cli/check_support.ts";
import { guestlessTest } from "./support.ts";
import { BACK_END_SOCKET, startStorageDaemon, startVirtiofsd } from "./vhost_user_support.ts";

const DISK = "disk.img";

for (const dialect of ["v1", "v1-2025", "proto"] as const) {
  guestlessTest(
    `check: a disk of qemu-storage-daemon keeps the rules of ${dialect}`,
    { programs: { "qemu-storage-daemon": "qemu-system-common" } },
    async ({ vmsg }) => {
      await makeFile(vmsg, "ram", RAM_SIZE);
      await makeFile(vmsg, DISK, 1 << 20);
      await startStorageDaemon(vmsg, DISK);
      const kind = `vhost-user,socket=${BACK_END_SOCKET},id=blk`;
      const device = await vmsg.start("device", ...busOf(dialect), ...MEMORY, "--device", kind);
      await device.waitFor(/waiting for the driver side/);
      assertKept(dialect, await check(vmsg, ...busOf(dialect), ...MEMORY), [
        ...READ_ONLY,
        ...ONE_QUEUE,
      ]);
    },
  );

  guestlessTest(
    `check: a file system of virtiofsd keeps the rules of ${dialect}`,
    { programs: { [VIRTIOFSD]: "qemu-system-common" }, root: true },
    async ({ vmsg }) => {
      await makeFile(vmsg, "ram", RAM_SIZE);
      await Deno.mkdir(`${vmsg.directory}/shared`);
      await startVirtiofsd(vmsg, `${vmsg.directory}/shared`);
      const kind = `vhost-user,socket=${BACK_END_SOCKET},id=fs,tag=files`;
      const device = await vmsg.start("device", ...busOf(dialect), ...MEMORY, "--device", kind);
      await device.waitFor(/waiting for the driver side/);
      assertKept(dialect, await check(vmsg, ...busOf(dialect), ...MEMORY), READ_ONLY);
    },
  );
}
