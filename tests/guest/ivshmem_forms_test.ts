/**
 * The forms of a link through ivshmem: one machine that runs `vmsg driver` in all of them, one after the
 * other, and processes of this host that are its device side, as peers of the same ivshmem server.
 *
 * Pings say that both directions work: a message that is lost, a doorbell that is not heard or an address
 * that is wrong by one byte answers none. What cannot be seen in a ping (where the driver's memory is,
 * whether somebody rings or looks) is read from what both sides say.
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { type Keeper, openKeeper } from "../../src/cli/guest/keeper.ts";
import { DOORBELL_ADDRESS, type Machine } from "../../src/cli/guest/machine.ts";
import type { VmsgProcess } from "../support/processes.ts";
import { type MachineTest, machineTest } from "./machine_support.ts";

/** How long one step may take under emulation, about ten times what it does take. */
const STEP_TIMEOUT_MS = 30_000;

const FUNCTION = `/sys/bus/pci/devices/${DOORBELL_ADDRESS}`;
const PCI = `ivshmem,pci=${DOORBELL_ADDRESS}`;

/** A driver and what is done through it, for `link` below. */
interface Form {
  /** Names it in what the machine says. */
  readonly name: string;
  /** Arguments of `vmsg driver`. */
  readonly driver: string;
  /** Shell: before the driver starts. */
  readonly before?: string;
  /** Shell: while it runs, after the pings. */
  readonly during?: string;
}

/** Shell: starts the driver, pings through it, ends it. All it says is on the console. */
function link({ name, driver, before = "", during = "" }: Form): string {
  return `
echo "LINK ${name}"
${before}
{ vmsg driver ${driver} --tap vm0,address=10.0.2.15/24 2>&1; echo "DRIVER ${name} rc=$?"; } |
  while read -r line; do echo "${name}: $line"; done | tee /tmp/${name} &
until grep -q -e "connected;" -e "DRIVER ${name} rc=" /tmp/${name} 2>/dev/null; do sleep 0.1; done
ping -c 5 -i 0.1 -W 2 10.0.2.2
echo "PING ${name} rc=$?"
${during}
killall vmsg 2>/dev/null
wait
echo "UNLINKED ${name}"
`;
}

/** Shell: vmsg that fails by itself. */
function failing(name: string, args: string): string {
  return `
vmsg ${args} >/tmp/${name} 2>&1 </dev/null
echo "RC ${name} $?"
sed 's/^/${name}: /' /tmp/${name}
`;
}

/** What a machine said that was prefixed with a name. */
function said(machine: Machine, name: string): string[] {
  return machine.console().split("\n").filter((line) => line.startsWith(`${name}: `))
    .map((line) => line.slice(name.length + 2).trimEnd());
}

/** A failure as a user meets it: one line, and exit code 1. */
function assertFailure(machine: Machine, name: string, pattern: RegExp): void {
  const lines = said(machine, name);
  assertEquals(lines.length, 1, `${name} said:\n${lines.join("\n")}`);
  assertMatch(lines[0]!, /^vmsg: /);
  assertMatch(lines[0]!, pattern);
  assertMatch(machine.console(), new RegExp(`^RC ${name} 1\\s*$`, "m"));
}

/** The server, with a file as memory, in a directory in memory. */
interface Host {
  readonly keeper: Keeper;
  readonly server: VmsgProcess;
  readonly socket: string;
  /** Holds the memory that the machine and this host share. */
  readonly shared: string;
  /** Holds the machine's own memory. */
  readonly memory: string;
  /** Starts `vmsg device` and waits until it can be found. */
  device(bus: string, ...more: string[]): Promise<VmsgProcess>;
}

async function startHost(test: MachineTest, keeper: Keeper): Promise<Host> {
  const { directory } = keeper;
  const [socket, shared, memory] = ["iv.sock", "shared", "memory"].map((name) =>
    `${directory}/${name}`
  ) as [string, string, string];
  const server = await test.vmsg.start(
    ...["ivshmem-server", "--socket", socket, "--size", "1M", "--file", shared],
  );
  await server.waitFor(/waiting for peers/);
  return {
    keeper,
    server,
    socket,
    shared,
    memory,
    async device(bus, ...more) {
      const device = await test.vmsg.start("device", "--bus", bus, ...more);
      await device.waitFor(/waiting for a (driver side|peer)/);
      return device;
    },
  };
}

const FORMS: readonly Form[] = [
  {
    name: "pages",
    driver: `--bus ${PCI},bind --memory hugepages=10M --trace`,
    during: failing("taken", `driver --bus ${PCI},bind --memory segment`) +
      failing("bound", `driver --bus ${PCI},via=sysfs --memory segment`),
  },
  { name: "segment", driver: `--bus ${PCI},bind --memory segment --trace` },
  { name: "looks", driver: `--bus ${PCI},bind,poll --memory segment` },
  { name: "sysfs", driver: `--bus ${PCI},via=sysfs --memory hugepages=10M` },
  {
    name: "shm",
    before: `echo 1 >${FUNCTION}/enable`,
    driver: `--bus shm,file=${FUNCTION}/resource2,size=1M`,
  },
  // A dialect without announcements: addresses are used as they are, so the pages must be one piece.
  { name: "proto", driver: `--bus ${PCI},bind,dialect=proto,peer=2 --memory hugepages=2M` },
  { name: "detected", driver: `--bus ${PCI},bind,dialect=proto,peer=3 --memory hugepages=2M` },
  { name: "after", driver: `--bus ${PCI},bind --memory hugepages=2M` },
];

machineTest(
  "ivshmem, forms: a machine and this host, by every kind of bus and memory",
  "q35",
  async (test) => {
    await using keeper = await openKeeper("/dev/shm");
    const host = await startHost(test, keeper);
    const script = FORMS.map(link).join("") + "echo ALL-DONE\n";
    const machine = await test.start({
      script,
      doorbell: { socket: host.socket },
      memoryFile: host.memory,
      hugePages: 6,
    });
    await host.server.waitFor(/peer 0 joined/);
    const pinged = async (name: string) => {
      const startMs = performance.now();
      const line = await machine.waitFor(new RegExp(`^(PING|UNLINKED) ${name}`), STEP_TIMEOUT_MS);
      assertMatch(line, /rc=0/);
      await machine.waitFor(new RegExp(`^UNLINKED ${name}`), STEP_TIMEOUT_MS);
      console.log(`${name}: ${((performance.now() - startMs) / 1000).toFixed(1)} s`);
    };
    const server = `ivshmem,server=${host.socket}`;
    const seen = ["--memory", `file=${host.memory},at=0`];

    const first = await host.device(server, ...seen);
    for (const name of ["pages", "segment", "looks", "sysfs"]) await pinged(name);
    await first.end("SIGTERM");

    const plain = await host.device(`shm,file=${host.shared},size=1M`);
    await pinged("shm");
    await plain.end("SIGTERM");

    const proto = await host.device(`${server},dialect=proto`, ...seen);
    await pinged("proto");
    await proto.end("SIGTERM");

    const auto = await host.device(`${server},dialect=auto`, ...seen);
    await pinged("detected");
    await pinged("after");
    await machine.waitFor(/^ALL-DONE/, STEP_TIMEOUT_MS);
    assert(auto !== undefined);
  },
);
