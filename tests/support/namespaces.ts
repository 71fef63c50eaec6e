/**
 * Network namespaces whose processes a keeper has charge of.
 *
 * A namespace has no name here: a sleeping process holds it, others enter it through that one
 * (nsenter). So it is gone, with the interfaces in it, when the keeper has ended them all, however the
 * test ends. `ip netns` would leave a name behind where a test is killed.
 */

import { assertEquals } from "@std/assert";
import { openKeeper } from "../../src/cli/keeper.ts";
import { networkTest } from "../network/support.ts";
import {
  type Ended,
  PATIENCE_MS,
  type Processes,
  VMSG_COMMAND,
  type VmsgProcess,
  withProcesses,
} from "./processes.ts";

/** A network namespace with nothing but lo in it. */
export class HeldNamespace {
  readonly #enter: readonly string[];

  private constructor(readonly processes: Processes, pid: number) {
    this.#enter = ["-t", `${pid}`, "-n", "--"];
  }

  static async open(processes: Processes): Promise<HeldNamespace> {
    const script = "ip link set lo up && echo READY && exec sleep infinity";
    const holder = await processes.startProgram("unshare", "-n", "sh", "-c", script);
    await holder.waitFor(/^READY$/);
    return new HeldNamespace(processes, holder.pid);
  }

  /** Starts a program there; nsenter becomes that program, so a signal reaches it. */
  start(...command: string[]): Promise<VmsgProcess> {
    return this.processes.startProgram("nsenter", ...this.#enter, ...command);
  }

  /** Starts vmsg there. */
  startVmsg(...args: string[]): Promise<VmsgProcess> {
    return this.start(...VMSG_COMMAND, ...args);
  }

  /** Runs a program there to its end, with success; words are separated by one blank. */
  async run(command: string, timeoutMs = PATIENCE_MS): Promise<Ended> {
    await using process = await this.start(...command.split(" "));
    const ended = await process.ended(timeoutMs);
    assertEquals(ended.code, 0, `${command}: ${[...ended.stdout, ...ended.stderr].join("\n")}`);
    return ended;
  }
}

/** Registers a test that needs root for two namespaces, and some programs. */
export function namespacesTest(
  name: string,
  programs: readonly string[],
  body: (one: HeldNamespace, two: HeldNamespace) => Promise<void>,
): void {
  networkTest(name, ["ip", "unshare", "nsenter", ...programs], async () => {
    await using keeper = await openKeeper();
    await withProcesses(keeper, async (processes) => {
      const one = await HeldNamespace.open(processes);
      await body(one, await HeldNamespace.open(processes));
    });
  });
}
