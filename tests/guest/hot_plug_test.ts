/**
 * Devices of different kinds behind one proxy, which come and go while guests run (`vmsg ctl`): a front end waits for its
 * device, a cable is pulled, a disk is plugged into a running QEMU, taken away and brought back, and the device side
 * is killed under all of them.
 */

import { assert, assertEquals } from "@std/assert";
import type { Guest } from "../../scripts/lab/machines.ts";
import { qmpCommand } from "../../scripts/lab/qmp.ts";
import {
  delay,
  PATIENCE_MS,
  type Processes,
  until,
  type VmsgProcess,
} from "../support/processes.ts";
import { type BootOptions, GUEST_TIMEOUT_MS, type GuestTest, guestTest } from "./support.ts";

const BUS = ["--bus", "linux-user,socket=lu.sock"];
const [NET, BLK, CONSOLE, RNG] = [1, 2, 3, 4];
const DISK_BYTES = 16 << 20;
const GROWN_BYTES = 24 << 20;
/** How long something is missing, at least. */
const MISSING_MS = 300;

async function ctl(vmsg: Processes, ...args: string[]): Promise<void> {
  const { code, stderr } = await vmsg.run("ctl", "ctl.sock", ...args);
  assertEquals(code, 0, stderr.join("\n"));
}

/** Of both sides; confined in the long run only. */
const MODES = Deno.env.get("VMSG_GUEST_FULL") === "1" ? ["", "--confined"] : [""];
const optionsOf = (mode: string) => mode === "" ? [] : [mode];

function startDevice(vmsg: Processes, ...devices: string[]): Promise<VmsgProcess> {
  return vmsg.start("device", ...BUS, "--control", "ctl.sock", ...devices);
}

async function startProxy(
  vmsg: Processes,
  mode: string,
  ...sockets: string[]
): Promise<VmsgProcess> {
  const ends = sockets.flatMap((socket) => ["--vhost-user", `socket=${socket}`]);
  const proxy = await vmsg.start("proxy", ...BUS, ...optionsOf(mode), ...ends);
  for (const socket of sockets) {
    await proxy.waitFor(new RegExp(`${socket}: waiting for a front end`));
  }
  return proxy;
}

async function makeDisk(test: GuestTest, name: string): Promise<void> {
  using file = await Deno.open(`${test.directory}/${name}`, { write: true, createNew: true });
  await file.truncate(DISK_BYTES);
}

/** How many lines like this the guest has said. */
function said(guest: Guest, line: RegExp): number {
  return guest.console().match(new RegExp(line.source, "gm"))?.length ?? 0;
}

/** Reads until something like this has come. */
async function untilRead(connection: Deno.Conn, text: RegExp): Promise<void> {
  const bytes = new Uint8Array(4096);
  for (let read = ""; !text.test(read);) {
    const count = await connection.read(bytes);
    if (count === null) throw new Error(`it ended after: ${read}`);
    read += new TextDecoder().decode(bytes.subarray(0, count));
  }
}

/** Waits for one more line like this than there are. */
async function untilMore(guest: Guest, line: RegExp): Promise<void> {
  const before = said(guest, line);
  await until(() => said(guest, line) > before, PATIENCE_MS);
}

// --- User-Mode Linux: four kinds at once -------------------------------------------------------------

const UML_SCRIPT = `
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
carrier() { until [ "$(cat /sys/class/net/eth0/carrier)" = $1 ]; do sleep 0.05; done; echo "CARRIER $1"; }
carrier 1
ping -c 2 10.0.2.2 >/dev/null; echo "PING rc=$?"
echo "DEVICES" $(for d in /sys/bus/virtio/devices/*; do cat $d/device; done | sort)
echo "SECTORS $(cat /sys/block/vda/size)"
carrier 0
ping -c 1 -W 1 10.0.2.2 >/dev/null; echo "PULLED rc=$?"
carrier 1
ping -c 2 10.0.2.2 >/dev/null; echo "PLUGGED rc=$?"
until [ "$(cat /sys/block/vda/size)" = ${GROWN_BYTES / 512} ]; do sleep 0.05; done; echo "GROWN"
dd if=/dev/urandom of=/tmp/bytes bs=64k count=64 2>/dev/null
n=0
while :; do
  dd if=/tmp/bytes of=/dev/vda bs=64k count=64 oflag=direct 2>/dev/null && dd if=/dev/vda bs=64k count=64 iflag=direct 2>/dev/null | cmp - /tmp/bytes &&
  ping -c 1 -W 5 10.0.2.2 >/dev/null && echo "hello $n" >/dev/hvc0 && echo "ROUND $((n += 1))"
done
`;

