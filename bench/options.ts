/**
 * The words that every bench understands:
 *
 *     --quick            few and short rounds: that it runs, not figures to compare; also VMSG_BENCH=quick
 *     --rounds=N         how many rounds, in turns with the twins
 *     --json             one JSON object on standard output; tables go to standard error
 *     --compare          beside each figure that of the runs before, of the same bench on this machine
 *     --history=FILE     where runs are kept (default: bench.jsonl in the cache directory); off: nowhere
 *     --exe=FILE         the vmsg that is measured, or `compiled`; without it the sources
 *     --out=FILE         where a plot goes
 *     NAME               only rows, or parts of the bench, whose name contains it
 */

const FLAGS = ["quick", "json", "compare"];
const VALUES = ["rounds", "history", "exe", "out"];

function complain(text: string): never {
  console.error(`bench: ${text}; see bench/options.ts`);
  Deno.exit(2);
}

const values = new Map<string, string>();
const selection: string[] = [];
for (const argument of Deno.args) {
  const [, name, value] = /^--([a-z]+)(?:=(.+))?$/.exec(argument) ?? [];
  if (!argument.startsWith("-")) selection.push(argument);
  else if (name !== undefined && (value === undefined ? FLAGS : VALUES).includes(name)) {
    values.set(name, value ?? "");
  } else complain(`there is no option ${argument}`);
}

/** Whether only a short run is wanted. */
export const isQuick: boolean = values.has("quick") || Deno.env.get("VMSG_BENCH") === "quick";
export const isJson: boolean = values.has("json");
export const isCompared: boolean = values.has("compare");
/** A file, "off", or undefined for the one in the cache directory. */
export const history: string | undefined = values.get("history");
/** A file, "compiled", or undefined for the sources. */
export const executable: string | undefined = values.get("exe");
export const outputFile: string | undefined = values.get("out");

const MAX_ROUNDS = 1000;

/** How many rounds are wanted: at least five, unless somebody says otherwise. */
export const rounds: number = roundsOf(values.get("rounds") ?? (isQuick ? "1" : "5"));

function roundsOf(text: string): number {
  const count = Number(text);
  if (!Number.isInteger(count) || count < 1 || count > MAX_ROUNDS) {
    complain(`--rounds=${text}: give a number from 1 to ${MAX_ROUNDS}`);
  }
  return count;
}

/** Whether the row or part of this name is wanted. */
export function isSelected(name: string): boolean {
  return selection.length === 0 || selection.some((part) => name.includes(part));
}

/** Prints a line for people. */
export function say(line: string): void {
  if (isJson) console.error(line);
  else console.log(line);
}
