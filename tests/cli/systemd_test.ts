/** The unit files of scripts/systemd: what systemd says of them, and that they give vmsg what it needs. */

import { assert, assertEquals } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { COMMANDS } from "../../src/cli/commands.ts";
import { openKeeper } from "../../src/cli/keeper.ts";
import { MIN_FILES, MIN_MEMORY } from "../../src/cli/needs.ts";
import { findProgram } from "../../src/linux/programs.ts";
import { testUnless } from "../support/needs.ts";

const DIRECTORY = fromFileUrl(new URL("../../scripts/systemd", import.meta.url));
const UNITS = [...Deno.readDirSync(DIRECTORY)].map(({ name }) => name).sort()
  .filter((name) => name.endsWith(".service"));
/** Exposure as systemd-analyze has it, from 0 to 100. */
const MAX_EXPOSURE = 15;

const textOf = (name: string) => Deno.readTextFileSync(`${DIRECTORY}/${name}`);

Deno.test("systemd: units start what there is, with all it needs", () => {
  assertEquals(UNITS.length, 3);
  for (const name of UNITS) {
    const value = (key: string) => new RegExp(`^${key}=(.*)$`, "m").exec(textOf(name))![1]!;
    const [, subcommand] = value("ExecStart").split(" ");
    assert(Object.hasOwn(COMMANDS, subcommand!), name);
    assert(Number(value("LimitNOFILE")) >= MIN_FILES, name);
    assert(parseInt(value("MemoryMax")) * 2 ** 20 >= MIN_MEMORY, name);
    // What V8 would not start with.
    assertEquals(value("MemoryDenyWriteExecute"), "no");
  }
});

const analyze = findProgram("systemd-analyze");
testUnless(
  "systemd: its own tool finds nothing wrong with the units, and little that they could reach",
  analyze === undefined ? [{ what: "no systemd-analyze (Debian: apt-get install systemd)" }] : [],
  async () => {
    await using keeper = await openKeeper();
    const dropIns = [...Deno.readDirSync(DIRECTORY)].map(({ name }) => name)
      .filter((name) => name.endsWith(".conf"));
    assertEquals(dropIns.length, 3);
    for (const name of UNITS) {
      // It looks for the program.
      const text = textOf(name).replace("/usr/local/bin/vmsg", "/bin/true");
      for (const [i, dropIn] of [undefined, ...dropIns].entries()) {
        if (dropIn !== undefined && !name.startsWith("vmsg-device")) continue;
        const unit = `${keeper.directory}/${name.replace("@", `@guest${i}`)}`;
        await Deno.writeTextFile(unit, text);
        if (dropIn !== undefined) {
          await Deno.mkdir(`${unit}.d`);
          await Deno.writeTextFile(`${unit}.d/${dropIn}`, textOf(dropIn));
        }
        const run = async (...args: string[]) => {
          const { code, stdout, stderr } = await new Deno.Command(analyze!, { args }).output();
          const said = new TextDecoder().decode(stderr) + new TextDecoder().decode(stdout);
          assertEquals(code, 0, `${name} ${dropIn}: ${said}`);
          return said;
        };
        assertEquals(await run("verify", "--man=no", unit), "");
        if (dropIn !== undefined) continue;
        await run("security", "--offline=true", `--threshold=${MAX_EXPOSURE}`, unit);
      }
    }
  },
);
