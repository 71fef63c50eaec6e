/** Starting vmsg from vmsg: the demos run the same program in several processes. */

import { fromFileUrl } from "@std/path";
import { TextLineStream } from "@std/streams/text-line-stream";

/** What a data plane subcommand without programs may do; reading is for the Worker's module. */
const PERMISSIONS = ["--no-prompt", "--allow-ffi", "--allow-read", "--allow-env"];

export function selfCommand(args: readonly string[], options: Deno.CommandOptions): Deno.Command {
  const program = Deno.build.standalone
    ? []
    : ["run", "--quiet", ...PERMISSIONS, fromFileUrl(new URL("../main.ts", import.meta.url))];
  return new Deno.Command(Deno.execPath(), { ...options, args: [...program, ...args] });
}

/** Until the user interrupts: resolves to the exit code of what was interrupted. */
export function untilInterrupted(): Promise<number> & Disposable {
  const { promise, resolve } = Promise.withResolvers<number>();
  const onSignal = () => resolve(130);
  const signals: Deno.Signal[] = ["SIGINT", "SIGTERM"];
  for (const signal of signals) Deno.addSignalListener(signal, onSignal);
  return Object.assign(promise, {
    [Symbol.dispose]: () => {
      for (const signal of signals) Deno.removeSignalListener(signal, onSignal);
    },
  });
}

export async function eachLine(
  stream: ReadableStream<Uint8Array<ArrayBuffer>>,
  onLine: (line: string) => void,
): Promise<void> {
  const text: ReadableStream<string> = stream.pipeThrough(new TextDecoderStream());
  const lines: ReadableStream<string> = text.pipeThrough(new TextLineStream());
  for await (const line of lines) onLine(line);
}
