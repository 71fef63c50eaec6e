/** Tests that boot a machine with Xen; see scripts/lab/xen_machine.ts. */

import type { Guest } from "../../scripts/lab/guest.ts";
import { findXen, type XenInstallation } from "../../scripts/fetch_xen.ts";
import { compiledExecutable } from "../../scripts/lab/executable.ts";
import {
  buildXenImage,
  startXenMachine,
  type XenMachineOptions,
} from "../../scripts/lab/xen_machine.ts";
import { nativeTarget } from "../../scripts/toolchain.ts";
import { toolchainLacks } from "../support/executable.ts";
import type { Lack } from "../support/needs.ts";
import { guestlessTest, type GuestTest } from "./support.ts";

/** How long one step of a machine may take under emulation, several times what it does take. */
export const XEN_TIMEOUT_MS = 300_000;

/** What a test with Xen is given. */
export interface XenTest extends Omit<GuestTest, "installation" | "boot"> {
  readonly xen: XenInstallation;
  /** Starts a machine whose DomUs do this; it is ended after the test, and its console printed if the test fails. */
  start(domu: string, options: Omit<XenMachineOptions, "image">): Promise<Guest>;
}

const xen = await findXen("x86_64");

/** Registers a test that boots an x86 machine with Xen. */
export function xenTest(
  name: string,
  body: (test: XenTest) => Promise<void>,
  lacks: readonly Lack[] = [],
): void {
  const missing: Lack[] = xen !== undefined ? [] : [{
    what: "Xen's packages are missing: deno run -A scripts/fetch_xen.ts",
    requiredBy: "VMSG_GUEST_TESTS",
  }];
  const needs = {
    programs: { "mkfs.erofs": "erofs-utils", "qemu-system-x86_64": "qemu-system-x86" },
    lacks: [...lacks, ...missing, ...toolchainLacks(nativeTarget())],
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
          const executable = await compiledExecutable();
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
