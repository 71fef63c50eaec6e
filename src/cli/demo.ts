/**
 * The subcommand `vmsg demo`: virtio-msg at work, with nothing installed.
 *
 *     vmsg demo         a device and a driver, two processes, on a linux-user bus
 *     vmsg demo guest   a stock kernel's network card, served by two vmsg processes
 *     vmsg demo ivshmem two machines that share an ivshmem device, one has its network card in the other
 *
 * All run in a temporary directory and leave nothing behind, also when they fail or are interrupted.
 */

import { UsageError, VmsgError } from "../linux/errors.ts";
import type { Command, Options } from "./command.ts";
import { eachLine, endChild, selfCommand } from "./self.ts";

/** Messages shown in words before the pings. */
const SHOWN_MESSAGES = 32;

/** Stops what runs when the user interrupts; resolves to the exit code of the interrupted demo. */
function untilInterrupted(): Promise<number> & Disposable {
  const { promise, resolve } = Promise.withResolvers<number>();
  const onSignal = () => resolve(130);
  const signals: Deno.Signal[] = ["SIGINT", "SIGTERM"];
  for (const signal of signals) Deno.addSignalListener(signal, onSignal);
  return Object.assign(promise, {
    [Symbol.dispose]: () => {
      for (const signal of signals) Deno.removeSignalListener(signal, onSignal);
    },
  });
}

/** A device and a driver in two processes: exit code 0 if pings were answered. */
async function demoDriver(options: Options): Promise<number> {
  using interrupted = untilInterrupted();
  await using stack = new AsyncDisposableStack();
  const directory = await Deno.makeTempDir({ prefix: "vmsg-demo-" });
  stack.defer(() => Deno.remove(directory, { recursive: true }));
  const bus = ["--bus", `linux-user,name=demo,socket=${directory}/bus.sock,dir=${directory}`];
  console.log("vmsg demo: a virtio network card over messages, between two processes");
  console.log(`  vmsg device ${bus.join(" ")} --net responder`);
  const device = selfCommand(["device", ...bus, "--net", "responder", "--log-level", "warn"], {
    stdin: "null",
    stdout: "null",
    stderr: "inherit",
  }).spawn();
  stack.defer(() => endChild(device));
  const pings = ["--count", "10", "--interval", "0.05"];
  const figures = ["--throughput", options.text("throughput")!];
  console.log(`  vmsg driver ${bus.join(" ")} ${pings.join(" ")} ${figures.join(" ")} --trace\n`);
  const driver = selfCommand(["driver", ...bus, ...pings, ...figures, "--trace"], {
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  stack.defer(() => endChild(driver));
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
  // It rejects also in the end, when the device is told to stop.
  lost.catch(() => {});
  const code = await Promise.race([interrupted, lost, driver.status.then(({ code }) => code)]);
  if (code !== 130) await output;
  console.log(code === 0 ? "\nDEMO PASSED" : `\nDEMO FAILED (${code})`);
  return code;
}

/** The options of each demo; another's would be ignored without a word. */
const OPTIONS_OF: Readonly<Record<string, readonly string[]>> = {
  driver: ["throughput"],
  guest: ["guest", "confined"],
  ivshmem: [
    ...["machine", "executable", "net", "size", "confined"],
    ...["inner", "direct", "guest", "one-range"],
  ],
};

function rejectForeign(options: Options, what = "driver"): void {
  const own = OPTIONS_OF[what] ?? [];
  const all = Object.values(OPTIONS_OF).flat();
  const foreign = all.find((name) =>
    !own.includes(name) && name !== "throughput" &&
    (options.flag(name) || options.text(name) !== undefined)
  );
  if (foreign !== undefined) {
    throw new UsageError(
      `--${foreign} is not for vmsg demo${
        what === "driver" ? "" : ` ${what}`
      }; see: vmsg demo --help`,
    );
  }
  const inner = ["direct", "guest", "one-range"].find((name) =>
    options.flag(name) || options.text(name) !== undefined
  );
  if (what === "ivshmem" && inner !== undefined && !options.flag("inner")) {
    throw new UsageError(`--${inner} goes with --inner`);
  }
}

/** See `vmsg demo --help`. */
export const demoCommand: Command = {
  name: "demo",
  summary: "shows virtio-msg at work: two processes, or a stock guest kernel",
  description:
    "Without argument: a device and a driver in two processes; the first messages in words, pings, and\n" +
    "the throughput. Needs nothing and no root. With `guest`: an unmodified kernel (User-Mode Linux or\n" +
    "QEMU, whichever is there) whose network card is served by `vmsg device` through `vmsg proxy`. With\n" +
    "`ivshmem`: two machines under QEMU that share an ivshmem device, with `vmsg device` in one and\n" +
    "`vmsg driver` in the other.",
  argumentsHelp: "[guest|ivshmem]",
  options: [
    {
      name: "throughput",
      value: "SECONDS",
      default: "1",
      help: "how long each throughput figure takes",
    },
    {
      name: "guest",
      value: "uml|microvm|q35|arm64|virt",
      help: "which guest to boot, instead of what is there (virt: inside an arm64 machine)",
    },
    { name: "confined", help: "the driver side's memory stays its own, but for a segment" },
    { name: "inner", help: "ivshmem: machine B has a guest, whose network card it is; confined" },
    { name: "direct", help: "ivshmem --inner: machine A uses the guest's own memory, no copies" },
    { name: "one-range", help: "--direct --guest microvm: its memory is one page of 1 GiB" },
    { name: "size", value: "SIZE", help: "ivshmem: of the shared memory (default 1M)" },
    { name: "machine", value: "q35|arm64", help: "which machines to boot (default q35)" },
    {
      name: "executable",
      value: "PATH",
      help: "vmsg for the machines, where this is not an executable for them",
    },
    {
      name: "net",
      value: "bridge|packet",
      help: "how frames leave machine A: a bridge with a TAP (default), or a raw socket",
    },
  ],
  examples: [
    "vmsg demo",
    "vmsg demo guest",
    "vmsg demo guest --guest microvm",
    "vmsg demo ivshmem",
  ],
  run: async (options) => {
    const [what, ...rest] = options.arguments;
    if (rest.length > 0 || !["guest", "ivshmem", undefined].includes(what)) {
      throw new UsageError(`unexpected argument ${rest[0] ?? what}; see: vmsg demo --help`);
    }
    options.number("throughput", 0, 3600);
    rejectForeign(options, what);
    if (what === undefined) return await demoDriver(options);
    using interrupted = untilInterrupted();
    if (what === "ivshmem") {
      const [machine, executable, net] = ["machine", "executable", "net"].map((n) =>
        options.text(n)
      );
      const { demoIvshmem } = await import("../../scripts/lab/demo_ivshmem.ts");
      const [inner, direct, confined] = ["inner", "direct", "confined"].map((name) =>
        options.flag(name)
      );
      const [size, guest] = ["size", "guest"].map((name) => options.text(name));
      const oneRange = options.flag("one-range");
      const settings = { inner, direct, oneRange, confined, size, guest, machine, executable, net };
      return await demoIvshmem({ ...settings, interrupted });
    }
    const { demoGuest } = await import("../../scripts/lab/demo_guest.ts");
    return await demoGuest(options.text("guest"), options.flag("confined"), interrupted);
  },
};
