/**
 * Runs the tests as an ordinary user, started by root. What only root may do must say so there, and not fail.
 *
 *     deno task test:user [arguments of scripts/run_tests.ts]
 *
 * Without files it runs all tests but those of guests that do for a user what they do for root, through the same code (a
 * few of each kind stay), and some others that do. `deno task test:user tests` runs every one.
 *
 * The user is 65534 (nobody), without groups and capabilities. It gets a directory of its own, which is gone
 * afterwards: a copy of the sources as git knows them, of this Deno and of the packages that it has fetched
 * (they may lie in root's home), and of what guests are made of. Tests that need root, or anything else that
 * is not there, are not required to run; the executable is not compiled. The exit code is that of
 * scripts/run_tests.ts.
 */

import { cacheDirectory } from "./lab/cache.ts";

const USER = "65534";
const ROOT = new URL("../", import.meta.url).pathname;
const REPORT = "--report=";
const AGAIN = "--again=";
const GUESTS = "tests/guest";
/** Of the tests with guests those that run as a user as well: of each dialect and mode, and what people type. */
const USERS_GUESTS = [
  "dialects",
  "first_ping",
  "guest",
  "initramfs",
  "interrupt",
  "no_shared_memory",
  "prepare",
  "readme",
];
/** Other tests that take long, and do the same whoever runs them. */
const SAME_FOR_ALL = [
  "tests/bench",
  "tests/bus/bridge_carried_test.ts",
  "tests/bus/bridge_process_hostile_test.ts",
  "tests/cli/check_buses_test.ts",
  "tests/cli/check_drivers_test.ts",
  "tests/cli/check_faults_test.ts",
  "tests/cli/check_kinds_test.ts",
  "tests/cli/check_test.ts",
  "tests/cli/flood_test.ts",
  "tests/end_to_end/bridge_test.ts",
  "tests/end_to_end/other_drivers_test.ts",
  "tests/fuzz",
  "tests/scripts",
];
/** What is made for executables, and what was found out about root's guests. */
const NOT_COPIED = ["denort", "executables", "accelerator"];

async function run(program: string, ...args: string[]): Promise<string> {
  const command = new Deno.Command(program, { args, stderr: "inherit" });
  const { success, stdout } = await command.output();
  if (!success) throw new Error(`${program} ${args[0]} failed`);
  return new TextDecoder().decode(stdout);
}

/** Copies files or directories into one, with their names; what is not there is left out. */
async function copyInto(directory: string, ...paths: string[]): Promise<void> {
  await Deno.mkdir(directory, { recursive: true });
  for (const path of paths) {
    const isThere = await Deno.stat(path).then(() => true, () => false);
    if (isThere) await run("cp", "-r", path, `${directory}/`);
  }
}

async function copySources(directory: string): Promise<void> {
  // The sources may be somebody else's, of which git warns otherwise.
  const git = ["-c", "safe.directory=*", "-C", ROOT];
  const list = await run("git", ...git, "ls-files", "-co", "--exclude-standard", "-z");
  for (const path of list.split("\0").filter((path) => path !== "")) {
    const target = `${directory}/${path}`;
    await Deno.mkdir(target.slice(0, target.lastIndexOf("/")), { recursive: true });
    // A file that was removed is listed until that is committed.
    await Deno.copyFile(`${ROOT}${path}`, target).catch(() => {});
  }
}

/** Tests that root's run is enough for. */
function rootsTests(): string[] {
  const kept = USERS_GUESTS.map((name) => `${name}_test.ts`);
  const names = [...Deno.readDirSync(`${ROOT}${GUESTS}`)].map(({ name }) => name);
  for (const name of kept) {
    if (!names.includes(name)) throw new Error(`${GUESTS}/${name} is gone`);
  }
  const left = names.filter((name) => name.endsWith("_test.ts") && !kept.includes(name));
  return [...SAME_FOR_ALL, ...left.map((name) => `${GUESTS}/${name}`)];
}

async function testAsUser(args: readonly string[]): Promise<number> {
  const home = await Deno.makeTempDir({ prefix: "vmsg-user-" });
  // Ctrl-C reaches the tests as well, which end; then the directory goes.
  Deno.addSignalListener("SIGINT", () => {});
  try {
    await copySources(`${home}/vmsg`);
    await copyInto(`${home}/bin`, Deno.execPath());
    const { denoDir } = JSON.parse(await run(Deno.execPath(), "info", "--json"));
    await copyInto(`${home}/deno`, `${denoDir}/npm`);
    const cache = cacheDirectory();
    if (cache !== undefined) {
      const entries = await Array.fromAsync(Deno.readDir(cache)).catch(() => []);
      const names = entries.map(({ name }) => name).filter((name) => !NOT_COPIED.includes(name));
      await copyInto(`${home}/.cache/vmsg`, ...names.map((name) => `${cache}/${name}`));
    }
    await run("chown", "-R", `${USER}:${USER}`, home);
    const report = args.find((arg) => arg.startsWith(REPORT))?.slice(REPORT.length);
    const given = args.filter((arg) => !arg.startsWith(REPORT));
    const rest = given.every((arg) => arg.startsWith(AGAIN))
      ? [...given, `--leave-out=${rootsTests()}`]
      : given;
    const accel = Deno.env.get("VMSG_ACCEL");
    const child = new Deno.Command("setpriv", {
      args: [
        ...[`--reuid=${USER}`, `--regid=${USER}`, "--clear-groups", "--"],
        ...[`${home}/bin/deno`, "run", "--allow-all", "scripts/run_tests.ts"],
        ...[`${REPORT}${home}/report`, ...rest],
      ],
      cwd: `${home}/vmsg`,
      clearEnv: true,
      env: {
        PATH: `${home}/bin:${Deno.env.get("PATH") ?? "/usr/bin:/bin"}`,
        HOME: home,
        DENO_DIR: `${home}/deno`,
        DENO_NO_UPDATE_CHECK: "1",
        NO_COLOR: "1",
        ...(accel === undefined ? {} : { VMSG_ACCEL: accel }),
      },
      stdin: "null",
    }).spawn();
    Deno.addSignalListener("SIGTERM", () => child.kill("SIGTERM"));
    const { code } = await child.status;
    if (report !== undefined) await Deno.copyFile(`${home}/report`, report).catch(() => {});
    return code;
  } finally {
    await Deno.remove(home, { recursive: true });
  }
}

if (Deno.uid() !== 0) {
  console.error("test_as_user: only root can be somebody else; as a user run: deno task test");
  Deno.exit(2);
}
Deno.exit(await testAsUser(Deno.args));
