/**
 * Runs the tests and says plainly what ran.
 *
 *     deno task test [--report=FILE] [arguments of deno test, files]
 *
 * `deno test` closes with `ok | 3 passed (2 steps) | 0 failed | 1 ignored (5ms)`; after it come once
 * more the tests that could not run here, with reasons (a test prints `NOT RUN: name: reason`), and
 * as the last line the counts alone: `3 passed, 0 failed, 1 skipped`. Steps are not counted. The exit
 * code is that of `deno test`, and 1 if no test ran; a run that ended without its summary, or that
 * failed with every test passed, counts as one failure. (Called test.ts, this file would be a test.)
 *
 * With --report the counts go into a file too, one line for a shell's `read`: passed, failed, skipped.
 */

const REPORT = "--report=";

// deno-lint-ignore no-control-regex
const COLORS = /\x1b\[[0-9;]*m/g;
const NOT_RUN = /^NOT RUN: .*$/gm;
const SUMMARY = /^(?:ok|FAILED) \| .*$/gm;

function count(summary: string, word: string): number {
  return Number(summary.match(new RegExp(`\\| (\\d+) ${word}\\b`))?.[1] ?? 0);
}

/** Copies a stream to a file of ours and returns its text. */
async function tee(
  stream: ReadableStream<Uint8Array>,
  to: { write(bytes: Uint8Array): Promise<number> },
): Promise<string> {
  const decoder = new TextDecoder();
  let text = "";
  for await (const bytes of stream) {
    text += decoder.decode(bytes, { stream: true });
    for (let done = 0; done < bytes.length;) done += await to.write(bytes.subarray(done));
  }
  return text;
}

const report = Deno.args.findLast((argument) => argument.startsWith(REPORT))?.slice(REPORT.length);
const args = Deno.args.filter((argument) => !argument.startsWith(REPORT));
const child = new Deno.Command(Deno.execPath(), {
  args: ["test", "--allow-all", "--doc", ...args],
  env: Deno.stdout.isTerminal() ? { FORCE_COLOR: "1" } : { NO_COLOR: "1" },
  stdin: "null",
  stdout: "piped",
  stderr: "inherit",
}).spawn();
// deno test gets the terminal's signal as well, ends its tests and prints what it has.
Deno.addSignalListener("SIGINT", () => {});
Deno.addSignalListener("SIGTERM", () => child.kill("SIGTERM"));

const output = (await tee(child.stdout, Deno.stdout)).replace(COLORS, "");
const { code } = await child.status;
for (const line of new Set(output.match(NOT_RUN))) console.log(line);
const summary = output.match(SUMMARY)?.at(-1) ?? "";
const [passed, ignored] = [count(summary, "passed"), count(summary, "ignored")];
const failed = count(summary, "failed") || (code === 0 ? 0 : 1);
if (passed + failed === 0) console.error("no test ran");
const skipped = ignored > 0 ? `, ${ignored} skipped` : "";
if (report !== undefined) Deno.writeTextFileSync(report, `${passed} ${failed} ${ignored}\n`);
console.log(`${passed} passed, ${failed} failed${skipped}`);
Deno.exit(code !== 0 ? code : passed + failed > 0 && failed === 0 ? 0 : 1);
