/**
 * `vmsg demo ivshmem` from the sources: the executable for its machines is compiled first, unless
 * there is one of the same sources. For a guest in an arm64 machine a QEMU is fetched, once.
 *
 *     deno task demo:ivshmem [--machine q35|arm64] [--net bridge|packet] [--inner [--direct]]
 */

import { fromFileUrl } from "@std/path";
import { parseArgs } from "@std/cli/parse-args";
import { VmsgError } from "../src/linux/errors.ts";
import { machineArchitecture } from "./lab/machine.ts";
import { compiledExecutable } from "./executable.ts";
import { fetchArm64Qemu } from "./fetch_arm64_qemu.ts";

const MAIN = fromFileUrl(new URL("../src/main.ts", import.meta.url));

async function main(args: readonly string[]): Promise<number> {
  const { machine, inner } = parseArgs([...args], { string: ["machine"], boolean: ["inner"] });
  // What it is told is the command's to judge.
  const architecture = machineArchitecture(machine === "arm64" ? "arm64" : "q35");
  const executable = await compiledExecutable(`${architecture}-unknown-linux-gnu`);
  if (machine === "arm64" && inner) await fetchArm64Qemu();
  const command = ["demo", "ivshmem", "--executable", executable, ...args];
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "--quiet", "--allow-all", MAIN, ...command],
  }).spawn();
  // Ctrl-C reaches it as well; it puts everything away before it ends.
  Deno.addSignalListener("SIGINT", () => {});
  Deno.addSignalListener("SIGTERM", () => child.kill("SIGTERM"));
  return (await child.status).code;
}

try {
  Deno.exit(await main(Deno.args));
} catch (error) {
  if (!(error instanceof VmsgError)) throw error;
  console.error(`demo: ${error.message}`);
  Deno.exit(1);
}
