/**
 * The subcommand `vmsg demo`: virtio-msg at work, with nothing installed. A device and a driver, two
 * processes on a linux-user bus, in a temporary directory; nothing is left behind, also when it fails, is
 * interrupted or killed (keeper.ts).
 */

import { VmsgError } from "../linux/errors.ts";
import type { Command } from "./command.ts";
import { openKeeper } from "./keeper.ts";
import { eachLine, selfCommand, untilInterrupted } from "./self.ts";

const SHOWN_MESSAGES = 32;

async function demoDriver(throughput: string, capture: string | undefined): Promise<number> {
  using interrupted = untilInterrupted();
  await using keeper = await openKeeper();
  const { directory } = keeper;
  const start = async (args: string[], options: Deno.CommandOptions) => {
    // What they count goes with the directory.
    const env = { XDG_RUNTIME_DIR: directory };
    const child = selfCommand(args, { stdin: "null", detached: true, env, ...options }).spawn();
    await keeper.keep(child.pid);
    return child;
  };
  const bus = ["--bus", `linux-user,name=demo,socket=${directory}/bus.sock,dir=${directory}`];
  console.log("vmsg demo: a virtio network card over messages, between two processes");
  const kept = capture === undefined ? [] : ["--capture", capture];
  const shownArgs = ["device", ...bus, "--net", "responder", ...kept];
  console.log(`  vmsg ${shownArgs.join(" ")}`);
  const deviceArgs = [...shownArgs, "--log-level", "warn"];
  const device = await start(deviceArgs, { stdout: "null", stderr: "inherit" });
  const pings = ["--count", "10", "--interval", "0.05"];
  const figures = ["--throughput", throughput];
  console.log(`  vmsg driver ${bus.join(" ")} ${pings.join(" ")} ${figures.join(" ")} --trace\n`);
  const driverArgs = ["driver", ...bus, ...pings, ...figures, "--trace"];
  const driver = await start(driverArgs, { stdout: "piped", stderr: "piped" });
  let shown = 0;
  const output = Promise.all([
    eachLine(driver.stdout, (line) => console.log(line)),
    eachLine(driver.stderr, (line) => {
      if (!line.startsWith("+")) return;
      shown++;
      if (shown <= SHOWN_MESSAGES) console.log(line);
      if (shown === SHOWN_MESSAGES) console.log("... (--trace shows all of them)\n");
    }),
  ]);
  const lost = device.status.then(({ code }) => {
    throw new VmsgError("DEMO_FAILED", `the device process ended early with exit code ${code}`);
  });
  // It rejects also in the end, when the device is ended.
  lost.catch(() => {});
  const code = await Promise.race([interrupted, lost, driver.status.then(({ code }) => code)]);
  if (code !== 130) await output;
  if (code !== 130) console.log(code === 0 ? "\nDEMO PASSED" : `\nDEMO FAILED (${code})`);
  return code;
}

/** The demos that boot unmodified kernels need more than this program; see scripts/lab. */
const IN_THE_SOURCES = ["guest", "ivshmem"].map((what) =>
  [what, `demo ${what} is run from the sources of vmsg: deno task demo:${what}`] as const
);

/** See `vmsg demo --help`. */
export const demoCommand: Command = {
  name: "demo",
  summary: "shows virtio-msg at work: a device and a driver in two processes",
  description:
    "A device and a driver in two processes; the first messages in words, pings, and the throughput.\n" +
    "Needs nothing and no root. Demos with unmodified kernels are run from the sources of vmsg:\n" +
    "deno task demo:guest, deno task demo:ivshmem.",
  options: [
    {
      name: "throughput",
      value: "SECONDS",
      default: "1",
      help: "how long each throughput figure takes",
    },
    {
      name: "capture",
      value: "FILE",
      help: "keep messages and frames in a file, for `vmsg trace`",
    },
  ],
  elsewhere: new Map(IN_THE_SOURCES),
  examples: ["vmsg demo"],
  run: async (options) => {
    options.number("throughput", 0, 3600);
    return await demoDriver(options.text("throughput")!, options.text("capture"));
  },
};
