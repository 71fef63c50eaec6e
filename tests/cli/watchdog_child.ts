/** A thread that blocks as it is told: a Worker of watchdog_test.ts. */

import { allocate } from "../../src/linux/arena.ts";
import { Fd } from "../../src/linux/fd.ts";
import { libc } from "../../src/linux/libc.ts";
import { threadId } from "../../src/linux/process_files.ts";
import { EPOLLIN, Reactor } from "../../src/linux/reactor.ts";

interface WorkerScope {
  onmessage: (event: MessageEvent<[number, "read" | "turn"]>) => void;
  postMessage(thread: number): void;
}

const scope = globalThis as unknown as WorkerScope;
scope.onmessage = ({ data: [number, how] }) => {
  scope.postMessage(threadId());
  if (how === "read") return void libc.read(number, allocate(8).address, 8);
  const reactor = new Reactor();
  reactor.watch(new Fd(number), EPOLLIN, () => {});
  reactor.turn();
};
