/** A running guest: its console, its end, and how to end it early. */

import { VmsgError } from "../../src/linux/errors.ts";
import type { Keeper } from "../../src/cli/keeper.ts";

/** The machines of QEMU that a guest may have; see `qemu.ts`. */
export type QemuKind = "microvm" | "q35" | "arm64";

/** The kinds of guest there are. */
export type GuestKind = "uml" | QemuKind;

/** What every kind of guest can be told. */
export interface GuestOptions {
  /** An archive as `buildInitramfs` makes it. */
  readonly initramfs: Uint8Array;
  /** The vhost-user socket its network card connects to; without it the guest has none. */
  readonly socket?: string;
  /** The guest's memory in MiB. */
  readonly memoryMiB?: number;
  /** More words for the kernel's command line. */
  readonly kernelArgs?: readonly string[];
  /** Called with every line of the console as it comes. */
  readonly onLine?: (line: string) => void;
}

/** What init prints when the script has run, before it powers the guest off. */
export const DONE_LINE = "GUEST-DONE";

/**
 * A line of a guest's kernel behind the beginning of another one. The kernel writes at any moment, its own line in one piece, and
 * what a program has written goes on behind it. (A line of another kernel that is passed on has a label: "U| [    4.2...] ...".)
 */
const KERNEL_LINE = /^(?!\S+[|:] \[)([!-~].*?)(\[ *\d+\.\d{6}\] .*)$/s;

/** The console is kept up to this many characters; older lines go first. */
const MAX_CONSOLE = 1 << 20;

/** How to start the process of a guest. */
export interface GuestCommand {
  /** For messages. */
  readonly kind: GuestKind;
  /** The program, on PATH or with its path. */
  readonly program: string;
  /** Its arguments. */
  readonly args: readonly string[];
  /** Variables of the environment besides our own. */
  readonly env?: Record<string, string>;
}

interface Waiter {
  readonly pattern: RegExp;
  resolve(line: string): void;
  reject(error: VmsgError): void;
}

/**
 * A guest that was started. Dispose ends it, with every process and file that belongs to it, and
 * returns when they are gone; a guest that has powered itself off must be disposed as well.
 */
export class Guest implements AsyncDisposable {
  /** Resolves when the guest's process has ended and its console is complete. */
  readonly status: Promise<Deno.CommandStatus>;
  readonly #lines: string[] = [];
  #length = 0;
  /** Lines that are not kept any more. */
  #dropped = 0;
  readonly #waiters = new Set<Waiter>();
  #ended: Deno.CommandStatus | undefined;

  /**
   * Called by {@link startGuest}.
   *
   * @param child in a session of its own, with output and error output piped
   * @param keeper is closed with the guest
   */
  constructor(
    /** Which kind it is. */
    readonly kind: GuestKind,
    child: Deno.ChildProcess,
    private readonly keeper: Keeper,
    private readonly onLine: (line: string) => void,
  ) {
    this.status = this.#follow(child);
  }

  /** All that the guest has said so far, its program's error messages included. */
  console(): string {
    return this.#lines.map((line) => line + "\n").join("");
  }

  /** How many lines have come so far. */
  get lineCount(): number {
    return this.#dropped + this.#lines.length;
  }

  /**
   * The first line that matches, of those that came and those to come.
   *
   * @param after leaves out this many lines, as in `const { lineCount } = guest`
   * @throws VmsgError GUEST_TIMEOUT, or GUEST_ENDED when no such line can come any more
   */
  async waitFor(pattern: RegExp, timeoutMs: number, after = 0): Promise<string> {
    const lines = after > this.#dropped ? this.#lines.slice(after - this.#dropped) : this.#lines;
    const found = lines.find((line) => line.search(pattern) >= 0);
    if (found !== undefined) return found;
    if (this.#ended !== undefined) throw this.#endedError(pattern);
    const { promise, resolve, reject } = Promise.withResolvers<string>();
    const waiter: Waiter = { pattern, resolve, reject };
    this.#waiters.add(waiter);
    const timer = setTimeout(() => {
      const waited = `said nothing like ${pattern} within ${timeoutMs / 1000} s`;
      reject(new VmsgError("GUEST_TIMEOUT", `the ${this.kind} guest ${waited}; ${this.#last()}`));
    }, timeoutMs);
    try {
      return await promise;
    } finally {
      clearTimeout(timer);
      this.#waiters.delete(waiter);
    }
  }

  /** Ends the guest, however far it is. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.keeper[Symbol.asyncDispose]();
    await this.status;
  }

  async #follow(child: Deno.ChildProcess): Promise<Deno.CommandStatus> {
    const streams = [child.stdout, child.stderr].map((stream) => this.#read(stream));
    const status = await child.status;
    // Helpers that outlived it hold its output open. A keeper that is closing ends them anyway.
    await this.keeper.end(child.pid).catch(() => {});
    await Promise.all(streams);
    this.#ended = status;
    for (const waiter of this.#waiters) waiter.reject(this.#endedError(waiter.pattern));
    return status;
  }

  async #read(stream: ReadableStream<Uint8Array<ArrayBuffer>>): Promise<void> {
    let rest = "";
    let begun = "";
    for await (const text of stream.pipeThrough(new TextDecoderStream())) {
      const lines = (rest + text).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) {
        const [, beginning = "", whole = begun + line] = KERNEL_LINE.exec(begun + line) ?? [];
        this.#addLine(whole);
        begun = beginning;
      }
      if (rest.length > MAX_CONSOLE) {
        this.#addLine(rest);
        rest = "";
      }
    }
    if (begun + rest !== "") this.#addLine(begun + rest);
  }

  #addLine(text: string): void {
    const line = text.replace(/\r+$/, "");
    this.#lines.push(line);
    this.#length += line.length + 1;
    while (this.#length > MAX_CONSOLE && this.#lines.length > 1) {
      this.#length -= (this.#lines.shift() ?? "").length + 1;
      this.#dropped++;
    }
    for (const waiter of this.#waiters) {
      if (line.search(waiter.pattern) >= 0) waiter.resolve(line);
    }
    this.onLine(line);
  }

  #endedError(pattern: RegExp): VmsgError {
    const status = this.#ended;
    const how = status?.signal ?? `code ${status?.code}`;
    return new VmsgError(
      "GUEST_ENDED",
      `the ${this.kind} guest ended (${how}) and said nothing like ${pattern}; ${this.#last()}`,
    );
  }

  #last(): string {
    const line = this.#lines.findLast((line) => line.trim() !== "");
    return line === undefined ? "it printed nothing" : `its last line: ${line.trim()}`;
  }
}

/**
 * Starts the process of a guest.
 *
 * @param keeper becomes the guest's, also when this fails
 */
export async function startGuest(
  command: GuestCommand,
  keeper: Keeper,
  onLine: (line: string) => void = () => {},
): Promise<Guest> {
  let child: Deno.ChildProcess;
  try {
    child = new Deno.Command(command.program, {
      args: [...command.args],
      env: command.env ?? {},
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
      detached: true,
    }).spawn();
  } catch (error) {
    await keeper[Symbol.asyncDispose]();
    throw error;
  }
  const kept = keeper.keep(child.pid);
  const guest = new Guest(command.kind, child, keeper, onLine);
  try {
    await kept;
  } catch (error) {
    child.kill("SIGKILL");
    await guest[Symbol.asyncDispose]();
    throw error;
  }
  return guest;
}
