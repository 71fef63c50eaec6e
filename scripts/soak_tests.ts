/**
 * Runs the portable tests again and again on a machine that has other work to do: what passes there does not
 * depend on how fast it runs.
 *
 *     deno task test:soak [--rounds=20] [--busy=3] [files and directories]
 *     deno task check:soak [--rounds=20]
 *
 * Beside the tests run as many busy loops as --busy says, all of them on two processors. Each round prints
 * its counts; what failed, and how often, is the end. The exit code is 1 if anything did.
 */

import { parseArgs } from "@std/cli/parse-args";
import { brief, countsOf, failuresOf, plain } from "./test_output.ts";

const PROCESSORS = 2;
/** Lines of a round's failures. */
const FAILURE_LINES = 60;

const options = parseArgs(Deno.args, {
  string: ["rounds", "busy"],
  default: { rounds: "20", busy: "3" },
});
const rounds = Number(options.rounds);
const busy = Number(options.busy);
if (!(rounds > 0 && busy >= 0)) {
  console.error("soak: --rounds= and --busy= take numbers");
  Deno.exit(2);
}

/** A command on two processors, if the machine has more. */
function confined(program: string, args: readonly string[], options: Deno.CommandOptions) {
  const taskset = ["-c", `0-${PROCESSORS - 1}`, program, ...args];
  return navigator.hardwareConcurrency > PROCESSORS
    ? new Deno.Command("taskset", { ...options, args: taskset })
    : new Deno.Command(program, { ...options, args: [...args] });
}

const children = new Set<Deno.ChildProcess>();

function endAll(): void {
  for (const child of children) {
    try {
      // Not SIGKILL: the tests pass it on to what they have started.
      child.kill("SIGTERM");
    } catch {
      // It has ended already.
    }
  }
}

for (const signal of ["SIGINT", "SIGTERM"] as const) {
  Deno.addSignalListener(signal, () => {
    endAll();
    Deno.exit(1);
  });
}

const tests = options._.map(String);
const command = tests.length === 0
  ? ["task", "--quiet", "test:portable"]
  : ["run", "--allow-all", new URL("run_tests.ts", import.meta.url).pathname, ...tests];

/** One round: what it printed, and its exit code. */
async function round(): Promise<{ text: string; code: number }> {
  const child = confined(Deno.execPath(), command, {
    env: { NO_COLOR: "1" },
    stdin: "null",
    stdout: "piped",
    stderr: "inherit",
  }).spawn();
  children.add(child);
  const { stdout, code } = await child.output();
  children.delete(child);
  return { text: plain(new TextDecoder().decode(stdout)), code };
}

const failures = new Map<string, number>();
let bad = 0;
try {
  for (let i = 0; i < busy; i++) {
    const none = { stdin: "null", stdout: "null", stderr: "null" } as const;
    children.add(confined("sh", ["-c", "while :; do :; done"], none).spawn());
  }
  for (let i = 1; i <= rounds; i++) {
    const startMs = performance.now();
    const { text, code } = await round();
    const seconds = Math.round((performance.now() - startMs) / 1000);
    const { passed, failed, skipped } = countsOf(text, code);
    console.log(`round ${i}: ${passed} passed, ${failed} failed, ${skipped} skipped, ${seconds} s`);
    if (code === 0) continue;
    bad++;
    const found = failuresOf(text, code);
    for (const line of brief(found, FAILURE_LINES)) console.log(line);
    for (const { name } of found) failures.set(name, (failures.get(name) ?? 0) + 1);
  }
} finally {
  endAll();
}
for (const [name, count] of failures) console.log(`failed in ${count} of ${rounds}: ${name}`);
console.log(`${rounds - bad} of ${rounds} rounds passed beside ${busy} busy loops`);
Deno.exit(bad === 0 ? 0 : 1);
