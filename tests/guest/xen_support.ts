/** Tests that boot a machine with Xen; see scripts/lab/xen_machine.ts. */

import type { Guest } from "../../scripts/lab/guest.ts";
import { findBuiltXen } from "../../scripts/build_xen.ts";
import { findXen, type XenInstallation } from "../../scripts/fetch_xen.ts";
import { compiledExecutable } from "../../scripts/lab/executable.ts";
import {
  buildXenImage,
  startXenMachine,
  type XenMachineOptions,
} from "../../scripts/lab/xen_machine.ts";
import { COUNTED } from "../../scripts/lab/scripts.ts";
import { waitForDomu } from "../../scripts/lab/xen_scripts.ts";
import type { Target } from "../../scripts/toolchain.ts";
import { toolchainLacks } from "../support/executable.ts";
import type { Lack } from "../support/needs.ts";
import { DISK_PROGRAMS, diskScript } from "./disk_support.ts";
import { guestlessTest, type GuestTest } from "./support.ts";

/** How long one step of a machine may take under emulation, several times what it does take. */
export const XEN_TIMEOUT_MS = 300_000;

/** What a test with Xen is given. */
export interface XenTest extends Omit<GuestTest, "installation" | "boot"> {
  readonly xen: XenInstallation;
  /** Starts a machine whose DomUs do this; it is ended after the test, and its console printed if the test fails. */
  start(domu: string, options: Omit<XenMachineOptions, "image">): Promise<Guest>;
}

/** How many files a DomU writes: it is still at it when the second who serves it is killed. */
export const DISK_FILES = 16;

/** What a DomU does; with the word `short` it is idle after three pings, with `disk` it uses its other devices and ends. */
export const DOMU = `
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
${COUNTED}
quietly() { "$@" >/dev/null; }
pings() { counted $1 quietly ping -q $2 10.0.2.2; }
pings PING "-c 3"
# While nobody serves the card, what the kernel sends to renew this entry is not answered, and it gives up its neighbour.
arp -s 10.0.2.2 $(awk '$1 == "10.0.2.2" { print $4 }' /proc/net/arp)
case " $(cat /proc/cmdline) " in
  *" short "*) sleep 3600 ;;
  *" disk "*)
    echo "RNG $(cat /sys/class/misc/hw_random/rng_current) $(dd if=/dev/hwrng bs=64 count=1 2>/dev/null | wc -c)"
    ${diskScript(DISK_FILES)}
    exit ;;
esac
pings FLOOD "-c 200 -i 0.05"
echo "GO kill"
pings KILLED "-c 30 -i 0.3"
echo "GO end"
pings ENDED "-c 30 -i 0.3"
echo "IRQ $(grep virtio /proc/interrupts)"
sleep 3600
`;

/** Where the device is that {@link START_PROXY} lends. */
export const BUS = "linux-user,name=lu,socket=/tmp/lu.sock";

/** Shell: a proxy in the background, its process in $P, for the domain `domu` or what $XEN says. */
export const START_PROXY = `
XEN="--xen domain=domu"
proxy() { vmsg proxy --bus ${BUS} --confined $XEN >/tmp/proxy.log 2>&1 & P=$!; tail -n +1 -f /tmp/proxy.log & }
ready() {
  i=0; until grep -q "$1" /tmp/proxy.log; do
    i=$((i + 1)); [ $i -lt 1500 ] || { echo "LATE $1"; break; }; sleep 0.2
  done
}
cd /tmp
`;

/** Shell: three devices in the background, their process in $D, and a proxy that gives all to the domain; the disk is Dom0's. */
export const THREE_DEVICES = `
XEN="--xen domain=domu,device=0 --xen domain=domu,device=1 --xen domain=domu,device=2"
device() {
  vmsg device --bus ${BUS},listen --net responder --device blk,file=/dev/vdb --device rng >>/tmp/device.log 2>&1 & D=$!
}
`;
/** How many of the three there are. */
export const THREE = 3;

