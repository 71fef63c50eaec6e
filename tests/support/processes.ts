/**
 * vmsg subcommands as child processes, started as a user starts them: from a directory of the test's own,
 * with the permissions of `deno task vmsg`.
 *
 * A keeper (src/cli/keeper.ts) has charge of every process and of the directory, so nothing is left
 * behind when a test fails, is interrupted, or is killed. When a test fails, all that its processes
 * have said is printed.
 */

import { assert } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { TextLineStream } from "@std/streams/text-line-stream";
import { type Keeper, openKeeper } from "../../src/cli/keeper.ts";

/** How long anything may take that is not timed by the test; a busy machine is slow. */
export const PATIENCE_MS = 180_000;

/** What is printed of a failed test's processes at most. */
const PRINTED_PROCESSES = 8;
const PRINTED_LINES = 200;

/** One line that a process said. */
export interface Line {
  readonly stream: "stdout" | "stderr";
  readonly text: string;
  /** When it came, by `performance.now()`. */
  readonly atMs: number;
}

/** How a process ended, and what it said. */
export interface Ended {
  readonly code: number;
  readonly stdout: readonly string[];
  readonly stderr: readonly string[];
}

/** What starts vmsg, from any directory: a program and its first arguments. */
export const VMSG_COMMAND: readonly string[] = await vmsgCommand();

async function vmsgCommand(): Promise<string[]> {
  const root = (path: string) => fromFileUrl(new URL(`../../${path}`, import.meta.url));
  const config = root("deno.json");
  const task: string = JSON.parse(await Deno.readTextFile(config)).tasks.vmsg;
  const [deno, run, ...args] = task.split(" ");
  assert(deno === "deno" && run === "run" && args.at(-1) === "src/main.ts", task);
  const main = root("src/main.ts");
  return [Deno.execPath(), "run", "--config", config, ...args.slice(0, -1), main];
}

/** Resolves after `ms`. */
export function delay(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** Waits until something is so that another process brings about. */
export async function until(
  condition: () => boolean | Promise<boolean>,
  timeoutMs = PATIENCE_MS,
): Promise<void> {
  const endMs = performance.now() + timeoutMs;
  while (!await condition()) {
    assert(performance.now() < endMs, `not so within ${timeoutMs} ms: ${condition}`);
    await delay(10);
  }
}

/** A second later nothing of a process's start is under way any more (src/cli/warm_up.ts takes half of one). */
const AT_REST_MS = 1000;

/** Looks until it sees twice the same, some time apart. */
export async function atRest<T>(look: () => T): Promise<T> {
  for (;;) {
    const seen = look();
    await delay(AT_REST_MS);
    if (look() === seen) return seen;
  }
}

interface Waiter {
  readonly pattern: RegExp;
  resolve(line: Line): void;
  reject(error: Error): void;
}

/** A running vmsg, or another program. Dispose ends it and returns when it is gone. */
export class VmsgProcess implements AsyncDisposable {
  /** Everything it has said so far, in the order in which it came. */
  readonly lines: Line[] = [];
  /** Resolves when it has ended and all it said is in {@link lines}. */
  readonly status: Promise<Deno.CommandStatus>;
  readonly #waiters = new Set<Waiter>();
  #ended: Deno.CommandStatus | undefined;
  #end: Promise<void> | undefined;

  /** Called by {@link Processes.start}. */
  constructor(
    readonly program: string,
    readonly args: readonly string[],
    private readonly child: Deno.ChildProcess,
    private readonly keeper: Keeper,
  ) {
    this.status = this.#follow();
  }

  get pid(): number {
    return this.child.pid;
  }

  get hasEnded(): boolean {
    return this.#ended !== undefined;
  }

  get stdout(): string[] {
    return this.#of("stdout");
  }

  get stderr(): string[] {
    return this.#of("stderr");
  }

  #of(wanted: Line["stream"]): string[] {
    return this.lines.filter(({ stream }) => stream === wanted).map(({ text }) => text);
  }

  /**
   * The first line on either output that matches, of those that came and those to come.
   *
   * @param after leaves out this many lines, as in `const { length } = process.lines`
   */
  async waitFor(pattern: RegExp, timeoutMs = PATIENCE_MS, after = 0): Promise<Line> {
    const found = this.lines.slice(after).find(({ text }) => text.search(pattern) >= 0);
    if (found !== undefined) return found;
    if (this.#ended !== undefined) throw this.#endedError(pattern);
    const { promise, resolve, reject } = Promise.withResolvers<Line>();
    const waiter: Waiter = { pattern, resolve, reject };
    this.#waiters.add(waiter);
    const timer = setTimeout(() => {
      reject(new Error(`${this.#name} said nothing like ${pattern} within ${timeoutMs} ms`));
    }, timeoutMs);
    try {
      return await promise;
    } finally {
      clearTimeout(timer);
      this.#waiters.delete(waiter);
    }
  }

  /** Sends a signal; one that has ended does not mind. */
  kill(signal: Deno.Signal): void {
    if (this.#ended === undefined) this.child.kill(signal);
  }

  /** Waits for its end. */
  async ended(timeoutMs = PATIENCE_MS): Promise<Ended> {
    let timer: ReturnType<typeof setTimeout> | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(
        () => reject(new Error(`${this.#name} did not end within ${timeoutMs} ms`)),
        timeoutMs,
      );
    });
    try {
      const { code } = await Promise.race([this.status, late]);
      return { code, stdout: this.stdout, stderr: this.stderr };
    } finally {
      clearTimeout(timer);
    }
  }

  /** Sends a signal and waits for the end. */
  async end(signal: Deno.Signal, timeoutMs = PATIENCE_MS): Promise<Ended> {
    this.kill(signal);
    return await this.ended(timeoutMs);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // Once: afterwards the id may be somebody else's.
    this.#end ??= this.keeper.end(this.pid);
    await this.#end;
    await this.status;
  }

  get #name(): string {
    return `${this.program} ${this.args[0] ?? ""} (${this.pid})`;
  }

  #endedError(pattern: RegExp): Error {
    const how = this.#ended?.signal ?? `code ${this.#ended?.code}`;
    return new Error(`${this.#name} ended (${how}) and said nothing like ${pattern}`);
  }

  async #follow(): Promise<Deno.CommandStatus> {
    const streams = [this.#read("stdout"), this.#read("stderr")];
    const status = await this.child.status;
    await Promise.all(streams);
    this.#ended = status;
    for (const waiter of this.#waiters) waiter.reject(this.#endedError(waiter.pattern));
    return status;
  }

  async #read(stream: Line["stream"]): Promise<void> {
    const text: ReadableStream<string> = this.child[stream].pipeThrough(new TextDecoderStream());
    const lines: ReadableStream<string> = text.pipeThrough(new TextLineStream());
    for await (const line of lines) {
      const said = { stream, text: line, atMs: performance.now() };
      this.lines.push(said);
      for (const waiter of this.#waiters) {
        if (line.search(waiter.pattern) >= 0) waiter.resolve(said);
      }
    }
  }
}

