/**
 * `deno task demo:xen`: two machines with Xen that share an ivshmem device. In A's Dom0 is `vmsg device` on A's own
 * network card, in B's Dom0 `vmsg proxy`, which gives an unmodified DomU its card; the DomU's pings leave through A.
 *
 * Hypervisors, tools and kernels are Debian's, fetched once (scripts/fetch_xen.ts). The executable for the machines
 * is compiled first, unless there is one of the same sources.
 */

import type { Command, Options } from "../../src/cli/command.ts";
import { openKeeper } from "../../src/cli/keeper.ts";
import { untilInterrupted } from "../../src/cli/self.ts";
import { UsageError } from "../../src/linux/errors.ts";
import { buildXen } from "../build_xen.ts";
import { fetchXen } from "../fetch_xen.ts";
import { ConsoleFile, sayFile } from "./console_file.ts";
import { machineExecutable } from "./executable.ts";
import { DOORBELL_ADDRESS } from "./machine.ts";
import type { MachineArchitecture } from "./machine_image.ts";
import { deviceScript, startIvshmemServer } from "./pair.ts";
import { pingScript } from "./scripts.ts";
import { runTask } from "./task.ts";
import { buildXenImage, startXenMachine } from "./xen_machine.ts";
import { createDomu, domuConfig, inBackground, waitForDomu, waitForProxy } from "./xen_scripts.ts";

/** From power-on to the last ping, several times what it takes under emulation. */
const TIMEOUT_MS = 900_000;

const MACHINES: Readonly<Record<string, MachineArchitecture>> = {
  x86: "x86_64",
  arm64: "aarch64",
};

/** In machine B, where it is in memory. */
const CAPTURE = "/tmp/capture.pcapng";

async function demoXen(options: Options): Promise<number> {
  const architecture = MACHINES[options.text("machine") ?? "x86"];
  if (architecture === undefined) {
    throw new UsageError(`--machine is one of ${Object.keys(MACHINES).join(", ")}`);
  }
  const capture = options.text("capture");
  const beganMs = performance.now();
  const xen = await buildXen(await fetchXen(architecture));
  const executable = await machineExecutable(options.text("executable"), architecture);
  using interrupted = untilInterrupted();
  console.log("two machines with Xen, a shared memory and a doorbell between them");
  await using keeper = await openKeeper("/dev/shm");
  const { directory } = keeper;
  const doorbell = await startIvshmemServer(keeper, "4M", (line) => console.log(`server| ${line}`));
  const domu = pingScript({ address: "dhcp", peer: "10.0.2.2", count: 3 });
  const image = await buildXenImage(xen, { directory, executable, domu });
  await using machineA = await startXenMachine(xen, {
    ...{ image, doorbell, nics: [{ netdev: "user" }] },
    script: deviceScript({ kind: "q35", net: "bridge", confined: true, bus: "via=sysfs" }),
    onLine: (line) => console.log(`A| ${line}`),
  });
  const bus = `ivshmem,pci=${DOORBELL_ADDRESS},via=sysfs`;
  const kept = capture === undefined ? "" : ` --capture ${CAPTURE},limit=1M`;
  const captured = new ConsoleFile();
  await using machineB = await startXenMachine(xen, {
    ...{ image, doorbell },
    script: [
      domuConfig(xen, { name: "domu" }),
      inBackground("proxy", `vmsg proxy --bus ${bus} --confined --xen domain=domu${kept}`),
      waitForProxy(),
      'echo "$ xl create domu.cfg"',
      createDomu("domu"),
      ...(capture === undefined ? [] : [waitForDomu("domu", "PING rc="), sayFile(CAPTURE)]),
      "sleep 600",
    ].join("\n"),
    onLine: (line) => {
      if (!captured.take(line)) console.log(`B| ${line}`);
    },
  });
  const passed = machineB.waitFor(/^U\| PING rc=0/, TIMEOUT_MS).then(() => 0);
  const failed = Promise.race([
    machineA.waitFor(/^DEVICE rc=/, TIMEOUT_MS),
    machineB.waitFor(
      /^(U\| (PING rc=[^0]|GUEST-DONE)|CREATE failed|ENDED proxy|GUEST-DONE)/,
      TIMEOUT_MS,
    ),
  ]).then(() => 1);
  for (const promise of [passed, failed]) promise.catch(() => {});
  const code = await Promise.race([interrupted, passed, failed]);
  // Most of all if it failed.
  if (code !== 130 && capture !== undefined) {
    const over = Promise.race([interrupted, machineB.waitFor(/^GUEST-DONE/, TIMEOUT_MS)]);
    await captured.save(capture, over);
  }
  const seconds = Math.round((performance.now() - beganMs) / 1000);
  if (code === 0) console.log(`\n${seconds} s\nTEST PASSED`);
  else if (code !== 130) console.log(`\nTEST FAILED (${code})`);
  return code;
}

/** See `deno task demo:xen --help`. */
export const demoXenTask: Command = {
  name: "demo:xen",
  call: "deno task demo:xen",
  summary: "two machines with Xen, a DomU of one has its network card in the other",
  description:
    "Two machines with Xen under QEMU that share an ivshmem device: `vmsg device` in one Dom0 and `vmsg\n" +
    "proxy` in the other, for an unmodified DomU.",
  options: [
    {
      name: "machine",
      value: Object.keys(MACHINES).join("|"),
      default: "x86",
      help: "which machines to boot",
    },
    {
      name: "capture",
      value: "FILE",
      help: "keep what the proxy says and hears in a file, for `vmsg trace`",
    },
    {
      name: "executable",
      value: "PATH",
      help: "vmsg for the machines, instead of one compiled from these sources",
    },
  ],
  examples: ["deno task demo:xen"],
  run: demoXen,
};

if (import.meta.main) await runTask(demoXenTask);
