/**
 * DPDK's testpmd, which polls its ports and never waits.
 *
 * It runs without huge pages (`--no-huge`): its memory is then one memfd, which it can share. It is told what to do on its
 * standard input, and its figures are read as it prints them.
 */

import { assert } from "@std/assert";
import { delay, PATIENCE_MS } from "../support/processes.ts";

export const TESTPMD_PROGRAMS = { "dpdk-testpmd": "dpdk-dev", stdbuf: "coreutils" };

/**
 * Starts it in a directory, with one port; whoever starts it has a keeper keep it.
 *
 * @param port DPDK's name of it, and its options
 * @param args of its memory, and its own behind `--`
 */
export function startTestpmd(directory: string, port: string, ...args: string[]): Testpmd {
  const own = args.indexOf("--") + 1;
  return new Testpmd(
    new Deno.Command("stdbuf", {
      args: [
        ...["-oL", "dpdk-testpmd", "--no-huge", "--no-pci", "--no-telemetry"],
        // Both of its threads on one processor: the one that polls takes all it gets.
        ...["--lcores", "0@0,1@0", "--vdev", port],
        ...[...args.slice(0, own), "-i", ...args.slice(own)],
      ],
      cwd: directory,
      // It leaves files there.
      env: { RUNTIME_DIRECTORY: directory },
      stdin: "piped",
      stdout: "piped",
      stderr: "piped",
      detached: true,
    }).spawn(),
  );
}

/** A conversation with testpmd. Dispose kills it and returns when it is gone. */
export class Testpmd implements AsyncDisposable {
  readonly #writer: WritableStreamDefaultWriter<Uint8Array<ArrayBuffer>>;
  readonly ended: Promise<Deno.CommandStatus>;
  /** What it said on its standard output, which is waited for, and what on the other one: its lines come in between. */
  text = "";
  errors = "";

  constructor(readonly child: Deno.ChildProcess) {
    this.#writer = child.stdin.getWriter();
    const follow = async (
      stream: ReadableStream<Uint8Array<ArrayBuffer>>,
      said: "text" | "errors",
    ) => {
      for await (const text of stream.pipeThrough(new TextDecoderStream())) this[said] += text;
    };
    this.ended = Promise.all([follow(child.stdout, "text"), follow(child.stderr, "errors")]).then(
      () => child.status,
    );
  }

  /** Says a line, and returns what it answers up to `until`. */
  async say(line: string, until: RegExp): Promise<string> {
    const { length } = this.text;
    await this.#writer.write(new TextEncoder().encode(`${line}\n`));
    return await this.waitFor(until, length);
  }

  async waitFor(pattern: RegExp, after = 0): Promise<string> {
    const deadlineMs = performance.now() + PATIENCE_MS;
    for (;;) {
      const text = this.text.slice(after);
      if (text.search(pattern) >= 0) return text;
      assert(
        performance.now() < deadlineMs,
        `testpmd said nothing like ${pattern}: ${this.text}${this.errors}`,
      );
      await delay(10);
    }
  }

  /** The port's counts since testpmd started. */
  async packets(): Promise<{ received: number; sent: number }> {
    const text = await this.say("show port stats 0", /Tx-pps.*\n.*####/);
    const count = (name: string) =>
      Number(text.match(new RegExp(`${name}-packets:\\s+(\\d+)`))![1]);
    return { received: count("RX"), sent: count("TX") };
  }

  /** How many of them each queue sent. */
  async sentByQueue(): Promise<number[]> {
    const text = await this.say("show port xstats 0", /tx_q0_.*[^]*testpmd> /);
    return [...text.matchAll(/^tx_q\d+_good_packets: (\d+)/gm)].map(([, count]) => Number(count));
  }

  async quit(): Promise<Deno.CommandStatus> {
    await this.say("quit", /Bye/);
    await this.#writer.close().catch(() => {});
    return await this.ended;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      this.child.kill("SIGKILL");
    } catch {
      // It has ended.
    }
    await this.#writer.close().catch(() => {});
    await this.ended;
  }
}
