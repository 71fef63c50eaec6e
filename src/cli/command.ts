/**
 * What a subcommand is: one table of options gives its parsing and its `--help` (help.ts).
 *
 * Options are long. One with a `value` takes it as `--name value` or `--name=value`; one that may be
 * `repeated` gives a list; the others are flags. Values with structure are groups, see groups.ts.
 */

import { parseArgs } from "@std/cli/parse-args";
import { UsageError } from "../linux/errors.ts";

export interface Option {
  readonly name: string;
  readonly value?: string;
  /** It may stand without its value, which is then "". */
  readonly valueIsOptional?: boolean;
  readonly repeated?: boolean;
  /** The repeated option in whose list its values are, each as `--NAME VALUE`. */
  readonly shortFor?: string;
  readonly required?: boolean;
  /** A flag that asks for information only: with it nothing else is required. */
  readonly alone?: boolean;
  readonly default?: string;
  readonly help: string;
}

export class Options {
  /** Called by {@link parseOptions}, with what the parser gave. */
  constructor(private readonly values: Readonly<Record<string, unknown>>) {}

  flag(name: string): boolean {
    return this.values[name] === true;
  }

  /** The value given last, or else the default; a flag has none. */
  text(name: string): string | undefined {
    const value = this.values[name];
    return typeof value === "string" ? value : undefined;
  }

  list(name: string): string[] {
    return this.values[name] as string[];
  }

  /** What stands alone, see {@link CommandText.operands}. */
  get operands(): string[] {
    return this.list("_");
  }

  /** One of some words; a usage error otherwise. */
  choice<Word extends string>(name: string, words: readonly Word[]): Word | undefined {
    const text = this.text(name);
    const word = words.find((word) => word === text);
    if (word !== undefined || text === undefined) return word;
    throw new UsageError(`--${name} is one of ${words.join(", ")}, not ${text}`);
  }

  /** A whole number within limits; a usage error otherwise. */
  wholeNumber(name: string, min: number, max: number): number | undefined {
    return this.number(name, min, max, "whole number", Number.isSafeInteger);
  }

  /** The same of any number. */
  number(name: string, min: number, max: number, kind = "number", isKind = Number.isFinite) {
    const text = this.text(name);
    if (text === undefined) return undefined;
    const value = Number(text);
    if (text.trim() === "" || !isKind(value) || value < min || value > max) {
      throw new UsageError(`--${name} takes a ${kind} from ${min} to ${max}, not ${text}`);
    }
    return value;
  }
}

export interface Section {
  readonly title: string;
  readonly rows: readonly { readonly term: string; readonly text: string }[];
}

export interface CommandText {
  readonly name: string;
  /** One line for the list of subcommands. */
  readonly summary: string;
  readonly description: string;
  /** What stands before the options, for the help; nothing may unless this is given. */
  readonly operands?: string;
  /** How it is started, for messages, where that is not `vmsg NAME`. */
  readonly call?: string;
  /** Arguments that were misplaced here, and the line that says where they belong. */
  readonly elsewhere?: ReadonlyMap<string, string>;
  readonly options: readonly Option[];
  readonly details?: readonly Section[];
  /** Command lines; those of at most 78 columns stay whole on a terminal of 80. */
  readonly examples: readonly string[];
}

/** A subcommand that needs no Worker; those with one are in plane.ts. */
export interface Command extends CommandText {
  run(options: Options): Promise<number>;
}

/** How it is started. */
export function callOf({ call, name }: CommandText): string {
  return call ?? `vmsg ${name}`;
}

export function allOptions(command: CommandText): Option[] {
  return [...command.options, { name: "help", alone: true, help: "show this help" }];
}

/** Parses a subcommand's arguments; throws a UsageError that names what is wrong. */
export function parseOptions(command: CommandText, args: readonly string[]): Options {
  const see = `see: ${callOf(command)} --help`;
  const options = allOptions(command);
  const names = (which: (option: Option) => unknown) =>
    options.filter(which).map(({ name }) => name);
  const flags = names(({ value }) => value === undefined);
  // The parser takes what has the form of a value: `--trace=off` would be a set flag.
  const wrong = flags.find((flag) => args.some((argument) => argument.startsWith(`--${flag}=`)));
  if (wrong !== undefined) throw new UsageError(`--${wrong} takes no value`);
  const parsed: Record<string, unknown> = parseArgs(inOrder(options, args), {
    boolean: flags,
    string: [...names(({ value }) => value), "_"],
    collect: names(({ repeated }) => repeated),
    default: Object.fromEntries(
      options.flatMap((option) =>
        option.default === undefined ? [] : [[option.name, option.default]]
      ),
    ),
    unknown: (argument: string, key?: string) => {
      if (key === undefined && command.operands !== undefined) return;
      throw new UsageError(
        key !== undefined
          ? `unknown option ${argument.split("=")[0]}; ${see}`
          : command.elsewhere?.get(argument) ?? `unexpected argument ${argument}; ${see}`,
      );
    },
  });
  const isAlone = options.some(({ name, alone }) => alone === true && parsed[name] === true);
  for (const { name, value, required, valueIsOptional } of options) {
    const given = [parsed[name] ?? []].flat();
    if (given.includes("") && valueIsOptional !== true) {
      throw new UsageError(`--${name} needs ${value}`);
    }
    if (required === true && given.length === 0 && !isAlone) {
      throw new UsageError(`--${name} ${value} is missing; ${see}`);
    }
  }
  return new Options(parsed);
}

/** Gives `--net X` as `--device=--net X` where it is short for that: one list keeps the order of both. */
function inOrder(options: readonly Option[], args: readonly string[]): string[] {
  const given: string[] = [];
  for (let i = 0; i < args.length; i++) {
    const [, name, inline] = /^--([^=]*)(?:=(.*))?$/s.exec(args[i]!) ?? [];
    const shortFor = options.find((option) => option.name === name)?.shortFor;
    const value = inline ?? args[i + 1] ?? "";
    if (shortFor === undefined || value === "" || value.startsWith("-")) given.push(args[i]!);
    else {
      given.push(`--${shortFor}=--${name} ${value}`);
      if (inline === undefined) i++;
    }
  }
  return given;
}
