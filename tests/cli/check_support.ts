/** `vmsg check` as a process, and what it must say of a device that keeps all rules. */

import { assertEquals } from "@std/assert";
import { isAsked } from "../../src/check/check.ts";
import { RULES } from "../../src/check/rules.ts";
import type { Dialect } from "../../src/message/codec.ts";
import type { Processes } from "../support/processes.ts";

/** Memory of a driver side that device sides know, in the directory of the test. */
export const MEMORY: readonly string[] = ["--memory", "file=ram,at=0x40000000"];
export const RAM_SIZE = 16 << 20;
/** Of the first queue. */
export const DEVICE_AREA = 0x8000;

export const busOf = (dialect: string, bus = "linux-user,socket=lu.sock"): string[] => [
  "--bus",
  `${bus},dialect=${dialect}`,
];

export interface Line {
  readonly rule: string;
  readonly verdict: string;
  readonly seen?: string;
}

/** Runs a check to its end; its exit code, and its lines. */
export async function check(vmsg: Processes, ...args: string[]): Promise<[number, Line[]]> {
  const { code, stdout } = await vmsg.run("check", "--json", ...args);
  return [code, stdout.map((line) => JSON.parse(line))];
}

export async function makeFile(vmsg: Processes, name: string, size: number): Promise<void> {
  using file = await Deno.create(`${vmsg.directory}/${name}`);
  await file.truncate(size);
}

/** Rules that a device which takes no write of its configuration is not asked for; and one with a single queue. */
export const READ_ONLY = ["V13", "V14", "V35", "V59"];
export const ONE_QUEUE = ["V21", "V23", "V24", "V33"];
const NO_CONFIGURATION = ["V12", "V37", "V58"];

/** Kinds of devices: which cannot be asked for what, in a dialect that has it. */
export const KINDS: Readonly<Record<string, readonly [args: string[], unlike: string[]]>> = {
  net: [["--net", "responder"], READ_ONLY],
  blk: [["--device", "blk,file=disk"], READ_ONLY],
  console: [["--device", "console,socket=console"], READ_ONLY],
  rng: [["--device", "rng"], [...READ_ONLY, ...NO_CONFIGURATION, ...ONE_QUEUE]],
  vsock: [["--device", "vsock,socket=vsock"], READ_ONLY],
};

/** None failed, and passed are all that can be asked for but those that it has not. */
export function assertKept(
  dialect: Dialect,
  [code, lines]: readonly [number, readonly Line[]],
  unlike: readonly string[],
): void {
  assertEquals(lines.filter(({ verdict }) => verdict === "FAIL"), []);
  assertEquals(code, 0);
  const rules = RULES.filter(({ sides, dialects }) =>
    sides.includes("device") && dialects.includes(dialect)
  );
  assertEquals(lines.map(({ rule }) => rule), rules.map(({ number }) => number));
  const expected = rules.filter((rule) => isAsked(rule, "device") && !unlike.includes(rule.number));
  const passed = lines.filter(({ verdict }) => verdict === "PASS");
  assertEquals(passed.map(({ rule }) => rule), expected.map(({ number }) => number));
}
