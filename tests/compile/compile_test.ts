/**
 * The executable: compiled, run, and run where there is nothing besides it.
 *
 * It needs what scripts/toolchain.ts says, and for arm64 what scripts/fetch_arm64.ts fetches. Where
 * that is missing a test says so and is ignored; with VMSG_COMPILE_TESTS=required it fails.
 */

import { assertEquals, assertMatch } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { openKeeper } from "../../src/cli/keeper.ts";
import { VERSION } from "../../src/version.ts";
import { arm64Command, findArm64 } from "../../scripts/fetch_arm64.ts";
import { mustRun, runCommand } from "../../scripts/lab/run_command.ts";
import { findToolchain, nativeTarget, type Target } from "../../scripts/toolchain.ts";
import { compiledExecutable, scriptCommand } from "../../scripts/lab/executable.ts";
import { toolchainLacks } from "../support/executable.ts";
import { type Lack, testUnless } from "../support/needs.ts";
import { withProcesses } from "../support/processes.ts";

const ARM64: Target = "aarch64-unknown-linux-gnu";
const START_SAMPLES = 11;
/** Nothing to find but chroot: the executable gets no variable that it could depend on. */
const BARE = { clearEnv: true, env: { PATH: "/usr/sbin:/usr/bin:/sbin:/bin" } };

/** The words that run a program in another root, or undefined where this user may not. */
async function findChroot(): Promise<string[] | undefined> {
  const command = Deno.uid() === 0 ? ["chroot"] : ["unshare", "-r", "chroot"];
  const { success } = await runCommand([...command, "/", "/bin/true"], BARE)
    .catch(() => ({ success: false }));
  return success ? command : undefined;
}

/** All paths below a directory. */
function pathsBelow(directory: string): string[] {
  return Array.from(Deno.readDirSync(directory)).flatMap(({ name, isDirectory }) => {
    const path = `${directory}/${name}`;
    return isDirectory ? [path, ...pathsBelow(path)] : [path];
  }).sort();
}

async function median(samples: number, measure: () => Promise<unknown>): Promise<number> {
  const times = [];
  for (let i = 0; i < samples; i++) {
    const start = performance.now();
    await measure();
    times.push(performance.now() - start);
  }
  return times.sort((a, b) => a - b)[samples >> 1]!;
}

/** Something that only these tests need. */
function lacks(missing: boolean, what: string): Lack[] {
  return missing ? [{ what, requiredBy: "VMSG_COMPILE_TESTS" }] : [];
}

const native = toolchainLacks(nativeTarget());
const chroot = await findChroot();
const arm64 = await findArm64();

testUnless("compile: versions, help, errors and exit codes", native, async () => {
  await using keeper = await openKeeper();
  const vmsg = `${keeper.directory}/vmsg`;
  await mustRun(scriptCommand("compile.ts", "--output", vmsg));
  const run = (...args: string[]) => runCommand([vmsg, ...args], { cwd: keeper.directory });

  assertEquals((await run("--version")).stdout, `vmsg ${VERSION}`);
  const help = await run("--help");
  assertEquals(help.code, 0);
  assertMatch(help.stdout, /^Usage: vmsg SUBCOMMAND/m);
  assertEquals((await run("device", "--help")).code, 0);

  const wrong: [number, RegExp, ...string[]][] = [
    [2, /nonsense/, "nonsense"],
    [2, /--bus .* is missing/, "device"],
    [2, /--colour/, "device", "--colour"],
    [1, /nowhere/, "driver", "--bus", "linux-user,socket=bus.sock,dir=/nowhere,wait=off"],
  ];
  for (const [code, pattern, ...args] of wrong) {
    const result = await run(...args);
    const [line = "", ...more] = result.stderr.split("\n");
    assertEquals([result.code, more, result.stdout], [code, [], ""], result.stderr);
    assertMatch(line, /^vmsg: /);
    assertMatch(line, pattern);
  }
  assertEquals(pathsBelow(keeper.directory), [vmsg]);

  const { size } = await Deno.stat(vmsg);
  const startMs = await median(START_SAMPLES, () => mustRun([vmsg, "--version"]));
  console.log(`vmsg: ${(size / 1e6).toFixed(1)} MB, starts in ${startMs.toFixed(0)} ms`);
});

