/**
 * Option groups as QEMU and vhost-device users know them: `kind,key=value,flag,...`. The kind may have a
 * value of its own, as in `tap=tap0`, which is that of the key with its name.
 *
 * A flag is a key without value and means `on`; `flag=off` switches it off. Every key that is not in
 * the table is a usage error, so a misspelt one never passes silently.
 */

import { UsageError } from "../linux/errors.ts";
import type { Section } from "./command.ts";

/** A parsed group. */
export class Group {
  readonly #values: ReadonlyMap<string, string>;

  constructor(
    /** What it was given to, as in `--net` or `--device net`, for messages. */
    readonly option: string,
    readonly kind: string,
    values: ReadonlyMap<string, string>,
  ) {
    this.#values = values;
  }

  /** A value, or undefined when the key was not given. */
  text(key: string): string | undefined {
    return this.#values.get(key);
  }

  /** A value that must be there. */
  required(key: string): string {
    const value = this.#values.get(key);
    if (value === undefined || value === "") throw this.error(`${key}= is missing`);
    return value;
  }

  /** A switch. */
  flag(key: string, otherwise: boolean): boolean {
    const value = this.#values.get(key);
    if (value === undefined) return otherwise;
    if (value !== "on" && value !== "off") throw this.error(`${key} is on or off, not ${value}`);
    return value === "on";
  }

  /** A whole number within limits. */
  number(key: string, min: number, max: number, otherwise: number): number {
    const text = this.#values.get(key);
    if (text === undefined) return otherwise;
    const value = Number(text);
    if (text === "" || !Number.isSafeInteger(value) || value < min || value > max) {
      throw this.error(`${key} is a whole number from ${min} to ${max}, not ${text}`);
    }
    return value;
  }

  /** A number of bytes or an address: decimal or 0x..., with K, M or G for powers of 1024. */
  bytes(key: string, otherwise?: number): number {
    const text = this.#values.get(key);
    if (text === undefined && otherwise !== undefined) return otherwise;
    const match = /^(0x[0-9a-f]+|[0-9]+)([KMG]?)$/i.exec(this.required(key));
    const power = match === null ? 0 : " KMG".indexOf(match[2].toUpperCase() || " ");
    const value = match === null ? NaN : Number(match[1]) * 1024 ** power;
    if (!Number.isSafeInteger(value)) {
      throw this.error(`${key} is a number of bytes such as 4096, 0x1000 or 64M, not ${text}`);
    }
    return value;
  }

  /** One of a few words. */
  choice<T extends string>(key: string, choices: readonly T[], otherwise: T): T {
    const text = this.#values.get(key);
    if (text === undefined) return otherwise;
    const found = choices.find((choice) => choice === text);
    if (found === undefined) {
      throw this.error(`${key} is one of ${choices.join(", ")}, not ${text}`);
    }
    return found;
  }

  /** A usage error that names the group. */
  error(problem: string): UsageError {
    return new UsageError(`${asGiven(this.option, this.kind)}: ${problem}`);
  }
}

/** A value behind what it was given to: `--net tap`, `--device net,tap`. */
function asGiven(option: string, text: string): string {
  if (text === "") return option;
  return `${option}${option.includes(" ") ? "," : " "}${text}`;
}

/**
 * One kind of something that an option chooses: a bus, a port, a device. All that the command line says
 * and knows of it is in its record.
 *
 * The record is used on both threads. The main one parses what was given into settings, plain data that
 * can be sent; the Worker opens what they describe. (Each sort of kinds has its own `parse` and `open`.)
 */
export interface Kind {
  readonly name: string;
  /** How it is written, for the help: `shm,file=PATH[,offset=N]`. */
  readonly usage: string;
  /** What it is, for the help. */
  readonly help: string;
}

/** A kind whose value is a group. */
export interface GroupKind extends Kind {
  /** The keys that it knows. */
  readonly keys: readonly string[];
}

/** What was chosen, as plain data: a kind by name, and what its `parse` gave, for its `open`. */
export interface Chosen {
  readonly kind: string;
  readonly settings: unknown;
}

/** The kind of that name; a usage error otherwise. */
export function findKind<K extends Kind>(kinds: readonly K[], option: string, name: string): K {
  const found = kinds.find((kind) => kind.name === name);
  if (found !== undefined) return found;
  const names = kinds.map(({ name }) => name).join(", ");
  throw new UsageError(`${asGiven(option, name)}: unknown, one of ${names} is expected`);
}

/** The kinds as a part of a help text. */
export function kindsSection(title: string, kinds: readonly Kind[]): Section {
  return { title, rows: kinds.map(({ usage, help }) => ({ term: usage, text: help })) };
}

/**
 * Parses a group that begins with a kind.
 *
 * @param option what it was given to, for messages
 * @param common keys that all kinds know
 */
export function parseKind<K extends GroupKind>(
  option: string,
  text: string,
  kinds: readonly K[],
  common: readonly string[] = [],
): { readonly kind: K; readonly group: Group } {
  const parts = text.split(",");
  const kind = findKind(kinds, option, parts[0]!.split("=")[0]!);
  const { name } = kind;
  // A kind alone has no value; with one it is a key like others.
  const values = parts[0] === name ? parts.slice(1) : parts;
  const keys = [...kind.keys, ...common];
  return { kind, group: new Group(option, name, readPairs(option, text, values, keys, name)) };
}

/** Parses a group without a kind; it may be empty. */
export function parseGroup(option: string, text: string, keys: readonly string[]): Group {
  const parts = text === "" ? [] : text.split(",");
  return new Group(option, "", readPairs(option, text, parts, keys));
}

function readPairs(
  option: string,
  text: string,
  parts: readonly string[],
  keys: readonly string[],
  kind?: string,
): Map<string, string> {
  const values = new Map<string, string>();
  const wrong = (problem: string) => new UsageError(`${asGiven(option, text)}: ${problem}`);
  for (const part of parts) {
    const equals = part.indexOf("=");
    const [key, value] = equals < 0
      ? [part, "on"]
      : [part.slice(0, equals), part.slice(equals + 1)];
    if (key !== kind && !keys.includes(key)) {
      const known = keys.length === 0 ? "there are none" : `known are ${keys.join(", ")}`;
      throw wrong(`unknown key ${key}, ${known}`);
    }
    if (values.has(key)) throw wrong(`${key} is given twice`);
    values.set(key, value);
  }
  return values;
}
