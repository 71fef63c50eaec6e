/**
 * `vmsg device --device rng` under unmodified guests: their driver finds it, /dev/hwrng reads from it, and a
 * read goes on when the device is killed and started anew.
 *
 * The stock kernel of User-Mode Linux has no driver for it: there the device is found, and that is all. What
 * that kernel does with a device of this house that is no network card is shown with the console of
 * docs/examples/own_device.ts.
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { fromFileUrl } from "@std/path";
import type { Guest, QemuKind } from "../../scripts/lab/machines.ts";
import { delay, PATIENCE_MS, type Processes, type VmsgProcess } from "../support/processes.ts";
import { GUEST_TIMEOUT_MS, type GuestTest, guestTest } from "./support.ts";

const BUS = ["--bus", "linux-user,socket=lu.sock"];
const DEVICE_ENTROPY = 4;
const DEVICE_CONSOLE = 3;
/** How long the device is missing, at least: the guest's read waits for it by then. */
const MISSING_MS = 300;
/** Reads before the kill, and after the return. */
const READS = 10;

/** Prints some bytes, then reads on and on, and says so each time. */
const SCRIPT = `
echo "CURRENT $(cat /sys/class/misc/hw_random/rng_current)"
echo "BYTES $(head -c 512 /dev/hwrng | od -An -v -tx1 | tr -d ' \\n')"
while :; do echo "READ $(head -c 64 /dev/hwrng | wc -c)"; sleep 0.02; done
`;

/** The device as QEMU's front end, on PCI and on virtio-mmio. */
const FRONT_ENDS: Readonly<Partial<Record<QemuKind, readonly string[]>>> = {
  q35: ["-device", "vhost-user-rng-pci,chardev=c0,vectors=0"],
  arm64: [
    ...["-global", "virtio-mmio.force-legacy=false"],
    ...["-device", "vhost-user-rng,chardev=c0"],
  ],
};

function startDevice(vmsg: Processes): Promise<VmsgProcess> {
  return vmsg.start("device", ...BUS, "--device", "rng");
}

async function startProxy(vmsg: Processes): Promise<VmsgProcess> {
  const proxy = await vmsg.start("proxy", ...BUS, "--vhost-user", "socket=vu.sock", "--trace");
  await proxy.waitFor(/waiting for a front end/);
  return proxy;
}

/** How often the guest has read from the device. */
function reads(guest: Guest): number {
  return guest.console().match(/^READ 64$/gm)?.length ?? 0;
}

async function untilReads(guest: Guest, count: number): Promise<void> {
  const deadlineMs = performance.now() + PATIENCE_MS;
  while (reads(guest) < count) {
    assert(performance.now() < deadlineMs, `${reads(guest)} reads, not ${count}`);
    await delay(10);
  }
}

/** Random bytes, each of which is there about as often as the others. */
function assertRandom(hex: string): void {
  assertEquals(hex.length, 2 * 512);
  const distinct = new Set(hex.match(/../g)).size;
  // Of 512 random bytes about 221 are distinct; fewer than 180 come once in 10^10 runs.
  assert(distinct > 180, `${distinct} distinct bytes of 512`);
}

async function readUnderRestart(test: GuestTest, kind: QemuKind): Promise<void> {
  const { vmsg } = test;
  const device = await startDevice(vmsg);
  const proxy = await startProxy(vmsg);
  const startMs = performance.now();
  const guest = await test.boot({
    script: SCRIPT,
    modules: ["virtio_rng"],
    extraArgs: [
      ...["-chardev", `socket,id=c0,path=${vmsg.directory}/vu.sock`],
      ...FRONT_ENDS[kind]!,
    ],
  });
  const timeoutMs = GUEST_TIMEOUT_MS[kind];
  assertMatch(await guest.waitFor(/^CURRENT /, timeoutMs), /^CURRENT virtio_rng/);
  assertRandom((await guest.waitFor(/^BYTES /, timeoutMs)).slice("BYTES ".length));
  await untilReads(guest, READS);
  const bootSeconds = ((performance.now() - startMs) / 1000).toFixed(1);

  const { length } = proxy.lines;
  await device.end("SIGKILL");
  await delay(MISSING_MS);
  const before = reads(guest);
  await startDevice(vmsg);
  await untilReads(guest, before + READS);
  const state = /SET_VQUEUE_STATE\? .*queue 0 base (\d+)/;
  const { text } = await proxy.waitFor(state, PATIENCE_MS, length);
  const base = Number(state.exec(text)![1]);
  assert(base >= before, `the queue went on from ${base} after ${before} reads`);
  console.log(`${kind}: ${bootSeconds} s to ${READS} reads; the queue went on from ${base}`);
}

guestTest(
  "q35: rng, /dev/hwrng goes on when the device was killed",
  "q35",
  (test) => readUnderRestart(test, "q35"),
);
guestTest(
  "arm64: rng, /dev/hwrng goes on when the device was killed",
  "arm64",
  (test) => readUnderRestart(test, "arm64"),
);

guestTest("uml: rng is found", "uml", async (test) => {
  const { vmsg } = test;
  await startDevice(vmsg);
  const proxy = await startProxy(vmsg);
  const guest = await test.boot({
    script: 'cd /sys/bus/virtio/devices/virtio*; echo "FOUND $(cat device)"',
    kernelArgs: [`virtio_uml.device=${vmsg.directory}/vu.sock:${DEVICE_ENTROPY}`],
  });
  assertEquals(await guest.waitFor(/^FOUND /, GUEST_TIMEOUT_MS.uml), "FOUND 0x0004");
  await proxy.waitFor(/GET_DEVICE_INFO = (device id 4|entropy|rng)\b/);
});

guestTest(
  "uml: a device of one's own, a console that prints what the guest writes",
  "uml",
  async (test) => {
    const { vmsg } = test;
    const example = fromFileUrl(new URL("../../docs/examples/own_device.ts", import.meta.url));
    const device = await vmsg.startProgram(Deno.execPath(), "run", "-A", example, "lu.sock");
    await startProxy(vmsg);
    const guest = await test.boot({
      script: 'echo "hello from $(uname -s)" >/dev/hvc0; echo "WROTE rc=$?"; sleep 1',
      modules: ["virtio_console"],
      kernelArgs: [`virtio_uml.device=${vmsg.directory}/vu.sock:${DEVICE_CONSOLE}`],
    });
    assertEquals(await guest.waitFor(/^WROTE /, GUEST_TIMEOUT_MS.uml), "WROTE rc=0");
    await device.waitFor(/^hello from Linux/);
  },
);
