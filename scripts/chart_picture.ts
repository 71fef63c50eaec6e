/**
 * Makes the picture of a chart in docs/trace.md: what machine B of `demo:ivshmem` said and heard, as `vmsg trace --html` shows it,
 * photographed by Chromium.
 *
 *     deno task docs:chart [CAPTURE [PICTURE [WIDTHxHEIGHT]]]
 *
 * Without a capture the demo is run, which takes a minute; another size is for looking, as that of a telephone.
 */

import { fromFileUrl } from "@std/path";
import { findProgram } from "./lab/libraries.ts";
import { runCommand } from "./lab/run_command.ts";

const root = (path: string) => fromFileUrl(new URL(`../${path}`, import.meta.url));
/** A page of documentation shows it in about this width. */
const SIZE = "1000x640";
const MOST_BYTES = 150_000;
/** What a user does, at the end of the page: looks for the moment when the device runs. */
const LOOK = `<script>
search.value = "= acknowledge driver driver_ok";
search.oninput();
</script>`;

const directory = await Deno.makeTempDir({ prefix: "vmsg-chart-" });
try {
  const [given, picture = root("docs/chart.png"), size = SIZE] = Deno.args;
  const run = async (...command: [string, ...string[]]) => {
    const { success, stdout, stderr } = await runCommand(command, { cwd: directory });
    if (!success) throw new Error(`${command.join(" ")}:\n${stdout}${stderr}`);
  };
  const deno = (...args: string[]) =>
    run(Deno.execPath(), "run", "--quiet", "--allow-all", ...args);
  const chromium = await findProgram("chromium");
  if (chromium === undefined) throw new Error("there is no chromium: apt-get install chromium");
  // Its name is the page's title.
  const capture = "demo-ivshmem.pcapng";
  if (given === undefined) await deno(root("scripts/lab/demo_ivshmem.ts"), "--capture", capture);
  else await Deno.copyFile(given, `${directory}/${capture}`);
  const page = `${directory}/chart.html`;
  await deno(root("src/main.ts"), "trace", "--html", page, "--filter", "!HELLO", capture);
  await Deno.writeTextFile(page, LOOK, { append: true });
  await run(
    chromium,
    ...["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"],
    ...[`--user-data-dir=${directory}/profile`, `--window-size=${size.replace("x", ",")}`],
    ...[`--screenshot=${picture}`, `file://${page}`],
  );
  const bytes = Deno.statSync(picture).size;
  if (bytes > MOST_BYTES) throw new Error(`${picture} has ${bytes} bytes, more than ${MOST_BYTES}`);
  console.log(`${picture}: ${bytes} bytes`);
} catch (error) {
  console.error(`docs:chart: ${error instanceof Error ? error.message : error}`);
  Deno.exitCode = 1;
} finally {
  await Deno.remove(directory, { recursive: true });
}
