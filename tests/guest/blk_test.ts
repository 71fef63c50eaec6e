/**
 * `vmsg device --device blk` under unmodified guests: an ext4 file system on it, which the guest writes while the
 * device is killed and started anew. What was written reads back, and fsck finds nothing.
 */

import { assertEquals } from "@std/assert";
import type { GuestKind } from "../../scripts/lab/machines.ts";
import { delay, type Processes, type VmsgProcess } from "../support/processes.ts";
import {
  assertClean,
  assertWhole,
  DISK_PROGRAMS,
  DISK_SCRIPT,
  makeDisk,
  MISSING_MS,
  untilWritten,
} from "./disk_support.ts";
import { type BootOptions, GUEST_TIMEOUT_MS, guestTest } from "./support.ts";

const BUS = ["--bus", "linux-user,socket=lu.sock"];
const DEVICE_BLOCK = 2;
const DISK = "disk.img";
const DISK_BYTES = 96 << 20;
const SERIAL = "vmsg-disk-1";
/** How many files are written before the device is killed. */
const FILES_BEFORE = 4;

function startDevice(vmsg: Processes): Promise<VmsgProcess> {
  return vmsg.start("device", ...BUS, "--device", `blk,file=${DISK},serial=${SERIAL},discard`);
}

const FULL = Deno.env.get("VMSG_GUEST_FULL") === "1";

/** The device as each front end has it; QEMU takes one queue for each of the guest's processors. */
function frontEnd(kind: GuestKind, socket: string): Partial<BootOptions> {
  const device = {
    microvm: "vhost-user-blk,chardev=c0",
    q35: "vhost-user-blk-pci,chardev=c0,vectors=0",
    arm64: "vhost-user-blk,chardev=c0",
  };
  if (kind === "uml") return { kernelArgs: [`virtio_uml.device=${socket}:${DEVICE_BLOCK}`] };
  return {
    extraArgs: [
      ...["-smp", "2"],
      ...["-chardev", `socket,id=c0,path=${socket}`],
      ...["-global", "virtio-mmio.force-legacy=false", "-device", device[kind]],
    ],
  };
}

for (const kind of FULL ? ["uml", "microvm", "q35", "arm64"] as const : ["uml"] as const) {
  guestTest(
    `${kind}: blk, an ext4 file system is whole when the device was killed under it`,
    { guest: kind, programs: DISK_PROGRAMS },
    async (test) => {
      const { vmsg } = test;
      await makeDisk(test.directory, DISK, DISK_BYTES);
      const device = await startDevice(vmsg);
      const proxy = await vmsg.start("proxy", ...BUS, "--vhost-user", "socket=vu.sock");
      await proxy.waitFor(/waiting for a front end/);
      const guest = await test.boot({
        script: DISK_SCRIPT,
        modules: ["virtio_blk"],
        ...frontEnd(kind, `${vmsg.directory}/vu.sock`),
      });
      const timeoutMs = GUEST_TIMEOUT_MS[kind];
      assertEquals(
        await guest.waitFor(/^DISK /, timeoutMs),
        `DISK size=${DISK_BYTES / 512} serial=${SERIAL} ro=0 cache=write back`,
      );
      await untilWritten(guest, FILES_BEFORE);
      await device.end("SIGKILL");
      await delay(MISSING_MS);
      const again = await startDevice(vmsg);
      await assertWhole(guest, timeoutMs);
      await guest.waitFor(/^GUEST-DONE/, timeoutMs);
      assertEquals((await again.end("SIGTERM")).code, 0);
      await assertClean(test.directory, DISK);
    },
  );
}

guestTest(
  "uml: blk confined to a small segment, into which every request fits",
  { guest: "uml", programs: DISK_PROGRAMS },
  async (test) => {
    const { vmsg } = test;
    await makeDisk(test.directory, DISK, DISK_BYTES);
    await vmsg.start("device", ...BUS, "--confined", "--device", `blk,file=${DISK}`);
    const proxy = await vmsg.start(
      "proxy",
      ...[...BUS, "--confined", "--segment", "256K", "--vhost-user", "socket=vu.sock"],
    );
    await proxy.waitFor(/waiting for a front end/);
    const guest = await test.boot({
      script: `
for queue in /sys/block/vda/queue; do cat $queue/max_hw_sectors_kb >$queue/max_sectors_kb; done
dd if=/dev/zero of=/dev/vda bs=4M count=2 oflag=direct 2>/dev/null; echo "WROTE rc=$?"
dd if=/dev/vda of=/dev/null bs=4M count=2 iflag=direct 2>/dev/null; echo "READ rc=$?"
`,
      modules: ["virtio_blk"],
      ...frontEnd("uml", `${vmsg.directory}/vu.sock`),
    });
    assertEquals(await guest.waitFor(/^WROTE /, GUEST_TIMEOUT_MS.uml), "WROTE rc=0");
    assertEquals(await guest.waitFor(/^READ /, GUEST_TIMEOUT_MS.uml), "READ rc=0");
  },
);

guestTest("uml: blk, the guest sees that its disk has grown", "uml", async (test) => {
  const { vmsg, directory } = test;
  const disk = `${directory}/${DISK}`;
  await Deno.writeFile(disk, new Uint8Array(1 << 20));
  const control = ["--control", "ctl.sock"];
  const device = await vmsg.start("device", ...control, ...BUS, "--device", `blk,file=${DISK}`);
  const proxy = await vmsg.start("proxy", ...BUS, "--vhost-user", "socket=vu.sock");
  await proxy.waitFor(/waiting for a front end/);
  const guest = await test.boot({
    script: `
cd /sys/block/vda; echo "SIZE $(cat size)"
while [ "$(cat size)" = 2048 ]; do sleep 0.05; done; echo "GROWN $(cat size)"
dd if=/dev/zero of=/dev/vda bs=512 seek=4095 count=1 conv=fsync 2>/dev/null; echo "WROTE rc=$?"
`,
    modules: ["virtio_blk"],
    ...frontEnd("uml", `${directory}/vu.sock`),
  });
  assertEquals(await guest.waitFor(/^SIZE /, GUEST_TIMEOUT_MS.uml), "SIZE 2048");
  await Deno.truncate(disk, 2 << 20);
  assertEquals((await vmsg.run("ctl", "ctl.sock", "resize", "0")).code, 0);
  await device.waitFor(/4096 sectors now/);
  assertEquals(await guest.waitFor(/^GROWN /, GUEST_TIMEOUT_MS.uml), "GROWN 4096");
  assertEquals(await guest.waitFor(/^WROTE /, GUEST_TIMEOUT_MS.uml), "WROTE rc=0");
});
