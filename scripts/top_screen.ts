/**
 * Makes the screen of `vmsg top` in docs/watching.md: `vmsg device` with its responder, `vmsg driver` that pings and then sends as
 * many frames as are taken, and `vmsg top` in a window of tmux, whose text is taken down.
 *
 *     deno task docs:top [DOCUMENT]
 *
 * The screen stands in the document where the one before stood: the lines from "vmsg top  N running" to an empty one.
 */

import { fromFileUrl } from "@std/path";
import { openKeeper } from "../src/cli/keeper.ts";
import { selfCommand } from "../src/cli/self.ts";
import { findProgram } from "./lab/libraries.ts";
import { runCommand } from "./lab/run_command.ts";

const COLUMNS = 92, ROWS = 32;
const INDENT = "    ";
const SCREEN = /^ {4}vmsg top {2}\d+ running.*\n(?: {4}.*\n)+/m;
/** Rates of the flood are there, and a second has gone by in which it was alone. */
const READY = /^ *\d{7,} +\d+ +bytesTransmitted /m;
const TRIES = 200, TRY_MS = 100;

/** Asks again and again until there is an answer. */
async function until(look: () => string | undefined | Promise<string | undefined>) {
  let problem: unknown;
  for (let tries = 0; tries < TRIES; tries++) {
    await new Promise((resolve) => setTimeout(resolve, TRY_MS));
    try {
      const found = await look();
      if (found !== undefined) return found;
    } catch (error) {
      problem = error;
    }
  }
  throw new Error(`no traffic was seen: ${problem ?? "no counters, or none that move"}`);
}

async function screen(tmux: string): Promise<string> {
  await using keeper = await openKeeper();
  const { directory } = keeper;
  const environment = { XDG_RUNTIME_DIR: directory };
  const start = async (...args: string[]) => {
    const options = { stdin: "null", stdout: "null", stderr: "null", detached: true } as const;
    const child = selfCommand(args, { env: environment, cwd: directory, ...options }).spawn();
    await keeper.keep(child.pid);
  };
  const bus = ["--bus", "linux-user,socket=lu.sock"];
  await start("device", ...bus, "--net", "responder");
  const pings = ["--count", "1000", "--interval", "0.002"];
  await start("driver", ...bus, ...pings, "--throughput", "60");
  const counters = `${directory}/vmsg`;
  await until(() => [...Deno.readDirSync(counters)].length === 2 ? "" : undefined);
  // A server of its own, which ends with its only window.
  const ask = async (...words: string[]) => {
    const { success, stdout, stderr } = await runCommand([
      tmux,
      "-S",
      `${directory}/tmux`,
      ...words,
    ]);
    if (!success) throw new Error(`tmux ${words[0]}: ${stderr}`);
    return stdout;
  };
  const main = fromFileUrl(new URL("../src/main.ts", import.meta.url));
  const top = [Deno.execPath(), "run", "--quiet", "--allow-all", main, "top", counters];
  const size = ["-x", String(COLUMNS), "-y", String(ROWS)];
  await ask("-f", "/dev/null", "new-session", "-d", ...size, ...top);
  try {
    return await until(async () => {
      const text = await ask("capture-pane", "-p");
      return READY.test(text) ? text : undefined;
    });
  } finally {
    await ask("kill-server").catch(() => {});
  }
}

try {
  const tmux = await findProgram("tmux");
  if (tmux === undefined) throw new Error("there is no tmux: apt-get install tmux");
  const document = Deno.args[0] ?? fromFileUrl(new URL("../docs/watching.md", import.meta.url));
  const before = await Deno.readTextFile(document);
  if (!SCREEN.test(before)) throw new Error(`${document} has no screen of vmsg top`);
  const lines = (await screen(tmux)).split("\n").map((line) => `${INDENT}${line}`.trimEnd() + "\n");
  await Deno.writeTextFile(document, before.replace(SCREEN, () => lines.join("")));
} catch (error) {
  console.error(`docs:top: ${error instanceof Error ? error.message : error}`);
  Deno.exitCode = 1;
}
