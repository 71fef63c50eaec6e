/**
 * Compiles vmsg into one executable.
 *
 *     deno task compile [--target aarch64-unknown-linux-gnu] [--output vmsg]
 *
 * `deno compile` downloads its base binary; toolchain.ts says what to set where it cannot.
 */

import { parseArgs } from "@std/cli/parse-args";
import { fromFileUrl } from "@std/path";
import { UsageError, VmsgError } from "../src/linux/errors.ts";
import { runCommand } from "./lab/run_command.ts";
import { findToolchain, nativeTarget, type Target, TARGETS } from "./toolchain.ts";

const ROOT = fromFileUrl(new URL("..", import.meta.url));

const FLAGS: readonly string[] = [
  "--quiet",
  // What all subcommands together need; each gives up what it does not (src/cli/permissions.ts). FFI cannot be narrowed
  // to a library.
  ...["--no-prompt", "--allow-ffi", "--allow-env", "--allow-run", "--allow-write"],
  // The cache would lie in /tmp under a name anybody can take, and saves nothing (measured).
  "--no-code-cache",
  // It would collect what starting up left, for seconds of an emulated machine's only processor, to save a megabyte or two
  // (docs/performance.md).
  "--v8-flags=--no-memory-reducer",
  `--include=${ROOT}src/cli/worker.ts`,
];

/** Where e_machine lies in an ELF file, and what it is for each target. */
const ELF_MACHINE_AT = 18;
const ELF_MACHINE: Readonly<Record<Target, number>> = {
  "x86_64-unknown-linux-gnu": 62,
  "aarch64-unknown-linux-gnu": 183,
};

/** A base binary for another machine would be taken without a word. */
async function checkBaseBinary(path: string, target: Target): Promise<void> {
  const header = new DataView(new ArrayBuffer(ELF_MACHINE_AT + 2));
  try {
    using file = await Deno.open(path);
    await file.read(new Uint8Array(header.buffer));
  } catch (error) {
    throw new VmsgError("BASE_BINARY", `base binary ${path}: ${(error as Error).message}`);
  }
  if (header.getUint16(ELF_MACHINE_AT, true) === ELF_MACHINE[target]) return;
  throw new VmsgError("BASE_BINARY", `base binary ${path} is not for ${target}`);
}

async function compile(target: Target, output: string): Promise<void> {
  const { deno, denort } = await findToolchain(target);
  if (denort !== undefined) await checkBaseBinary(denort, target);
  const where = ["--config", `${ROOT}deno.json`, "--target", target, "--output", output];
  const args = ["compile", ...FLAGS, ...where, `${ROOT}src/main.ts`];
  const env: Record<string, string> = denort === undefined ? {} : { DENORT_BIN: denort };
  const { success, stderr } = await runCommand([deno, ...args], { env });
  if (!success && stderr.includes("Setting up base binary")) {
    const advice = "set DENORT_BIN to a copy of the same version, see scripts/toolchain.ts";
    throw new VmsgError("BASE_BINARY", `deno cannot get its base binary for ${target}: ${advice}`);
  }
  if (!success) throw new VmsgError("COMPILE", `deno compile failed:\n${stderr}`);
  if (target !== nativeTarget()) return;
  // Deno does not notice a base binary of another version; what comes out does not run.
  const version = await runCommand([output, "--version"]);
  if (version.success && version.stdout.startsWith("vmsg ")) return;
  await Deno.remove(output);
  const reason = version.stderr.split("\n")[0];
  throw new VmsgError("COMPILE", `what ${deno} and ${denort} made does not run: ${reason}`);
}

async function main(args: readonly string[]): Promise<void> {
  const options = parseArgs([...args], {
    string: ["target", "output"],
    unknown: (argument: string) => {
      throw new UsageError(`unknown argument ${argument}; see the head of scripts/compile.ts`);
    },
  });
  const target = Object.keys(TARGETS).find((name) => name === (options.target ?? nativeTarget()));
  if (target === undefined) {
    throw new UsageError(`--target is ${Object.keys(TARGETS).join(" or ")}, not ${options.target}`);
  }
  const output = options.output ?? "vmsg";
  if (output === "") throw new UsageError("--output needs a path");
  await compile(target as Target, output.includes("/") ? output : `./${output}`);
  const { size } = await Deno.stat(output);
  console.log(`${output}: ${(size / 1e6).toFixed(0)} MB for ${target}`);
}

if (import.meta.main) {
  try {
    await main(Deno.args);
  } catch (error) {
    if (!(error instanceof VmsgError)) throw error;
    console.error(`compile: ${error.message}`);
    Deno.exit(error instanceof UsageError ? 2 : 1);
  }
}
