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
import type { Target } from "../../scripts/toolchain.ts";
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
    programs: { "mkfs.erofs": "erofs-utils", ...programs },
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
