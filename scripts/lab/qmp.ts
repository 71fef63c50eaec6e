/**
 * QEMU's control protocol (QMP), as much of it as gives commands: JSON messages, one a line, over a
 * Unix socket. QEMU greets, wants `qmp_capabilities`, then answers each command in turn; events may
 * come between.
 *
 * QEMU serves one client at a time and the next one afterwards, so every command has a connection
 * of its own: there is nothing to keep open or to close.
 */

import { VmsgError } from "../../src/linux/errors.ts";

/** The arguments of a command. */
export type QmpArguments = Readonly<Record<string, unknown>>;

interface QmpMessage {
  readonly QMP?: unknown;
  readonly event?: string;
  readonly return?: unknown;
  readonly error?: { readonly desc: string };
}

/** A QEMU that is there answers at once, unless its machine has no time for it. */
const TIMEOUT_MS = 180_000;
const RETRY_MS = 20;

/**
 * Gives one command and returns QEMU's answer. A QEMU that has just been started makes its socket a
 * little later, which is waited for.
 *
 * @param path the socket
 * @param command as in "system_reset"
 * @throws VmsgError QMP
 */
export async function qmpCommand(
  path: string,
  command: string,
  args?: QmpArguments,
  timeoutMs: number = TIMEOUT_MS,
): Promise<unknown> {
  const fail = (reason: string) => new VmsgError("QMP", `QEMU's command ${command}: ${reason}`);
  const endMs = performance.now() + timeoutMs;
  const connection = await connect(path, endMs);
  if (connection === undefined) throw fail(`nobody listens on ${path}`);
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    connection.close();
  }, endMs - performance.now());
  try {
    const channel = new QmpChannel(connection);
    const greeting = await channel.next();
    if (greeting?.QMP === undefined) throw fail("QEMU did not greet");
    await channel.ask({ execute: "qmp_capabilities" });
    const question = { execute: command, ...(args === undefined ? {} : { arguments: args }) };
    const answer = await channel.ask(question);
    if (answer?.error !== undefined) throw fail(answer.error.desc);
    // After quit QEMU may be gone before its answer is.
    if (answer === undefined && command !== "quit") throw fail("QEMU has ended");
    return answer?.return;
  } catch (error) {
    if (error instanceof VmsgError) throw error;
    if (late) throw fail(`no answer within ${timeoutMs / 1000} s`);
    throw fail((error as Error).message);
  } finally {
    clearTimeout(timer);
    if (!late) connection.close();
  }
}

async function connect(path: string, endMs: number): Promise<Deno.UnixConn | undefined> {
  for (;;) {
    try {
      return await Deno.connect({ transport: "unix", path });
    } catch {
      if (performance.now() > endMs) return undefined;
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }
}

/** Messages over a connection. */
class QmpChannel {
  readonly #decoder = new TextDecoder();
  #buffered = "";

  constructor(private readonly connection: Deno.UnixConn) {}

  /** Sends a command; the next message that is no event answers it, if QEMU does not hang up. */
  async ask(message: unknown): Promise<QmpMessage | undefined> {
    const bytes = new TextEncoder().encode(JSON.stringify(message) + "\n");
    for (let done = 0; done < bytes.length;) {
      done += await this.connection.write(bytes.subarray(done));
    }
    for (;;) {
      const answer = await this.next();
      if (answer?.event === undefined) return answer;
    }
  }

  /** The next message, or undefined when QEMU has hung up. */
  async next(): Promise<QmpMessage | undefined> {
    const chunk = new Uint8Array(4096);
    while (!this.#buffered.includes("\n")) {
      const length = await this.connection.read(chunk);
      if (length === null) return undefined;
      this.#buffered += this.#decoder.decode(chunk.subarray(0, length), { stream: true });
    }
    const end = this.#buffered.indexOf("\n");
    const line = this.#buffered.slice(0, end);
    this.#buffered = this.#buffered.slice(end + 1);
    return JSON.parse(line);
  }
}
