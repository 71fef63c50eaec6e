/**
 * What a subcommand is: one table of options gives its parsing and its `--help` (help.ts).
 *
 * Options are long. One with a `value` takes it as `--name value` or `--name=value`; one that may be
 * `repeated` gives a list; the others are flags. Values with structure are groups, see groups.ts.
 */

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

/** An option as it was given; a flag has no value. */
export interface Given {
  readonly name: string;
  readonly value: string | undefined;
}

/** The parsed options by name. */
export class Options {
  readonly #given: readonly Given[];
  readonly #defaults: ReadonlyMap<string, string>;

  /** Called by {@link parseOptions}. */
  constructor(given: readonly Given[], defaults: ReadonlyMap<string, string>) {
    this.#given = given;
    this.#defaults = defaults;
  }

  /** Whether a flag was given. */
  flag(name: string): boolean {
    return this.inOrder(name).length > 0;
  }

  /** The value given last, or else the default. */
  text(name: string): string | undefined {
    return this.list(name).at(-1) ?? this.#defaults.get(name);
  }

  /** The values of a repeated option. */
  list(name: string): string[] {
    return this.inOrder(name).flatMap(({ value }) => value ?? []);
  }

  /** All that was given of several options, in the order of the command line. */
  inOrder(...names: readonly string[]): Given[] {
    return this.#given.filter(({ name }) => names.includes(name));
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

/** A part of a help text: terms, and what each means. */
export interface Section {
  readonly title: string;
  readonly rows: readonly { readonly term: string; readonly text: string }[];
}

/** What is parsed and shown of a subcommand. */
export interface CommandText {
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
  readonly details?: readonly Section[];
  /** Command lines; those of at most 78 columns stay whole on a terminal of 80. */
  readonly examples: readonly string[];
}

/** A subcommand that needs no Worker; those with one are in plane.ts. */
export interface Command extends CommandText {
  /** Runs it; the result is the exit code. */
  run(options: Options): Promise<number>;
}

/** How it is started. */
export function callOf({ call, name }: CommandText): string {
  return call ?? `vmsg ${name}`;
}

/** The options of a subcommand, and those that every subcommand has. */
export function allOptions(command: CommandText): Option[] {
  return [...command.options, { name: "help", alone: true, help: "show this help" }];
}

/** Parses a subcommand's arguments; throws a UsageError that names what is wrong. */
export function parseOptions(command: CommandText, args: readonly string[]): Options {
  const see = `see: ${callOf(command)} --help`;
  const known = new Map(allOptions(command).map((option) => [option.name, option]));
  const given: Given[] = [];
  for (let i = 0; i < args.length; i++) {
    const argument = args[i]!;
    if (!isOption(argument)) {
      throw new UsageError(
        command.elsewhere?.get(argument) ?? `unexpected argument ${argument}; ${see}`,
      );
    }
    const equals = argument.indexOf("=");
    const word = equals < 0 ? argument : argument.slice(0, equals);
    const option = word.startsWith("--") ? known.get(word.slice(2)) : undefined;
    if (option === undefined) throw new UsageError(`unknown option ${word}; ${see}`);
    const { name } = option;
    if (option.value === undefined) {
      if (equals >= 0) throw new UsageError(`${word} takes no value`);
      given.push({ name, value: undefined });
      continue;
    }
    let value = argument.slice(equals + 1);
    if (equals < 0) {
      // A value that looks like an option is given with "=", so that a forgotten one is noticed.
      value = isOption(args[i + 1] ?? "-x") ? "" : args[++i]!;
    }
    if (value === "") throw new UsageError(`${word} needs ${option.value}`);
    given.push({ name, value });
  }
  const isGiven = (wanted: string) => given.some(({ name }) => name === wanted);
  const options = [...known.values()];
  const isAlone = options.some(({ name, alone }) => alone === true && isGiven(name));
  const missing = options.find(({ name, required }) => required === true && !isGiven(name));
  if (missing !== undefined && !isAlone) {
    throw new UsageError(`--${missing.name} ${missing.value} is missing; ${see}`);
  }
  const defaults = options.flatMap((option): [string, string][] =>
    option.default === undefined ? [] : [[option.name, option.default]]
  );
  return new Options(given, new Map(defaults));
}

/** A dash alone is a value, by custom standard input. */
function isOption(argument: string): boolean {
  return argument.startsWith("-") && argument !== "-";
}
