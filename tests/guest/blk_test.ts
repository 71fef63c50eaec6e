/**
 * `vmsg device --device blk` under unmodified guests: an ext4 file system on it, which the guest writes while the
 * device is killed and started anew. What was written reads back, and fsck finds nothing.
 */

import { assert, assertEquals } from "@std/assert";
import type { Guest, GuestKind } from "../../scripts/lab/machines.ts";
import { delay, PATIENCE_MS, type Processes, type VmsgProcess } from "../support/processes.ts";
import { type BootOptions, GUEST_TIMEOUT_MS, type GuestTest, guestTest } from "./support.ts";

const BUS = ["--bus", "linux-user,socket=lu.sock"];
const DEVICE_BLOCK = 2;
const DISK = "disk.img";
const DISK_BYTES = 96 << 20;
const SERIAL = "vmsg-disk-1";
/** Files of a mebibyte; how many are written before the device is killed, and how long it is missing. */
const FILES = 24;
const FILES_BEFORE = 4;
const MISSING_MS = 300;
const PROGRAMS = { "mkfs.ext4": "e2fsprogs", "e2fsck": "e2fsprogs" };

const SCRIPT = `
cd /sys/block/vda
echo "DISK size=$(cat size) serial=$(cat serial) ro=$(cat ro) cache=$(cat queue/write_cache)"
mkdir /disk
mount -t ext4 -o discard /dev/vda /disk || echo "MOUNT failed"
cd /disk
for i in $(seq ${FILES}); do
  dd if=/dev/urandom of=file$i bs=64k count=16 conv=fsync 2>/dev/null || echo "WRITE $i failed"
  echo "WROTE $i"
  sha256sum file$i >>/tmp/sums
done
rm file1 file2
sync
cd /
umount /disk
mount -t ext4 /dev/vda /disk
cd /disk
sed 1,2d /tmp/sums | sha256sum -c >/tmp/checked; echo "SUMS rc=$? $(grep -c OK /tmp/checked)"
cd /
umount /disk; echo "UMOUNT rc=$?"
`;

async function run(test: GuestTest, program: string, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await new Deno.Command(program, { args, cwd: test.directory })
    .output();
  const text = new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr);
  assertEquals(code, 0, `${program} ${args.join(" ")}: ${text}`);
  return text;
}

async function makeDisk(test: GuestTest): Promise<void> {
  using file = await Deno.open(`${test.directory}/${DISK}`, { write: true, createNew: true });
  await file.truncate(DISK_BYTES);
  await run(test, "mkfs.ext4", "-q", DISK);
}

function startDevice(vmsg: Processes): Promise<VmsgProcess> {
  return vmsg.start("device", ...BUS, "--device", `blk,file=${DISK},serial=${SERIAL},discard`);
}

async function untilWritten(guest: Guest, count: number): Promise<void> {
  const deadlineMs = performance.now() + PATIENCE_MS;
  while ((guest.console().match(/^WROTE /gm)?.length ?? 0) < count) {
    assert(performance.now() < deadlineMs, `${count} files were not written`);
    await delay(5);
  }
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
    { guest: kind, programs: PROGRAMS },
    async (test) => {
      const { vmsg } = test;
      await makeDisk(test);
      const device = await startDevice(vmsg);
      const proxy = await vmsg.start("proxy", ...BUS, "--vhost-user", "socket=vu.sock");
      await proxy.waitFor(/waiting for a front end/);
      const guest = await test.boot({
        script: SCRIPT,
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
      assertEquals(await guest.waitFor(/^SUMS /, timeoutMs), `SUMS rc=0 ${FILES - 2}`);
      assertEquals(await guest.waitFor(/^UMOUNT /, timeoutMs), "UMOUNT rc=0");
      assert(!/^(MOUNT|WRITE) /m.test(guest.console()));
      await guest.waitFor(/^GUEST-DONE/, timeoutMs);
      assertEquals((await again.end("SIGTERM")).code, 0);
      await run(test, "e2fsck", "-f", "-n", DISK);
    },
  );
}

guestTest(
  "uml: blk confined to a small segment, into which every request fits",
  { guest: "uml", programs: PROGRAMS },
  async (test) => {
    const { vmsg } = test;
    await makeDisk(test);
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
