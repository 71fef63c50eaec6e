/** `vmsg ctl`: asks a `vmsg device --control`. */

import { allocate } from "../linux/arena.ts";
import { UsageError, VmsgError } from "../linux/errors.ts";
import { EPOLLIN, Reactor } from "../linux/reactor.ts";
import { connectUnix } from "../linux/unix_socket.ts";
import { statusNames } from "../virtio/features.ts";
import type { Command } from "./command.ts";
import { type ControlAnswer, MAX_LINE, resultOf } from "./control/control_socket.ts";
import type { DeviceReport } from "./control/device_set.ts";
import { CONTROL_TEXT, requestOf } from "./control/request.ts";

/** A device that is slow to go, and what others have asked before. */
const PATIENCE_MS = 30_000;
/** Far more than 64 devices have to say. */
const MAX_ANSWER = 1 << 20;
const PIECE = 4096;

/** Sends one line to the socket and gives back the line that answers it. */
async function ask(path: string, line: string): Promise<string> {
  const bytes = new TextEncoder().encode(line + "\n");
  if (bytes.length > MAX_LINE) throw new UsageError(`more than ${MAX_LINE} bytes are too many`);
  using reactor = new Reactor();
  using stream = connectUnix(path);
  if (stream === undefined) {
    throw new VmsgError("NO_CONTROL", `nobody listens on ${path}: vmsg device --control ${path}`);
  }
  const block = allocate(MAX_LINE);
  block.bytes.set(bytes);
  stream.send(block.address, bytes.length);
  const answered = reactor.defer<string>();
  const end = (why: string) => answered.reject(new VmsgError("NO_ANSWER", `${path}: ${why}`));
  reactor.timer(() => end(`no answer within ${PATIENCE_MS / 1000} s`)).arm(PATIENCE_MS);
  const decoder = new TextDecoder();
  let text = "";
  reactor.watch(stream.fd, EPOLLIN, () => {
    const count = stream.receive(block.address, PIECE);
    if (count === 0) return end("it hung up without an answer; perhaps it has too many clients");
    if (count > 0) text += decoder.decode(block.bytes.subarray(0, count), { stream: true });
    if (text.endsWith("\n")) answered.resolve(text);
    else if (text.length > MAX_ANSWER) end("its answer does not end");
  });
  return await reactor.until(answered.promise);
}

function describe({ number, kind, description, status }: DeviceReport): string {
  const driver = status === 0 ? "no driver" : statusNames(status).join(" ");
  return [String(number), kind, description, driver].join("\t");
}

/** What is printed for people. */
function linesOf(verb: string, result: unknown): string[] {
  if (verb === "list") return (result as DeviceReport[]).map(describe);
  if (verb !== "add") return [];
  const { number, description } = result as { number: number; description: string };
  return [`device ${number}: ${description}`];
}

/** See `vmsg ctl --help`. */
export const ctlCommand: Command = {
  ...CONTROL_TEXT,
  run: async (options) => {
    const [path, ...words] = options.operands;
    if (path === undefined) throw new UsageError("PATH is missing; see: vmsg ctl --help");
    const request = requestOf(options, words);
    if (request.verb === "add") {
      words.push(
        ...request.device.startsWith("--net ")
          ? ["--net", request.device.slice(6)]
          : ["--device", request.device],
      );
      if (request.number !== undefined) words.push("--number", String(request.number));
    }
    const answer: ControlAnswer = JSON.parse(await ask(path, JSON.stringify(words)));
    const result = resultOf(answer);
    if (options.flag("json")) console.log(JSON.stringify(result));
    else for (const line of linesOf(request.verb, result)) console.log(line);
    return 0;
  },
};
