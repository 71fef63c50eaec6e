/** The demos of the lab are started as tasks, `deno task demo:NAME`, and speak like subcommands. */

import { complaintOf } from "../../src/cli/complaint.ts";
import { type Command, parseOptions } from "../../src/cli/command.ts";
import { helpText, terminalWidth } from "../../src/cli/help.ts";
import { untilInterrupted } from "../../src/cli/self.ts";
import { UsageError } from "../../src/linux/errors.ts";

/** How long an interrupted task may take to tidy up; keepers see to the rest. */
const TIDY_MS = 2000;

/** Runs a task with the program's arguments and ends the program with its exit code. */
export async function runTask(task: Command): Promise<never> {
  const state = { isInterrupted: false };
  const stopped = untilInterrupted().then(async (code) => {
    state.isInterrupted = true;
    await Promise.race([ended, new Promise((resolve) => setTimeout(resolve, TIDY_MS))]);
    return code;
  });
  const ended = codeOf(task, state);
  // Both: a task that fails because it was interrupted was interrupted.
  const code = await Promise.race([ended, stopped]);
  Deno.exit(state.isInterrupted ? await stopped : code);
}

async function codeOf(task: Command, state: { readonly isInterrupted: boolean }): Promise<number> {
  try {
    const options = parseOptions(task, Deno.args);
    if (!options.flag("help")) return await task.run(options);
    console.log(helpText(task, terminalWidth()));
    return 0;
  } catch (error) {
    // The programs that it runs to prepare itself are interrupted with it; that they failed is no news.
    await new Promise((resolve) => setTimeout(resolve));
    if (!state.isInterrupted) console.error(`${task.name}: ${complaintOf(error)}`);
    return error instanceof UsageError ? 2 : 1;
  }
}
