/** `--help`: as wide as the terminal, and still whole. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { COMMANDS } from "../../src/cli/commands.ts";
import { helpText, overviewText } from "../../src/cli/help.ts";
import { type Processes, processTest, VMSG_COMMAND } from "../support/processes.ts";

const WIDTHS = [40, 80, 200];

/** All words in their order, however they are broken into lines. */
function wordsOf(text: string): string {
  return text.replaceAll(/\\\n/g, "").replaceAll(/\s+/g, "");
}

const ALL = await Promise.all(Object.values(COMMANDS).map((load) => load()));

for (const width of WIDTHS) {
  Deno.test(`help: no line is longer than a terminal of ${width} columns`, () => {
    const commands = ALL;
    for (
      const text of [
        overviewText(commands, width),
        ...commands.map((c) => helpText(c, width)),
      ]
    ) {
      const [prose = "", examples = ""] = text.split("\nExamples:\n");
      const long = prose.split("\n").filter((line) => line.length > width);
      assertEquals(long, []);
      // A command's words stay whole; it is broken in front of its options.
      for (const line of examples.split("\n").filter((line) => line.length > width)) {
        assert(line.replace(/ \\$/, "").trim().split(" -").length <= 2, line);
      }
    }
  });
}

Deno.test("help: the width changes where lines end, and nothing else", () => {
  for (const command of ALL) {
    const [first, ...others] = WIDTHS.map((width) => wordsOf(helpText(command, width)));
    for (const other of others) assertEquals(other, first);
  }
  const [narrow, wide] = [40, 200].map((width) => helpText(commandOf(), width).split("\n").length);
  assert(narrow! > wide!);
});

Deno.test("help: every command that has a bus is traced and captured", () => {
  const withBus = ALL.filter(({ options }) => options.some(({ name }) => name === "bus"));
  assert(withBus.length >= 4, withBus.map(({ name }) => name).join());
  for (const { name, options } of withBus) {
    for (const wanted of ["trace", "trace-format", "capture"]) {
      assert(options.some((option) => option.name === wanted), `${name} --${wanted}`);
    }
  }
});

/** A command with what is hard to break. */
function commandOf() {
  return {
    name: "x",
    summary: "",
    description:
      "What it does, in so many words that they need more than one line of forty columns.",
    options: [{
      name: "place",
      value: "file=PATH|pci=ADDRESS[,via=wc|uc|vfio],at=ADDRESS[,size=N]",
      help: "where it is, and why it is there and not somewhere else",
    }],
    examples: ["vmsg x --place file=/dev/shm/ram,at=0x40000000 --place file=b,at=0"],
  };
}

Deno.test("help: paragraphs, options with hanging indent, and examples at 40 columns", () => {
  assertEquals(helpText(commandOf(), 40).split("\n"), [
    "Usage: vmsg x [options]",
    "",
    "What it does, in so many words that they",
    "need more than one line of forty",
    "columns.",
    "",
    "Options:",
    "  --place file=PATH|pci=ADDRESS",
    "    [,via=wc|uc|vfio],at=ADDRESS",
    "    [,size=N]",
    "      where it is, and why it is there",
    "      and not somewhere else",
    "  --help",
    "      show this help",
    "",
    "Examples:",
    "  vmsg x \\",
    "      --place file=/dev/shm/ram,at=0x40000000 \\",
    "      --place file=b,at=0",
    "",
  ]);
});

Deno.test("help: examples need no more than 80 columns as they are written", () => {
  for (const { examples } of ALL) {
    for (const line of examples.flatMap((example) => example.split("\n"))) {
      assert(line.length <= 78, line);
    }
  }
});

/** Runs vmsg on a terminal of its own with so many columns. */
async function onTerminal(vmsg: Processes, columns: number): Promise<string[]> {
  const command = [...VMSG_COMMAND, "driver", "--help"].join(" ");
  const shell = `stty cols ${columns}; exec ${command}`;
  await using process = await vmsg.startProgram("script", "-qec", shell, "/dev/null");
  const { stdout } = await process.ended();
  return stdout.map((line) => line.replace(/\r$/, ""));
}

processTest(
  "help: a terminal's width is used, and 80 columns where there is none",
  async (vmsg) => {
    const piped = (await vmsg.run("driver", "--help")).stdout;
    assertMatch(piped[0]!, /^Usage: vmsg driver/);
    const longest = (lines: readonly string[]) =>
      Math.max(...lines.slice(0, lines.indexOf("Examples:")).map(({ length }) => length));
    assert(longest(piped) > 70 && longest(piped) <= 80, `${longest(piped)}`);
    for (const columns of [40, 200]) {
      const shown = longest(await onTerminal(vmsg, columns));
      assert(shown > columns - 20 && shown <= columns, `${shown} of ${columns} columns`);
    }
  },
);
