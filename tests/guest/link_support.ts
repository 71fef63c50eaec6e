/**
 * Links between a machine, which runs `vmsg driver`, and its device side: a process of this host as a
 * peer of the same ivshmem server, or another machine.
 */

import { assertEquals, assertMatch } from "@std/assert";
import type { Keeper } from "../../src/cli/keeper.ts";
import type { Machine, MachineOptions } from "../../scripts/lab/machine.ts";
import { PING_WAIT_S } from "../../scripts/lab/scripts.ts";
import type { VmsgProcess } from "../support/processes.ts";
import type { MachineTest } from "./machine_support.ts";

/** How long one step of a machine may take under emulation, several times what it does take. */
export const STEP_TIMEOUT_MS = 300_000;

/** A driver and what is done through it. */
export interface Form {
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
export function linkScript({ name, driver, before = "", during = "" }: Form): string {
  return `
${before}
{ vmsg driver ${driver} --tap vm0,address=10.0.2.15/24 2>&1; echo "DRIVER ${name} rc=$?"; } |
  while read -r line; do echo "${name}: $line"; done | tee /tmp/${name} &
until grep -q -e "connected;" -e "DRIVER ${name} rc=" /tmp/${name} 2>/dev/null; do sleep 0.1; done
ping -c 5 -i 0.1 -W ${PING_WAIT_S} 10.0.2.2
echo "PING ${name} rc=$?"
${during}
killall vmsg 2>/dev/null
wait
echo "UNLINKED ${name}"
`;
}

/** Shell: vmsg that fails by itself; see {@link assertFailure}. */
export function failing(name: string, args: string): string {
  return `
vmsg ${args} >/tmp/${name} 2>&1 </dev/null
echo "RC ${name} $?"
sed 's/^/${name}: /' /tmp/${name}
echo "FAILED ${name}"
`;
}

/** What a machine said with a name in front. */
export function said(machine: Machine, name: string): string[] {
  return machine.console().split("\n").filter((line) => line.startsWith(`${name}: `))
    .map((line) => line.slice(name.length + 2).trimEnd());
}

/** A failure as a user meets it: one line that begins with "vmsg: ", and exit code 1. */
export function assertFailure(machine: Machine, name: string, pattern: RegExp): void {
  const lines = said(machine, name);
  const errors = lines.filter((line) => line.startsWith("vmsg: "));
  assertEquals(errors.length, 1, `${name} said:\n${lines.join("\n")}`);
  assertMatch(errors[0]!, pattern, name);
  assertMatch(machine.console(), new RegExp(`^RC ${name} 1$`, "m"));
}

/** This host's part of a link. */
export interface Host {
  /** An ivshmem server whose memory, of 1 MiB, is a file. */
  readonly server: VmsgProcess;
  /** Its socket. */
  readonly socket: string;
  /** The file. */
  readonly shared: string;
  /** Holds the RAM of the machine. */
  readonly memory: string;
  /** Starts the machine that is linked. */
  start(options: Omit<MachineOptions, "image" | "doorbell" | "memoryFile">): Promise<Machine>;
  /** Starts `vmsg device`, and waits until drivers can find it. */
  device(bus: string, ...args: string[]): Promise<VmsgProcess>;
}

/**
 * Starts the server.
 *
 * @param keeper has a directory in memory
 */
export async function startHost(test: MachineTest, { directory }: Keeper): Promise<Host> {
  const socket = `${directory}/iv.sock`;
  const shared = `${directory}/shared`;
  const memory = `${directory}/memory`;
  const server = await test.vmsg.start(
    ...["ivshmem-server", "--socket", socket, "--size", "1M", "--file", shared],
  );
  await server.waitFor(/waiting for peers/);
  return {
    server,
    socket,
    shared,
    memory,
    start: (options) => test.start({ ...options, doorbell: { socket }, memoryFile: memory }),
    async device(bus, ...args) {
      const device = await test.vmsg.start("device", "--bus", bus, ...args);
      await device.waitFor(/waiting for (a|the) (driver side|peer)/);
      return device;
    },
  };
}
