/**
 * What a subcommand is: one table of options gives its parsing and its `--help`.
 *
 * Options are long. One with a `value` takes it as `--name value` or `--name=value`; one that may be
 * `repeated` gives a list; the others are flags. Values with structure are groups, see groups.ts.
 */

import { parseArgs } from "@std/cli/parse-args";
import { UsageError } from "../linux/errors.ts";

/** One option of a subcommand. */
export interface Option {
  readonly name: string;
  /** What stands for the value in the help; a flag has none. */
  readonly value?: string;
  readonly repeated?: boolean;
  readonly required?: boolean;
  /** A flag that asks for information only: with it nothing else is required. */
  readonly alone?: boolean;
  readonly default?: string;
  readonly help: string;
}

/** The parsed options by name. */
export class Options {
  readonly #values: Readonly<Record<string, unknown>>;

  constructor(values: Readonly<Record<string, unknown>>) {
    this.#values = values;
  }

  flag(name: string): boolean {
    return this.#values[name] === true;
  }

  text(name: string): string | undefined {
    const value = this.#values[name];
    return typeof value === "string" ? value : undefined;
  }

  list(name: string): string[] {
    const value = this.#values[name];
    return Array.isArray(value) ? value.map(String) : [];
  }

  /** A number within limits; a usage error otherwise. */
  number(name: string, min: number, max: number): number | undefined {
    return this.#number(name, min, max, "number", Number.isFinite);
  }

  /** A whole number within limits; a usage error otherwise. */
  wholeNumber(name: string, min: number, max: number): number | undefined {
    return this.#number(name, min, max, "whole number", Number.isSafeInteger);
  }

  #number(
    name: string,
    min: number,
    max: number,
    kind: string,
    isKind: (value: number) => boolean,
  ): number | undefined {
    const text = this.text(name);
    if (text === undefined) return undefined;
    const value = Number(text);
    if (text.trim() === "" || !isKind(value) || value < min || value > max) {
      throw new UsageError(`--${name} takes a ${kind} from ${min} to ${max}, not ${text}`);
    }
    return value;
  }
}

/** A subcommand. */
export interface Command {
  readonly name: string;
  /** One line for the list of subcommands. */
  readonly summary: string;
  /** What the subcommand does, for its own help. */
  readonly description: string;
  /** How it is started, for messages, where that is not `vmsg NAME`. */
  readonly call?: string;
  /** Arguments that were misplaced here, and the line that says where they belong. */
  readonly elsewhere?: ReadonlyMap<string, string>;
  readonly options: readonly Option[];
  /** What the help says between options and examples. */
  readonly details?: readonly string[];
  readonly examples: readonly string[];
  /** Runs it; the result is the exit code. */
  run(options: Options): Promise<number>;
}

/** Options that every subcommand has. */
const COMMON: readonly Option[] = [{ name: "help", alone: true, help: "show this help" }];

function callOf({ call, name }: Command): string {
  return call ?? `vmsg ${name}`;
}

/** Parses a subcommand's arguments; throws a UsageError that names what is wrong. */
export function parseOptions(command: Command, args: readonly string[]): Options {
  const options = [...command.options, ...COMMON];
  const see = `see: ${callOf(command)} --help`;
  const of = (test: (option: Option) => boolean) => options.filter(test).map(({ name }) => name);
  const parsed = parseArgs([...args], {
    string: of((option) => option.value !== undefined),
    boolean: of((option) => option.value === undefined),
    collect: of((option) => option.repeated === true),
    "--": false,
    unknown: (argument: string, key?: string) => {
      if (key !== undefined) {
        throw new UsageError(`unknown option ${argument.split("=")[0]}; ${see}`);
      }
      // Before its options are: none of them would be known.
      const where = command.elsewhere?.get(argument);
      if (where !== undefined) throw new UsageError(where);
      return true;
    },
  });
  // The parser takes any `--flag=...` but `=false` for a set flag, `--trace=off` too.
  const flags = of((option) => option.value === undefined).map((name) => `--${name}=`);
  const wrong = flags.find((flag) => args.some((argument) => argument.startsWith(flag)));
  if (wrong !== undefined) throw new UsageError(`${wrong.slice(0, -1)} takes no value`);
  const values: Record<string, unknown> = { ...parsed };
  const alone = options.some((option) => option.alone === true && parsed[option.name] === true);
  for (const option of options) {
    if (option.value === undefined) continue;
    const value = values[option.name];
    const given = option.repeated === true ? (value as string[]) : [value];
    if (given.includes("")) throw new UsageError(`--${option.name} needs ${option.value}`);
    if (option.default !== undefined) values[option.name] ??= option.default;
    const missing = values[option.name] === undefined || (given.length === 0);
    if (option.required === true && missing && !alone) {
      throw new UsageError(`--${option.name} ${option.value} is missing; ${see}`);
    }
  }
  if (parsed._.length > 0) throw new UsageError(`unexpected argument ${parsed._[0]}; ${see}`);
  return new Options(values);
}

/** The text of `vmsg NAME --help`. */
export function helpText(command: Command): string {
  const rows = [...command.options, ...COMMON].map((option) => {
    const left = option.value === undefined
      ? `--${option.name}`
      : `--${option.name} ${option.value}`;
    const notes = [
      option.help,
      option.default === undefined ? "" : `(default ${option.default})`,
      option.repeated === true ? "(may be repeated)" : "",
    ];
    return `  ${left}\n      ${notes.filter((note) => note !== "").join(" ")}`;
  });
  return [
    `Usage: ${callOf(command)} [options]`,
    "",
    command.description,
    "",
    "Options:",
    ...rows,
    "",
    ...(command.details ?? []).flatMap((text) => [text, ""]),
    "Examples:",
    ...command.examples.map((example) => `  ${example}`),
    "",
  ].join("\n");
}
