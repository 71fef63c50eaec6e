/** Tests that boot machines with vmsg inside; see scripts/lab/machine.ts. */

import { arm64LibraryRoot } from "../../scripts/lab/libraries.ts";
import {
  type Machine,
  machineArchitecture,
  type MachineKind,
  type MachineOptions,
  startMachine,
} from "../../scripts/lab/machine.ts";
import { buildMachineImage, type MachineImageOptions } from "../../scripts/lab/machine_image.ts";
import type { QemuInstallation } from "../../scripts/lab/qemu.ts";
import type { Target } from "../../scripts/toolchain.ts";
import { compiledExecutable } from "../../scripts/lab/executable.ts";
import { toolchainLacks } from "../support/executable.ts";
import type { Lack } from "../support/needs.ts";
import { type GuestTest, guestTest } from "./support.ts";

/** What a machine test is given, besides what a guest test is. */
export interface MachineTest extends Omit<GuestTest, "installation" | "boot"> {
  readonly installation: QemuInstallation;
  /** A disk with vmsg. It is made when it is first wanted, with the files given then. */
  image(files?: MachineImageOptions["files"]): Promise<string>;
  /** Starts a machine; it is ended after the test, and its console printed if the test fails. */
  start(options: Omit<MachineOptions, "image">): Promise<Machine>;
}

/** Registers a test that boots machines of one kind. @param lacks what else is missing for it */
export function machineTest(
  name: string,
  kind: MachineKind,
  body: (test: MachineTest) => Promise<void>,
  lacks: readonly Lack[] = [],
): void {
  const architecture = machineArchitecture(kind);
  const target: Target = `${architecture}-unknown-linux-gnu`;
  const needs = {
    guest: kind,
    programs: { "mkfs.erofs": "erofs-utils" },
    lacks: [...lacks, ...toolchainLacks(target), ...(kind === "arm64" ? arm64Lacks() : [])],
  };
  guestTest(name, needs, async (test) => {
    const installation = test.installation as QemuInstallation;
    const started: Machine[] = [];
    await using running = new AsyncDisposableStack();
    let made: Promise<string> | undefined;
    const make = async (files: MachineImageOptions["files"] = []) => {
      const executable = await compiledExecutable(target);
      return await buildMachineImage({
        directory: test.directory,
        architecture,
        executable,
        files,
      });
    };
    const image = (files?: MachineImageOptions["files"]) => made ??= make(files);
    try {
      await body({
        ...test,
        installation,
        image,
        async start(options) {
          const machine = running.use(
            await startMachine(installation, { ...options, image: await image() }),
          );
          started.push(machine);
          return machine;
        },
      });
    } catch (error) {
      started.forEach((machine, index) => {
        console.error(`--- console of ${kind} machine ${index + 1} ---\n${machine.console()}---`);
      });
      throw error;
    }
  });
}

/** Emulating arm64 takes time, so it is for those who ask for everything. */
function arm64Lacks(): Lack[] {
  const lacks: Lack[] = [];
  if (Deno.env.get("VMSG_GUEST_FULL") !== "1") {
    lacks.push({ what: "arm64 machines are booted with VMSG_GUEST_FULL=1" });
  }
  try {
    Deno.statSync(arm64LibraryRoot() ?? "");
  } catch {
    const what = "arm64 libraries are missing: deno run -A scripts/fetch_arm64.ts";
    lacks.push({ what, requiredBy: "VMSG_GUEST_TESTS" });
  }
  return lacks;
}
