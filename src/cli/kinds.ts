/** Kinds: records of what an option chooses among, from which its parsing, help and errors follow. */

import { UsageError } from "../linux/errors.ts";
import type { Section } from "./command.ts";
import { asGiven, Group } from "./groups.ts";

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
  readonly help: string;
}

export interface GroupKind extends Kind {
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

export function kindsSection(title: string, kinds: readonly Kind[]): Section {
  return { title, rows: kinds.map(({ usage, help }) => ({ term: usage, text: help })) };
}

/** Parses a group that begins with a kind; `common` are keys that all kinds know. */
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
  return { kind, group: new Group(option, name, text, values, keys) };
}
