/**
 * Option groups as QEMU and vhost-device users know them: `kind,key=value,flag,...`. The kind may have a
 * value of its own, as in `tap=tap0`, which is that of the key with its name.
 *
 * A flag is a key without value and means `on`; `flag=off` switches it off. Every key that is not in
 * the table is a usage error, so a misspelt one never passes silently.
 */

import { UsageError } from "../linux/errors.ts";

export class Group {
  readonly #values = new Map<string, string>();

  /**
   * Parses the parts of a group; a usage error for a key that is unknown or given twice.
   *
   * @param option what it was given to, as in `--net` or `--device net`, for messages, as `text` is
   * @param kind is a key besides
   */
  constructor(
    readonly option: string,
    readonly kind: string,
    text: string,
    parts: readonly string[],
    keys: readonly string[],
  ) {
    const wrong = (problem: string) => new UsageError(`${asGiven(option, text)}: ${problem}`);
    for (const part of parts) {
      const [key, value] = /^([^=]*)=?(.*)$/s.exec(part)!.slice(1) as [string, string];
      if (key !== kind && !keys.includes(key)) {
        const known = keys.length === 0 ? "there are none" : `known are ${keys.join(", ")}`;
        throw wrong(`unknown key ${key}, ${known}`);
      }
      if (this.#values.has(key)) throw wrong(`${key} is given twice`);
      this.#values.set(key, part === key ? "on" : value);
    }
  }

  text(key: string): string | undefined {
    return this.#values.get(key);
  }

  required(key: string): string {
    const value = this.#values.get(key);
    if (value === undefined || value === "") throw this.error(`${key}= is missing`);
    return value;
  }

  flag(key: string, otherwise: boolean): boolean {
    const value = this.#values.get(key);
    if (value === undefined) return otherwise;
    if (value !== "on" && value !== "off") throw this.error(`${key} is on or off, not ${value}`);
    return value === "on";
  }

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

  choice<T extends string>(key: string, choices: readonly T[], otherwise: T): T {
    const text = this.#values.get(key);
    if (text === undefined) return otherwise;
    const found = choices.find((choice) => choice === text);
    if (found === undefined) {
      throw this.error(`${key} is one of ${choices.join(", ")}, not ${text}`);
    }
    return found;
  }

  error(problem: string): UsageError {
    return new UsageError(`${asGiven(this.option, this.kind)}: ${problem}`);
  }
}

/** A value behind what it was given to, for messages: `--net tap`, `--device net,tap`. */
export function asGiven(option: string, text: string): string {
  if (text === "") return option;
  return `${option}${option.includes(" ") ? "," : " "}${text}`;
}

/** Parses a group without a kind; it may be empty. */
export function parseGroup(option: string, text: string, keys: readonly string[]): Group {
  return new Group(option, "", text, text === "" ? [] : text.split(","), keys);
}

export function parseBytes(option: string, text: string): number {
  return parseGroup(option, `size=${text}`, ["size"]).bytes("size");
}
