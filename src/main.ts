/** The command line: finds the subcommand, loads its file alone, turns errors into one line. */

import { complaintOf } from "./cli/complaint.ts";
import { parseOptions } from "./cli/command.ts";
import { COMMANDS, type PlaneName } from "./cli/commands.ts";
import { enterOpening } from "./cli/permissions.ts";
import { UsageError } from "./linux/errors.ts";
import { VERSION } from "./version.ts";

/** The text of `vmsg --help`. */
async function overview(): Promise<string> {
  const { overviewText, terminalWidth } = await import("./cli/help.ts");
  const commands = await Promise.all(Object.values(COMMANDS).map((load) => load()));
  return overviewText(commands, terminalWidth());
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
  const command = await COMMANDS[name]!();
  const options = parseOptions(command, rest);
  if (options.flag("help")) {
    const { helpText, terminalWidth } = await import("./cli/help.ts");
    console.log(helpText(command, terminalWidth()));
    return 0;
  }
  enterOpening(name);
  return await command.run(options, async (settings, pairs) => {
    const { runDataPlane } = await import("./cli/data_plane.ts");
    // Only the commands of PLANES ask for it.
    return await runDataPlane(name as PlaneName, settings, options, pairs);
  });
}

/** Runs vmsg with arguments; the exit code is 0, 1 for a failure, 2 for wrong usage. */
export async function main(args: readonly string[]): Promise<number> {
  try {
    return await dispatch(args);
  } catch (error) {
    console.error(`vmsg: ${complaintOf(error)}`);
    return error instanceof UsageError ? 2 : 1;
  }
}

if (import.meta.main) {
  // Nobody waited for what failed there, so it was seen by nobody.
  addEventListener("unhandledrejection", ({ reason }) => {
    console.error(`vmsg: ${complaintOf(reason)}`);
    Deno.exit(1);
  });
  Deno.exit(await main(Deno.args));
}
