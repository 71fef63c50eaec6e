/**
 * Tests with two machines that share an ivshmem device; see scripts/lab/pair.ts.
 *
 * Each machine can be told what to do while it runs: its second serial port has a shell, which
 * {@link ControlledMachine.run} types into. The shell starts anew when the machine reboots, the
 * connection stays. What was typed and answered is printed with the consoles when a test fails.
 */

import { assert } from "@std/assert";
import type { Machine, MachineKind } from "../../scripts/lab/machine.ts";
import { machineArchitecture } from "../../scripts/lab/machine.ts";
import {
  openPair,
  type Pair,
  type PairMachineOptions,
  type PairOptions,
} from "../../scripts/lab/pair.ts";
import { compiledExecutable } from "../../scripts/lab/executable.ts";
import { COUNTED, PINGS } from "../../scripts/lab/scripts.ts";
import { until } from "../support/processes.ts";
import { type MachineTest, machineTest } from "./machine_support.ts";

/** From power-on or reset to the shell; only a machine that hangs meets it, see `GUEST_TIMEOUT_MS`. */
export const BOOT_TIMEOUT_MS = 300_000;
/** How long a command may take unless told. */
const RUN_TIMEOUT_MS = 300_000;
/** Where the second serial port of a q35 is. */
const PORT = "/dev/ttyS1";
const READY = /^SHELL READY$/;

/** What a machine does from its start on; what it leaves in the background goes on. */
function scriptWithShell(script: string): string {
  return `
# What comes before the port is open is lost.
exec 9<>${PORT}
${PINGS}${COUNTED}
stty -echo -onlcr <&9
cat >/tmp/start.sh <<'END-OF-START'
${script}
END-OF-START
sh /tmp/start.sh &
echo "SHELL READY"
while read -r line; do
  eval "$line" </dev/null >&9 2>&1
  echo "ANSWER $?" >&9
done <&9
`;
}

/** A machine of a pair, and the shell in it. */
export class ControlledMachine implements AsyncDisposable {
  /** What was typed and answered. */
  readonly transcript: string[] = [];
  #connection: Deno.UnixConn | undefined;
  #received = "";

  /** Called by {@link PairTest}. */
  constructor(
    readonly name: string,
    readonly machine: Machine,
    private readonly socket: string,
  ) {}

  /**
   * Waits for the shell.
   *
   * @param after of the console's lines, this many were said before the boot that is meant
   */
  async booted(after = 0): Promise<void> {
    await this.machine.waitFor(READY, BOOT_TIMEOUT_MS, after);
    this.#connection ??= await Deno.connect({ transport: "unix", path: this.socket });
  }

  /** Runs a command, one line, and returns what it said; it fails unless that ends with 0. */
  async run(command: string, timeoutMs = RUN_TIMEOUT_MS): Promise<string> {
    const { output, code } = await this.try(command, timeoutMs);
    assert(code === 0, `${this.name}: ${command}: exit code ${code}\n${output}`);
    return output;
  }

