/**
 * Builds vhost-user back ends of the rust-vmm project from crates.io, for tests with back ends that others have written:
 * `cargo install`, with the versions that each crate was released with, into the cache directory.
 *
 *     deno run -A scripts/fetch_back_ends.ts
 *
 * It takes a minute or two, and cargo (of Debian or rustup). What is there already is left alone.
 */

import { VmsgError } from "../src/linux/errors.ts";
import { crateProgram, crateRoot, CRATES } from "./lab/back_ends.ts";
import { findProgram } from "./lab/libraries.ts";

function isThere(path: string): Promise<boolean> {
  return Deno.stat(path).then(({ isFile }) => isFile, () => false);
}

async function findCargo(): Promise<string> {
  const home = Deno.env.get("HOME");
  const found = await findProgram("cargo") ?? `${home}/.cargo/bin/cargo`;
  if (await isThere(found)) return found;
  throw new VmsgError("NO_CARGO", "cargo is missing: apt-get install cargo, or use rustup");
}

async function install(crate: keyof typeof CRATES): Promise<void> {
  if (await isThere(crateProgram(crate))) {
    console.log(`${crate} is in ${crateRoot()}`);
    return;
  }
  const version = CRATES[crate];
  console.log(`building ${crate} ${version}`);
  const cargo = await findCargo();
  const target = await Deno.makeTempDir({ prefix: "vmsg-crates-" });
  try {
    const where = ["--root", crateRoot()!, "--target-dir", target];
    const args = ["install", "--quiet", "--locked", ...where, `${crate}@${version}`];
    // rustup's cargo finds its rustc beside itself.
    const path = `${cargo.slice(0, cargo.lastIndexOf("/"))}:${Deno.env.get("PATH")}`;
    const command = new Deno.Command(cargo, { args, stdin: "null", env: { PATH: path } });
    const { success } = await command.spawn().status;
    if (!success) throw new VmsgError("CARGO", `cargo cannot build ${crate} ${version}, see above`);
  } finally {
    await Deno.remove(target, { recursive: true });
  }
}

try {
  if (crateRoot() === undefined) {
    throw new VmsgError("NO_CACHE", "there is no cache directory: set XDG_CACHE_HOME or HOME");
  }
  for (const crate of Object.keys(CRATES)) await install(crate as keyof typeof CRATES);
} catch (error) {
  if (!(error instanceof VmsgError)) throw error;
  console.error(error.message);
  Deno.exit(1);
}
