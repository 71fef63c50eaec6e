/**
 * The processes of a bench: vmsg as a user starts it, and others beside it, each on a processor of its own where
 * there are enough. A keeper ends them and removes their directory, whatever happens.
 *
 * Pinned processes are all threads of them: a compiler's threads, too, so what a fresh process
 * does first is measured unpinned. Where there is one processor, or no taskset, nothing is pinned.
 */

import { fromFileUrl } from "@std/path";
import { compiledExecutable } from "../scripts/lab/executable.ts";
import { findProgram } from "../scripts/lab/libraries.ts";
import { type Keeper, openKeeper } from "../src/cli/keeper.ts";
import { executable } from "./options.ts";

const PATIENCE_MS = 60_000;
const END_MS = 20_000;
const MAX_TEXT = 1 << 20;

const TASKSET = await findProgram("taskset");
const canPin = TASKSET !== undefined && navigator.hardwareConcurrency >= 2;

/** Processors of the asking and of the answering side; -1: wherever there is room. */
export const HERE: number = canPin ? 0 : -1;
export const THERE: number = canPin ? 1 : -1;

/** Ties all threads of a process that runs to a processor, or its first one alone; they start others there. */
export function pin(pid: number, processor: number, what: "all" | "thread" = "all"): void {
  if (processor < 0) return;
  const args = [...(what === "all" ? ["-a"] : []), "-c", "-p", String(processor), String(pid)];
  const { success, stderr } = new Deno.Command(TASKSET!, { args, stdout: "null" }).outputSync();
  if (!success) throw new Error(`taskset: ${new TextDecoder().decode(stderr)}`);
}

const root = (path: string) => fromFileUrl(new URL(`../${path}`, import.meta.url));

/** What starts the vmsg that is measured. @param config of Deno, with the sources */
export async function vmsgCommand(config: string = root("deno.json")): Promise<string[]> {
  if (executable !== undefined) {
    return [executable === "compiled" ? await compiledExecutable() : executable];
  }
  const run = ["run", "--quiet", "--no-check", "--allow-all", "--config", config];
  return [Deno.execPath(), ...run, root("src/main.ts")];
}

export const sleep = (ms: number): Promise<void> =>
  new Promise((resolve) => setTimeout(resolve, ms));

/** Nanoseconds that all threads of a process have run. */
export function processorTimeNs(pid: number): number {
  let sum = 0;
  for (const { name } of Deno.readDirSync(`/proc/${pid}/task`)) {
    sum += Number(Deno.readTextFileSync(`/proc/${pid}/task/${name}/schedstat`).split(" ")[0]);
  }
  return sum;
}

/** How often threads of a process went from one processor to another; NaN where the kernel does not say. */
export function moves(pid: number): number {
  let sum = 0;
  for (const { name } of Deno.readDirSync(`/proc/${pid}/task`)) {
    const text = readIfThere(`/proc/${pid}/task/${name}/sched`);
    sum += Number(/^se\.nr_migrations\s*:\s*(\d+)/m.exec(text)?.[1]);
  }
  return sum;
}

/** Empty where there is no such file, as of a thread that has ended. */
function readIfThere(path: string): string {
  try {
    return Deno.readTextFileSync(path);
  } catch {
    return "";
  }
}

/** A process that was started. */
export class Running {
  /** What it said, on both streams. */
  text = "";
  readonly status: Promise<Deno.CommandStatus>;
  readonly #writer: WritableStreamDefaultWriter<Uint8Array<ArrayBuffer>>;
  #hasEnded = false;

  constructor(readonly name: string, readonly child: Deno.ChildProcess) {
    this.#writer = child.stdin.getWriter();
    const streams = [child.stdout, child.stderr].map(async (stream) => {
      for await (const text of stream.pipeThrough(new TextDecoderStream())) {
        this.text = (this.text + text).slice(-MAX_TEXT);
      }
    });
    this.status = Promise.all(streams).then(() => child.status).finally(() =>
      this.#hasEnded = true
    );
  }

  /** Waits until it has said something; returns all it said after so many characters. */
  async waitFor(pattern: RegExp, after = 0, timeoutMs = PATIENCE_MS): Promise<string> {
    for (const endMs = performance.now() + timeoutMs;; await sleep(5)) {
      const text = this.text.slice(after);
      if (pattern.test(text)) return text;
      if (!this.#hasEnded && performance.now() < endMs) continue;
      throw new Error(`${this.name} said nothing like ${pattern}: ${this.text.slice(-2000)}`);
    }
  }

  /** Gives it a line, and waits for what it answers. */
  async ask(line: string, until: RegExp): Promise<string> {
    const { length } = this.text;
    await this.#writer.write(new TextEncoder().encode(`${line}\n`));
    return await this.waitFor(until, length);
  }

  /** Waits for its end. @throws Error if that was no success */
  async success(): Promise<string> {
    const { code } = await this.status;
    if (code !== 0) throw new Error(`${this.name} ended with ${code}: ${this.text.slice(-2000)}`);
    return this.text;
  }

  /** Asks it to end; one that does not is left to the keeper. */
  async end(): Promise<void> {
    await this.#writer.close().catch(() => {});
    try {
      this.child.kill("SIGTERM");
    } catch { /* it has ended */ }
    let timer: ReturnType<typeof setTimeout> | undefined;
    await Promise.race([
      this.status,
      new Promise((resolve) => timer = setTimeout(resolve, END_MS)),
    ]);
    clearTimeout(timer);
  }
}

/** A directory, and processes that are started in it. Dispose ends them all, the last one first. */
export class Bench implements AsyncDisposable {
  readonly #running: Running[] = [];

  private constructor(readonly keeper: Keeper, readonly vmsgArgs: readonly string[]) {}

  static async open(): Promise<Bench> {
    const command = await vmsgCommand();
    return new Bench(await openKeeper(), command);
  }

  get directory(): string {
    return this.keeper.directory;
  }

  /** Starts a program on a processor, or anywhere. */
  async start(command: readonly string[], processor = -1, env = {}): Promise<Running> {
    const [program, ...args] = processor < 0
      ? command
      : [TASKSET!, "-c", String(processor), ...command];
    const child = new Deno.Command(program!, {
      args,
      env,
      cwd: this.directory,
      ...{ stdin: "piped", stdout: "piped", stderr: "piped" },
      detached: true,
    }).spawn();
    await this.keeper.keep(child.pid);
    const running = new Running(command.slice(0, 1).join(" "), child);
    this.#running.push(running);
    return running;
  }

  /** Starts vmsg. */
  vmsg(args: readonly string[], processor = -1): Promise<Running> {
    return this.start([...this.vmsgArgs, ...args], processor);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const running of this.#running.reverse()) await running.end();
    await this.keeper[Symbol.asyncDispose]();
    for (const { status } of this.#running) await status;
  }
}
