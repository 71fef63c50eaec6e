/** The demos of the lab are started as tasks, `deno task demo:NAME`, and speak like subcommands. */

import { complaintOf } from "../../src/cli/complaint.ts";
import { type Command, parseOptions } from "../../src/cli/command.ts";
import { helpText, terminalWidth } from "../../src/cli/help.ts";
import { UsageError } from "../../src/linux/errors.ts";

/** Runs a task with the program's arguments and ends the program with its exit code. */
export async function runTask(task: Command): Promise<never> {
  Deno.exit(await codeOf(task));
}

async function codeOf(task: Command): Promise<number> {
  try {
    const options = parseOptions(task, Deno.args);
    if (!options.flag("help")) return await task.run(options);
    console.log(helpText(task, terminalWidth()));
    return 0;
  } catch (error) {
    console.error(`${task.name}: ${complaintOf(error)}`);
    return error instanceof UsageError ? 2 : 1;
  }
}