/** Shell: a domain's disk, while whoever serves it is killed. */
export const KILLED_UNDER_DISK = [
  waitForDomu("domu", "WROTE 2"),
  "kill -9 $D; sleep 0.3; device; echo 'DISK device'",
  waitForDomu("domu", "WROTE 4"),
  "kill -9 $P; sleep 0.3; proxy; ready 'going on with'; echo 'DISK proxy'",
].join("\n");

/** Shell: until xl knows the domain no more, nor counts it, and who served it has let go; or a while has passed. */
export const GONE = `
i=0; while [ $i -lt 240 ] && { [ $(xl list | wc -l) -gt 2 ] || ls /run/vmsg/xen-* >/dev/null 2>&1; }; do
  i=$((i + 1)); sleep 0.5
done
sleep 2
`;

/** Shell: what Dom0 and a proxy hold. */
export const holds = (name: string) => `
echo "HOLDS ${name} $(ls /proc/$P/fd | wc -l) fds," \\
  "$(xl list | wc -l) lines of domains, $(xl info | awk '/^free_memory/ { print $3 }') MiB free"
ls /run/vmsg | tr '\\n' ' ' | sed 's/^/RUN ${name} /'; echo
`;

/** What a machine has said that begins so. */
export function line(machine: Guest, start: string): string {
  const found = machine.console().split("\n").find((text) => text.startsWith(start));
  if (found === undefined) throw new Error(`the machine said nothing like ${start}`);
  return found.trimEnd();
}

const X86: Target = "x86_64-unknown-linux-gnu";
const ARM64: Target = "aarch64-unknown-linux-gnu";
const stockArm64 = await findXen("aarch64");

/** Machines with Xen. */
const MACHINES = {
  x86: {
    xen: await findXen("x86_64"),
    how: "deno run -A scripts/fetch_xen.ts",
    target: X86,
    programs: { "qemu-system-x86_64": "qemu-system-x86" },
  },
  arm64: {
    xen: stockArm64 && await findBuiltXen(stockArm64),
    how: "deno run -A scripts/build_xen.ts",
    target: ARM64,
    programs: { "qemu-system-aarch64": "qemu-system-arm" },
  },
  /** As Debian has it: without ioreq servers. */
  "arm64-stock": {
    xen: stockArm64,
    how: "deno run -A scripts/fetch_xen.ts aarch64",
    target: ARM64,
    programs: { "qemu-system-aarch64": "qemu-system-arm" },
  },
} as const;

/** Registers a test that boots a machine with Xen. */
export function xenTest(
  name: string,
  body: (test: XenTest) => Promise<void>,
  lacks: readonly Lack[] = [],
  machine: keyof typeof MACHINES = "x86",
): void {
  const { xen, how, target, programs } = MACHINES[machine];
  const missing: Lack[] = xen !== undefined ? [] : [{
    what: `Xen's packages are missing: ${how}`,
    requiredBy: "VMSG_GUEST_TESTS",
  }];
  const needs = {
    programs: { "mkfs.erofs": "erofs-utils", ...DISK_PROGRAMS, ...programs },
    lacks: [...lacks, ...missing, ...toolchainLacks(target)],
  };
  guestlessTest(name, needs, async (test) => {
    await using running = new AsyncDisposableStack();
    const machines: Guest[] = [];
    try {
      await body({
        ...test,
        xen: xen!,
        async start(domu, options) {
          const { directory } = test;
          const executable = await compiledExecutable(target);
          const image = await buildXenImage(xen!, { directory, executable, domu });
          const machine = running.use(await startXenMachine(xen!, { ...options, image }));
          machines.push(machine);
          return machine;
        },
      });
    } catch (error) {
      for (const machine of machines) {
        console.error(`--- console of a machine with Xen ---\n${machine.console()}---`);
      }
      throw error;
    }
  });
}