/** The processes of one test. */
export class Processes {
  readonly #started: VmsgProcess[] = [];

  /** @param directory where they run */
  constructor(private readonly keeper: Keeper, readonly directory: string = keeper.directory) {}

  /** Starts vmsg with these arguments. */
  start(...args: string[]): Promise<VmsgProcess> {
    return this.#start("vmsg", args, [...VMSG_COMMAND, ...args]);
  }

  /** Starts another program in the same care; it may be one that runs {@link VMSG_COMMAND}. */
  startProgram(program: string, ...args: string[]): Promise<VmsgProcess> {
    return this.#start(program, args, [program, ...args]);
  }

  async #start(
    name: string,
    args: readonly string[],
    [program = "", ...words]: readonly string[],
  ): Promise<VmsgProcess> {
    const child = new Deno.Command(program, {
      args: [...words],
      cwd: this.directory,
      env: { NO_COLOR: "1", DENO_NO_UPDATE_CHECK: "1" },
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
      // The keeper ends sessions.
      detached: true,
    }).spawn();
    const kept = this.keeper.keep(child.pid);
    const process = new VmsgProcess(name, args, child, this.keeper);
    this.#started.push(process);
    await kept;
    return process;
  }

  /** Runs vmsg to its end. */
  async run(...args: string[]): Promise<Ended> {
    await using process = await this.start(...args);
    return await process.ended();
  }

  /** The names in the directory. */
  files(): string[] {
    return [...Deno.readDirSync(this.directory)].map(({ name }) => name).sort();
  }

  /** Ends all that still run. */
  async end(): Promise<void> {
    for (const process of this.#started) await process[Symbol.asyncDispose]();
  }

  /** Prints what the last of them have said. */
  print(): void {
    for (const { program, args, lines } of this.#started.slice(-PRINTED_PROCESSES)) {
      const command = [program, ...args].join(" ").replace(VMSG_COMMAND.join(" "), "vmsg");
      console.error(`--- ${command}`);
      const startMs = lines[0]?.atMs ?? 0;
      for (const { stream, text, atMs } of lines.slice(-PRINTED_LINES)) {
        console.error(`${(atMs - startMs).toFixed(0).padStart(6)} ms ${stream}: ${text}`);
      }
    }
  }
}

/** Gives a test processes under a keeper that the test has already. */
export async function withProcesses(
  keeper: Keeper,
  body: (processes: Processes) => Promise<void>,
): Promise<void> {
  const processes = new Processes(keeper);
  try {
    await body(processes);
  } catch (error) {
    processes.print();
    throw error;
  } finally {
    await processes.end();
  }
}

/** Registers a test that starts vmsg processes in an empty directory of its own. */
export function processTest(
  name: string,
  body: (processes: Processes) => Promise<void>,
  options: Pick<Deno.TestDefinition, "sanitizeOps" | "sanitizeResources"> = {},
): void {
  const fn = async () => {
    await using keeper = await openKeeper();
    await withProcesses(keeper, body);
  };
  Deno.test({ name, fn, ...options });
}
