/** scripts/run_tests.ts on tests of which some fail: the end of its output says what, why, and how long all took. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { brief } from "../../scripts/test_output.ts";
import { withDirectory } from "../support/leaks.ts";

const SCRIPT = fromFileUrl(new URL("../../scripts/run_tests.ts", import.meta.url));

const TESTS = `
Deno.test("good", () => {});
Deno.test("slow", () => new Promise((resolve) => setTimeout(resolve, 600)));
Deno.test("left out", { ignore: true }, () => {});
console.log("NOT RUN: left out: it is a try");
Deno.test("talks and fails", () => {
  for (let i = 0; i < 40; i++) console.error("said " + i);
  throw new Error("what was wrong");
});
Deno.test("with steps", async (t) => {
  await t.step("of one", () => {
    throw new Error("what was wrong in it");
  });
});
`;

async function runTests(directory: string, file: string, ...more: string[]) {
  const report = `${directory}/report`;
  const { code, stdout } = await new Deno.Command(Deno.execPath(), {
    args: [
      ...["run", "--no-config", "--allow-all", SCRIPT, `--report=${report}`, "--no-check"],
      ...[...more, file],
    ],
    cwd: directory,
    env: { NO_COLOR: "1", DENO_NO_UPDATE_CHECK: "1" },
    stdin: "null",
    stderr: "null",
  }).output();
  const lines = new TextDecoder().decode(stdout).trimEnd().split("\n");
  return { code, lines, report: (await Deno.readTextFile(report)).trimEnd().split("\n") };
}

Deno.test("run_tests: the end names what was slow and what failed, and why", () =>
  withDirectory(async (directory) => {
    await Deno.writeTextFile(`${directory}/a_test.ts`, TESTS);
    const { code, lines, report } = await runTests(directory, "a_test.ts");
    const end = lines.slice(lines.indexOf("slowest:"));
    assertEquals(code, 1);
    // Others may take as long, on a machine that has other work to do.
    assert(end.some((line) => /^ +\d+ s a_test.ts: slow$/.test(line)), end.join("\n"));
    const failed = end.slice(end.indexOf("NOT RUN: left out: it is a try") + 1);
    assertMatch(failed[0]!, /^FAILED: talks and fails => \.\/a_test\.ts:\d+:\d+$/);
    assertEquals(failed[1], "    error: Error: what was wrong");
    const step = failed.findIndex((line) => line.startsWith("FAILED: with steps ... of one => "));
    assertEquals(failed[step - 1], "    | said 39");
    assertEquals(failed[step + 1], "    error: Error: what was wrong in it");
    assertEquals(failed.at(-1), "2 passed, 2 failed, 1 skipped");
    assertEquals(report[0], "2 2 1");
    assertEquals(report.filter((line) => line.startsWith("FAILED")).length, 2);
  }));

/** Fails, and passes when it runs once more. */
const SECOND = (name: string) => `
Deno.test("${name}", async (t) => {
  const isFirst = await Deno.mkdir("${name}").then(() => true, () => false);
  await t.step("of one", () => {
    if (isFirst) throw new Error("what was wrong at first");
  });
});`;

Deno.test("run_tests --again: what passes alone is named, what fails twice has failed, and many are no chance", () =>
  withDirectory(async (directory) => {
    const names = ["not (yet)? a-z", "not (yet)? a-z, there"];
    const write = (tests: string) => Deno.writeTextFile(`${directory}/c_test.ts`, tests);
    const once = async (again: number) => {
      const { code, lines, report } = await runTests(directory, "c_test.ts", `--again=${again}`);
      for (const name of names) await Deno.remove(`${directory}/${name}`).catch(() => {});
      const named = report.filter((line) => /^[A-Z ]+: /.test(line)).map((line) =>
        line.replace(/ => .*/, "")
      );
      assertEquals(lines.at(-1), report[0]!.replace(/^(\d+) (\d+) 0$/, "$1 passed, $2 failed"));
      return [code, report[0], ...named];
    };
    const again = names.map((name) => `PASSED ONLY WHEN RUN AGAIN: ${name} ... of one`);
    const failed = names.map((name) => `FAILED: ${name} ... of one`);
    await write(`Deno.test("good", () => {});${names.map(SECOND).join("")}`);
    assertEquals(await once(2), [0, "3 0 0", ...again]);
    assertEquals(await once(1), [1, "1 2 0", ...failed]);
    assertEquals(await once(0), [1, "1 2 0", ...failed]);
    await write(`${SECOND(names[0]!)}Deno.test("bad", () => { throw new Error("always"); });`);
    assertEquals(await once(2), [1, "1 1 0", "FAILED: bad", again[0]]);
    await write(`${SECOND(names[0]!)}\nthrow new Error("outside");`);
    assertEquals((await once(2)).slice(0, 2), [1, "0 1 0"]);
  }));

Deno.test("run_tests: a file that cannot be loaded is a failure that says why", () =>
  withDirectory(async (directory) => {
    await Deno.writeTextFile(`${directory}/b_test.ts`, 'import "./nowhere.ts";\n');
    const { code, lines, report } = await runTests(directory, "b_test.ts");
    assertEquals([code, lines.at(-1), report[0]], [1, "0 passed, 1 failed", "0 1 0"]);
    assertMatch(report.slice(1).join("\n"), /^FAILED: .*\n[^]*nowhere\.ts/);
  }));

Deno.test("run_tests: however much failed, as many lines as there may be", () => {
  const failures = Array.from({ length: 30 }, (_, i) => ({
    name: `${i}`,
    error: ["a", "b", "c"],
    said: ["d", "e"],
  }));
  for (const limit of [1, 10, 29, 30, 31, 60, 90, 200]) {
    const lines = brief(failures, limit);
    const named = lines.filter((line) => /^FAILED: \d+$/.test(line)).length;
    assertEquals([lines.length <= limit, named], [true, limit < 30 ? limit - 1 : 30]);
  }
  assertEquals(brief(failures.slice(0, 1), 6), [
    "FAILED: 0",
    ..."abc".split("").map(indented),
    "    | e",
  ]);
});

const indented = (line: string) => `    ${line}`;
