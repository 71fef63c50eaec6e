/** Running other programs to their end: those that build images, and those of scripts. */

import { VmsgError } from "../../src/linux/errors.ts";

/** How a program ended and what it said, without surrounding white space. */
export interface CommandResult {
  readonly success: boolean;
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/**
 * Runs a program to its end.
 *
 * @param env what is set besides our own variables; English and no colours in any case
 * @throws VmsgError COMMAND if it cannot be started
 */
export async function runCommand(
  command: readonly string[],
  options: Pick<Deno.CommandOptions, "cwd" | "env" | "clearEnv"> = {},
): Promise<CommandResult> {
  const [program = "", ...args] = command;
  const env = { LC_ALL: "C", NO_COLOR: "1", RUST_BACKTRACE: "0", ...options.env };
  let output: Deno.CommandOutput;
  try {
    output = await new Deno.Command(program, { ...options, args, env, stdin: "null" }).output();
  } catch (error) {
    throw new VmsgError("COMMAND", `cannot run ${program}: ${(error as Error).message}`);
  }
  const { success, code } = output;
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes).trim();
  return { success, code, stdout: text(output.stdout), stderr: text(output.stderr) };
}

/** Runs a program that must succeed; the error has the last line it said. */
export async function mustRun(
  command: readonly string[],
  options?: Pick<Deno.CommandOptions, "cwd" | "env">,
): Promise<string> {
  const { success, stdout, stderr } = await runCommand(command, options);
  if (success) return stdout;
  throw new VmsgError("COMMAND", `${command.join(" ")} failed: ${stderr.split("\n").at(-1)}`);
}