testUnless(
  "compile: the demo in an otherwise empty root",
  [...native, ...lacks(chroot === undefined, "this user may not chroot (unshare -r)")],
  async () => {
    await using keeper = await openKeeper();
    const root = `${keeper.directory}/root`;
    await mustRun(scriptCommand("pack_root.ts", root, await compiledExecutable()));
    const before = pathsBelow(root);
    const demo = await runCommand([...chroot!, root, "/vmsg", "demo", "--throughput", "0.2"], BARE);
    assertEquals(demo.code, 0, `${demo.stdout}\n${demo.stderr}`);
    assertMatch(demo.stdout, /^10 packets transmitted, 10 received/m);
    assertEquals(pathsBelow(root), before, "the demo left something behind");
  },
);

testUnless(
  "compile: the arm64 executable pings itself under emulation",
  [
    ...toolchainLacks(ARM64),
    ...lacks(arm64 === undefined, "no qemu-aarch64, see scripts/fetch_arm64.ts"),
  ],
  async () => {
    await using keeper = await openKeeper();
    const vmsg = await compiledExecutable(ARM64);
    const [emulator = "", ...words] = arm64Command(arm64!);
    const run = (...args: string[]) => runCommand([emulator, ...words, vmsg, ...args]);
    assertEquals((await run("--version")).stdout, `vmsg ${VERSION}`);

    // The demo would start the executable without the emulator, so its two halves are started here.
    const bus = ["--bus", `linux-user,socket=${keeper.directory}/bus.sock,dir=${keeper.directory}`];
    const device = new Deno.Command(emulator, {
      args: [...words, vmsg, "device", ...bus, "--net", "responder"],
      stdin: "null",
      stdout: "null",
      stderr: "null",
      detached: true,
    }).spawn();
    await keeper.keep(device.pid);
    const driver = await run("driver", ...bus, "--count", "5", "--interval", "0.05");
    assertMatch(driver.stdout, /^5 packets transmitted, 5 received/m, driver.stderr);
    assertEquals(driver.code, 0);
    const { size } = await Deno.stat(vmsg);
    console.log(`vmsg-arm64: ${(size / 1e6).toFixed(1)} MB`);
    await keeper.end(device.pid);
    await device.status;
  },
);

testUnless("compile: an executable that is ready keeps FFI only", native, async () => {
  await using keeper = await openKeeper();
  const path = (name: string) => fromFileUrl(new URL(`../../${name}`, import.meta.url));
  const { deno, denort } = await findToolchain(nativeTarget());
  const child = `${keeper.directory}/child`;
  // Of our own flags all but the permissions, of which this one has all: what is lost was given up.
  const flags = ["--quiet", "--allow-all", "--no-check", "--no-code-cache"];
  const files = ["--config", path("deno.json"), `--include=${path("src/cli/worker.ts")}`];
  const output = ["--output", child, path("tests/cli/permissions_child.ts")];
  await mustRun([deno, "compile", ...flags, ...files, ...output], {
    env: denort === undefined ? {} : { DENORT_BIN: denort },
  });
  await withProcesses(keeper, async (vmsg) => {
    const device = await vmsg.startProgram(child, "device", "--bus", "linux-user,socket=s");
    assertEquals((await device.waitFor(/^allowed/)).text, "allowed: ffi");
  });
});

Deno.test("compile: what cannot work is one line and exit code 1", async () => {
  await using keeper = await openKeeper();
  const output = `${keeper.directory}/vmsg`;
  const wrong: [RegExp, Record<string, string>][] = [
    [/nowhere/, { DENORT_BIN: "/nowhere/denort" }],
    [/is not for/, { DENORT_BIN: "/proc/self/cmdline" }],
    [/nowhere/, { VMSG_COMPILE_DENO: "/nowhere/deno", DENORT_BIN: "", VMSG_DENORT_DIR: "" }],
    [/nowhere/, { VMSG_COMPILE_DENO: "", DENORT_BIN: "", VMSG_DENORT_DIR: "/nowhere" }],
  ];
  for (const [pattern, env] of wrong) {
    const result = await runCommand(scriptCommand("compile.ts", "--output", output), { env });
    assertEquals([result.code, result.stdout], [1, ""], result.stderr);
    assertMatch(result.stderr, pattern);
    assertEquals(result.stderr.split("\n").length, 1, result.stderr);
  }
  assertEquals(pathsBelow(keeper.directory), []);
});
