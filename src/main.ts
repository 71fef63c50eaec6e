/** The command line: finds the subcommand, loads its file alone, turns errors into one line. */

import type { Command } from "./cli/command.ts";
import { helpText, parseOptions } from "./cli/command.ts";
import { UsageError, VmsgError } from "./linux/errors.ts";
import { VERSION } from "./version.ts";

/** Subcommands, each loaded when it is used. */
const COMMANDS: Readonly<Record<string, () => Promise<Command>>> = {
  device: async () => (await import("./cli/device.ts")).deviceCommand,
  proxy: async () => (await import("./cli/proxy.ts")).proxyCommand,
  driver: async () => (await import("./cli/driver.ts")).driverCommand,
  "ivshmem-server": async () => (await import("./cli/ivshmem_server.ts")).ivshmemServerCommand,
  demo: async () => (await import("./cli/demo.ts")).demoCommand,
  doctor: async () => (await import("./cli/doctor.ts")).doctorCommand,
};

/** The text of `vmsg --help`. */
async function overview(): Promise<string> {
  const commands = await Promise.all(Object.values(COMMANDS).map((load) => load()));
  const rows = commands.map(({ name, summary }) => `  ${name.padEnd(14)} ${summary}`);
  return [
    "vmsg: virtio devices over messages, between systems that merely share memory and a doorbell",
    "",
    "Usage: vmsg SUBCOMMAND [options]",
    "       vmsg SUBCOMMAND --help",
    "       vmsg --version",
    "",
    "Subcommands:",
    ...rows,
    "",
  ].join("\n");
}

async function dispatch(args: readonly string[]): Promise<number> {
  const [name, ...rest] = args;
  if (name === "--version") {
    console.log(`vmsg ${VERSION}`);
    return 0;
  }
  if (name === undefined || name === "--help" || name === "help") {
    console.log(await overview());
    if (name === undefined) throw new UsageError("a subcommand is missing");
    return 0;
  }
  if (!Object.hasOwn(COMMANDS, name)) {
    throw new UsageError(`unknown subcommand ${name}; see: vmsg --help`);
  }
  const command = await COMMANDS[name]();
  const options = parseOptions(command, rest);
  if (options.flag("help")) {
    console.log(helpText(command));
    return 0;
  }
  return await command.run(options);
}

/** Runs vmsg with arguments; the exit code is 0, 1 for a failure, 2 for wrong usage. */
export async function main(args: readonly string[]): Promise<number> {
  try {
    return await dispatch(args);
  } catch (error) {
    if (!(error instanceof VmsgError)) throw error;
    console.error(`vmsg: ${error.message}`);
    return error instanceof UsageError ? 2 : 1;
  }
}

if (import.meta.main) Deno.exit(await main(Deno.args));
