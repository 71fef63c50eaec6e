/**
 * An error as whoever started this program shall see it: one line. One that is not told as such by the code that
 * threw it comes with its stack where it was asked for, by VMSG_DEBUG or --log-level debug.
 */

import { VmsgError } from "../linux/errors.ts";

/** What to print of an error, on the main thread and in a Worker. */
export function complaintOf(error: unknown): string {
  if (error instanceof VmsgError) return error.message;
  const { message, stack } = error instanceof Error ? error : new Error(String(error));
  if (isStackWanted()) return `internal error: ${stack}`;
  // deno-lint-ignore no-control-regex -- Deno colours some of its errors
  const line = message.replaceAll(/\x1b\[[\d;]*m/g, "").replaceAll(/\s*\n\s*/g, "; ");
  // What the system refused is nobody's mistake in here.
  return /\(os error \d+\)/.test(line) ? line : `internal error: ${line} (VMSG_DEBUG=1 says where)`;
}

function isDebugged(): boolean {
  const variable = "VMSG_DEBUG";
  // Asked for, because to try might ask the user.
  if (Deno.permissions.querySync({ name: "env", variable }).state !== "granted") return false;
  return (Deno.env.get(variable) ?? "") !== "";
}

/** A process that is ready may not look any more. */
const wasDebugged = isDebugged();

function isStackWanted(): boolean {
  const level = Deno.args[Deno.args.indexOf("--log-level") + 1];
  return wasDebugged || isDebugged() || level === "debug" ||
    Deno.args.includes("--log-level=debug");
}
