/**
 * Help texts, as wide as the terminal. Lines are broken at spaces; a word that is longer than a line, as a value
 * with many keys is, where one of its parts begins. Examples stay commands: their lines end with a backslash.
 */

import { allOptions, callOf, type CommandText, type Option, type Section } from "./command.ts";

const DEFAULT_WIDTH = 80;
const MIN_WIDTH = 30;

/** Columns of the terminal that standard output is; 80 if it is none. */
export function terminalWidth(): number {
  // consoleSize() asks any of the three standard streams.
  if (!Deno.stdout.isTerminal()) return DEFAULT_WIDTH;
  try {
    // A serial line has no size.
    return Deno.consoleSize().columns || DEFAULT_WIDTH;
  } catch {
    return DEFAULT_WIDTH;
  }
}

/** Before `[` and after a comma, but not between `[` and the comma that follows it. */
const PART = /(?<=[^[])(?=\[)|(?<=[^[],)(?=.)/;

/** Puts pieces with what stands between them into lines. */
function fill(
  pieces: readonly { readonly text: string; readonly glue: string }[],
  first: string,
  indent: number,
  width: number,
  end: string,
): string[] {
  const room = Math.max(width, MIN_WIDTH);
  const lines: string[] = [];
  let line = first;
  pieces.forEach(({ text, glue }, i) => {
    const more = i + 1 < pieces.length ? end.length : 0;
    if (i === 0) line += text;
    else if (line.length + glue.length + text.length + more <= room) line += glue + text;
    else {
      lines.push(line + end);
      line = " ".repeat(indent) + text;
    }
  });
  return [...lines, line];
}

/** Breaks a text into lines; the first begins with `first`, the others with spaces. */
function wrap(text: string, first: string, indent: number, width: number): string[] {
  const pieces = text.split(/\s+/).flatMap((word) => {
    const parts = word.length + indent > width ? word.split(PART) : [word];
    return parts.map((part, i) => ({ text: part, glue: i === 0 ? " " : "" }));
  });
  return fill(pieces, first, indent, width, "");
}

/** Breaks a command line, which may have several lines already, in front of its options. */
function wrapExample(example: string, width: number): string[] {
  return example.split(/\n */).flatMap((line, i) => {
    const pieces = line.split(/ (?=-)/).map((text) => ({ text, glue: " " }));
    return fill(pieces, " ".repeat(i === 0 ? 2 : 6), 6, width, " \\");
  });
}

function rowLines(term: string, text: string, width: number): string[] {
  return [...wrap(term, "  ", 4, width), ...wrap(text, " ".repeat(6), 6, width)];
}

function optionLines(option: Option, width: number): string[] {
  const { value: form, valueIsOptional } = option;
  const value = form === undefined ? "" : valueIsOptional ? ` [${form}]` : ` ${form}`;
  const notes = [
    option.help,
    option.default === undefined ? "" : `(default ${option.default})`,
    option.repeated === true ? "(may be repeated)" : "",
  ];
  return rowLines(`--${option.name}${value}`, notes.filter((note) => note !== "").join(" "), width);
}

function sectionLines({ title, rows }: Section, width: number): string[] {
  return [`${title}:`, ...rows.flatMap(({ term, text }) => rowLines(term, text, width)), ""];
}

/** The text of `vmsg NAME --help`, in lines of at most `width` columns. */
export function helpText(command: CommandText, width: number): string {
  return [
    ...wrap(
      [callOf(command), command.operands, "[options]"].filter(Boolean).join(" "),
      "Usage: ",
      7,
      width,
    ),
    "",
    ...wrap(command.description, "", 0, width),
    "",
    "Options:",
    ...allOptions(command).flatMap((option) => optionLines(option, width)),
    "",
    ...(command.details ?? []).flatMap((section) => sectionLines(section, width)),
    "Examples:",
    ...command.examples.flatMap((example) => wrapExample(example, width)),
    "",
  ].join("\n");
}

/** The text of `vmsg --help`. */
export function overviewText(commands: readonly CommandText[], width: number): string {
  const column = Math.max(...commands.map(({ name }) => name.length)) + 3;
  return [
    ...wrap(
      "vmsg: virtio devices over messages, between systems that merely share memory and a doorbell",
      "",
      0,
      width,
    ),
    "",
    "Usage: vmsg SUBCOMMAND [options]",
    "       vmsg SUBCOMMAND --help",
    "       vmsg --version",
    "",
    "Subcommands:",
    ...commands.flatMap(({ name, summary }) =>
      wrap(summary, `  ${name.padEnd(column - 2)}`, column, width)
    ),
    "",
  ].join("\n");
}