for (const mode of MODES) {
  guestTest(
    `${
      ["uml", ...optionsOf(mode)].join(" ")
    }: four kinds behind one proxy, a disk that is waited for and grows, a pulled cable, the device killed`,
    "uml",
    async (test) => {
      const { vmsg, directory } = test;
      await makeDisk(test, "disk.img");
      const console = "console,socket=console.sock";
      const device = await startDevice(
        vmsg,
        ...optionsOf(mode),
        "--net",
        "responder",
        "--device",
        console,
        "--device",
        "rng",
      );
      const sockets = ["net.sock", "console.sock.vu", "rng.sock", "disk.sock"];
      const proxy = await startProxy(vmsg, mode, ...sockets);
      const front = (name: string, type: number) =>
        `virtio_uml.device=${directory}/${name}:${type}`;
      const kernelArgs = sockets.map((name, i) => front(name, [NET, CONSOLE, RNG, BLK][i]!));
      const guest = await test.boot({
        script: UML_SCRIPT,
        modules: ["virtio_blk", "virtio_console"],
        kernelArgs,
      });
      await proxy.waitFor(/disk\.sock: a front end is there/);
      await proxy.waitFor(/the device side has no device 3: waiting for it/);
      // It boots on when its last device is there.
      await delay(MISSING_MS);
      assertEquals(guest.console().match(/^PING/m), null);
      await ctl(vmsg, "add", "--device", "blk,file=disk.img");
      const timeoutMs = GUEST_TIMEOUT_MS.uml;
      assertEquals(await guest.waitFor(/^PING /, timeoutMs), "PING rc=0");
      assertEquals(
        await guest.waitFor(/^DEVICES /, timeoutMs),
        "DEVICES 0x0001 0x0002 0x0003 0x0004",
      );
      assertEquals(await guest.waitFor(/^SECTORS /, timeoutMs), `SECTORS ${DISK_BYTES / 512}`);
      await ctl(vmsg, "link", "0", "down");
      assertEquals(await guest.waitFor(/^PULLED /, timeoutMs), "PULLED rc=1");
      await ctl(vmsg, "link", "0", "up");
      assertEquals(await guest.waitFor(/^PLUGGED /, timeoutMs), "PLUGGED rc=0");
      await Deno.truncate(`${directory}/disk.img`, GROWN_BYTES);
      await ctl(vmsg, "resize", "3");
      await guest.waitFor(/^GROWN$/, timeoutMs);
      await guest.waitFor(/^ROUND 1$/, timeoutMs);
      await device.end("SIGKILL");
      await delay(MISSING_MS);
      const again = [
        "--net",
        "responder",
        "--device",
        console,
        "--device",
        "rng",
        "--device",
        "blk,file=disk.img",
      ];
      const second = await startDevice(vmsg, ...optionsOf(mode), ...again);
      await second.waitFor(/the driver side is there/);
      // One round may have been under way.
      await untilMore(guest, /^ROUND /);
      await untilMore(guest, /^ROUND /);
      using client = await Deno.connect({ transport: "unix", path: `${directory}/console.sock` });
      await untilRead(client, /hello \d/);
      assertEquals((await second.end("SIGTERM")).code, 0);
      assertEquals((await proxy.end("SIGTERM")).code, 0);
    },
  );
}

// --- QEMU: a disk is plugged in, and one goes and comes back ------------------------------------------

const Q35_SCRIPT = `
[ -e /sys/bus/pci/slots ] || echo "NO SLOTS"
echo "READY"
until [ -e /dev/vda ]; do sleep 0.1; done
echo "FOUND $(cat /sys/block/vda/size)"
dd if=/dev/urandom of=/tmp/bytes bs=64k count=4 2>/dev/null
(while :; do echo "TICK"; sleep 0.1; done) &
n=0
while :; do
  dd if=/tmp/bytes of=/dev/vda bs=64k count=4 oflag=direct 2>/dev/null &&
  dd if=/dev/vda bs=64k count=4 iflag=direct 2>/dev/null | cmp - /tmp/bytes && echo "ROUND $((n += 1))"
done
`;

for (const mode of MODES) {
  guestTest(
    `${
      ["q35", ...optionsOf(mode)].join(" ")
    }: a disk is plugged in while it runs, taken away under it, and brought back`,
    "q35",
    async (test) => {
      const { vmsg, directory } = test;
      await makeDisk(test, "disk.img");
      await startDevice(vmsg, ...optionsOf(mode), "--net", "responder");
      const proxy = await startProxy(vmsg, mode, "net.sock", "disk.sock");
      const qmp = `${directory}/qmp.sock`;
      const boot: BootOptions = {
        socket: `${directory}/net.sock`,
        script: Q35_SCRIPT,
        modules: ["virtio_blk"],
        extraArgs: [
          ...["-device", "pcie-root-port,id=port0,chassis=1"],
          ...["-qmp", `unix:${qmp},server=on,wait=off`],
        ],
      };
      const guest = await test.boot(boot);
      const timeoutMs = GUEST_TIMEOUT_MS.q35;
      await guest.waitFor(/^READY/, timeoutMs);
      await ctl(vmsg, "add", "--device", "blk,file=disk.img", "--number", "1");
      const backend = {
        type: "socket",
        data: {
          addr: { type: "unix", data: { path: `${directory}/disk.sock` } },
          server: false,
          reconnect: 1,
        },
      };
      await qmpCommand(qmp, "chardev-add", { id: "disk", backend });
      const driver = "vhost-user-blk-pci";
      await qmpCommand(qmp, "device_add", {
        driver,
        id: "d0",
        chardev: "disk",
        bus: "port0",
        "num-queues": 1,
      });
      assertEquals(await guest.waitFor(/^FOUND /, timeoutMs), `FOUND ${DISK_BYTES / 512}`);
      await guest.waitFor(/^ROUND 1$/, timeoutMs);
      await ctl(vmsg, "remove", "1");
      await proxy.waitFor(/disk\.sock: device 1 was removed; waiting for it/);
      await proxy.waitFor(/disk\.sock: its device was removed; waiting for its device/);
      await until(() => !vmsg.files().includes("disk.sock"));
      // What was under way is over; the disk stands still, and nothing else does.
      const { length } = guest.console();
      await untilMore(guest, /^TICK/);
      const rounds = said(guest, /^ROUND /);
      await delay(1500);
      await untilMore(guest, /^TICK/);
      assert(said(guest, /^ROUND /) - rounds <= 1, guest.console().slice(length));
      await ctl(vmsg, "add", "--device", "blk,file=disk.img", "--number", "1");
      await proxy.waitFor(/disk\.sock: device 1 is there; waiting for a front end/);
      await untilMore(guest, /^ROUND /);
      await untilMore(guest, /^ROUND /);
      assertEquals(said(guest, /I\/O error/), 0);
    },
  );
}