  /** Runs a command in the machine; it may fail, but has to end. */
  async try(
    command: string,
    timeoutMs = RUN_TIMEOUT_MS,
  ): Promise<{ readonly output: string; readonly code: number }> {
    const connection = this.#connection;
    if (connection === undefined) throw new Error(`${this.name} has not booted`);
    this.transcript.push(`$ ${command}`);
    const typed = new TextEncoder().encode(`${command}\n`);
    for (let done = 0; done < typed.length;) done += await connection.write(typed.subarray(done));
    const pattern = /^([^]*?)ANSWER (\d+)\r?\n/;
    const chunk = new Uint8Array(4096);
    const decoder = new TextDecoder();
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      connection.close();
      this.#connection = undefined;
    }, timeoutMs);
    try {
      for (;;) {
        const match = pattern.exec(this.#received);
        if (match !== null) {
          this.#received = this.#received.slice(match[0].length);
          const output = match[1]!.replaceAll("\r", "");
          this.transcript.push(...output.trimEnd().split("\n"), `[${match[2]}]`);
          return { output, code: Number(match[2]) };
        }
        const length = await connection.read(chunk).catch(() => null);
        const problem = `${this.name}: ${command}: no end within ${timeoutMs} ms\n`;
        if (length === null) throw new Error(late ? problem + this.#received : "QEMU has ended");
        this.#received += decoder.decode(chunk.subarray(0, length), { stream: true });
      }
    } finally {
      clearTimeout(timer);
    }
  }

  /** Runs a command until it ends with 0. */
  async runUntilDone(command: string, timeoutMs = BOOT_TIMEOUT_MS): Promise<void> {
    await this.run(`until ${command}; do sleep 0.2; done`, timeoutMs);
  }

  /** Kills all programs of these names, and waits until they are gone: a function of PCI is in use until then. */
  async kill(...names: readonly string[]): Promise<void> {
    const all = names.join(" ");
    await this.run(`killall -9 ${all}; while pidof ${all} >/dev/null; do sleep 0.1; done`);
  }

  /** Resets the machine and waits until its shell is there again. */
  async reset(): Promise<void> {
    const { lineCount } = this.machine;
    this.transcript.push("--- system_reset ---");
    await this.machine.qmp("system_reset");
    await this.booted(lineCount);
  }

  /** How many console lines match. */
  count(pattern: RegExp): number {
    return this.machine.console().split("\n").filter((line) => pattern.test(line)).length;
  }

  /**
   * Waits for so many console lines that match: the console may be read later than what the shell answered. There may be
   * more, where a machine that was slow was thought to be gone.
   */
  async hasSaid(pattern: RegExp, count: number): Promise<void> {
    await until(() => this.count(pattern) >= count, BOOT_TIMEOUT_MS);
  }

  /** Ends the machine. */
  async [Symbol.asyncDispose](): Promise<void> {
    try {
      this.#connection?.close();
    } catch {
      // It was late, and closed then.
    }
    this.#connection = undefined;
    await this.machine[Symbol.asyncDispose]();
  }
}

/** What a pair test is given. */
export interface PairTest {
  readonly pair: Pair;
  readonly kind: MachineKind;
  /** Starts machine A; both are ended after the test. */
  startA(options: PairMachineOptions): Promise<ControlledMachine>;
  /** Starts machine B. */
  startB(options: PairMachineOptions): Promise<ControlledMachine>;
}

/** Registers a test with two machines; what they said is printed if it fails. */
export function pairTest(name: string, body: (test: PairTest) => Promise<void>): void {
  machineTest(name, PAIR_KIND, (test) => withPair(test, {}, body));
}

/** The kind of machine that pairs are made of. */
export const PAIR_KIND = "q35";

/** Gives a test two machines, for one that needs something before there is a pair. */
export async function withPair(
  { installation }: Pick<MachineTest, "installation">,
  options: Pick<PairOptions, "size" | "confined" | "files" | "memoryMiB" | "vectors">,
  body: (test: PairTest) => Promise<void>,
): Promise<void> {
  const kind = PAIR_KIND;
  const executable = await compiledExecutable(`${machineArchitecture(kind)}-unknown-linux-gnu`);
  const started: ControlledMachine[] = [];
  const server: string[] = [];
  let sockets = 0;
  await using pair = await openPair({
    ...options,
    installation: { ...installation, kind },
    executable,
    onServerLine: (line) => server.push(line),
  });
  await using running = new AsyncDisposableStack();
  const start = async (
    name: string,
    starter: Pair["startA"],
    options: PairMachineOptions,
  ): Promise<ControlledMachine> => {
    const socket = `${pair.directory}/shell-${sockets++}`;
    const machine = await starter({
      ...options,
      script: scriptWithShell(options.script),
      extraArgs: [
        ...options.extraArgs ?? [],
        ...["-chardev", `socket,id=shell,server=on,wait=off,path=${socket}`],
        ...["-device", "isa-serial,chardev=shell"],
      ],
    });
    const controlled = running.use(new ControlledMachine(name, machine, socket));
    started.push(controlled);
    return controlled;
  };
  try {
    await body({
      pair,
      kind,
      startA: (options) => start("A", pair.startA, options),
      startB: (options) => start("B", pair.startB, options),
    });
  } catch (error) {
    console.error(`--- server ---\n${server.join("\n")}\n---`);
    started.forEach(({ name, machine, transcript }, index) => {
      const title = `machine ${index + 1}, ${name}`;
      console.error(`--- console of ${title} ---\n${machine.console()}---`);
      console.error(`--- shell of ${title} ---\n${transcript.join("\n")}\n---`);
    });
    throw error;
  }
}
