/**
 * A back end that others have written in confined mode: it is shown the segment, which is a part of the bus's file, and nothing of
 * the guest.
 */

import { assertEquals } from "@std/assert";
import { makeDisk } from "./disk_support.ts";
import { GUEST_TIMEOUT_MS, guestTest } from "./support.ts";
import { BACK_END_SOCKET, frontEnd, startStorageDaemon } from "./vhost_user_support.ts";

const BUS_BYTES = 4 << 20;
const BUS = ["--bus", `shm,file=bus,size=${BUS_BYTES}`, "--confined"];
const DISK_BYTES = 16 << 20;
const SCRIPT = `
dd if=/dev/urandom of=/tmp/written bs=64k count=16 2>/dev/null
dd if=/tmp/written of=/dev/vda bs=64k oflag=direct 2>/dev/null; echo "WROTE rc=$?"
dd if=/dev/vda of=/tmp/read bs=64k count=16 iflag=direct 2>/dev/null
cmp /tmp/written /tmp/read; echo "READ rc=$?"
`;

guestTest(
  "uml: qemu-storage-daemon confined to the segment of a bus in a file",
  { guest: "uml", programs: { "qemu-storage-daemon": "qemu-system-common" } },
  async (test) => {
    const { vmsg, directory } = test;
    await makeDisk(directory, "disk.img", DISK_BYTES);
    Deno.writeFileSync(`${directory}/bus`, new Uint8Array(BUS_BYTES), { mode: 0o600 });
    await startStorageDaemon(vmsg, "disk.img");
    const kind = `vhost-user,socket=${BACK_END_SOCKET},id=blk`;
    await vmsg.start("device", ...BUS, "--device", kind);
    const proxy = await vmsg.start("proxy", ...BUS, "--vhost-user", "socket=vu.sock");
    await proxy.waitFor(/waiting for a front end/);
    const guest = await test.boot({
      script: SCRIPT,
      modules: ["virtio_blk"],
      ...frontEnd(vmsg, "uml", "blk"),
    });
    assertEquals(await guest.waitFor(/^WROTE /, GUEST_TIMEOUT_MS.uml), "WROTE rc=0");
    assertEquals(await guest.waitFor(/^READ /, GUEST_TIMEOUT_MS.uml), "READ rc=0");
  },
);
