/** `vmsg device --bus bridge` as a process, at a node that tests/support/bridge_kernel plays. */

import { assert, assertEquals } from "@std/assert";
import { mappingFaults } from "./bridge_kernel/maps.ts";
import { BridgeNode } from "./bridge_kernel/node.ts";
import type { Session } from "./bridge_kernel/session.ts";
import { openKeeper } from "../../src/cli/keeper.ts";
import { findProgram } from "../../src/linux/programs.ts";
import { testUnless } from "./needs.ts";
import {
  type Processes,
  until,
  VMSG_COMMAND,
  type VmsgProcess,
  withProcesses,
} from "./processes.ts";
import { countsHere } from "./traffic.ts";

/** A node, and the processes of a test. */
export class BridgeRig {
  constructor(readonly node: BridgeNode, readonly processes: Processes) {}

  /** Starts vmsg with its counters in the test's own directory. */
  vmsg(...args: readonly string[]): Promise<VmsgProcess> {
    const { processes } = this;
    return processes.startProgram("env", countsHere(processes), ...VMSG_COMMAND, ...args);
  }

  /** Starts a device side with these devices. */
  start(...devices: readonly string[]): Promise<VmsgProcess> {
    const bus = "bridge,path=unix:node.sock";
    return this.vmsg("device", "--bus", bus, "--control", "ctl.sock", ...devices);
  }

  /** Starts one and waits until its devices are published. */
  async publish(
    ...devices: readonly string[]
  ): Promise<{ process: VmsgProcess; session: Session }> {
    const process = await this.start(...devices);
    const count = devices.filter((word) => word === "--device" || word === "--net").length;
    const session = await this.node.published(Array.from({ length: count }, (_, i) => i));
    return { process, session };
  }

  /** Waits for a promise, but not when the process has done wrong. */
  async settled<T>(promise: Promise<T>, what: string): Promise<T> {
    return await this.node.settled(promise, what);
  }

  ctl(...words: readonly string[]): Promise<void> {
    return this.processes.run("ctl", "ctl.sock", ...words).then(({ code, stderr }) => {
      assertEquals(code, 0, stderr.join("\n"));
    });
  }

  /** Asserts that a process has mapped what the session says, each once, and nothing else. */
  assertMapped(process: VmsgProcess): void {
    assert(!process.hasEnded, "it has ended");
    assertEquals(mappingFaults(process.pid, this.node.session?.live ?? []), []);
  }

  /** Waits until a process has mapped nothing. */
  async unmapped(process: VmsgProcess): Promise<void> {
    await until(() => mappingFaults(process.pid, []).length === 0);
  }
}

/**
 * Registers a test at a node of its own; what the process does wrong fails it.
 *
 * @param programs it needs, with the packages they are in
 */
export function bridgeTest(
  name: string,
  body: (rig: BridgeRig) => Promise<void>,
  programs: Readonly<Record<string, string>> = {},
): void {
  const lacks = Object.entries(programs).filter(([program]) => findProgram(program) === undefined)
    .map(([program, from]) => ({
      what: `${program} (${from}) is not here`,
      requiredBy: "VMSG_GUEST_TESTS" as const,
    }));
  testUnless(name, lacks, async () => {
    await using keeper = await openKeeper();
    await withProcesses(keeper, async (processes) => {
      await using node = BridgeNode.open(`${processes.directory}/node.sock`);
      await body(new BridgeRig(node, processes));
      node.assertClean();
    });
  });
}
